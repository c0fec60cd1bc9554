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
use crate::model::duration;
use crate::model::event::{self, Attributes};
use crate::model::message::Qos;
use crate::model::request::{self, MAX_ANSWERS, MAX_RETRIES};
use crate::model::text::printable;
use crate::model::topic::{self, DEFAULT_ROOT, Filter};
use crate::os::host;
use crate::tools::message::{self, Options, Question, Task};

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
    /// Publish each line of standard input: a JSON object a line
    #[arg(short = 'l', long)]
    lines: bool,
    /// Ask the broker to retain the message for later subscribers
    #[arg(short, long)]
    retain: bool,
    /// Have the broker retain the message, unless it holds the same one already; prints kept or repaired
    #[arg(long)]
    if_changed: bool,
    /// Time after which the broker drops the message
    #[arg(long, value_parser = duration::parse, value_name = "DURATION")]
    expiry: Option<Duration>,
    /// Quality of service; lowered to the maximum of the broker [default: 2; 1 with --need-listener, --reply, --reply-to, --if-changed]
    #[arg(short, long, value_parser = one_of(connection::qos, connection::QOS))]
    qos: Option<Qos>,
    /// Maximum time for the broker; with --reply for the answer to each try
    #[arg(long, value_parser = duration::parse_wait, value_name = "DURATION", default_value = "10s")]
    timeout: Duration,
    /// Exit with 69 if the broker says that no client subscribes to the topic. Sends with QoS 1
    #[arg(long)]
    need_listener: bool,
    /// Wait for the answer, print it, and exit with its code
    #[arg(long)]
    reply: bool,
    /// Number of answers to wait for
    #[arg(long, value_name = "N", default_value = "1")]
    count: u32,
    /// Number of times to ask again when no answer has come in time. A client of Tael runs it once
    #[arg(long, value_name = "N", default_value = "0")]
    retries: u32,
    /// Print answers as JSON, one a line: code, who, host, ms, reply
    #[arg(long)]
    json: bool,
    /// Ask for the answer on this topic, and do not wait for it
    #[arg(long, value_name = "TOPIC")]
    reply_to: Option<String>,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    root: connection::Root,
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
            "lines",
            "retain",
            "reply",
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
            "tael message -t lab/ask/df --reply --timeout 5s disk=data",
            "tael message -t lab/tasks -l --reply --retries 2 <tasks.json",
            "tael message -t lab/nodes/seq1 --if-changed os=linux site=lab2",
        ],
    };

    fn run(self, matches: &ArgMatches, _: &Layers) -> Result<ExitCode> {
        self.check()?;
        let qos = self.qos()?;
        let broker = self.connection.resolve(matches, connection::random_id())?;
        let topic = self
            .topic
            .ok_or_else(|| Error::usage("send message: give a topic with -t"))?;
        let wrong = |e| Error::usage(format!("send message: {e}")).about("topic");
        topic::check_name(&topic).map_err(wrong)?;
        let root = root(self.root, &topic)?;
        if let Some(topic) = &self.reply_to {
            let wrong = |e| Error::usage(format!("--reply-to: {e}")).about("reply-to");
            topic::check_name(topic).map_err(wrong)?;
        }
        let task = match () {
            () if self.if_changed => Task::IfChanged { json: self.json },
            () if self.reply => Task::Ask(Question {
                reply_topic: reply_topic(&root, &broker.client_id)?,
                count: self.count,
                retries: self.retries,
                json: self.json,
            }),
            () => Task::Publish(self.reply_to),
        };
        let stray = self.pairs.iter().find(|word| !word.contains('='));
        if let Some(word) = stray.filter(|_| self.lines) {
            let word = printable(word, 80);
            return Err(Error::usage(format!(
                "unexpected argument '{word}': -l reads standard input: <{word}"
            )));
        }
        let pairs = attr::pairs(self.attr, self.pairs)?;
        let attributes = attributes(self.payload.as_deref(), pairs, self.lines)?;
        if self.if_changed && attributes.is_none() {
            return Err(Error::usage(
                "--if-changed has nothing to promise: give KEY=VALUE, or a JSON object by -m or standard input",
            ));
        }
        message::run(&Options {
            broker,
            topic,
            root,
            attributes: attributes.unwrap_or_default(),
            lines: self.lines,
            qos,
            retain: self.retain || self.if_changed,
            timeout: self.timeout,
            expiry: self.expiry,
            need_listener: self.need_listener,
            task,
        })
    }
}

