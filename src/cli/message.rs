//! The command line of `tael message`.

use std::io::{self, IsTerminal, Read};
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args};

use crate::cli::Tool;
use crate::cli::attr;
use crate::cli::config::Layers;
use crate::cli::connection::{self, Connection};
use crate::cli::help::Page;
use crate::cli::values::one_of;
use crate::error::{Error, Result};
use crate::model::event::{self, Attributes};
use crate::model::message::Qos;
use crate::model::{duration, topic};
use crate::tools::message::{self, Options};

/// Maximum size of a payload, bytes.
const MAX_PAYLOAD: usize = 16 * 1024 * 1024;

/// Options of `tael message`.
#[derive(Debug, Args)]
pub struct Message {
    /// Topic to publish to
    #[arg(short, long)]
    topic: Option<String>,
    /// One attribute; repeatable. Also written --attr KEY=VALUE
    #[arg(short, long, num_args = 2, value_names = ["KEY", "VALUE"], action = clap::ArgAction::Append, allow_hyphen_values = true)]
    attr: Vec<String>,
    /// Attributes without --attr. The first = ends the key; a key with = in it needs -m
    #[arg(value_name = "KEY=VALUE")]
    pairs: Vec<String>,
    /// A whole JSON object; - reads it from standard input
    #[arg(short = 'm', long, value_name = "JSON", allow_hyphen_values = true)]
    payload: Option<String>,
    /// Ask the broker to retain the message for later subscribers
    #[arg(short, long)]
    retain: bool,
    /// Quality of service; lowered to the maximum of the broker [default: 2, or 1 with --need-listener]
    #[arg(short, long, value_parser = one_of(connection::qos, connection::QOS))]
    qos: Option<Qos>,
    /// Maximum time until the broker has acknowledged the message
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "10s")]
    timeout: Duration,
    /// Exit with 69 if the broker says that no client subscribes to the topic. Sends with QoS 1
    #[arg(long)]
    need_listener: bool,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    _root: connection::Root,
}

/// `tael-message`.
#[must_use]
pub fn main() -> ExitCode {
    super::single::<Message>()
}

impl Tool for Message {
    const NAME: &'static str = "message";
    const ABOUT: &'static str = "Publish a message: attributes as JSON";

    const HELP: Page = Page {
        first: &[
            "topic",
            "attr",
            "payload",
            "retain",
            "need-listener",
            "timeout",
            "broker",
            "username",
            "password-file",
            "root",
        ],
        groups: &[],
        examples: &[
            "tael message -t lab/seq/status status=finished sample=S1",
            "tael message -t lab/seq/status --attr status finished --attr note 'a = b'",
            "echo '{\"status\":\"finished\"}' | tael message -t lab/seq/status -m -",
        ],
    };

    fn run(self, matches: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        let broker = self.connection.resolve(matches, connection::random_id())?;
        let topic = self
            .topic
            .ok_or_else(|| Error::usage("send message: give a topic with -t"))?;
        topic::check_name(&topic).map_err(|e| Error::usage(format!("send message: {e}")))?;
        let qos = qos(self.qos, self.need_listener)?;
        let pairs = attr::pairs(self.attr, self.pairs)?;
        message::run(&Options {
            broker,
            topic,
            attributes: attributes(self.payload.as_deref(), pairs)?,
            qos,
            retain: self.retain,
            timeout: self.timeout,
            need_listener: self.need_listener,
        })
    }
}

/// Returns the quality of service to send with. Brokers say that a topic has no subscribers in the
/// answer to QoS 1 only.
fn qos(given: Option<Qos>, need_listener: bool) -> Result<Qos> {
    match (given, need_listener) {
        (Some(Qos::AtLeastOnce) | None, true) => Ok(Qos::AtLeastOnce),
        (Some(Qos::AtMostOnce), true) => Err(Error::usage(
            "--need-listener needs an answer of the broker, and QoS 0 has none: use -q 1",
        )),
        (Some(Qos::ExactlyOnce), true) => Err(Error::usage(
            "--need-listener: brokers do not say at QoS 2 that no client subscribes: use -q 1",
        )),
        (given, false) => Ok(given.unwrap_or(Qos::ExactlyOnce)),
    }
}

/// The payload's attributes, and those given one by one, which win.
fn attributes(payload: Option<&str>, pairs: Vec<String>) -> Result<Attributes> {
    let mut attributes = match payload {
        Some("-") => object(&read_stdin()?)?,
        Some(text) => object(text.as_bytes())?,
        None if pairs.is_empty() && !io::stdin().is_terminal() => match read_stdin()? {
            input if input.trim_ascii().is_empty() => Attributes::new(),
            input => object(&input)?,
        },
        None => Attributes::new(),
    };
    let reserved = [("ts", "the time of sending, which is set for you")];
    attr::add(&mut attributes, pairs, &reserved)?;
    Ok(attributes)
}

fn object(payload: &[u8]) -> Result<Attributes> {
    event::attributes(payload, MAX_PAYLOAD)
        .map_err(|refusal| Error::data(format!("send message: {refusal}")))
}

fn read_stdin() -> Result<Vec<u8>> {
    let mut input = Vec::new();
    let limit = u64::try_from(MAX_PAYLOAD).unwrap_or(u64::MAX) + 1;
    io::stdin()
        .lock()
        .take(limit)
        .read_to_end(&mut input)
        .map_err(|e| Error::data(format!("read payload from standard input: {e}")))?;
    Ok(input)
}
