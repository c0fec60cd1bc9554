//! The command line of `tael events`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args};

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::cli::help::Page;
use crate::error::{Error, Result};
use crate::model::note::Fate;
use crate::model::{duration, topic};
use crate::os::paths;
use crate::tools::events::{self, MAX_LINES, Options};
use crate::tools::work::Scope;

/// Options of `tael events`.
#[derive(Debug, Args)]
pub struct Events {
    /// Name of the pipeline [default: all of this host]
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
    /// Name of the trigger: shows also what it ignores and another one takes
    #[arg(long, value_name = "NAME")]
    trigger: Option<String>,
    /// Show accepted messages
    #[arg(long)]
    accepted: bool,
    /// Show messages that came before
    #[arg(long)]
    duplicate: bool,
    /// Show messages that should have run and could not
    #[arg(long)]
    refused: bool,
    /// Show messages that no trigger waits for
    #[arg(long)]
    ignored: bool,
    /// Show messages of this time, such as 2d
    #[arg(long, value_parser = duration::parse, value_name = "DURATION")]
    since: Option<Duration>,
    /// Show the newest N messages; 0 with --follow shows only what comes
    #[arg(short = 'n', long, value_name = "N", default_value = "50")]
    lines: usize,
    /// Go on with what comes, and say how the runs end
    #[arg(short, long)]
    follow: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// State folder [default: that of the client, $STATE_DIRECTORY or ~/.local/state/tael]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Tool for Events {
    const NAME: &'static str = "events";
    const ABOUT: &'static str = "Show which messages came, what became of them, and why";

    const HELP: Page = Page {
        first: &[],
        groups: &[],
        examples: &[
            "tael events --who align",
            "tael events --who align --refused --ignored --follow",
            "tael events --since 2d --json",
        ],
    };

    fn run(self, _: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        if let Some(who) = &self.who {
            topic::check_who(who).map_err(|e| Error::usage(e).about("who"))?;
        }
        if self.lines > MAX_LINES {
            let cause = format!("--lines has 0 to {MAX_LINES}");
            return Err(Error::usage(cause).about("lines"));
        }
        let chosen = [self.accepted, self.duplicate, self.refused, self.ignored];
        let chosen = Fate::ALL.into_iter().zip(chosen);
        let state = match self.state {
            Some(state) => state,
            None => paths::state_dir()?,
        };
        events::run(&Options {
            scope: Scope {
                state,
                who: self.who,
            },
            lines: self.lines,
            since: self.since,
            fates: chosen
                .filter_map(|(fate, chosen)| chosen.then_some(fate))
                .collect(),
            trigger: self.trigger,
            follow: self.follow,
            json: self.json,
        })
    }
}
