//! Messages without id that made units, and that the broker may deliver again.
//!
//! Equal messages are interchangeable: a redelivery is taken for one of them that is not here on
//! this connection. The number of units stays right, as long as no message is taken for another one that
//! the broker does not have any more. So an equal one waits until the acknowledgement of the first is
//! handled, and a message with equal ones is forgotten then. One without is remembered for some seconds:
//! a broker that is killed may have lost the acknowledgement.

use std::collections::VecDeque;

use tokio::time::{Duration, Instant};
use tracing::warn;

use crate::engine::commit::receipt::Tag;
use crate::store::ledger::queues::OpenMessage;

/// Maximum number of such messages. Beyond it the oldest is forgotten, and may run again.
const MAX_OPEN: usize = 20_000;

/// Number of digests that are remembered because several messages have had them.
const MAX_TWINS: usize = 64;

/// Where a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Delivered to us, and not acknowledged.
    Here(Tag),
    /// Acknowledged, as the so-manieth on the connection.
    Acknowledged(u64),
    /// The broker has it since the connection was lost, or may have it.
    Lost(Instant),
}

#[derive(Debug)]
struct Open {
    message: OpenMessage,
    place: Place,
    /// The claim of another client that is about it.
    claim: Option<String>,
}

/// The open messages of one queue, oldest first.
#[derive(Debug, Default)]
pub struct OpenMessages {
    list: Vec<Open>,
    /// Digests that several messages have had, the last ones.
    twins: VecDeque<[u8; 32]>,
    /// Whether it was logged that there are too many.
    said: bool,
}

impl OpenMessages {
    /// Takes over what an earlier client has left.
    pub fn of_ledger(list: Vec<OpenMessage>) -> Self {
        let mut all = Self::default();
        for message in list {
            all.add(message, Place::Lost(Instant::now()));
        }
        all
    }

    /// Adds a message. Returns a unit whose message is forgotten for it.
    pub fn add(&mut self, message: OpenMessage, place: Place) -> Option<String> {
        let is_full = self.list.len() >= MAX_OPEN;
        if is_full && !std::mem::replace(&mut self.said, true) {
            warn!(
                "more than {MAX_OPEN} messages without message_id are not settled: the oldest are \
                 forgotten, and may run again"
            );
        }
        let forgotten = is_full.then(|| self.list.remove(0).message.unit);
        let mut digests = self.list.iter().map(|open| &open.message.digest);
        if digests.any(|digest| *digest == message.digest) {
            self.note_twin(&message.digest);
        }
        self.list.push(Open {
            message,
            place,
            claim: None,
        });
        forgotten
    }

    /// Returns the unit of the message that delivery `tag`, with this `digest`, brings again, if there
    /// is one. Messages whose unit `runs` come first.
    pub fn bind(
        &mut self,
        digest: &[u8; 32],
        tag: Tag,
        runs: impl Fn(&str) -> bool,
    ) -> Option<String> {
        let open = Self::lost(&mut self.list, digest, runs)?;
        open.place = Place::Here(tag);
        open.claim = None;
        Some(open.message.unit.clone())
    }

    /// Returns the unit of the message with this `digest` that `claim` of another client is about, if
    /// there is one.
    pub fn claimed(
        &mut self,
        digest: &[u8; 32],
        claim: &str,
        runs: impl Fn(&str) -> bool,
    ) -> Option<String> {
        let by_claim = |open: &Open| open.claim.as_deref() == Some(claim);
        if let Some(open) = self.list.iter().find(|open| by_claim(open)) {
            return Some(open.message.unit.clone());
        }
        let open = Self::lost(&mut self.list, digest, runs)?;
        open.claim = Some(claim.to_owned());
        Some(open.message.unit.clone())
    }

