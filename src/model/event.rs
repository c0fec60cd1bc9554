//! From a delivered message to an event, or to the reason why it is none.

use std::fmt;

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::model::json;
use crate::model::message::{Delivery, property};
use crate::model::variables;

/// An event that has passed through more pipelines than this is refused: a loop.
pub const MAX_HOPS: u32 = 32;

/// The longest `tael-id` that is believed, in bytes; a ULID has 26.
pub const MAX_ID_BYTES: usize = 64;

/// The longest `tael-who`, `tael-cause` or `traceparent` that is passed on, in bytes.
const MAX_PROPERTY_BYTES: usize = 256;

/// The attributes of an event: its JSON object.
pub type Attributes = Map<String, Value>;

/// One message that is well formed: a topic and a JSON object, with where it came from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Event {
    /// The topic it was published to.
    pub topic: String,
    /// The JSON object of the payload.
    pub attributes: Attributes,
    /// The payload, byte for byte.
    pub payload: Bytes,
    /// The sender's id of it, if it gave one.
    pub id: Option<String>,
    /// The pipeline that sent it.
    pub who: Option<String>,
    /// Pipelines passed so far.
    pub hops: u32,
    /// W3C trace context to pass on.
    pub traceparent: Option<String>,
    /// A retained message replayed by the broker, not news.
    pub retained: bool,
}

/// Why a message is no event, or an event no run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The topic is not UTF-8.
    TopicNotUtf8,
    /// The payload has more bytes than the limit.
    TooLarge {
        /// Size of the payload in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The payload is not JSON (or nested too deep, or not Unicode).
    NotJson(String),
    /// The payload is JSON, but not an object.
    NotAnObject,
    /// Required attributes are missing.
    Missing(Vec<String>),
    /// The event has passed through too many pipelines.
    Loop(u32),
}

impl Refusal {
    /// A short name for counters and records.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TopicNotUtf8 => "topic-not-utf8",
            Self::TooLarge { .. } => "too-large",
            Self::NotJson(_) => "not-json",
            Self::NotAnObject => "not-an-object",
            Self::Missing(_) => "missing-attributes",
            Self::Loop(_) => "loop",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TopicNotUtf8 => f.write_str("its topic is not UTF-8"),
            Self::TooLarge { bytes, limit } => {
                write!(f, "its payload has {bytes} bytes, the limit is {limit}")
            }
            Self::NotJson(cause) => write!(f, "its payload is not JSON: {cause}"),
            Self::NotAnObject => f.write_str("its payload is JSON but not an object"),
            Self::Missing(keys) => {
                write!(f, "it lacks the required attributes {}", keys.join(", "))
            }
            Self::Loop(hops) => write!(
                f,
                "it has passed through {hops} pipelines, the limit is {MAX_HOPS}: a loop?"
            ),
        }
    }
}

/// Reads a delivered message as an event; [`json`] says what is read.
///
/// # Errors
/// Why the message is none.
pub fn parse(delivery: &Delivery, max_payload: usize) -> Result<Event, Refusal> {
    let topic = std::str::from_utf8(&delivery.topic).map_err(|_| Refusal::TopicNotUtf8)?;
    let attributes = attributes(&delivery.payload, max_payload)?;
    Ok(with_attributes(delivery, topic, attributes))
}

/// An event of a delivered message whose attributes are known already. Properties are
/// believed only when they are short and free of control characters.
#[must_use]
pub fn with_attributes(delivery: &Delivery, topic: &str, attributes: Attributes) -> Event {
    let text = |name, limit: usize| {
        delivery
            .properties
            .user(name)
            .filter(|v| !v.is_empty() && v.len() <= limit && !v.contains(|c: char| c.is_control()))
            .map(str::to_owned)
    };
    Event {
        topic: topic.to_owned(),
        attributes,
        payload: delivery.payload.clone(),
        id: text(property::ID, MAX_ID_BYTES),
        who: text(property::WHO, MAX_PROPERTY_BYTES),
        hops: delivery
            .properties
            .user(property::HOPS)
            .and_then(|hops| hops.parse().ok())
            .unwrap_or(0),
        traceparent: text(property::TRACEPARENT, MAX_PROPERTY_BYTES),
        retained: delivery.retained,
    }
}

