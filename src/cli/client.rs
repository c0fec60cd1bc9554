//! The command line of `tael client`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args};

use crate::cli::Tool;
use crate::cli::config::Layers;
use crate::cli::connection::{self, Connection, Root};
use crate::cli::trigger::{self, TriggerOptions};
use crate::engine::config::Config;
use crate::error::{Error, Kind, Result};
use crate::model::duration;
use crate::model::message::Qos;
use crate::model::topic::{self, DEFAULT_ROOT, Filter};
use crate::model::trigger::Trigger;
use crate::model::triggers::Triggers;
use crate::os::{host, paths};
use crate::tools::client::{self, Options};

/// Options of `tael client`.
#[derive(Debug, Args)]
pub struct Client {
    #[command(flatten)]
    trigger: TriggerOptions,
    /// Name of this pipeline
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
    /// Exit quietly when a client of this name runs already
    #[arg(long)]
    if_not_running: bool,
    /// Cancel runs when the client is stopped, instead of leaving them to finish
    #[arg(long)]
    stop_units: bool,
    /// Largest payload of an event, bytes
    #[arg(long, value_name = "BYTES", default_value = "1048576")]
    max_payload: usize,
    /// Bytes kept of each output stream of a run, half head, half tail; 0 keeps all
    #[arg(long, value_name = "BYTES", default_value = "16777216")]
    max_output: u64,
    /// How long ended runs are remembered; their events, for a week at least
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "30d")]
    keep: Duration,
    /// How many runs are remembered at most
    #[arg(long, value_name = "N", default_value = "10000")]
    keep_units: u64,
    /// Topics that answers to control requests may go to; may be repeated
    /// [default: ROOT/infrastructure/#]
    #[arg(long, value_name = "FILTER", action = clap::ArgAction::Append)]
    reply_to: Vec<String>,
    /// File for the figures of a Prometheus textfile collector, NAME.prom
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// Quality of service of deliveries; 2 counts as 1, which loses nothing either
    #[arg(short, long, value_parser = connection::qos, default_value = "1")]
    qos: Qos,
    #[command(flatten)]
    root: Root,
    #[command(flatten)]
    connection: Connection,
}

/// `tael-client`.
#[must_use]
pub fn main() -> ExitCode {
    super::single::<Client>()
}

/// The largest payload that may be asked for: four of them must fit an MQTT packet.
const MAX_MAX_PAYLOAD: usize = 64 * 1024 * 1024;

impl Tool for Client {
    const NAME: &'static str = "client";
    const ABOUT: &'static str = "Run a command for every event, once, and say how it ended";

    const DAEMON: bool = true;

    fn run(self, matches: &ArgMatches, layers: &Layers) -> Result<ExitCode> {
        let if_not_running = self.if_not_running;
        let config = self.config(matches, layers)?;
        client::run(Options {
            config,
            state: paths::state_dir()?,
            if_not_running,
            reread: Box::new(|| {
                let (client, matches, layers) = super::again::<Self>()?;
                client.config(&matches, &layers)
            }),
        })
    }
}

impl Client {
    fn config(self, matches: &ArgMatches, layers: &Layers) -> Result<Config> {
        let who = self.who.unwrap_or_default();
        if who.is_empty() {
            return Err(Error::usage(
                "start client: name the pipeline with --who, or who below [client]",
            ));
        }
        topic::check_who(&who).map_err(|e| Error::usage(format!("start client: {e}")))?;
        let host = host::hostname();
        let chosen_id = self.connection.has_id();
        // What versions used that kept no identifier in the state folder.
        let broker = self
            .connection
            .resolve(matches, format!("tael-{who}-{host}"))?;
        if self.qos == Qos::AtMostOnce {
            return Err(Error::usage("QoS 0 loses events: a client takes 1"));
        }
        if !(1..=MAX_MAX_PAYLOAD).contains(&self.max_payload) {
            return Err(Error::usage(format!(
                "--max-payload has 1 to {MAX_MAX_PAYLOAD} bytes"
            )));
        }
        let triggers = Triggers::new(trigger::all(self.trigger, matches, layers)?);
        if let Some((shared, own)) = triggers.mixed() {
            // A client has one session. That of a worker ends with it, so that others get its
            // share; other events are to wait for the next start.
            let kind = match triggers.len() {
                1 => Kind::Usage,
                _ => Kind::Config,
            };
            return Err(Error::new(
                kind,
                format!(
                    "start client: '{shared}' is shared and '{own}' is not: start a client of \
                     another --who for one of them"
                ),
            ));
        }
        let root = root(self.root, &triggers)?;
        let reply_to = match self.reply_to {
            none if none.is_empty() => vec![format!("{root}/infrastructure/#")],
            given => given,
        };
        let filter = |text| Filter::new(text).map_err(|e| Error::usage(format!("--reply-to: {e}")));
        Ok(Config {
            reply_to: reply_to.into_iter().map(filter).collect::<Result<_>>()?,
            root,
            who,
            host,
            triggers,
            max_payload: self.max_payload,
            max_output: self.max_output,
            keep: self.keep,
            keep_units: self.keep_units,
            stop_units: self.stop_units,
            metrics: self.metrics,
            broker,
            chosen_id,
        })
    }
}

/// The root, which defaults to the first level of the first topic.
fn root(given: Root, triggers: &[Trigger]) -> Result<String> {
    let first = triggers
        .first()
        .and_then(|trigger| trigger.filters.first())
        .and_then(|filter| filter.first_level());
    Root {
        root: given
            .root
            .or_else(|| Some(first.unwrap_or(DEFAULT_ROOT).to_owned())),
    }
    .resolve()
}
