//! The command line of `tael beacon`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args};

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::cli::connection::{self, Connection, Root};
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
    /// Send one beat and exit
    #[arg(long)]
    once: bool,
    /// How long the broker may take to confirm the one beat
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "10s")]
    timeout: Duration,
    /// Topic [default: ROOT/test/beacon/status]
    #[arg(short, long)]
    topic: Option<String>,
    /// Quality of service; a daemon sends at 1 at most
    #[arg(short, long, value_parser = connection::qos, default_value = "1")]
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
    const ABOUT: &'static str = "Send a sign of life, once or at every interval";

    const DAEMON: bool = true;

    fn run(self, matches: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        let broker = self.connection.resolve(matches, connection::random_id())?;
        let root = self.root.resolve()?;
        let topic = self.topic.unwrap_or_else(|| topic::beacon(&root));
        topic::check_name(&topic).map_err(|e| Error::usage(format!("send beacon: {e}")))?;
        if self.interval < MIN_INTERVAL {
            return Err(Error::usage("the interval is too short: 100ms at least"));
        }
        beacon::run(&Options {
            broker,
            topic,
            qos: self.qos,
            once: self.once.then_some(self.timeout),
            interval: self.interval,
        })
    }
}