/// Reads a payload as a JSON object.
///
/// # Errors
/// Why it is none.
pub fn attributes(payload: &[u8], max_payload: usize) -> Result<Attributes, Refusal> {
    if payload.len() > max_payload {
        return Err(Refusal::TooLarge {
            bytes: payload.len(),
            limit: max_payload,
        });
    }
    match json::parse(payload) {
        Ok(Value::Object(attributes)) => Ok(attributes),
        Ok(_) => Err(Refusal::NotAnObject),
        Err(cause) => Err(Refusal::NotJson(cause)),
    }
}

/// An attribute as text: strings as they are, `null` as nothing, the rest as compact JSON. Bytes
/// that are not UTF-8 become U+FFFD.
#[must_use]
pub fn attribute_text(value: &Value) -> String {
    match value {
        Value::String(text) => String::from_utf8_lossy(&json::bytes_of(text)).into_owned(),
        Value::Null => String::new(),
        other => json::to_text(other),
    }
}

/// An attribute as a command gets it: as [`attribute_text`], with all bytes of a string.
#[must_use]
pub fn attribute_value(value: &Value) -> variables::Value {
    match value {
        Value::String(text) => json::bytes_of(text).into_owned().into(),
        other => attribute_text(other).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::message::Properties;
    use proptest::prelude::*;

    fn delivery(topic: &[u8], payload: &[u8]) -> Delivery {
        Delivery {
            topic: Bytes::copy_from_slice(topic),
            payload: Bytes::copy_from_slice(payload),
            retained: false,
            duplicate: false,
            packet: 0,
            properties: Properties::default(),
        }
    }

    #[test]
    fn messages_that_are_no_events() {
        let code = |payload: &[u8]| parse(&delivery(b"t", payload), 1000).unwrap_err().code();
        assert_eq!(code(b""), "not-json");
        assert_eq!(code(b"finished"), "not-json");
        assert_eq!(code(b"{\"a\":1} x"), "not-json");
        assert_eq!(code(b"{\"a\":\"\xff\"}"), "not-json");
        assert_eq!(code("[".repeat(999).as_bytes()), "not-json");
        assert_eq!(code(b"[1]"), "not-an-object");
        assert_eq!(code(b"null"), "not-an-object");
        assert_eq!(code(&[b' '; 1001]), "too-large");
        let topic = parse(&delivery(b"a/\xff", b"{}"), 1000).unwrap_err();
        assert_eq!(topic, Refusal::TopicNotUtf8);
    }

    #[test]
    fn numbers_keep_their_digits_and_the_last_of_two_keys_wins() {
        let event = parse(
            &delivery(
                b"t",
                br#"{"n":12345678901234567890123,"x":1.50,"k":1,"k":2}"#,
            ),
            1000,
        )
        .expect("event");
        let text = |key: &str| attribute_text(&event.attributes[key]);
        assert_eq!(text("n"), "12345678901234567890123");
        assert_eq!(text("x"), "1.50");
        assert_eq!(text("k"), "2");
    }

    #[test]
    fn properties_are_believed_only_when_sane() {
        let mut d = delivery(b"t", b"{}");
        d.properties.user = vec![
            (property::ID.into(), "x".repeat(MAX_ID_BYTES + 1)),
            (property::WHO.into(), "a\nb".into()),
            (property::HOPS.into(), "-1".into()),
        ];
        let event = parse(&d, 10).expect("event");
        assert_eq!((event.id, event.who, event.hops), (None, None, 0));
    }

    proptest! {
        #[test]
        fn no_payload_makes_it_panic(topic in any::<Vec<u8>>(), payload in any::<Vec<u8>>()) {
            let _ = parse(&delivery(&topic, &payload), 4096);
        }

        #[test]
        fn no_text_payload_makes_it_panic(payload in r#"[\[\]{}",:0-9a-z\\ ]{0,60}"#) {
            if let Ok(event) = parse(&delivery(b"t", payload.as_bytes()), 4096) {
                prop_assert_eq!(event.payload, payload.as_bytes());
            }
        }
    }
}
