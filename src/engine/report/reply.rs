//! Answers to requests: their topics, and their content after the commit.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tracing::warn;

use crate::engine::config::Config;
use crate::error::Kind;
use crate::model::cause::Cause;
use crate::model::control::{self, ENVELOPE, Envelope};
use crate::model::event;
use crate::model::message::{Delivery, Message, Properties, Qos, Route};
use crate::model::text::printable;
use crate::model::topic::{self, Filter};
use crate::model::unit::ReplyAddress;
use crate::os::logging::SENDERS;
use crate::store::ledger::{Acceptance, Known, Part};

/// Maximum number of levels of the topic of an answer. mosquitto drops a client that publishes on
/// one of more than 200.
const MAX_REPLY_LEVELS: usize = 100;

/// Address of an answer, and what identifies its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTo {
    topic: String,
    correlation: Option<Bytes>,
    /// Id of the request inside the payload, if it has one.
    request: Option<String>,
    /// Number of pipelines that the request has passed.
    hops: u32,
}

impl ReplyTo {
    /// Returns the address that a request names, if an answer may go there.
    pub fn of(config: &Config, request: &Delivery, envelope: &Envelope) -> Option<Self> {
        let properties = &request.properties;
        let topic = properties.response_topic.as_ref();
        let topic = topic.or(envelope.reply_to.as_ref())?;
        if let Err(cause) = may_go(config, &config.reply_to, topic) {
            let topic = printable(topic, 200);
            warn!(target: SENDERS, "no answer to a request goes to '{topic}': {cause}");
            return None;
        }
        Some(Self {
            topic: topic.clone(),
            correlation: properties.correlation_data.clone(),
            request: envelope.id.clone(),
            hops: event::hops(request).max(envelope.hops),
        })
    }

    /// The address for the record of a unit.
    pub fn address(&self) -> ReplyAddress {
        let correlation = self.correlation.as_ref();
        ReplyAddress {
            route: Route::Broker,
            topic: self.topic.clone(),
            correlation: correlation.map(|bytes| bytes.to_vec().into()),
            request: self.request.clone(),
            at_end: None,
        }
    }

    /// Its topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Returns the address at `topic`.
    #[cfg(test)]
    pub fn at(topic: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            correlation: None,
            request: None,
            hops: 0,
        }
    }

    /// Returns the message with these bytes, which identify their request themselves.
    pub fn carrying(self, payload: Bytes) -> Message {
        Message {
            topic: self.topic,
            payload,
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: Properties {
                correlation_data: self.correlation,
                ..Properties::default()
            },
        }
    }

    /// Returns the message with `answer`. A command that takes it goes on with the count of the request.
    pub fn message(self, mut answer: Value) -> Message {
        let cause = Cause {
            hops: self.hops,
            ..Cause::default()
        };
        if let (Some(id), Value::Object(map)) = (self.request, &mut answer) {
            map.insert(ENVELOPE.into(), json!({ "id": id }));
        }
        Message {
            topic: self.topic,
            payload: Bytes::from(answer.to_string()),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: Properties {
                user: cause.trail(),
                correlation_data: self.correlation,
                ..Properties::default()
            },
        }
    }
}

/// Checks that the rights of the client at the broker may be used for an answer on `topic`, which one of
/// `filters` must match.
///
/// # Errors
/// A text for people.
pub fn may_go(config: &Config, filters: &[Filter], topic: &str) -> Result<(), String> {
    topic::check_name(topic)?;
    if topic.matches('/').count() >= MAX_REPLY_LEVELS {
        return Err(format!("it has more than {MAX_REPLY_LEVELS} levels"));
    }
    if !filters.iter().any(|filter| filter.matches(topic)) {
        let filters: Vec<&str> = filters.iter().map(Filter::as_str).collect();
        let filters = filters.join("' or '");
        return Err(format!("answers go to '{filters}' only (--reply-to)"));
    }
    // A pipeline would take it as a status or a request.
    let pipelines = format!("{}/infrastructure/pipelines/", config.root);
    let below = topic.strip_prefix(&pipelines);
    let spoken = |rest: &str| {
        let name = rest.split_once('/').map(|(_, name)| name);
        name.is_some_and(|name| ["status", "control", "work", "presence", "last"].contains(&name))
    };
    match below.is_some_and(spoken) {
        true => Err("a pipeline uses that topic itself".into()),
        false => Ok(()),
    }
}

/// Returns the answer to a request for a run, after its commit.
pub fn accepted(parts: &[Part], became: &[Acceptance]) -> Option<Value> {
    Some(match (parts.first()?, became.first()?) {
        (Part::Run { unit, .. }, Acceptance::Fresh) => made(&unit.id, unit.retry_of.as_deref()),
        (_, Acceptance::Known(known)) if known.unit.is_some() => repeated(known)?,
        (Part::Refuse { refused, .. }, _) => {
            let cause = &refused.detail;
            match refused.code {
                control::EXPIRED => control::refused(Kind::TryAgain, cause),
                _ => control::refused(Kind::Data, &format!("not raised: {cause}")),
            }
        }
        (Part::Run { unit, .. }, Acceptance::Retried(other)) => {
            let cause = control::was_retried(other);
            let unit = unit.retry_of.as_deref().unwrap_or_default();
            control::refused(Kind::Data, &format!("unit {unit} {cause}"))
        }
        (Part::Run { .. }, Acceptance::Taken | Acceptance::Known(_)) => return None,
    })
}

/// Returns the answer to a request that was performed before; `None` if it was refused then.
pub fn repeated(known: &Known) -> Option<Value> {
    Some(made(known.unit.as_ref()?, known.retry_of.as_deref()))
}

fn made(unit: &str, retry_of: Option<&str>) -> Value {
    let mut fields = Map::new();
    fields.insert("unit".into(), json!(unit));
    if let Some(retried) = retry_of {
        fields.insert("retries".into(), json!(retried));
    }
    control::accepted(fields)
}
