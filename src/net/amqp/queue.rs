//! What a client and the session of a queue tell each other.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::queue::{QueueType, QueueUrl, Settle};
use crate::model::queue_delivery::QueueDelivery;
use crate::net::amqp::AmqpOptions;
use crate::net::options::QueueAccess;

/// Maximum number of claims and answers of others that wait for the client, and of the bytes of one: it
/// has two names of at most 255 bytes. Others are dropped: everyone who may write to the exchange can
/// send them, and a claim is published again.
const MAX_HEARD: usize = 1024;
const MAX_HEARD_BYTES: usize = 8 << 10;

/// Maximum size of the messages that wait for the client, KiB; the last one may go beyond it. More stay
/// with the broker, or unread in the connection: a prefetch may allow many large ones.
const MAX_PASSED_KIB: u32 = 64 << 10;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    /// A message has come. Its place is free when the client drops it.
    Delivered(Tag, Box<QueueDelivery>, Place),
    /// On this connection, the broker has handled so many of our acknowledgements, and a restart has
    /// not lost them.
    Handled(u64, u64),
    /// Another client claims a message.
    Claim(Heard),
    /// Another client knows a message that we claim.
    Answer(Heard),
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

/// Place of a message among those that wait for the client.
#[derive(Debug)]
pub struct Place {
    _permit: Option<OwnedSemaphorePermit>,
}

/// What another client says.
#[derive(Debug)]
pub struct Heard {
    /// Its text.
    pub body: Bytes,
    /// Its place among those that wait.
    _place: OwnedSemaphorePermit,
}

/// Where the events of a session go.
#[derive(Debug, Clone)]
pub(super) struct Events {
    id: u32,
    events: UnboundedSender<(u32, QueueEvent)>,
    /// Places for what others say.
    places: Arc<Semaphore>,
    /// Room for messages, KiB.
    room: Arc<Semaphore>,
}

impl Events {
    /// Returns those of session `id`.
    pub fn new(id: u32, events: UnboundedSender<(u32, QueueEvent)>) -> Self {
        Self {
            id,
            events,
            places: Arc::new(Semaphore::new(MAX_HEARD)),
            room: Arc::new(Semaphore::new(MAX_PASSED_KIB as usize)),
        }
    }

    /// Returns whether there is room for a message.
    pub fn has_room(&self) -> bool {
        self.room.available_permits() > 0
    }

    /// Waits until there is room for a message. Cancel safe.
    pub async fn room(&self) {
        // It is never closed.
        let _ = self.room.acquire().await;
    }

    /// Tells the client of a message, for which there is room.
    pub fn deliver(&self, tag: Tag, delivery: Box<QueueDelivery>) {
        let left = u32::try_from(self.room.available_permits()).unwrap_or(MAX_PASSED_KIB);
        let size = (delivery.body.len() + delivery.properties.len()) >> 10;
        let size = u32::try_from(size + 1).unwrap_or(MAX_PASSED_KIB).min(left);
        let permit = Arc::clone(&self.room).try_acquire_many_owned(size);
        let place = Place {
            _permit: permit.ok(),
        };
        self.tell(QueueEvent::Delivered(tag, delivery, place));
    }

    /// Tells the client of `event`.
    pub fn tell(&self, event: QueueEvent) {
        // Without a client, there is no reader.
        let _ = self.events.send((self.id, event));
    }

    /// Tells the client what another one says, by an `event`. Returns whether there was room.
    pub fn pass(&self, body: Bytes, event: fn(Heard) -> QueueEvent) -> bool {
        if body.len() > MAX_HEARD_BYTES {
            return false;
        }
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return false;
        };
        // A body may be a part of a larger memory.
        let body = Bytes::copy_from_slice(&body);
        self.tell(event(Heard {
            body,
            _place: place,
        }));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::unbounded_channel;

    #[test]
    fn messages_that_wait_are_bounded() {
        let (sender, mut heard) = unbounded_channel();
        let events = Events::new(1, sender);
        let tag = Tag {
            connection: 1,
            number: 1,
        };
        let large = || {
            Box::new(QueueDelivery {
                body: Bytes::from(vec![0; 40 << 20]),
                ..QueueDelivery::default()
            })
        };
        events.deliver(tag, large());
        assert!(events.has_room());
        events.deliver(tag, large());
        assert!(!events.has_room());
        drop(heard.try_recv());
        assert!(events.has_room());
        drop(heard.try_recv());
        assert_eq!(events.room.available_permits(), MAX_PASSED_KIB as usize);
    }

    #[test]
    fn what_others_say_is_bounded() {
        let (sender, mut heard) = unbounded_channel();
        let events = Events::new(1, sender);
        let large = Bytes::from(vec![b'x'; MAX_HEARD_BYTES + 1]);
        assert!(!events.pass(large, QueueEvent::Claim));
        let body = Bytes::from_static(b"{}");
        for _ in 0..MAX_HEARD {
            assert!(events.pass(body.clone(), QueueEvent::Claim));
        }
        assert!(!events.pass(body.clone(), QueueEvent::Answer));
        drop(heard.try_recv());
        assert!(events.pass(body, QueueEvent::Answer));
    }
}
