//! Letters: messages of ours for the queues of a broker. They are dead letters, and reports of the
//! ends of units.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::model::cause::Cause;
use crate::model::outcome::{Outcome, Stopped};
use crate::model::queue_delivery::QueueOrigin;
use crate::model::state::State;
use crate::model::unit::Unit;

/// Headers of dead letters.
pub mod header {
    /// Name of the queue that the message came from.
    pub const QUEUE: &str = "x-tael-queue";
    /// Its `message_id` there.
    pub const MESSAGE_ID: &str = "x-tael-message-id";
    /// Why it is dead: one of [`super::Reason`].
    pub const REASON: &str = "x-tael-reason";
    /// The same for people.
    pub const DETAIL: &str = "x-tael-detail";
    /// Exit code of the command, as a shell reports it.
    pub const EXIT: &str = "x-tael-exit";
    /// The unit.
    pub const UNIT: &str = "x-tael-unit";
    /// The host that says so.
    pub const HOST: &str = "x-tael-host";
    /// The pipeline that says so.
    pub const WHO: &str = "x-tael-who";
    /// The last lines of the standard error of the command.
    pub const STDERR: &str = "x-tael-stderr";
    /// When, seconds since 1970.
    pub const AT: &str = "x-tael-at";
}

/// Property `type` of the report of an end.
pub const COMPLETION: &str = "tael.completion";

/// Maximum size of the texts in headers, bytes.
const MAX_TEXT: usize = 4096;

/// Why a message is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its body cannot be read.
    Unreadable,
    /// No trigger wants it: a condition does not hold.
    Unwanted,
    /// It lacks what its trigger requires, or is in a loop.
    Refused,
    /// Its command has failed, and is not tried again.
    Failed,
}

impl Reason {
    /// Its name in a header.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Unwanted => "unwanted",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// A message for a queue, as the ledger holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// The source whose connection it goes out on: the canonical URL of a queue.
    pub source: String,
    /// Name of the queue that it goes to.
    pub key: String,
    /// The unit that it is about, if there is one.
    pub unit: Option<String>,
    /// Whether it holds a dead message. Nothing else must be lost, either, but only its
    /// acknowledgement waits for this one.
    pub dead: bool,
    /// Its body.
    pub body: Bytes,
    /// Its properties.
    pub properties: LetterProperties,
}

/// Properties of a letter (AMQP 0-9-1, class `basic`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LetterProperties {
    /// `message_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// `correlation_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// `type`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// `content_type`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Headers to add.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    /// The properties that the message had, as the codec has encoded them, in hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original: Option<String>,
}

/// Who writes a letter, and when.
#[derive(Debug, Clone, Copy)]
pub struct Writer<'a> {
    /// The pipeline.
    pub who: &'a str,
    /// The host.
    pub host: &'a str,
    /// Seconds since 1970.
    pub at: i64,
}

/// Why and how a message has died.
#[derive(Debug, Clone, Default)]
pub struct Death<'a> {
    /// For people.
    pub detail: &'a str,
    /// Exit code of the command, as a shell reports it.
    pub exit: Option<i32>,
    /// The last lines of its standard error.
    pub stderr: Option<&'a str>,
    /// Name of the event, which is that of the unit if there is one.
    pub id: &'a str,
    /// The unit, if there is one.
    pub unit: Option<&'a str>,
}

/// Returns the first bytes of `text`, at a boundary of characters.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// Returns the dead letter of a message. Its `message_id` is the id of the event or unit. Brought back into
/// its queue, it is another message then, and runs.
#[must_use]
pub fn dead(
    origin: &QueueOrigin,
    body: Bytes,
    reason: Reason,
    death: &Death<'_>,
    writer: Writer<'_>,
) -> Letter {
    let exit = death.exit.map(|code| code.to_string());
    let at = writer.at.to_string();
    let headers = [
        (header::QUEUE, Some(&*origin.queue)),
        (header::MESSAGE_ID, origin.message_id.as_deref()),
        (header::REASON, Some(reason.name())),
        (header::DETAIL, Some(death.detail)),
        (header::EXIT, exit.as_deref()),
        (header::UNIT, death.unit),
        (header::HOST, Some(writer.host)),
        (header::WHO, Some(writer.who)),
        (header::STDERR, death.stderr),
        (header::AT, Some(&at)),
    ];
    let headers = headers.into_iter();
    let headers = headers.filter_map(|(name, text)| Some((name.to_owned(), cut(text?).to_owned())));
    Letter {
        source: origin.source.clone(),
        key: origin.dead_letter.clone(),
        unit: death.unit.map(str::to_owned),
        dead: true,
        body,
        properties: LetterProperties {
            message_id: Some(death.id.to_owned()),
            headers: headers.collect(),
            original: Some(origin.properties.clone()),
            ..LetterProperties::default()
        },
    }
}

