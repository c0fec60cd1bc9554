//! Answers to requests: where they go, and what they say of what was committed.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tracing::warn;

use crate::engine::config::Config;
use crate::error::Kind;
use crate::model::control::{self, ENVELOPE, Envelope};
use crate::model::message::{Delivery, Message, Properties, Qos, Route};
use crate::model::text::printable;
use crate::model::topic;
use crate::model::unit::ReplyAddress;
use crate::os::logging::SENDERS;
use crate::store::ledger::{Acceptance, Known, Part};

/// Maximum number of levels of a topic that is replied on. mosquitto cuts off a client that publishes on
/// one of more than 200.
const MAX_REPLY_LEVELS: usize = 100;

/// Where the answer to a request goes, and what says which request it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTo {
    topic: String,
    correlation: Option<Bytes>,
    /// The request's own id, if it carries one inside the payload.
    request: Option<String>,
}

impl ReplyTo {
    /// Where the requester waits for the answer, if it says so and an answer may go there.
    pub fn of(config: &Config, request: &Delivery, envelope: &Envelope) -> Option<Self> {
        let properties = &request.properties;
        let topic = properties.response_topic.as_ref();
        let topic = topic.or(envelope.reply_to.as_ref())?;
        if let Err(cause) = allowed(config, topic) {
            let topic = printable(topic, 200);
            warn!(target: SENDERS, "no answer to a request goes to '{topic}': {cause}");
            return None;
        }
        Some(Self {
            topic: topic.clone(),
            correlation: properties.correlation_data.clone(),
            request: envelope.id.clone(),
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
        }
    }

    /// The message that says `answer`.
    pub fn message(self, mut answer: Value) -> Message {
        if let (Some(id), Value::Object(map)) = (self.request, &mut answer) {
            map.insert(ENVELOPE.into(), json!({ "id": id }));
        }
        Message {
            topic: self.topic,
            payload: Bytes::from(answer.to_string()),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: Properties {
                correlation_data: self.correlation,
                ..Properties::default()
            },
        }
    }
}

/// Whether the client's rights at the broker may be used for an answer on `topic`.
fn allowed(config: &Config, topic: &str) -> Result<(), String> {
    topic::check_name(topic)?;
    if topic.matches('/').count() >= MAX_REPLY_LEVELS {
        return Err(format!("it has more than {MAX_REPLY_LEVELS} levels"));
    }
    if !config.reply_to.iter().any(|filter| filter.matches(topic)) {
        let filters: Vec<&str> = config.reply_to.iter().map(topic::Filter::as_str).collect();
        let filters = filters.join("' or '");
        return Err(format!("answers go to '{filters}' only (--reply-to)"));
    }
    // A pipeline would take it for a status or a request.
    let pipelines = format!("{}/infrastructure/pipelines/", config.root);
    let below = topic.strip_prefix(&pipelines);
    let spoken = |rest: &str| {
        let name = rest.split_once('/').map(|(_, name)| name);
        name.is_some_and(|name| ["status", "control", "presence", "last"].contains(&name))
    };
    match below.is_some_and(spoken) {
        true => Err("a pipeline uses that topic itself".into()),
        false => Ok(()),
    }
}

/// The answer to a request for a run, once that is committed.
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
        (Part::Run { .. }, Acceptance::Known(_)) => return None,
    })
}

/// The answer to a request that was carried out before; `None` if it was refused then.
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
