//! The command line of `tael work`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args, Subcommand};

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::cli::help::Page;
use crate::error::{Error, Result};
use crate::model::{duration, topic};
use crate::os::paths;
use crate::store::unit_dir::stream::Stream;
use crate::tools::work::{self, Scope, Verb};

/// Options of `tael work`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct Work {
    #[command(subcommand)]
    verb: Verbs,
    /// Name of the pipeline [default: all of this host]
    #[arg(long, value_name = "NAME", global = true)]
    who: Option<String>,
    /// Configuration file
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verbs {
    /// List runs, oldest first
    List {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show everything known about a run
    Status {
        /// Id of the run
        unit: String,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print the output of a run, and exit with its code, or with 125 if it has none yet
    Results {
        /// Id of the run
        unit: String,
        /// Print standard error instead of standard output
        #[arg(long)]
        stderr: bool,
        /// Follow the output until the run ends
        #[arg(short, long)]
        follow: bool,
        /// Start at this byte
        #[arg(long, value_name = "OFFSET", default_value = "0")]
        from: u64,
    },
    /// End a run: TERM, grace, KILL to every process that descends from its command
    Cancel {
        /// Id of the run
        unit: String,
        /// Maximum time to wait for its end
        #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "60s")]
        timeout: Duration,
    },
    /// End a run if it still runs, and delete everything that is kept of it
    Release {
        /// Id of the run
        unit: String,
        /// Maximum time to wait for its end
        #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "60s")]
        timeout: Duration,
    },
    /// Do the same, and go on after errors
    ForceRelease {
        /// Id of the run
        unit: String,
        /// Maximum time to wait for its end
        #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "10s")]
        timeout: Duration,
    },
}

impl Tool for Work {
    const NAME: &'static str = "work";
    const ABOUT: &'static str = "Show and end the runs of this host";

    const HELP: Page = Page {
        first: &[],
        groups: &[],
        examples: &[
            "tael work list --who align",
            "tael work results 01JBV7Y3ZK8Q5W2N4T6R9M1XCD --follow",
            "tael work cancel 01JBV7Y3ZK8Q5W2N4T6R9M1XCD",
        ],
    };

    fn run(self, _: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        if let Some(who) = &self.who {
            topic::check_who(who).map_err(Error::usage)?;
        }
        let scope = Scope {
            state: paths::state_dir()?,
            who: self.who,
        };
        let verb = match self.verb {
            Verbs::List { json } => Verb::List { json },
            Verbs::Status { unit, json } => Verb::Status { unit, json },
            Verbs::Results {
                unit,
                stderr,
                follow,
                from,
            } => Verb::Results {
                unit,
                stream: if stderr {
                    Stream::Stderr
                } else {
                    Stream::Stdout
                },
                follow,
                from,
            },
            Verbs::Cancel { unit, timeout } => Verb::Cancel { unit, timeout },
            Verbs::Release { unit, timeout } => Verb::Release {
                unit,
                force: false,
                timeout,
            },
            Verbs::ForceRelease { unit, timeout } => Verb::Release {
                unit,
                force: true,
                timeout,
            },
        };
        work::run(&scope, &verb)
    }
}