/// How the event of a message has ended, for its sender.
#[derive(Debug, Clone, Copy)]
pub struct Completion<'a> {
    /// `finished`, `failed` or `canceled`.
    pub status: &'a str,
    /// Exit code of the command, as a shell reports it.
    pub return_code: Option<i32>,
    /// For people.
    pub detail: Option<&'a str>,
    /// The unit, if there is one.
    pub unit: Option<&'a str>,
    /// The event that the message was.
    pub cause: Cause<'a>,
}

/// Returns the report of the end of a message; `None` if its sender does not want one. It is no
/// message that can be lost: one that the broker cannot route is dropped.
#[must_use]
pub fn completion(origin: &QueueOrigin, end: Completion<'_>, writer: Writer<'_>) -> Option<Letter> {
    let key = origin.reply_to.clone()?;
    let body = json!({
        "id": origin.message_id,
        "status": end.status,
        "return_code": end.return_code,
        "unit": end.unit,
        "host": writer.host,
        "who": writer.who,
        "detail": end.detail.map(cut),
        "ts": writer.at,
    });
    Some(Letter {
        source: origin.source.clone(),
        key,
        unit: end.unit.map(str::to_owned),
        dead: false,
        body: Bytes::from(Value::to_string(&body)),
        properties: LetterProperties {
            correlation_id: origin
                .correlation_id
                .clone()
                .or_else(|| origin.message_id.clone()),
            kind: Some(COMPLETION.to_owned()),
            content_type: Some("application/json".to_owned()),
            headers: end.cause.trail(),
            ..LetterProperties::default()
        },
    })
}

/// Returns the letters about the end of `unit` that no retry follows. `body` is the message, and
/// `stderr` the end of the standard error of the command.
#[must_use]
pub fn at_end(
    unit: &Unit,
    outcome: &Outcome,
    body: Bytes,
    stderr: Option<&str>,
    writer: Writer<'_>,
) -> Vec<Letter> {
    let Some(origin) = unit.origin.as_deref() else {
        return Vec::new();
    };
    let end = outcome.reported();
    let (status, is_dead) = match outcome.state() {
        State::Canceled => ("canceled", false),
        State::Succeeded => ("finished", false),
        State::Failed | State::Pending | State::Running => ("failed", true),
    };
    let detail = match outcome.stopped {
        Some(Stopped::TimedOut) => format!("timed out; {end}"),
        Some(Stopped::Canceled) | None => end.to_string(),
    };
    let dead = is_dead.then(|| {
        let death = Death {
            detail: &detail,
            exit: end.return_code(),
            stderr,
            id: &unit.id,
            unit: Some(&unit.id),
        };
        dead(origin, body, Reason::Failed, &death, writer)
    });
    let completion = Completion {
        status,
        return_code: end.return_code(),
        detail: is_dead.then_some(&*detail),
        unit: Some(&unit.id),
        cause: Cause::of(unit),
    };
    let completion = self::completion(origin, completion, writer);
    dead.into_iter().chain(completion).collect()
}

/// Returns the letter about a unit that will not run, with the reason for people.
#[must_use]
pub fn dropped(unit: &Unit, detail: &str, writer: Writer<'_>) -> Option<Letter> {
    let completion = Completion {
        status: "canceled",
        return_code: None,
        detail: Some(detail),
        unit: Some(&unit.id),
        cause: Cause::of(unit),
    };
    self::completion(unit.origin.as_deref()?, completion, writer)
}
