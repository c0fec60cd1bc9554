//! The command line of `tael pair`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args};

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::cli::connection::{self, Connection, Root};
use crate::cli::help::Page;
use crate::error::{Error, Result};
use crate::model::duration;
use crate::model::pair::{self as model, check_name};
use crate::tools::pair::{self, Options};

/// Options of `tael pair`.
#[derive(Debug, Args)]
pub struct Pair {
    /// Name of the pair; the other end gives the same
    #[arg(value_name = "NAME")]
    pair: String,
    /// Command for the shell whose input and output are connected [default: those of tael]
    #[arg(short, long, value_name = "CMD")]
    command: Option<String>,
    /// Maximum time until the other end comes [default: no limit]
    #[arg(long, value_parser = duration::parse, value_name = "DURATION")]
    timeout: Option<Duration>,
    /// Report the states of the pair on stderr, one JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    root: Root,
    #[command(flatten)]
    connection: Connection,
}

impl Tool for Pair {
    const NAME: &'static str = "pair";
    const ABOUT: &'static str = "Connect two processes by a pipe over the broker, and no third";

    const HELP: Page = Page {
        first: &[
            "command",
            "timeout",
            "json",
            "broker",
            "username",
            "password-file",
            "root",
        ],
        groups: &[],
        examples: &[
            "tar c run7 | tael pair copy --root lab",
            "tael pair copy --root lab </dev/null | tar x",
            "tael pair rescue --root lab -c 'nc -N localhost 22'",
        ],
    };

    fn run(self, matches: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        check_name(&self.pair).map_err(Error::usage)?;
        if connection::rank(matches, "id") == 2 {
            return Err(Error::usage(
                "pair takes no --id: its identifiers exclude a third end",
            ));
        }
        if self
            .command
            .as_ref()
            .is_some_and(|line| line.trim().is_empty())
        {
            return Err(Error::usage("the command is empty"));
        }
        self.connection.check_session(matches)?;
        let mut broker = self.connection.resolve(matches, connection::random_id())?;
        // TAEL_ID may be set for other commands.
        broker.client_id = connection::random_id();
        let root = self.root.resolve()?;
        pair::run(&Options {
            broker,
            pair: model::Pair::new(&root, &self.pair),
            root,
            command: self.command,
            timeout: self.timeout,
            json: self.json,
        })
    }
}
