//! What comes and goes on a channel.

use bytes::Bytes;

use crate::net::amqp::failure::Failure;
use crate::net::amqp::properties::Properties;
use crate::net::amqp::value::Table;

/// A message from a queue.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Delivery {
    /// Tag of the consumer; empty for an answer to `get`.
    pub consumer: String,
    /// Number for its acknowledgement on this channel, from 1.
    pub tag: u64,
    /// Whether it may have been delivered before.
    pub redelivered: bool,
    /// Exchange that it was published to; empty for the default one.
    pub exchange: String,
    /// Routing key that it was published with.
    pub routing_key: String,
    /// Properties.
    pub properties: Properties,
    /// Body; empty if it is `oversized`.
    pub body: Bytes,
    /// Size of a body that was skipped, because it is larger than
    /// [`MAX_BODY`](super::content::MAX_BODY).
    pub oversized: Option<u64>,
    /// First flaw of properties, headers or names: those are missing, or have replacement
    /// characters.
    pub unreadable: Option<String>,
    /// Number of messages that are left in the queue, of an answer to `get`.
    pub remaining: Option<u32>,
}

/// A mandatory message that no queue has taken.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Returned {
    /// Code of the broker: 312, no route.
    pub code: u16,
    /// Text of the broker, as it came.
    pub text: String,
    /// Exchange that it was published to.
    pub exchange: String,
    /// Routing key that it was published with.
    pub routing_key: String,
    /// Properties.
    pub properties: Properties,
    /// Body.
    pub body: Bytes,
}

/// What the broker says on a channel, in its order.
#[derive(Debug, Clone, PartialEq)]
pub enum Happening {
    /// A message for a consumer.
    Delivery(Box<Delivery>),
    /// The broker has canceled the consumer with this tag: its queue was deleted or has moved.
    Canceled(String),
    /// The broker has taken published messages, or has not.
    Confirmed {
        /// Number that `publish` returned.
        number: u64,
        /// Whether all messages up to `number` are meant too that are not confirmed yet.
        multiple: bool,
        /// Whether the broker has taken responsibility.
        ok: bool,
    },
    /// A mandatory message comes back; its confirm follows.
    Returned(Box<Returned>),
    /// The channel is closed. Nothing else follows.
    Closed(Failure),
}

/// Figures of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Declared {
    /// Number of messages that are ready for delivery.
    pub messages: u32,
    /// Number of consumers.
    pub consumers: u32,
}

/// How to declare a queue.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Declare {
    /// It survives a restart of the broker.
    pub durable: bool,
    /// It belongs to this connection, and ends with it.
    pub exclusive: bool,
    /// It ends with its last consumer.
    pub auto_delete: bool,
    /// Arguments, such as `x-queue-type`.
    pub arguments: Table,
}

/// A message to publish.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Publish {
    /// Exchange; empty for the default one, which routes to the queue that the key names.
    pub exchange: String,
    /// Routing key.
    pub routing_key: String,
    /// Whether the broker returns it if no queue takes it.
    pub mandatory: bool,
    /// Properties.
    pub properties: Properties,
    /// Body.
    pub body: Bytes,
}
