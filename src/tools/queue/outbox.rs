//! Messages that are on their way to the broker: sent and not confirmed, or to be sent again.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

/// Maximum number of messages that are sent and not confirmed.
pub const WINDOW: usize = 200;

/// Maximum size of their bodies, bytes. One message may be larger.
const WINDOW_BYTES: usize = 32 * 1024 * 1024;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its `message_id`, also when it is sent again.
    pub id: String,
    /// Its body.
    pub body: Bytes,
}

/// Messages that the broker has not confirmed.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Those that were sent on this connection, by their numbers there.
    sent: BTreeMap<u64, Message>,
    /// Those that must be sent again, in order.
    again: VecDeque<Message>,
    /// Size of the bodies in `sent`, bytes.
    bytes: usize,
}

impl Outbox {
    /// Returns whether every message is confirmed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty() && self.again.is_empty()
    }

    /// Returns whether another message may be sent before one is confirmed.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.sent.len() < WINDOW && self.bytes < WINDOW_BYTES
    }

    /// Takes a message that must be sent again.
    pub fn take_again(&mut self) -> Option<Message> {
        self.again.pop_front()
    }

    /// Puts back a message that was not sent.
    pub fn put_back(&mut self, message: Message) {
        self.again.push_front(message);
    }

    /// Notes that `message` was sent under `number`.
    pub fn sent(&mut self, number: u64, message: Message) {
        self.bytes += message.body.len();
        self.sent.insert(number, message);
    }

    /// Takes the messages that the broker means by `number`, and with `multiple` all before it.
    pub fn confirmed(&mut self, number: u64, multiple: bool) -> Vec<Message> {
        let first = if multiple { 0 } else { number };
        let numbers: Vec<u64> = self.sent.range(first..=number).map(|(n, _)| *n).collect();
        let taken = numbers.iter().filter_map(|n| self.sent.remove(n));
        let taken: Vec<Message> = taken.collect();
        self.bytes -= taken
            .iter()
            .map(|message| message.body.len())
            .sum::<usize>();
        taken
    }

    /// Notes that `message`, which the broker did not take, must be sent again.
    pub fn refused(&mut self, message: Message) {
        self.again.push_back(message);
    }

    /// Notes that the connection is lost: all that is not confirmed must be sent again, in order.
    pub fn lost(&mut self) {
        for message in std::mem::take(&mut self.sent).into_values().rev() {
            self.again.push_front(message);
        }
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(n: u64) -> Message {
        Message {
            id: n.to_string(),
            body: Bytes::from_static(b"xx"),
        }
    }

    fn ids(messages: &[Message]) -> String {
        let ids: Vec<&str> = messages.iter().map(|message| message.id.as_str()).collect();
        ids.join(" ")
    }

    #[test]
    fn confirms_name_one_or_all_before() {
        let mut outbox = Outbox::default();
        for n in 1..=5 {
            outbox.sent(n, message(n));
        }
        assert_eq!(ids(&outbox.confirmed(2, false)), "2");
        assert_eq!(ids(&outbox.confirmed(4, true)), "1 3 4");
        assert_eq!(ids(&outbox.confirmed(4, true)), "");
        assert_eq!(ids(&outbox.confirmed(9, false)), "");
        assert!(!outbox.is_empty());
        assert_eq!(ids(&outbox.confirmed(u64::MAX, true)), "5");
        assert!(outbox.is_empty() && outbox.bytes == 0);
    }

    #[test]
    fn what_is_not_confirmed_is_sent_again_in_order() {
        let mut outbox = Outbox::default();
        for n in 1..=4 {
            outbox.sent(n, message(n));
        }
        let refused = outbox.confirmed(1, false).remove(0);
        outbox.refused(refused);
        outbox.confirmed(3, false);
        outbox.lost();
        let again: Vec<Message> = std::iter::from_fn(|| outbox.take_again()).collect();
        assert_eq!(ids(&again), "2 4 1");
        outbox.put_back(message(2));
        assert!(!outbox.is_empty() && outbox.has_room());
    }

    #[test]
    fn the_window_is_bounded_by_number_and_size() {
        let mut outbox = Outbox::default();
        for n in 0..WINDOW as u64 {
            assert!(outbox.has_room());
            outbox.sent(n, message(n));
        }
        assert!(!outbox.has_room());
        outbox.confirmed(0, false);
        assert!(outbox.has_room());
        outbox.lost();
        let body = Bytes::from(vec![0; WINDOW_BYTES]);
        outbox.sent(1, Message { body, ..message(1) });
        assert!(!outbox.has_room());
    }
}
