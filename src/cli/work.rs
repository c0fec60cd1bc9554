//! The command line of `tael work`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args, Subcommand};

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::error::{Error, Result};
use crate::model::{duration, topic};
use crate::os::paths;
use crate::store::unit_dir::Stream;
use crate::tools::work::{self, Scope, Verb};

/// Options of `tael work`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct Work {
    #[command(subcommand)]
    verb: Verbs,
    /// Look at this pipeline only
    #[arg(long, value_name = "NAME", global = true)]
    who: Option<String>,
    /// Configuration file
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verbs {
    /// List units, oldest first
    List {
        /// One JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show all that is known of a unit
    Status {
        /// Id of the unit
        unit: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print what a unit wrote, and exit with its code; 125 if it has none (yet)
    Results {
        /// Id of the unit
        unit: String,
        /// Its standard error instead of its standard output
        #[arg(long)]
        stderr: bool,
        /// Go on until the unit ends
        #[arg(short, long)]
        follow: bool,
        /// Begin at this byte
        #[arg(long, value_name = "OFFSET", default_value = "0")]
        from: u64,
    },
    /// End a unit: TERM, grace, KILL to all that descends from its command
    Cancel {
        /// Id of the unit
        unit: String,
        /// How long to wait for its end
        #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "60s")]
        timeout: Duration,
    },
    /// End a unit if need be, and delete all that is kept of it
    Release {
        /// Id of the unit
        unit: String,
        /// How long to wait for its end
        #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "60s")]
        timeout: Duration,
    },
    /// The same, whatever goes wrong
    ForceRelease {
        /// Id of the unit
        unit: String,
        /// How long to wait for its end
        #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "10s")]
        timeout: Duration,
    },
}

impl Tool for Work {
    const NAME: &'static str = "work";
    const ABOUT: &'static str = "List, read, cancel and release the units of this host";

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
