//! The command line of `tael beacon`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args};

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::cli::connection::{self, Connection, Root};
use crate::cli::help::Page;
use crate::cli::mistakes::Mistakes;
use crate::cli::values::one_of;
use crate::error::{Error, Result};
use crate::model::message::Qos;
use crate::model::{duration, topic};
use crate::tools::beacon::{self, Options};

/// The shortest interval.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Options of `tael beacon`.
#[derive(Debug, Args)]
pub struct Beacon {
    /// Time between two beats
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "5m")]
    interval: Duration,
    /// Publish one beat, and exit
    #[arg(long)]
    once: bool,
    /// Report all mistakes in the configuration, and exit; publishes nothing
    #[arg(long)]
    check: bool,
    /// Maximum time until the broker has acknowledged the beat of --once
    #[arg(long, value_parser = duration::parse_wait, value_name = "DURATION", default_value = "10s")]
    timeout: Duration,
    /// Topic [default: ROOT/test/beacon/status]
    #[arg(short, long)]
    topic: Option<String>,
    /// Quality of service; without --once 1 at most
    #[arg(short, long, value_parser = one_of(connection::qos, connection::QOS), default_value = "1")]
    qos: Qos,
    #[command(flatten)]
    root: Root,
    #[command(flatten)]
    connection: Connection,
}

/// `tael-beacon`.
#[must_use]
pub fn main() -> ExitCode {
    super::single::<Beacon>()
}

impl Tool for Beacon {
    const NAME: &'static str = "beacon";
    const ABOUT: &'static str = "Publish a heartbeat, once or at an interval";

    const HELP: Page = Page {
        first: &[
            "interval",
            "once",
            "topic",
            "broker",
            "username",
            "password-file",
            "root",
        ],
        groups: &[],
        examples: &[
            "tael beacon --root lab --interval 5m",
            "tael beacon --root lab --once",
        ],
    };

    const DAEMON: bool = true;

    const CHECK: Option<fn(Self, &ArgMatches, &Layers, &mut Mistakes)> =
        Some(|beacon, matches, _, mistakes| {
            beacon.options(matches, mistakes);
        });

    fn run(self, matches: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        let mut mistakes = Mistakes::default();
        let options = self.options(matches, &mut mistakes);
        beacon::run(&mistakes.or_first(options)?)
    }
}

impl Beacon {
    /// Returns what the beacon does, unless a mistake leaves nothing; notes every mistake.
    fn options(self, matches: &ArgMatches, mistakes: &mut Mistakes) -> Option<Options> {
        let id = connection::random_id();
        let broker = self.connection.resolve_all(matches, id, mistakes);
        let root = mistakes.keep(self.root.resolve());
        let topic = self.topic.or_else(|| root.as_deref().map(topic::beacon));
        if let Some(Err(e)) = topic.as_deref().map(topic::check_name) {
            mistakes.note(Error::usage(format!("send beacon: {e}")).about("topic"));
        }
        if self.interval < MIN_INTERVAL {
            let cause = "the interval is too short: 100ms at least";
            mistakes.note(Error::usage(cause).about("interval"));
        }
        Some(Options {
            broker: broker?,
            topic: topic?,
            qos: self.qos,
            once: self.once.then_some(self.timeout),
            interval: self.interval,
        })
    }
}
