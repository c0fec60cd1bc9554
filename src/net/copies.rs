//! Copies of one message. A broker may deliver a message once for each subscription that matches
//! its topic (MQTT 5.0, section 3.3.4). It sends the copies one after the other, each with the
//! identifier of its subscription.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::message::Delivery;

/// Maximum time between two copies; the broker may wait for acknowledgements in between.
const COPY_TIME: Duration = Duration::from_secs(5);

/// Maximum number of copies to recognise when the broker sends them again: as many as it may
/// have in flight.
const MAX_KNOWN: usize = 4096;

/// Stands for a subscription without identifier.
const NONE: usize = 0;

/// The last message, and the subscriptions that brought it.
#[derive(Debug, Default)]
pub struct Copies {
    last: Option<(Delivery, Vec<usize>, Instant)>,
    /// Packet identifiers and content hashes of the last copies.
    known: VecDeque<(u16, u64)>,
    hash: RandomState,
}

impl Copies {
    /// Begins a connection at `now`. If the broker has kept the session, a copy of the last message
    /// may still come.
    pub fn connected(&mut self, session_present: bool, now: Instant) {
        if session_present {
            self.last.iter_mut().for_each(|(_, _, at)| *at = now);
        } else {
            *self = Self::default();
        }
    }

    /// Notes that a filter is given up: later messages are not copies of its messages.
    pub fn given_up(&mut self) {
        self.last = None;
    }

    /// Returns whether `delivery`, which came at `now` for `subscriptions`, is a copy of the last
    /// message: equal, and for none of the same subscriptions. Equal messages that were published
    /// one after the other come for the same ones.
    ///
    /// A filter may have had no identifier when the last message was published. So a message
    /// without identifier is a copy only of a message for a `fresh` filter, which the broker did
    /// not hold then.
    pub fn is_copy(
        &mut self,
        delivery: &Delivery,
        subscriptions: &[usize],
        fresh: impl Fn(usize) -> bool,
        now: Instant,
    ) -> bool {
        // Most messages have no copies, and then nothing is hashed.
        let hash = || self.hash.hash_one((&delivery.topic, &delivery.payload));
        let known = self.known.iter().find(|(id, _)| *id == delivery.packet);
        if known.is_some_and(|(_, known)| delivery.duplicate && *known == hash()) {
            return true;
        }
        self.known.retain(|(packet, _)| *packet != delivery.packet);
        let own = match subscriptions {
            [] => &[NONE],
            some => some,
        };
        if let Some((last, seen, at)) = &mut self.last
            && now.duration_since(*at) <= COPY_TIME
            && !own.iter().any(|id| seen.contains(id))
            && are_different(own.iter().chain(&*seen), fresh)
            && is_equal(last, delivery)
        {
            seen.extend(own);
            if delivery.packet != 0 {
                self.known.push_back((delivery.packet, hash()));
                if self.known.len() > MAX_KNOWN {
                    self.known.pop_front();
                }
            }
            return true;
        }
        self.last = Some((delivery.clone(), own.to_vec(), now));
        false
    }
}

/// Returns whether subscriptions, all different, must be to different filters.
fn are_different<'a>(
    mut all: impl Iterator<Item = &'a usize> + Clone,
    fresh: impl Fn(usize) -> bool,
) -> bool {
    !all.clone().any(|id| *id == NONE) || all.all(|id| *id == NONE || fresh(*id))
}

/// Returns whether both are one message for a subscriber. One copy may have been sent before, and
/// the other not.
fn is_equal(one: &Delivery, other: &Delivery) -> bool {
    one.retained == other.retained
        && one.topic == other.topic
        && one.properties == other.properties
        && one.payload == other.payload
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::message::Properties;

    fn message(payload: &'static str, packet: u16) -> Delivery {
        Delivery {
            topic: "lab/a".into(),
            payload: payload.into(),
            retained: false,
            duplicate: false,
            packet,
            properties: Properties::default(),
        }
    }

    #[test]
    fn copies_come_by_different_subscriptions() {
        let now = Instant::now();
        let mut copies = Copies::default();
        let mut runs = |payload, packet, subscriptions: &[usize]| {
            !copies.is_copy(&message(payload, packet), subscriptions, |id| id < 9, now)
        };
        // Two equal messages for three subscriptions, one of them without identifier.
        for packet in [1, 4] {
            assert!(runs("x", packet, &[]));
            assert!(!runs("x", packet + 1, &[7]));
            assert!(!runs("x", packet + 2, &[8]));
        }
        // One message for two subscriptions at once.
        assert!(runs("y", 7, &[7, 8]) && runs("y", 8, &[7, 8]));
        // An earlier one of the same filter, which had no identifier then.
        assert!(runs("z", 9, &[]) && runs("z", 10, &[9]) && runs("z", 11, &[]));
        // Another one came in between.
        assert!(runs("x", 9, &[7]) && runs("y", 10, &[7]) && runs("x", 11, &[8]));
    }

    #[test]
    fn what_comes_later_is_no_copy() {
        let now = Instant::now();
        let mut copies = Copies::default();
        assert!(!copies.is_copy(&message("x", 1), &[1], |_| false, now));
        let late = now + COPY_TIME + Duration::from_secs(1);
        assert!(!copies.is_copy(&message("x", 2), &[2], |_| false, late));
    }

    #[test]
    fn copies_are_known_when_they_come_again() {
        let now = Instant::now();
        let mut copies = Copies::default();
        let is_copy = |copies: &mut Copies, packet, again, subscription| {
            let mut message = message("x", packet);
            message.duplicate = again;
            copies.is_copy(&message, &[subscription], |_| false, now)
        };
        assert!(!is_copy(&mut copies, 1, false, 1) && is_copy(&mut copies, 2, false, 2));
        assert!(!is_copy(&mut copies, 3, false, 1));
        // Only the first is acknowledged when the connection breaks, and the last still comes.
        copies.connected(true, now);
        assert!(is_copy(&mut copies, 2, true, 2));
        assert!(!is_copy(&mut copies, 3, true, 1) && is_copy(&mut copies, 4, false, 2));
        assert!(!is_copy(&mut copies, 2, false, 1) && !is_copy(&mut copies, 2, true, 1));
        copies.connected(false, now);
        assert!(!is_copy(&mut copies, 4, true, 2));
    }
}
