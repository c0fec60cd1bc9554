//! Events that wait for their reader, bounded by their number and by the bytes of their messages.
//! Some brokers treat Receive Maximum as a hint.

use std::sync::Arc;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::net::mqtt::Event;

/// Maximum number of events that wait. Beyond it the network is not read.
const MAX_EVENTS: usize = 256;

/// Maximum memory of their messages, bytes; a larger one waits alone.
const MAX_BYTES: u32 = 16 * 1024 * 1024;

type Waiting = (Event, Option<OwnedSemaphorePermit>);

/// The end for the network task.
#[derive(Debug)]
pub(super) struct Sender {
    events: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
}

/// The end for the holder.
#[derive(Debug)]
pub(super) struct Receiver {
    events: mpsc::Receiver<Waiting>,
}

/// Returns an empty inbox.
pub(super) fn inbox() -> (Sender, Receiver) {
    let (sender, events) = mpsc::channel(MAX_EVENTS);
    let room = Arc::new(Semaphore::new(MAX_BYTES as usize));
    let sender = Sender {
        events: sender,
        room,
    };
    (sender, Receiver { events })
}

impl Sender {
    /// Adds `event` if there is room; otherwise returns it.
    pub fn try_send(&self, event: Event) -> Option<Event> {
        let room = match bytes(&event) {
            0 => None,
            bytes => match Arc::clone(&self.room).try_acquire_many_owned(bytes) {
                Ok(room) => Some(room),
                Err(_) => return Some(event),
            },
        };
        match self.events.try_send((event, room)) {
            Ok(()) => None,
            // The caller learns from waiting that the reader is gone.
            Err(TrySendError::Full((event, _)) | TrySendError::Closed((event, _))) => Some(event),
        }
    }

    /// Waits for room, and adds `event`; `false` if its reader is gone.
    pub async fn send(&self, event: Event) -> bool {
        let room = match bytes(&event) {
            0 => None,
            bytes => Arc::clone(&self.room).acquire_many_owned(bytes).await.ok(),
        };
        self.events.send((event, room)).await.is_ok()
    }
}

/// Returns the bytes to count for `event`.
fn bytes(event: &Event) -> u32 {
    let bytes = match event {
        Event::Received(received) => received.delivery.memory(),
        _ => 0,
    };
    u32::try_from(bytes).unwrap_or(u32::MAX).min(MAX_BYTES)
}

impl Receiver {
    /// Returns the next event; `None` after the last one. Cancel safe.
    pub async fn recv(&mut self) -> Option<Event> {
        self.events.recv().await.map(|(event, _)| event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::message::{Delivery, Properties};
    use crate::net::mqtt::{Ack, QoS, Received};
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn message(bytes: u32) -> Event {
        Event::Received(Received {
            delivery: Delivery {
                topic: "t".into(),
                payload: vec![0; bytes as usize].into(),
                retained: false,
                duplicate: false,
                packet: 1,
                properties: Properties::default(),
            },
            ack: Ack {
                packet: 1,
                qos: QoS::AtLeastOnce,
            },
            subscriptions: Vec::new(),
        })
    }

    #[test]
    fn all_that_a_message_brings_counts() {
        let (sender, mut receiver) = inbox();
        let mut context = Context::from_waker(Waker::noop());
        let mut large = message(0);
        if let Event::Received(received) = &mut large {
            let pair = (String::new(), String::new());
            received.delivery.properties.user = vec![pair; MAX_BYTES as usize / 64];
        }
        let mut first = pin!(sender.send(large));
        assert!(first.as_mut().poll(&mut context).is_ready());
        let mut second = pin!(sender.send(message(1)));
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert!(receiver.events.try_recv().is_ok());
        assert!(second.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn large_messages_wait_until_there_is_room() {
        let (sender, mut receiver) = inbox();
        let mut context = Context::from_waker(Waker::noop());
        let mut first = pin!(sender.send(message(MAX_BYTES * 2)));
        assert!(first.as_mut().poll(&mut context).is_ready(), "one goes");
        let mut small = pin!(sender.send(Event::Closed));
        assert!(small.as_mut().poll(&mut context).is_ready());
        let mut second = pin!(sender.send(message(1)));
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert!(receiver.events.try_recv().is_ok());
        assert!(second.as_mut().poll(&mut context).is_ready());
    }
}
