//! Makes an event of a delivered message, or refuses it with a reason.

use std::fmt;

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::model::json;
use crate::model::message::{Delivery, property};
use crate::model::variables;

/// Maximum number of pipelines that an event may pass; more is a loop.
pub const MAX_HOPS: u32 = 32;

/// Maximum length of a `tael-id`, bytes; a ULID has 26.
pub const MAX_ID_BYTES: usize = 64;

/// Maximum length of a `tael-who` or `tael-cause` that is passed on, bytes.
const MAX_PROPERTY_BYTES: usize = 256;

/// Length of a `traceparent`, bytes.
const TRACEPARENT_BYTES: usize = 55;

/// The attributes of an event: its JSON object.
pub type Attributes = Map<String, Value>;

/// A well-formed message: a topic, a JSON object, and where it came from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Event {
    /// Topic of the message.
    pub topic: String,
    /// The JSON object of the payload.
    pub attributes: Attributes,
    /// The payload, byte for byte.
    pub payload: Bytes,
    /// Id that the sender gave it, if any.
    pub id: Option<String>,
    /// The pipeline that sent it.
    pub who: Option<String>,
    /// Number of pipelines that it has passed.
    pub hops: u32,
    /// W3C trace context to pass on.
    pub traceparent: Option<String>,
    /// Whether the broker had retained it, so that it may be old.
    pub retained: bool,
    /// Whether its sender waits for an answer.
    pub is_question: bool,
}

/// A required attribute that an event lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lacking {
    /// The required key.
    pub key: String,
    /// A key of the event that may have been meant, printable.
    pub near: Option<String>,
}

/// Why a message is not an event, or an event starts no run.
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
    Missing(Vec<Lacking>),
    /// The event has passed through too many pipelines.
    Loop(u32),
    /// Too many events came within a minute without their number of hops.
    LoopRate(u32),
}

impl Refusal {
    /// Returns a short name for counters and records.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TopicNotUtf8 => "topic-not-utf8",
            Self::TooLarge { .. } => "too-large",
            Self::NotJson(_) => "not-json",
            Self::NotAnObject => "not-an-object",
            Self::Missing(_) => "missing-attributes",
            Self::Loop(_) | Self::LoopRate(_) => "loop",
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
            Self::Missing(lacking) => {
                let far = lacking.iter().filter(|one| one.near.is_none());
                let far: Vec<&str> = far.map(|one| one.key.as_str()).collect();
                let near = lacking.iter().filter_map(|one| {
                    let near = one.near.as_ref()?;
                    Some(format!("it has {near}, not {}", one.key))
                });
                let lacks = match &far[..] {
                    [] => None,
                    [one] => Some(format!("it lacks the required attribute {one}")),
                    all => Some(format!(
                        "it lacks the required attributes {}",
                        all.join(", ")
                    )),
                };
                let all: Vec<String> = lacks.into_iter().chain(near).collect();
                f.write_str(&all.join("; "))
            }
            Self::LoopRate(rate) => write!(
                f,
                "it would have to wait for too long: more than {rate} messages a minute come \
                 without tael-hops (--loop-rate): a loop?"
            ),
            Self::Loop(hops) => write!(
                f,
                "it has passed through {hops} pipelines, the limit is {MAX_HOPS}: a loop?"
            ),
        }
    }
}

/// Reads a delivered message as an event; [`json`] describes the accepted JSON. A question without a
/// payload has no attributes.
///
/// # Errors
/// Why the message is not an event.
pub fn parse(delivery: &Delivery, max_payload: usize) -> Result<Event, Refusal> {
    let topic = std::str::from_utf8(&delivery.topic).map_err(|_| Refusal::TopicNotUtf8)?;
    let attributes = match delivery.payload.is_empty() && delivery.is_question() {
        true => Attributes::new(),
        false => attributes(&delivery.payload, max_payload)?,
    };
    Ok(with_attributes(delivery, topic, attributes))
}

/// Returns whether `id` may name an event. Commands find it in `TAEL_EVENT`, and scripts use it in
/// file names.
#[must_use]
pub fn is_id(id: &str) -> bool {
    let may = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
    (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(may)
}

/// Returns whether `text` is a `traceparent` of W3C Trace Context (section 3.2): version, trace id,
/// parent id and flags in lower-case hexadecimal digits.
pub fn is_traceparent(text: &str) -> bool {
    let digits = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |part: &str| part.bytes().all(|b| b == b'0');
    match text.split('-').collect::<Vec<_>>()[..] {
        [version, trace, parent, flags] => {
            [version, trace, parent, flags].map(str::len) == [2, 32, 16, 2]
                && [version, trace, parent, flags].into_iter().all(digits)
                && version != "ff"
                && !is_zero(trace)
                && !is_zero(parent)
        }
        _ => false,
    }
}

/// Returns the number of pipelines that a message has passed.
#[must_use]
pub fn hops(delivery: &Delivery) -> u32 {
    let hops = delivery.properties.user(property::HOPS);
    hops.and_then(|hops| hops.parse().ok()).unwrap_or(0)
}

/// Makes an event of a delivered message and its attributes. A wrong id ([`is_id`]) and a wrong
/// `traceparent` are left out. Other properties must be short and free of control characters.
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
        id: text(property::ID, MAX_ID_BYTES).filter(|id| is_id(id)),
        who: text(property::WHO, MAX_PROPERTY_BYTES),
        hops: hops(delivery),
        traceparent: text(property::TRACEPARENT, TRACEPARENT_BYTES).filter(|t| is_traceparent(t)),
        retained: delivery.retained,
        is_question: delivery.is_question(),
    }
}

/// Reads a payload as a JSON object.
///
/// # Errors
/// Why it is not one.
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

/// Returns an attribute as text: strings as they are, `null` as an empty text, everything else as
/// compact JSON. Bytes that are not UTF-8 become U+FFFD.
#[must_use]
pub fn attribute_text(value: &Value) -> String {
    match value {
        Value::String(text) => json::lossy(text),
        Value::Null => String::new(),
        other => json::to_text(other),
    }
}

/// Returns an attribute as a command gets it: like [`attribute_text`], but with all bytes of a
/// string.
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

    #[test]
    fn what_commands_find_in_their_environment_is_not_a_senders_text() {
        let event = |name: &str, value: &str| {
            let mut d = delivery(b"t", b"{}");
            d.properties.user = vec![(name.into(), value.into())];
            parse(&d, 10).expect("event")
        };
        for id in ["01ARZ3NDEKTSV4RRFFQ69G5FAV", "silence-12", "a.B_c:1"] {
            assert_eq!(event(property::ID, id).id.as_deref(), Some(id));
        }
        for id in ["", "$(reboot)", "a b", "a/b", "é", "a\u{202e}"] {
            assert_eq!(event(property::ID, id).id, None, "{id}");
        }
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let traced = event(property::TRACEPARENT, good).traceparent;
        assert_eq!(traced.as_deref(), Some(good));
        for bad in [
            "",
            "$(reboot)",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            assert_eq!(event(property::TRACEPARENT, bad).traceparent, None, "{bad}");
        }
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