    /// Returns the best lost message with this `digest`: one that no other client claims, and whose
    /// unit runs.
    fn lost<'a>(
        list: &'a mut [Open],
        digest: &[u8; 32],
        runs: impl Fn(&str) -> bool,
    ) -> Option<&'a mut Open> {
        let fits = |open: &&mut Open| {
            open.message.digest == *digest && matches!(open.place, Place::Lost(_))
        };
        let rank = |open: &&mut Open| (open.claim.is_some(), !runs(&open.message.unit));
        list.iter_mut().filter(fits).min_by_key(rank)
    }

    fn note_twin(&mut self, digest: &[u8; 32]) {
        if !self.twins.contains(digest) {
            self.twins.truncate(MAX_TWINS - 1);
            self.twins.push_front(*digest);
        }
    }

    /// Returns whether a message with this `digest` is acknowledged, and the broker may not have handled
    /// that. An equal one must not be taken meanwhile: after a crash it would be taken for the first.
    pub fn is_settling(&mut self, digest: &[u8; 32]) -> bool {
        let settles = |open: &Open| {
            open.message.digest == *digest && matches!(open.place, Place::Acknowledged(_))
        };
        let settles = self.list.iter().any(settles);
        if settles {
            self.note_twin(digest);
        }
        settles
    }

    /// Notes that delivery `tag` was acknowledged, as the `number`th on its connection. Returns whether
    /// equal messages are known, so that it must be forgotten as soon as the broker has handled that.
    pub fn acknowledged(&mut self, tag: Tag, number: u64) -> bool {
        let here = |open: &&mut Open| open.place == Place::Here(tag);
        let Some(open) = self.list.iter_mut().find(here) else {
            return false;
        };
        open.place = Place::Acknowledged(number);
        self.twins.contains(&open.message.digest)
    }

    /// Forgets the messages whose acknowledgements, up to `number`, the broker has handled. Returns their
    /// units.
    pub fn handled(&mut self, number: u64) -> Vec<String> {
        let is_over = |open: &Open| matches!(open.place, Place::Acknowledged(own) if own <= number);
        self.forget(is_over)
    }

    /// Notes that the connection is gone.
    pub fn disconnected(&mut self) {
        let now = Instant::now();
        for open in &mut self.list {
            if !matches!(open.place, Place::Lost(_)) {
                open.place = Place::Lost(now);
            }
        }
    }

    /// Forgets messages that have been lost for `time`, and whose unit does not run: the broker would
    /// have delivered them again. Returns their units.
    pub fn expire(&mut self, time: Duration, runs: impl Fn(&str) -> bool) -> Vec<String> {
        let is_over = |open: &Open| match open.place {
            Place::Lost(since) => since.elapsed() >= time && !runs(&open.message.unit),
            Place::Here(_) | Place::Acknowledged(_) => false,
        };
        self.forget(is_over)
    }

    fn forget(&mut self, is_over: impl Fn(&Open) -> bool) -> Vec<String> {
        let over = self.list.extract_if(.., |open| is_over(open));
        over.map(|open| open.message.unit).collect()
    }

    /// Returns when the first message was lost.
    pub fn lost_since(&self) -> Option<Instant> {
        let since = |open: &Open| match open.place {
            Place::Lost(since) => Some(since),
            Place::Here(_) | Place::Acknowledged(_) => None,
        };
        self.list.iter().filter_map(since).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(unit: &str, digest: u8) -> OpenMessage {
        OpenMessage {
            unit: unit.to_owned(),
            digest: [digest; 32],
        }
    }

    const fn tag(connection: u64, number: u64) -> Tag {
        Tag { connection, number }
    }

    #[test]
    fn equal_messages_come_again_one_by_one_and_those_that_run_first() {
        let mut open = OpenMessages::default();
        for (unit, digest, number) in [("a", 1, 1), ("b", 1, 2), ("c", 2, 3)] {
            assert_eq!(
                open.add(message(unit, digest), Place::Here(tag(1, number))),
                None
            );
        }
        let runs = |unit: &str| unit == "b";
        assert_eq!(open.bind(&[1; 32], tag(1, 9), runs), None, "all are here");
        assert!(open.acknowledged(tag(1, 1), 1), "it has an equal one");
        open.disconnected();
        assert_eq!(open.bind(&[1; 32], tag(2, 1), runs).as_deref(), Some("b"));
        assert_eq!(open.bind(&[1; 32], tag(2, 2), runs).as_deref(), Some("a"));
        assert_eq!(open.bind(&[1; 32], tag(2, 3), runs), None, "another one");
        assert!(!open.is_settling(&[1; 32]));
        assert_eq!(open.bind(&[3; 32], tag(2, 3), runs), None);
        open.acknowledged(tag(2, 1), 1);
        open.acknowledged(tag(2, 2), 2);
        assert_eq!(open.handled(1), ["b"]);
        assert!(open.is_settling(&[1; 32]) && !open.is_settling(&[2; 32]));
        assert_eq!(open.handled(2), ["a"]);
        assert!(!open.is_settling(&[1; 32]));
        assert!(open.expire(Duration::ZERO, |unit| unit == "c").is_empty());
        assert_eq!(open.expire(Duration::ZERO, runs), ["c"]);
    }

    #[test]
    fn a_claim_is_about_one_message_and_a_delivery_of_our_own_wins() {
        let mut open = OpenMessages::of_ledger(vec![message("a", 1), message("b", 1)]);
        let runs = |_: &str| true;
        assert_eq!(open.claimed(&[1; 32], "x", runs).as_deref(), Some("a"));
        assert_eq!(open.claimed(&[1; 32], "x", runs).as_deref(), Some("a"));
        assert_eq!(open.claimed(&[1; 32], "y", runs).as_deref(), Some("b"));
        assert_eq!(open.bind(&[1; 32], tag(1, 1), runs).as_deref(), Some("a"));
        assert_eq!(open.claimed(&[2; 32], "z", runs), None);
    }
}
