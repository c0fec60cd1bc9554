//! The command line of `tael check`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args};

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::cli::connection::{self, Connection, Root};
use crate::cli::help::Page;
use crate::error::{Error, Result};
use crate::model::check::{Level, Limits};
use crate::model::roots::Content;
use crate::model::{duration, topic};
use crate::tools::check::{self, Options, Subject, Wanted};

/// Options of `tael check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Topic of the beacon to check [default: ROOT/test/beacon/status]
    #[arg(short, long, conflicts_with = "who")]
    topic: Option<String>,
    /// Name of the pipeline to check, instead of a beacon
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
    /// Age of the last beat, or of the last end of a run, that is a warning [default: 6m for a
    /// beacon]
    #[arg(long, value_parser = duration::parse, value_name = "DURATION")]
    warning: Option<Duration>,
    /// Age that is critical [default: 11m for a beacon]
    #[arg(long, value_parser = duration::parse, value_name = "DURATION")]
    critical: Option<Duration>,
    /// Wait for the next beat on the topic itself, until --critical is over; for beacons of other
    /// programs
    #[arg(long, conflicts_with = "who")]
    wait: bool,
    /// Result if the last run of the pipeline failed
    #[arg(long, value_name = "LEVEL", value_parser = ["warning", "critical"], default_value = "warning")]
    failed: String,
    /// Maximum age of the last success; more is critical
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", conflicts_with = "topic")]
    success_within: Option<Duration>,
    /// Maximum number of runs that wait; more are a warning
    #[arg(long, value_name = "N", conflicts_with = "topic")]
    max_waiting: Option<u64>,
    /// Maximum difference between the clock of the beacon or pipeline and ours
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "30s")]
    max_skew: Duration,
    /// Maximum time to wait for the broker
    #[arg(long, value_parser = duration::parse_wait, value_name = "DURATION", default_value = "10s")]
    timeout: Duration,
    #[command(flatten)]
    root: Root,
    #[command(flatten)]
    connection: Connection,
}

/// Default limits for a beacon that beats every five minutes: one missed beat is a warning, two are
/// critical.
const BEACON_WARNING: Duration = Duration::from_secs(6 * 60);
const BEACON_CRITICAL: Duration = Duration::from_secs(11 * 60);

impl Tool for Check {
    const NAME: &'static str = "check";
    const ABOUT: &'static str = "Check that a beacon or pipeline is fresh (monitoring plugin)";

    const HELP: Page = Page {
        first: &[
            "topic",
            "who",
            "warning",
            "critical",
            "failed",
            "success-within",
            "max-waiting",
            "broker",
            "root",
        ],
        groups: &[
            ("Beacon", &["topic", "wait"]),
            (
                "Pipeline",
                &["who", "failed", "success-within", "max-waiting"],
            ),
        ],
        examples: &[
            "tael check --who align --root lab",
            "tael check --who align --root lab --failed critical --success-within 1d",
            "tael check -t lab/test/beacon/status --warning 6m --critical 11m",
        ],
    };

    const ON_BUG: i32 = 3;

    fn run(self, matches: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        let broker = self.connection.resolve(matches, connection::random_id())?;
        let content = match (&self.who, &self.topic) {
            (Some(who), _) => Some(Content::Pipeline(who.clone())),
            (None, None) => Some(Content::Beacon),
            (None, Some(_)) => None,
        };
        if let Some(who) = &self.who {
            let wrong = |e| Error::usage(format!("check: {e}")).about("who");
            topic::check_who(who).map_err(wrong)?;
        }
        let root = match content {
            Some(content) => self.root.find(&broker, &content, self.timeout)?,
            // The topic is whole.
            None => self.root.resolve()?,
        };
        let (subject, limits) = match self.who {
            Some(who) => {
                let limits = Limits {
                    warning: self.warning,
                    critical: self.critical,
                };
                let wanted = Wanted {
                    failed: match self.failed.as_str() {
                        "critical" => Level::Critical,
                        _ => Level::Warning,
                    },
                    success_within: self.success_within,
                    max_waiting: self.max_waiting,
                };
                (Subject::Pipeline { who, wanted }, limits)
            }
            None if self.success_within.is_some() || self.max_waiting.is_some() => {
                return Err(Error::usage(
                    "check: --success-within and --max-waiting are about a pipeline: give --who NAME",
                ));
            }
            None => {
                let topic = self.topic.unwrap_or_else(|| topic::beacon(&root));
                let wrong = |e| Error::usage(format!("check: {e}")).about("topic");
                topic::check_name(&topic).map_err(wrong)?;
                let critical = self.critical.unwrap_or(BEACON_CRITICAL);
                let limits = Limits {
                    warning: self.warning.or(Some(BEACON_WARNING.min(critical))),
                    critical: Some(critical),
                };
                let subject = Subject::Beacon {
                    topic,
                    wait: self.wait,
                };
                (subject, limits)
            }
        };
        if let (Some(warning), Some(critical)) = (limits.warning, limits.critical)
            && warning > critical
        {
            let cause = format!(
                "check: a warning after {} comes later than what is critical, {}",
                duration::text(warning),
                duration::text(critical)
            );
            return Err(Error::usage(cause).about("warning"));
        }
        check::run(&Options {
            broker,
            root,
            subject,
            max_skew: self.max_skew,
            limits,
            timeout: self.timeout,
        })
    }

    fn failed(error: Error) -> Result<ExitCode> {
        check::unknown(&error)
    }
}
