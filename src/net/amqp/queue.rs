//! What a client and the session of a queue tell each other.

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedSender;

use crate::model::queue::{QueueType, QueueUrl, Settle};
use crate::model::queue_delivery::QueueDelivery;
use crate::net::amqp::AmqpOptions;
use crate::net::options::QueueAccess;

/// What a session needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueOptions {
    /// The queue.
    pub url: QueueUrl,
    /// How to log in.
    pub access: QueueAccess,
    /// When messages are acknowledged.
    pub settle: Settle,
    /// Maximum number of messages to hold.
    pub limit: u16,
    /// Type to declare the queue as; without it the queue must be there.
    pub declare: Option<QueueType>,
    /// Name of the queue for dead letters.
    pub dead_letter: String,
    /// Name of the connection, for people.
    pub name: String,
}

impl QueueOptions {
    /// Returns the options for a connection.
    #[must_use]
    pub fn connection(&self) -> AmqpOptions {
        AmqpOptions::of(&self.url, &self.access, self.name.clone())
    }
}

/// Identifies a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// Number of the connection.
    pub connection: u64,
    /// Its number on the connection.
    pub number: u64,
}

/// What happens in a session.
#[derive(Debug)]
pub enum QueueEvent {
    /// The queue can be taken from, on the connection of this number.
    Online(u64),
    /// Something is not as it should be, for people.
    Warning(String),
    /// The connection is gone, or there was none; for people. All its deliveries come again.
    Offline(String),
    /// A message has come.
    Delivered(Tag, Box<QueueDelivery>),
    /// On this connection, the broker has handled so many of our acknowledgements, and a restart has
    /// not lost them.
    Handled(u64, u64),
    /// Another client claims a message.
    Claim(Bytes),
    /// Another client knows a message that we claim.
    Answer(Bytes),
    /// The broker has this letter.
    Sent(u64),
    /// The broker does not take this letter, for people.
    Unsent(u64, String),
}

/// Room of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// How many deliveries it has got.
    pub received: u64,
    /// How many more it takes.
    pub free: usize,
    /// Whether it takes none for long.
    pub is_paused: bool,
}

/// Where the events of a session go.
#[derive(Debug, Clone)]
pub(super) struct Events {
    pub id: u32,
    pub events: UnboundedSender<(u32, QueueEvent)>,
}

impl Events {
    /// Tells the client of `event`.
    pub fn tell(&self, event: QueueEvent) {
        // Without a client, there is no reader.
        let _ = self.events.send((self.id, event));
    }
}
