//! A message of a queue as it is delivered, independent of any client library.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::event::{self, Attributes, Event, Refusal};

/// A delivered message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueDelivery {
    /// Its body.
    pub body: Bytes,
    /// `message_id`, if the sender gave it one that can identify it.
    pub message_id: Option<String>,
    /// `app_id`, the sender. A message without `message_id` is the same as an earlier one only if it
    /// has the same sender.
    pub app_id: Option<String>,
    /// `reply_to`: the queue for the report of its end.
    pub reply_to: Option<String>,
    /// `correlation_id`, which the report repeats.
    pub correlation_id: Option<String>,
    /// Whether the broker has delivered it before, to us or to others.
    pub redelivered: bool,
    /// How often it was delivered before, as far as the broker counts that: `x-acquired-count`
    /// (RabbitMQ 4.3), otherwise `x-delivery-count` (quorum queues), otherwise 0.
    pub fence: u64,
    /// Number of pipelines that it has passed: header `tael-hops`.
    pub hops: u32,
    /// W3C trace context: header `traceparent`.
    pub traceparent: Option<String>,
    /// Its properties as the codec encodes them, in hexadecimal digits; empty if they are too large to
    /// keep.
    pub properties: String,
}

/// The message that made a unit, for its record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueOrigin {
    /// Its queue, as a canonical URL without password: names the source.
    pub source: String,
    /// Name of the queue.
    pub queue: String,
    /// `message_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// `reply_to`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// `correlation_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// Name of the queue for dead letters.
    pub dead_letter: String,
    /// As in [`QueueDelivery`].
    pub redelivered: bool,
    /// As in [`QueueDelivery`].
    pub fence: u64,
    /// As in [`QueueDelivery`].
    pub properties: String,
}

impl QueueDelivery {
    /// Returns its trace context, if that is well-formed.
    #[must_use]
    pub fn trace(&self) -> Option<&str> {
        let trace = self.traceparent.as_deref();
        trace.filter(|trace| event::is_traceparent(trace))
    }

    /// Returns the event of the message, whose topic is the name of its `queue`.
    ///
    /// # Errors
    /// Why its body is not an event.
    pub fn event(&self, queue: &str, max_payload: usize) -> Result<Event, Refusal> {
        let attributes = event::attributes(&self.body, max_payload)?;
        let id = self.message_id.as_ref().filter(|id| event::is_id(id));
        Ok(Event {
            topic: queue.to_owned(),
            attributes: scalars(attributes),
            payload: self.body.clone(),
            id: id.cloned(),
            who: None,
            hops: self.hops,
            traceparent: self.trace().map(str::to_owned),
            retained: false,
            is_question: false,
        })
    }
}

/// Replaces each list of one value by that value: the metadata of OODT's Java callers has only lists.
#[must_use]
pub fn scalars(attributes: Attributes) -> Attributes {
    let scalar = |value: Value| match value {
        Value::Array(mut list) if list.len() == 1 => match list.pop() {
            Some(one @ (Value::String(_) | Value::Number(_) | Value::Bool(_) | Value::Null)) => one,
            other => Value::Array(other.into_iter().collect()),
        },
        value => value,
    };
    let pairs = attributes.into_iter();
    pairs.map(|(key, value)| (key, scalar(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn delivery(body: &'static [u8]) -> QueueDelivery {
        QueueDelivery {
            body: Bytes::from_static(body),
            message_id: None,
            app_id: None,
            reply_to: None,
            correlation_id: None,
            redelivered: false,
            fence: 0,
            hops: 0,
            traceparent: None,
            properties: String::new(),
        }
    }

    #[test]
    fn lists_of_one_value_are_that_value_and_the_payload_stays() {
        let body = br#"{"a":["x"],"b":["x","y"],"c":[1],"d":[["x"]],"e":[],"f":[null]}"#;
        let event = delivery(body).event("seq", 100).expect("event");
        let want = json!({"a":"x","b":["x","y"],"c":1,"d":[["x"]],"e":[],"f":null});
        assert_eq!(Value::Object(event.attributes), want);
        assert_eq!(
            (event.topic.as_str(), &event.payload[..]),
            ("seq", &body[..])
        );
    }

    #[test]
    fn a_body_that_is_no_object_is_refused() {
        for body in [&b""[..], b"x", b"[]", b"\xff", b"1"] {
            let refused = delivery(body).event("seq", 100);
            assert!(refused.is_err(), "{body:?}");
        }
        let large = delivery(b"{\"a\":1}").event("seq", 3);
        assert!(matches!(large, Err(Refusal::TooLarge { .. })));
    }
}
