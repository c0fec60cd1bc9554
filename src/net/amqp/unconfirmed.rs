//! Messages that were published and are not confirmed (RabbitMQ's publisher confirms).

use std::collections::BTreeMap;

use crate::model::text::printable;
use crate::net::amqp::{Failure, Happening, Publish};

/// Maximum length of a text of the broker, characters.
const MAX_TEXT: usize = 200;

/// What the broker has done with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Confirm {
    /// It has the message.
    Kept,
    /// It has sent the message back, as there is no queue for it: the cause.
    Returned(String),
    /// It could not keep the message (`basic.nack`).
    Dropped,
}

/// Routing key and `message_id`. A message that comes back has no number.
type Key = (String, Option<String>);

/// Messages that a channel has published, with what their sender knows about each.
#[derive(Debug)]
pub struct Unconfirmed<T> {
    sent: BTreeMap<u64, (Key, T)>,
    /// Causes for messages that came back. Their confirms follow.
    returned: Vec<(Key, String)>,
}

impl<T> Default for Unconfirmed<T> {
    fn default() -> Self {
        Self {
            sent: BTreeMap::new(),
            returned: Vec::new(),
        }
    }
}

impl<T> Unconfirmed<T> {
    /// Adds the message that has this `number` on the channel.
    pub fn add(&mut self, number: u64, message: &Publish, known: T) {
        let id = message.properties.message_id.clone();
        let key = (message.routing_key.clone(), id);
        self.sent.insert(number, (key, known));
    }

    /// Returns how many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sent.len()
    }

    /// Returns whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Takes what the channel tells, and returns the messages that are decided now.
    ///
    /// # Errors
    /// When the channel has closed.
    pub fn happened(&mut self, happening: Happening) -> Result<Vec<(T, Confirm)>, Failure> {
        match happening {
            Happening::Returned(returned) => {
                let text = printable(&returned.text, MAX_TEXT);
                let cause = format!("the queue does not exist ({text})");
                let key = (returned.routing_key, returned.properties.message_id);
                self.returned.push((key, cause));
                Ok(Vec::new())
            }
            Happening::Confirmed {
                number,
                multiple,
                ok,
            } => {
                let first = if multiple { 0 } else { number };
                let numbers = self.sent.range(first..=number).map(|(at, _)| *at);
                let numbers: Vec<u64> = numbers.collect();
                let decided = numbers.into_iter().filter_map(|at| self.decided(at, ok));
                Ok(decided.collect())
            }
            Happening::Closed(failure) => Err(failure),
            Happening::Delivery(_) | Happening::Canceled(_) => Ok(Vec::new()),
        }
    }

    fn decided(&mut self, number: u64, ok: bool) -> Option<(T, Confirm)> {
        let (key, known) = self.sent.remove(&number)?;
        let back = self.returned.iter().position(|(back, _)| *back == key);
        let confirm = match back {
            Some(place) => Confirm::Returned(self.returned.swap_remove(place).1),
            None if ok => Confirm::Kept,
            None => Confirm::Dropped,
        };
        Some((known, confirm))
    }

    /// Returns what is known about all that are left, in the order in which they were published, when
    /// their channel is gone.
    pub fn take(&mut self) -> impl DoubleEndedIterator<Item = T> + use<T> {
        self.returned.clear();
        let sent = std::mem::take(&mut self.sent);
        sent.into_values().map(|(_, known)| known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::amqp::{Properties, Returned};

    fn message(queue: &str, id: &str) -> Publish {
        Publish {
            routing_key: queue.to_owned(),
            properties: Properties {
                message_id: Some(id.to_owned()),
                ..Properties::default()
            },
            ..Publish::default()
        }
    }

    #[track_caller]
    fn confirmed(
        list: &mut Unconfirmed<u32>,
        number: u64,
        multiple: bool,
        ok: bool,
    ) -> Vec<(u32, Confirm)> {
        let confirmed = Happening::Confirmed {
            number,
            multiple,
            ok,
        };
        list.happened(confirmed).expect("open")
    }

    #[test]
    fn each_is_decided_once() {
        let mut list = Unconfirmed::default();
        for n in 1..=5 {
            list.add(u64::from(n), &message("q", &n.to_string()), n);
        }
        // One is returned to the queue of the same id elsewhere, which is another message.
        let back = |queue: &str| {
            let Publish {
                routing_key,
                properties,
                ..
            } = message(queue, "3");
            Happening::Returned(Box::new(Returned {
                code: 312,
                text: "NO_ROUTE".to_owned(),
                exchange: String::new(),
                routing_key,
                properties,
                body: bytes::Bytes::new(),
            }))
        };
        for queue in ["other", "q"] {
            assert_eq!(list.happened(back(queue)), Ok(Vec::new()));
        }
        assert_eq!(
            confirmed(&mut list, 2, false, false),
            [(2, Confirm::Dropped)]
        );
        let returned = Confirm::Returned("the queue does not exist (NO_ROUTE)".to_owned());
        let decided = confirmed(&mut list, 4, true, true);
        assert_eq!(
            decided,
            [(1, Confirm::Kept), (3, returned), (4, Confirm::Kept)]
        );
        assert_eq!(confirmed(&mut list, 4, true, true), []);
        assert_eq!(list.take().collect::<Vec<_>>(), [5]);
        assert!(list.is_empty());
    }
}
