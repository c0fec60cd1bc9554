//! The command line of `tael forget`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args};

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::cli::connection::{self, Connection, Root};
use crate::cli::help::Page;
use crate::error::{Error, Result};
use crate::model::roots::Content;
use crate::model::{duration, topic};
use crate::tools::forget::{self, Options};

/// Options of `tael forget`.
#[derive(Debug, Args)]
pub struct Forget {
    /// Names of the pipelines
    #[arg(required = true, value_name = "WHO")]
    who: Vec<String>,
    /// Forget also a pipeline that is online; it comes back when its client connects again
    #[arg(long)]
    force: bool,
    /// Maximum time for the broker to answer
    #[arg(long, value_parser = duration::parse_wait, value_name = "DURATION", default_value = "10s")]
    timeout: Duration,
    #[command(flatten)]
    root: Root,
    #[command(flatten)]
    connection: Connection,
}

impl Tool for Forget {
    const NAME: &'static str = "forget";
    const ABOUT: &'static str =
        "Forget pipelines that are gone for good: clear their retained messages";

    const HELP: Page = Page {
        first: &[
            "force",
            "timeout",
            "broker",
            "username",
            "password-file",
            "root",
        ],
        groups: &[],
        examples: &[
            "tael forget align",
            "tael forget align sort --root lab",
            "tael status --root lab --prune 30d",
        ],
    };

    fn run(self, matches: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        let broker = self.connection.resolve(matches, connection::random_id())?;
        for who in &self.who {
            topic::check_who(who).map_err(|e| Error::usage(format!("forget: {e}")))?;
        }
        // A name that is below several roots is ambiguous also beside one that is not.
        let mut root = None;
        for who in &self.who {
            let content = Content::Pipeline(who.clone());
            let found = self.root.clone().find(&broker, &content, self.timeout)?;
            root.get_or_insert(found);
        }
        forget::run(&Options {
            root: root.unwrap_or_default(),
            broker,
            who: self.who,
            force: self.force,
            timeout: self.timeout,
        })
    }
}
