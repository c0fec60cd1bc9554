//! The command line of `tael work`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args, Subcommand};

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::cli::help::Page;
use crate::cli::submit::SubmitOptions;
use crate::cli::work_node::{Broker, NodeOptions, whole_id};
use crate::error::{Error, Result};
use crate::model::remote::wire::StreamName;
use crate::model::text::printable;
use crate::model::unit::State;
use crate::model::{duration, topic};
use crate::os::paths;
use crate::store::unit_dir::stream::Stream;
use crate::tools::work::node::{self, Task};
use crate::tools::work::{self, Filter, LeaveOut, Runs, Scope, Verb, Which};

/// Options of `tael work`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct Work {
    #[command(subcommand)]
    verb: Verbs,
    /// Name of the pipeline [default: all of this host]
    #[arg(long, value_name = "NAME", global = true)]
    who: Option<String>,
    /// Folder of the state, written with a slash [default: that of this user]; with list also a state of
    /// runs: pending, running, succeeded, failed or canceled; repeatable
    #[arg(long, value_name = "DIR", global = true, action = clap::ArgAction::Append)]
    state: Vec<String>,
    #[command(flatten)]
    broker: Broker,
}

/// The run that a command is about.
#[derive(Debug, Args)]
struct Unit {
    /// Its id, the beginning or end of its id, or 'latest' [default: latest]
    unit: Option<String>,
    /// Take the newest run that has failed
    #[arg(long)]
    failed: bool,
}

#[derive(Debug, Subcommand)]
enum Verbs {
    /// Start work of a type that a running client has, here or on another node
    Submit(Box<SubmitOptions>),
    /// List runs, newest last
    List {
        /// List failed runs only, unless a retry has succeeded
        #[arg(long)]
        failed: bool,
        /// List what waited or ran within this time, such as 2d
        #[arg(long, value_parser = duration::parse, value_name = "DURATION")]
        since: Option<Duration>,
        /// List the newest N runs only
        #[arg(short = 'n', long, value_name = "N")]
        lines: Option<u64>,
        /// List runs that contain TEXT: in id, pipeline, trigger, topic, attributes, command or note.
        /// Without capitals in TEXT, case does not matter
        #[arg(long, value_name = "TEXT")]
        grep: Option<String>,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        node: NodeOptions,
    },
    /// Show everything known about a run
    Status {
        #[command(flatten)]
        which: Unit,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
        /// Print the payload of its message, byte for byte
        #[arg(long, conflicts_with = "json")]
        payload: bool,
        #[command(flatten)]
        node: NodeOptions,
    },
    /// Print the output of a run, and exit with its code, or with 125 if it has none yet. The latest run
    /// is the newest one that has begun
    Results {
        #[command(flatten)]
        which: Unit,
        /// Print standard error instead of standard output
        #[arg(long)]
        stderr: bool,
        /// Print both, in the order of writing, as far as it was noted
        #[arg(long, conflicts_with_all = ["stderr", "from"])]
        both: bool,
        /// Follow the output until the run ends
        #[arg(short, long)]
        follow: bool,
        /// Start at this byte
        #[arg(long, value_name = "OFFSET", default_value = "0")]
        from: u64,
        #[command(flatten)]
        node: NodeOptions,
    },
    /// Run the events of runs that have ended again, with or without a running client
    Retry {
        /// Their ids, the beginnings or ends of their ids, or 'latest' [default: latest]
        #[arg(value_name = "UNIT")]
        units: Vec<String>,
        /// Take the newest run that has failed and was not retried
        #[arg(long, conflicts_with = "units")]
        failed: bool,
        /// With --failed: take all that have failed and were not retried
        #[arg(long, requires = "failed", conflicts_with = "again")]
        all: bool,
        /// With --failed: take all that ended within this time, such as 12h
        #[arg(long, requires = "failed", conflicts_with = "again", value_parser = duration::parse, value_name = "DURATION")]
        since: Option<Duration>,
        /// With --failed: take all that contain TEXT, as in list
        #[arg(
            long,
            requires = "failed",
            conflicts_with = "again",
            value_name = "TEXT"
        )]
        grep: Option<String>,
        /// Do so also if the run has succeeded, or was retried already
        #[arg(long)]
        again: bool,
        /// Print a JSON object for each
        #[arg(long)]
        json: bool,
    },
    /// End a run: TERM, grace, KILL to every process that descends from its command
    Cancel {
        /// Its id, the beginning or end of its id, or 'latest' [default: the only one that runs]
        unit: Option<String>,
        /// Maximum time to wait for its end
        #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "60s")]
        timeout: Duration,
        #[command(flatten)]
        node: NodeOptions,
    },
    /// End a run if it still runs, and delete everything that is kept of it
    Release {
        /// Its id, the beginning or end of its id, or 'latest'
        unit: String,
        /// Maximum time to wait for its end
        #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "60s")]
        timeout: Duration,
        #[command(flatten)]
        node: NodeOptions,
    },
    /// Do the same, and go on after errors
    ForceRelease {
        /// Its id, the beginning or end of its id, or 'latest'
        unit: String,
        /// Maximum time to wait for its end
        #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "10s")]
        timeout: Duration,
    },
}