impl Message {
    /// Refuses options that do not go together.
    fn check(&self) -> Result<()> {
        let waits = self.reply;
        let refused = [
            (
                waits && self.retain,
                "--reply goes without --retain: a retained message gets no answer",
            ),
            (
                waits && self.expiry.is_some(),
                "--reply goes without --expiry: the question expires with --timeout",
            ),
            (
                waits && self.reply_to.is_some(),
                "--reply goes without --reply-to: only one of them gets the answer",
            ),
            (
                waits && self.if_changed,
                "--reply goes without --if-changed: a retained message gets no answer",
            ),
            (
                self.reply_to.is_some() && self.retain,
                "--reply-to goes without --retain: a retained message gets no answer",
            ),
            (
                self.reply_to.is_some() && self.if_changed,
                "--reply-to goes without --if-changed: a retained message gets no answer",
            ),
            (
                self.if_changed && self.expiry.is_some_and(|expiry| expiry.is_zero()),
                "--if-changed goes without --expiry 0: a message that lasts no time is never kept",
            ),
            (
                self.lines && self.if_changed,
                "--if-changed goes without -l: a topic retains one message",
            ),
            (
                self.lines && self.payload.is_some(),
                "-l goes without -m: each line is a message",
            ),
            (
                self.lines && self.count != 1,
                "--count goes without -l: it counts the answers to one question",
            ),
            (!waits && self.count != 1, "--count needs --reply"),
            (!waits && self.retries != 0, "--retries needs --reply"),
            (
                !waits && !self.if_changed && self.json,
                "--json needs --reply or --if-changed",
            ),
        ];
        if let Some((_, cause)) = refused.iter().find(|(is_wrong, _)| *is_wrong) {
            return Err(Error::usage(*cause));
        }
        if !(1..=MAX_ANSWERS).contains(&self.count) {
            let count = self.count;
            let cause = format!("--count {count}: 1 to {MAX_ANSWERS}");
            return Err(Error::usage(cause).about("count"));
        }
        if self.retries > MAX_RETRIES {
            let retries = self.retries;
            let cause = format!("--retries {retries}: {MAX_RETRIES} at most");
            return Err(Error::usage(cause).about("retries"));
        }
        Ok(())
    }

    /// Returns the quality of service to send with. Brokers say that a topic has no subscribers in the
    /// answer to QoS 1 only.
    fn qos(&self) -> Result<Qos> {
        let needs = match () {
            () if self.need_listener => Some("--need-listener"),
            () if self.reply => Some("--reply"),
            () => None,
        };
        match (self.qos, needs) {
            (Some(Qos::AtLeastOnce) | None, Some(_)) => Ok(Qos::AtLeastOnce),
            (Some(Qos::AtMostOnce), Some(name)) => Err(Error::usage(format!(
                "{name} needs an answer of the broker, and QoS 0 has none: use -q 1"
            ))),
            (Some(Qos::ExactlyOnce), Some(name)) => Err(Error::usage(format!(
                "{name}: brokers do not say at QoS 2 that no client subscribes: use -q 1"
            ))),
            (Some(Qos::AtMostOnce), None) if self.if_changed => Err(Error::usage(
                "--if-changed needs an answer of the broker, and QoS 0 has none: use -q 1",
            )),
            (Some(given), None) => Ok(given),
            (None, None) if self.reply_to.is_some() || self.if_changed => Ok(Qos::AtLeastOnce),
            (None, None) => Ok(Qos::ExactlyOnce),
        }
    }
}

/// Returns the root of the topics for answers: by default the first level of the topic, as for a client
/// that subscribes to it.
fn root(root: connection::Root, topic: &str) -> Result<String> {
    if root.root.is_some() {
        return root.resolve();
    }
    let filter = Filter::new(topic).map_err(Error::usage)?;
    Ok(filter.first_level().unwrap_or(DEFAULT_ROOT).to_owned())
}

/// Returns a new topic for the answers to us.
fn reply_topic(root: &str, id: &str) -> Result<String> {
    let topic = request::reply_topic(root, id, &host::new_id());
    match topic::check_name(&topic) {
        Ok(()) => Ok(topic),
        Err(_) if id.contains(['+', '#']) => Err(Error::usage(
            "the client identifier becomes a part of the topic for answers: choose one without + and #",
        )),
        Err(cause) => Err(Error::usage(format!(
            "the topic for answers, <root>/infrastructure/replies/<client identifier>/<id>: {cause}; choose a \
             shorter --root or --id"
        ))),
    }
}

/// The payload's attributes, and those given one by one, which win; `None` if nothing is given.
fn attributes(
    payload: Option<&str>,
    pairs: Vec<String>,
    lines: bool,
) -> Result<Option<Attributes>> {
    let given = match payload {
        // They are read one by one.
        None if lines => None,
        Some("-") => Some(object(&read_stdin()?)?),
        Some(text) => Some(object(text.as_bytes())?),
        None if pairs.is_empty() && !io::stdin().is_terminal() => match read_stdin()? {
            input if input.trim_ascii().is_empty() => None,
            input => Some(object(&input)?),
        },
        None => None,
    };
    if given.is_none() && pairs.is_empty() {
        return Ok(None);
    }
    let mut attributes = given.unwrap_or_default();
    let reserved = [("ts", "the time of sending, which is set for you")];
    attr::add(&mut attributes, pairs, &reserved)?;
    Ok(Some(attributes))
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
