//! The command line of `tael watch`.

use std::process::ExitCode;

use clap::{ArgMatches, Args};

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::cli::connection::{self, Connection, Root};
use crate::cli::help::Page;
use crate::cli::values::one_of;
use crate::error::{Error, Result};
use crate::model::message::Qos;
use crate::model::topic::{Filter, check_root};
use crate::tools::watch::{self, Options};

/// Options of `tael watch`.
#[derive(Debug, Args)]
pub struct Watch {
    /// MQTT topic filter to subscribe to; repeatable [default: ROOT/# with --root, otherwise #]
    #[arg(short, long, num_args = 1.., value_name = "FILTER", action = clap::ArgAction::Append)]
    topic: Vec<String>,
    /// Hide messages whose topic or payload contains TEXT; repeatable
    #[arg(long, value_name = "TEXT", action = clap::ArgAction::Append)]
    drop: Vec<String>,
    /// Show also what is hidden otherwise: last ends, the attributes of presences, ts and the like,
    /// and whole topics
    #[arg(long)]
    all: bool,
    /// Print one JSON object a line, of every message
    #[arg(long)]
    json: bool,
    /// Exit after N lines
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
    /// Quality of service of deliveries, 1 at most
    #[arg(short, long, value_parser = one_of(connection::qos, connection::QOS), default_value = "0")]
    qos: Qos,
    #[command(flatten)]
    root: Root,
    #[command(flatten)]
    connection: Connection,
}

impl Tool for Watch {
    const NAME: &'static str = "watch";
    const ABOUT: &'static str = "Show the messages of the network live";

    const HELP: Page = Page {
        first: &[
            "topic",
            "drop",
            "all",
            "json",
            "count",
            "broker",
            "username",
            "password-file",
            "root",
        ],
        groups: &[],
        examples: &["tael watch -t 'lab/#'", "tael watch --root lab --count 10"],
    };

    const DAEMON: bool = true;

    fn run(self, matches: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        let broker = self.connection.resolve(matches, connection::random_id())?;
        let filters = match (&self.topic[..], &self.root.root) {
            ([], Some(root)) => {
                check_root(root).map_err(|e| Error::usage(e).about("root"))?;
                vec![format!("{root}/#")]
            }
            ([], None) => vec!["#".to_owned()],
            (list, _) => list.to_vec(),
        };
        let filters = filters
            .into_iter()
            .map(Filter::new)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| Error::usage(format!("watch: {e}")).about("topic"))?;
        watch::run(&Options {
            broker,
            filters,
            qos: self.qos,
            drop: self.drop,
            all: self.all,
            json: self.json,
            count: self.count,
        })
    }
}