impl Unit {
    fn which(self) -> Result<Which> {
        let which = Which {
            unit: self.unit,
            failed: self.failed,
        };
        match which.failed && !which.is_newest() {
            true => Err(Error::usage(
                "--failed takes no unit: it names the newest one",
            )),
            false => Ok(which),
        }
    }
}

/// Returns the folder and the states of runs that `--state` names.
fn states(list: Vec<String>, lists: bool) -> Result<(Option<PathBuf>, Vec<State>)> {
    let (mut folder, mut states) = (None, Vec::new());
    for word in list {
        if word.contains('/') || word == "." || word == ".." {
            let path = std::path::absolute(&word);
            folder = Some(path.map_err(|e| Error::usage(format!("find '{word}': {e}")))?);
            continue;
        }
        match State::from_name(&word) {
            Some(state) if lists => states.push(state),
            Some(_) => {
                return Err(Error::usage(
                    "--state with a state of runs goes with list only",
                ));
            }
            None => {
                let word = printable(&word, 80);
                return Err(Error::usage(format!(
                    "--state '{word}' is no state of runs (pending, running, succeeded, failed, \
                     canceled) and no folder: write ./{word} for that"
                )));
            }
        }
    }
    Ok((folder, states))
}

/// Maximum time for a node to answer, where no option says it.
const NODE_TIMEOUT: Duration = Duration::from_secs(10);

impl Verbs {
    /// Takes the options for another node, and the maximum time for its answer.
    fn node(&mut self) -> (NodeOptions, Duration) {
        match self {
            // Otherwise a client of this host asks.
            Self::Submit(submit) if submit.direct => {
                (std::mem::take(&mut submit.node), submit.timeout())
            }
            Self::Cancel { node, timeout, .. } | Self::Release { node, timeout, .. } => {
                (std::mem::take(node), *timeout)
            }
            Self::List { node, .. } | Self::Status { node, .. } | Self::Results { node, .. } => {
                (std::mem::take(node), NODE_TIMEOUT)
            }
            Self::Submit(_) | Self::Retry { .. } | Self::ForceRelease { .. } => {
                (NodeOptions::default(), NODE_TIMEOUT)
            }
        }
    }

