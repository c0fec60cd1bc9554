//! Bounds the retained messages of the embedded broker, in bytes.
//!
//! The library bounds their number and the size of their payloads. User properties take up to
//! thirty times their size in its memory.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use mqtt5::PropertyValue;
use mqtt5::broker::router::MessageRouter;
use mqtt5::broker::{BrokerEventHandler, QoS, RetainedSetEvent};
use mqtt5::packet::publish::PublishPacket;
use tracing::warn;

use crate::model::text::printable;

/// Maximum number of retained messages.
pub(super) const MAX_RETAINED: usize = 10_000;

/// Maximum memory of one retained message, bytes; twice the largest packet if that is more.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// Maximum memory of all retained messages, bytes.
const MAX_ALL: usize = 128 * 1024 * 1024;

/// Overhead of one user property in memory, bytes.
const PROPERTY: usize = 128;

/// Counts the retained messages, and makes the router drop those beyond the bounds.
pub(super) struct Keep {
    router: OnceLock<Arc<MessageRouter>>,
    max_message: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    sizes: HashMap<Arc<str>, usize>,
    sum: usize,
    /// Number of messages that were dropped.
    dropped: u64,
}

impl Kept {
    /// Counts `size` bytes for `topic`, 0 for none; `false` if there is no room.
    fn set(&mut self, topic: &Arc<str>, size: usize, max: usize) -> bool {
        let before = self.sizes.remove(topic).unwrap_or(0);
        self.sum -= before;
        let fits = size <= max && self.sum + size <= MAX_ALL;
        if fits && size > 0 {
            self.sum += size;
            self.sizes.insert(Arc::clone(topic), size);
        }
        fits
    }
}

impl Keep {
    /// Returns the bounds for packets of at most `max_packet` bytes.
    pub fn new(max_packet: usize) -> Self {
        Self {
            router: OnceLock::new(),
            max_message: MAX_MESSAGE.max(max_packet.saturating_mul(2)),
            kept: Mutex::default(),
        }
    }

    /// Counts the messages of an earlier run in `router`, and drops those beyond the bounds.
    pub async fn watch(&self, router: &Arc<MessageRouter>) {
        let _ = self.router.set(Arc::clone(router));
        for message in router.get_retained_messages("#").await {
            let topic = Arc::from(message.topic_name.as_str());
            self.look(router, topic, size(&message)).await;
        }
    }

    async fn look(&self, router: &MessageRouter, topic: Arc<str>, size: usize) {
        let dropped = {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.set(&topic, size, self.max_message) {
                return;
            }
            kept.dropped += 1;
            kept.dropped
        };
        // Logs the first, and then ever fewer.
        if dropped.is_power_of_two() {
            warn!(
                "the message on '{}' is not retained: it takes {size} bytes; one may take \
                 {}, all {MAX_ALL} ({dropped} dropped so far)",
                printable(&topic, 200),
                self.max_message
            );
        }
        // An empty payload clears it (MQTT 5.0, section 3.3.1.3).
        let mut clear = PublishPacket::new(topic.to_string(), bytes::Bytes::new(), QoS::AtMostOnce);
        clear.retain = true;
        router.route_message(&clear, None).await;
    }
}

fn size(message: &PublishPacket) -> usize {
    let values = message.properties.iter().map(|(_, value)| match value {
        PropertyValue::Utf8StringPair(name, value) => name.len() + value.len() + PROPERTY,
        PropertyValue::Utf8String(text) => text.len() + PROPERTY,
        PropertyValue::BinaryData(data) => data.len() + PROPERTY,
        _ => PROPERTY,
    });
    message.topic_name.len() + message.payload.len() + PROPERTY + values.sum::<usize>()
}

impl BrokerEventHandler for Keep {
    fn on_retained_set<'a>(
        &'a self,
        event: RetainedSetEvent,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async move {
            let Some(router) = self.router.get() else {
                return;
            };
            let size = if event.cleared {
                0
            } else {
                let all = router.get_retained_messages(&event.topic).await;
                all.iter().map(size).max().unwrap_or(0)
            };
            self.look(router, event.topic, size).await;
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_by_topic() {
        let mut kept = Kept::default();
        let topic = |n: usize| Arc::from(format!("t/{n}").as_str());
        assert!(!kept.set(&topic(0), MAX_MESSAGE + 1, MAX_MESSAGE));
        for n in 0..MAX_ALL / MAX_MESSAGE {
            assert!(kept.set(&topic(n), MAX_MESSAGE, MAX_MESSAGE));
        }
        assert!(!kept.set(&topic(1000), 1, MAX_MESSAGE), "full");
        assert!(kept.set(&topic(1), MAX_MESSAGE, MAX_MESSAGE), "replaced");
        assert!(kept.set(&topic(2), 0, MAX_MESSAGE), "cleared");
        assert!(kept.set(&topic(1000), 1, MAX_MESSAGE));
    }

    #[test]
    fn properties_count() {
        let mut message = PublishPacket::new("t", "p", QoS::AtMostOnce);
        let small = size(&message);
        for _ in 0..1000 {
            message.properties.add_user_property("a".into(), "b".into());
        }
        assert!(size(&message) >= small + 1000 * PROPERTY);
    }
}
