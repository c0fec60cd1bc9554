//! `tael message`: publishes a message, and waits for answers if it is a question.

mod ask;
mod batch;
mod if_changed;
mod standstill;

use std::env;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use tracing::{Level, enabled};

use crate::error::{Error, Kind, Result};
use crate::model::event::{Attributes, MAX_ID_BYTES};
use crate::model::message::{Message, Properties, Qos, property};
use crate::model::{duration, json, status};
use crate::net::mqtt::{Audience, Settings};
use crate::net::oneshot;
use crate::net::options::BrokerOptions;
use crate::os::host;
use crate::os::logging::say;

/// Maximum size of a packet from the broker, for a client without subscriptions, bytes.
pub(super) const MAX_INCOMING: u32 = 64 * 1024;

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// Broker, and our credentials.
    pub broker: BrokerOptions,
    /// A checked topic name.
    pub topic: String,
    /// Root of the topics on which we wait for answers.
    pub root: String,
    /// Attributes of the message, or of each message.
    pub attributes: Attributes,
    /// Whether there is a message for each line of standard input.
    pub lines: bool,
    /// Requested quality of service.
    pub qos: Qos,
    /// Whether the broker retains the message.
    pub retain: bool,
    /// Maximum time for everything, or for each try of a question.
    pub timeout: Duration,
    /// Time after which the broker drops the message.
    pub expiry: Option<Duration>,
    /// Whether a message without subscribers is an error.
    pub need_listener: bool,
    /// What to do with it.
    pub task: Task,
}

/// What to do with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Publish it. Answers go to this topic, if there is one.
    Publish(Option<String>),
    /// Publish it, and wait for answers.
    Ask(Question),
    /// Have the broker retain it, unless it does already.
    IfChanged {
        /// Whether to print the outcome as JSON.
        json: bool,
    },
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Topic for the answers.
    pub reply_topic: String,
    /// Number of answers to wait for, from 1.
    pub count: u32,
    /// Number of further tries.
    pub retries: u32,
    /// Whether to print answers as JSON.
    pub json: bool,
}

/// Does what the options ask for.
///
/// # Errors
/// As [`oneshot::publish`]; 69 when a listener is needed and the broker knows of none; 75 when an
/// answer is missing. An answer with another code than 0 is no error: its code is returned.
pub fn run(options: &Options) -> Result<ExitCode> {
    let runtime = super::runtime()?;
    match &options.task {
        Task::Ask(question) if !options.lines => runtime.block_on(ask::ask(options, question)),
        Task::Ask(_) | Task::Publish(_) if options.lines => runtime.block_on(batch::batch(options)),
        Task::IfChanged { json } => runtime.block_on(if_changed::keep(options, *json)),
        Task::Publish(_) | Task::Ask(_) => {
            let message = Draft::new(options).message(options.attributes.clone(), host::new_id());
            let settings = sender(&options.broker);
            let publish = oneshot::publish(&settings, &message, None, options.timeout);
            if runtime.block_on(publish)? == Audience::None {
                // A retained message waits for its readers.
                let error = unheard(options);
                if options.need_listener {
                    return Err(error);
                }
                if !options.retain && enabled!(Level::WARN) {
                    say(&error.to_string());
                }
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Returns the error of a message without subscribers.
fn unheard(options: &Options) -> Error {
    let (topic, address) = (&options.topic, options.broker.address());
    let cause = format!(
        "publish to '{topic}' at {address}: no client subscribes to it; is the topic right, and \
         does the client run?"
    );
    Error::new(Kind::Unavailable, cause)
}

/// What all messages of this process have in common.
struct Draft<'a> {
    options: &'a Options,
    user: String,
    origin: Vec<(String, String)>,
    response_topic: Option<String>,
}

impl<'a> Draft<'a> {
    fn new(options: &'a Options) -> Self {
        let response_topic = match &options.task {
            Task::Publish(reply_to) => reply_to.clone(),
            Task::Ask(question) => Some(question.reply_topic.clone()),
            Task::IfChanged { .. } => None,
        };
        Self {
            options,
            user: host::username(),
            origin: origin(),
            response_topic,
        }
    }

    /// Returns a message with these attributes and this id, which answers repeat.
    fn message(&self, attributes: Attributes, id: String) -> Message {
        let Options {
            topic, qos, retain, ..
        } = self.options;
        let payload = status::message(&self.user, attributes, Timestamp::now());
        let mut user = self.origin.clone();
        let correlation = self.response_topic.as_ref();
        let correlation_data = correlation.map(|_| Bytes::from(id.clone()));
        for (name, value) in &mut user {
            if name == property::ID {
                *value = id;
                break;
            }
        }
        Message {
            topic: topic.clone(),
            payload: Bytes::from(json::to_text(&Value::Object(payload))),
            qos: *qos,
            retain: *retain,
            properties: Properties {
                user,
                response_topic: self.response_topic.clone(),
                correlation_data,
                message_expiry: self.options.expiry.map(duration::whole_seconds),
            },
        }
    }
}

/// Returns the settings of a connection that only publishes, and leaves no session.
pub(super) fn sender(broker: &BrokerOptions) -> Settings {
    Settings {
        broker: broker.clone(),
        session_expiry: Duration::ZERO,
        clean_start: true,
        will: None,
        max_packet: MAX_INCOMING,
        receive_maximum: 8,
    }
}

/// Returns the origin of a message. Inside a command of a client it is the pipeline and its event,
/// so that loops can be detected.
pub(super) fn origin() -> Vec<(String, String)> {
    let from_env = |name: &str| {
        env::var(name)
            .ok()
            .filter(|v| !v.is_empty() && v.len() <= MAX_ID_BYTES * 4)
    };
    let mut user = vec![
        (property::ID.to_owned(), host::new_id()),
        (property::HOST.to_owned(), host::hostname()),
    ];
    let hops = from_env("TAEL_HOPS").and_then(|hops| hops.parse::<u32>().ok());
    let more = [
        (property::WHO, from_env("TAEL_WHO")),
        (property::CAUSE, from_env("TAEL_EVENT")),
        (
            property::HOPS,
            hops.map(|hops| hops.saturating_add(1).to_string()),
        ),
        (property::TRACEPARENT, from_env("TRACEPARENT")),
    ];
    for (name, value) in more {
        user.extend(value.map(|value| (name.to_owned(), value)));
    }
    user
}