    /// Returns what another node is asked for.
    fn task(self) -> Result<Task> {
        let unit = |which: Unit| match which.failed {
            true => Err(Error::usage("--failed does not go with --node")),
            false => whole_id(which.unit),
        };
        Ok(match self {
            Self::Submit(submit) => Task::Submit(Box::new(submit.direct()?)),
            Self::Status {
                which,
                json,
                payload: false,
                ..
            } => Task::Status {
                unit: unit(which)?,
                json,
            },
            Self::Results {
                which,
                stderr,
                both,
                follow,
                from: 0,
                ..
            } => Task::Results {
                unit: unit(which)?,
                stream: match (both, stderr) {
                    (true, _) => None,
                    (false, true) => Some(StreamName::Stderr),
                    (false, false) => Some(StreamName::Stdout),
                },
                follow,
            },
            Self::List {
                failed,
                since: None,
                lines: None,
                grep: None,
                json,
                ..
            } => Task::List { failed, json },
            Self::List { .. } => {
                return Err(Error::usage("--since, -n and --grep do not go with --node"));
            }
            Self::Cancel { unit, .. } => Task::Cancel {
                unit: whole_id(unit)?,
            },
            Self::Release { unit, .. } => Task::Release {
                unit: whole_id(Some(unit))?,
            },
            Self::Status { .. } | Self::Results { .. } => {
                return Err(Error::usage("--payload and --from do not go with --node"));
            }
            Self::Retry { .. } | Self::ForceRelease { .. } => {
                return Err(Error::bug("ask a node for another verb"));
            }
        })
    }
}

impl Tool for Work {
    const NAME: &'static str = "work";
    const ABOUT: &'static str = "Submit work; show, end and retry the runs of this host";

    const HELP: Page = Page {
        first: &[],
        groups: &[],
        examples: &[
            "tael work list --since 2d --failed",
            "tael work submit --node node7 --follow align -p reads.txt",
            "tael work results --failed --both",
            "tael work status M1XCD",
            "tael work retry --failed --who align",
        ],
    };

    fn run(self, matches: &ArgMatches, layers: &Layers) -> Result<ExitCode> {
        let mut verb = self.verb;
        let (folder, mut states) = states(self.state, matches!(verb, Verbs::List { .. }))?;
        let (node, timeout) = verb.node();
        if node.is_given() {
            if !states.is_empty() {
                return Err(Error::usage(
                    "--state with a state of runs does not go with --node; --failed does",
                ));
            }
            // What is wrong with the task shows before the broker is asked.
            let task = verb.task()?;
            return match node.node(self.broker, matches, layers, timeout)? {
                Some(node) => node::run(&node, &task),
                None => Err(Error::bug("find the node")),
            };
        }
        if let Some(who) = &self.who {
            topic::check_who(who).map_err(Error::usage)?;
        }
        let scope = Scope {
            state: match folder {
                Some(folder) => folder,
                None => paths::state_dir()?,
            },
            who: self.who,
        };
        let verb = match verb {
            Verbs::List {
                failed,
                since,
                lines,
                grep,
                json,
                ..
            } => {
                if failed && !states.is_empty() {
                    return Err(Error::usage(
                        "--failed lists failed runs only: for more, write --state failed instead",
                    ));
                }
                states.extend(failed.then_some(State::Failed));
                Verb::List(Filter {
                    states,
                    leave_out: match failed {
                        true => LeaveOut::MadeGood,
                        false => LeaveOut::Nothing,
                    },
                    since,
                    newest: lines,
                    grep,
                    json,
                })
            }
            Verbs::Submit(submit) => Verb::Submit(submit.submission()?),
            Verbs::Status {
                which,
                json,
                payload,
                ..
            } => Verb::Status {
                which: which.which()?,
                json,
                payload,
            },
            Verbs::Results {
                which,
                stderr,
                both,
                follow,
                from,
                ..
            } => Verb::Results {
                which: which.which()?,
                stream: match (both, stderr) {
                    (true, _) => None,
                    (false, true) => Some(Stream::Stderr),
                    (false, false) => Some(Stream::Stdout),
                },
                follow,
                from,
            },
            Verbs::Retry {
                units,
                failed,
                all,
                since,
                grep,
                again,
                json,
            } => Verb::Retry {
                runs: match failed && !again {
                    true if all || since.is_some() || grep.is_some() => Runs::AllFailed(Filter {
                        since,
                        grep,
                        ..Filter::default()
                    }),
                    true => Runs::Failed,
                    false => Runs::named(units, failed),
                },
                again,
                json,
            },
            Verbs::Cancel { unit, timeout, .. } => Verb::Cancel { unit, timeout },
            Verbs::Release { unit, timeout, .. } => Verb::Release {
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
