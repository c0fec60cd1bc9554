//! An MQTT application message as it is published and delivered, independent of any client library.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Names of the MQTT 5 user properties that carry Tael's metadata.
pub mod property {
    /// Id of the event (a ULID).
    pub const ID: &str = "tael-id";
    /// Id of the event that led to this one.
    pub const CAUSE: &str = "tael-cause";
    /// Name of the pipeline that sent the message.
    pub const WHO: &str = "tael-who";
    /// Host that sent the message.
    pub const HOST: &str = "tael-host";
    /// Number of events between this one and the first cause.
    pub const HOPS: &str = "tael-hops";
    /// How a run ended, if its status does not say: [`CANCELED`].
    pub const END: &str = "tael-end";
    /// Value of [`END`] for a run that a person has ended.
    pub const CANCELED: &str = "canceled";
    /// W3C trace context, passed on untouched.
    pub const TRACEPARENT: &str = "traceparent";

    /// Returns whether Tael reads, or may read in future, a property of this name.
    #[must_use]
    pub fn is_known(name: &str) -> bool {
        name.starts_with("tael-") || name == TRACEPARENT
    }
}

/// Quality of service of a PUBLISH (MQTT 5.0, section 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Qos {
    /// 0
    AtMostOnce,
    /// 1
    AtLeastOnce,
    /// 2
    ExactlyOnce,
}

impl Qos {
    /// Returns the QoS of its number on the wire, 0 to 2.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// Way by which a message of ours goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// The pipeline's MQTT broker.
    #[default]
    Broker,
}

impl Route {
    /// Its name in the ledger.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Broker => "broker",
        }
    }
}

/// The MQTT 5 properties that Tael reads or writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    /// User properties, in order.
    pub user: Vec<(String, String)>,
    /// Topic for the reply.
    pub response_topic: Option<String>,
    /// Data to copy from a request into its reply.
    pub correlation_data: Option<Bytes>,
    /// Seconds after which the broker no longer delivers the message (Message Expiry Interval, MQTT
    /// 5.0, section 3.3.2.3.3). A delivered message has the rest of them.
    pub message_expiry: Option<u32>,
}

impl Properties {
    /// Returns the first user property called `name`.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<&str> {
        self.user
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Returns an upper estimate of the memory that the properties hold, bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        let user = self
            .user
            .iter()
            .map(|(name, value)| name.len() + value.len() + PAIR_OVERHEAD);
        let response = self.response_topic.as_ref().map_or(0, String::len);
        let correlation = self.correlation_data.as_ref().map_or(0, Bytes::len);
        user.sum::<usize>() + response + correlation
    }
}

/// Overhead of one user property in memory, bytes: two strings, and an allocation for each.
const PAIR_OVERHEAD: usize = 2 * (size_of::<String>() + 32);

/// A message to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// A valid topic name.
    pub topic: String,
    /// Application payload.
    pub payload: Bytes,
    /// Quality of service.
    pub qos: Qos,
    /// Whether the broker retains it for later subscribers.
    pub retain: bool,
    /// Properties.
    pub properties: Properties,
}

/// A message as the broker delivered it, unchecked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Topic name as it came; it may not be UTF-8.
    pub topic: Bytes,
    /// Application payload.
    pub payload: Bytes,
    /// Whether it was sent because it was retained at our subscription.
    pub retained: bool,
    /// Whether the broker may have sent it before (DUP flag).
    pub duplicate: bool,
    /// Packet identifier; a redelivery keeps it (MQTT 5.0, section 4.4). 0 at QoS 0.
    pub packet: u16,
    /// Properties.
    pub properties: Properties,
}

impl Delivery {
    /// Returns whether it is a question of now: its sender waits for an answer (MQTT 5.0, section
    /// 4.10).
    #[must_use]
    pub fn is_question(&self) -> bool {
        !self.retained && self.properties.response_topic.is_some()
    }

    /// Returns an upper estimate of the memory that the message holds, bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.topic.len() + self.payload.len() + self.properties.memory()
    }
}

impl Message {
    /// Returns an upper estimate of the memory that the message holds, bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.topic.len() + self.payload.len() + self.properties.memory()
    }
}
