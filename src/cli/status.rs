//! The command line of `tael status`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args};

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::cli::connection::{self, Connection, Root};
use crate::cli::help::Page;
use crate::cli::values::one_of;
use crate::error::{Error, Result};
use crate::model::roots::Content;
use crate::model::{duration, topic};
use crate::tools::status::{self, Form, Options};

/// Options of `tael status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Show this pipeline only
    #[arg(long, value_name = "NAME", conflicts_with_all = ["graph", "prune"])]
    who: Option<String>,
    /// Show versions too, and the topics of pipelines instead of their names
    #[arg(long)]
    all: bool,
    /// Print a JSON array, one object a pipeline
    #[arg(long, conflicts_with = "graph")]
    json: bool,
    /// Draw which pipeline starts which: mermaid, dot or svg
    #[arg(long, value_parser = one_of(graph, &["mermaid", "dot", "svg"]), value_name = "FORM", num_args = 0..=1, default_missing_value = "mermaid")]
    graph: Option<Form>,
    /// Forget the pipelines that were stopped longer ago than DURATION, and list those only
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", conflicts_with = "graph")]
    prune: Option<Duration>,
    /// Maximum time to wait for the broker
    #[arg(long, value_parser = duration::parse_wait, value_name = "DURATION", default_value = "10s")]
    timeout: Duration,
    #[command(flatten)]
    root: Root,
    #[command(flatten)]
    connection: Connection,
}

fn graph(text: &str) -> Result<Form, String> {
    match text {
        "mermaid" => Ok(Form::Mermaid),
        "dot" => Ok(Form::Dot),
        "svg" => Ok(Form::Svg),
        _ => Err(format!(
            "'{text}' is not a form of a graph: mermaid, dot or svg"
        )),
    }
}

impl Tool for Status {
    const NAME: &'static str = "status";
    const ABOUT: &'static str = "List every pipeline of a root, and how its last run ended";

    const HELP: Page = Page {
        first: &[
            "who",
            "all",
            "json",
            "graph",
            "prune",
            "timeout",
            "broker",
            "username",
            "password-file",
            "root",
        ],
        groups: &[],
        examples: &[
            "tael status --root lab",
            "tael status --root lab --graph svg >lab.svg",
            "tael status --root lab --prune 30d",
        ],
    };

    fn run(self, matches: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        let broker = self.connection.resolve(matches, connection::random_id())?;
        let table = if self.json { Form::Json } else { Form::Table };
        let content = match &self.who {
            Some(who) => {
                topic::check_who(who).map_err(Error::usage)?;
                Content::Pipeline(who.clone())
            }
            None => Content::Pipelines,
        };
        let root = self.root.find(&broker, &content, self.timeout)?;
        status::run(&Options {
            broker,
            root,
            who: self.who,
            form: self.graph.unwrap_or(table),
            all: self.all,
            prune: self.prune,
            timeout: self.timeout,
        })
    }
}
