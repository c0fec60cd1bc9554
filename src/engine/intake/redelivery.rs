//! Since when a message may have been accepted that the broker sends again.
//!
//! A sender that gives no id is told from itself only by what it has said. The broker may send
//! again what it does not know to be acknowledged; and what has reached it of us before a
//! message that it has answered, it knows: one connection keeps the order. What it sends again
//! comes first over the next connection, before it answers anything there (MQTT 5.0, section
//! 4.4), and counts as accepted then.
//!
//! A broker that died and was restored from an older save has forgotten some of that. It numbers
//! its messages on, so that one under the identifier of an earlier one is that one. Others number
//! anew with each connection, and a message that such a broker has sent to a client that was gone
//! looks the same: only after a connection that was cut under us can the broker have died.

use std::collections::VecDeque;

use crate::store::ledger::Again;

/// What the broker knows to be acknowledged. Times are milliseconds since the epoch, as far as
/// the host's clock does not step back: then they stand still. `T` names a publish.
#[derive(Debug)]
pub struct Redelivery<T> {
    /// When those events came that the ledger has not accepted yet, oldest first.
    waiting: VecDeque<i64>,
    /// Messages under way to the broker, and since when events may be unacknowledged that came
    /// before each.
    sent: VecDeque<(T, i64)>,
    answered: i64,
    since: i64,
    latest: i64,
    /// Since when a broker may have forgotten what it knew, that has cut the last connection.
    forgotten: Option<i64>,
    /// The identifier of the last message that was sent for the first time, and whether the broker
    /// has begun again at 1.
    number: u16,
    numbers_anew: bool,
    /// A bit for each packet identifier: whether the last message under it left nothing in the
    /// ledger. Empty until there is one.
    unrecorded: Vec<u64>,
    /// The same of the message before the one that is looked at now, under its identifier.
    unrecorded_before: bool,
}

/// Maximum age of the save that a broker is restored from, milliseconds: twice the interval that
/// docs/broker.md has mosquitto save its state in.
const SAVE_AGE: i64 = 120_000;

/// Words of 64 bits for all packet identifiers.
const PACKET_WORDS: usize = 1024;

impl<T: Copy + PartialEq> Redelivery<T> {
    /// After an earlier client, whose broker knew that what came before `since` was acknowledged,
    /// and whose last event came at `latest`.
    pub fn new(since: i64, latest: i64) -> Self {
        Self {
            waiting: VecDeque::new(),
            sent: VecDeque::new(),
            answered: since,
            since,
            latest: latest.max(since),
            forgotten: None,
            number: 0,
            numbers_anew: false,
            unrecorded: Vec::new(),
            unrecorded_before: false,
        }
    }

    fn time(&mut self, now: i64) -> i64 {
        self.latest = self.latest.max(now);
        self.latest
    }

    /// A message is delivered under `packet`, `again` if the broker says so; it leaves nothing in the
    /// ledger unless [`Redelivery::came`] follows. At QoS 0 there is no identifier.
    pub fn delivered(&mut self, packet: u16, again: bool) {
        if packet != 0 && !again {
            // After the largest identifier comes the smallest, and a save goes back by some.
            let before = self.number.wrapping_sub(packet);
            self.numbers_anew |= packet == 1 && before < u16::MAX / 2;
            self.number = packet;
        }
        self.unrecorded_before = self.mark(packet, true);
    }

    /// Sets the bit of `packet`, and returns what it was.
    fn mark(&mut self, packet: u16, unrecorded: bool) -> bool {
        if packet == 0 || (self.unrecorded.is_empty() && !unrecorded) {
            return false;
        }
        self.unrecorded.resize(PACKET_WORDS, 0);
        let bit = 1 << (packet % 64);
        let Some(word) = self.unrecorded.get_mut(usize::from(packet / 64)) else {
            return false;
        };
        let before = *word & bit != 0;
        *word = if unrecorded {
            *word | bit
        } else {
            *word & !bit
        };
        before
    }

    /// An event comes at `now` under `packet`, and is on its way to the ledger, with the time that
    /// is returned.
    pub fn came(&mut self, now: i64, packet: u16) -> i64 {
        self.mark(packet, false);
        let at = self.time(now);
        self.waiting.push_back(at);
        at
    }

    /// The ledger has accepted the first of these.
    pub fn accepted(&mut self) {
        self.waiting.pop_front();
    }

    /// A message is sent at `now`.
    pub fn sent(&mut self, token: T, now: i64) {
        let now = self.time(now);
        let since = self.waiting.front().copied().unwrap_or(now);
        self.sent.push_back((token, since));
    }

    /// The broker has answered the message, on the connection that it was sent on.
    pub fn answered(&mut self, token: T) {
        if let Some(place) = self.sent.iter().position(|(sent, _)| *sent == token)
            && let Some((_, since)) = self.sent.remove(place)
        {
            self.answered = self.answered.max(since);
        }
    }

    /// The message was not sent after all, or its answer does not come from the broker.
    pub fn unanswered(&mut self, token: T) {
        self.sent.retain(|(sent, _)| *sent != token);
    }

    /// What the broker knows to be acknowledged: what came before that time.
    pub const fn known(&self) -> i64 {
        self.answered
    }

    /// The connection is gone, or could not be had; `cut` says when the other side has cut it.
    pub fn disconnected(&mut self, cut: Option<i64>) {
        self.sent.clear();
        self.since = self.answered;
        if let Some(cut) = cut {
            self.forgotten = Some(cut.saturating_sub(SAVE_AGE));
        }
    }

    /// When the message that is looked at now can have been accepted, if the broker says that it
    /// may have sent it before: since the broker last knew, or, if it has forgotten that, since its
    /// last save, unless its packet identifier has carried something else since.
    pub fn again(&self) -> Again {
        let forgotten = self.forgotten.filter(|_| !self.numbers_anew);
        Again {
            unacknowledged: self.since,
            kept: forgotten
                .filter(|_| !self.unrecorded_before)
                .unwrap_or(i64::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::mqtt::Token;

    #[test]
    fn an_answer_covers_what_was_acknowledged_before_its_question() {
        let [first, second, third] = [Token::new(), Token::new(), Token::new()];
        let mut redelivery = Redelivery::new(5, 7);
        assert_eq!(redelivery.came(10, 1), 10);
        redelivery.accepted();
        redelivery.sent(first, 20);
        redelivery.came(30, 2);
        redelivery.sent(second, 40);
        redelivery.accepted();
        redelivery.answered(first);
        assert_eq!(redelivery.known(), 20);
        redelivery.answered(second);
        assert_eq!(redelivery.known(), 30, "that one was not accepted yet");
        assert_eq!(
            redelivery.again().unacknowledged,
            5,
            "on this connection nothing changes"
        );
        redelivery.sent(third, 50);
        redelivery.disconnected(None);
        assert_eq!(redelivery.again().unacknowledged, 30);
        redelivery.answered(third);
        assert_eq!(redelivery.known(), 30, "it was not answered");
    }

    #[test]
    fn only_the_answer_to_that_very_message_counts() {
        let [first, second] = [Token::new(), Token::new()];
        let mut redelivery = Redelivery::new(0, 0);
        redelivery.came(10, 1);
        redelivery.accepted();
        redelivery.sent(first, 20);
        redelivery.unanswered(first);
        redelivery.answered(first);
        redelivery.answered(second);
        assert_eq!(redelivery.known(), 0);
    }

    #[test]
    fn what_an_identifier_has_carried_since_is_told_apart() {
        let mut redelivery = Redelivery::<Token>::new(0, 0);
        redelivery.delivered(1, true);
        assert_eq!(redelivery.again().kept, i64::MAX, "nothing was cut");
        redelivery.came(SAVE_AGE, 1);
        redelivery.disconnected(Some(SAVE_AGE));
        redelivery.disconnected(None);
        let mut kept = |packet: u16, recorded: bool| {
            redelivery.delivered(packet, true);
            let kept = redelivery.again().kept;
            if recorded {
                redelivery.came(SAVE_AGE, packet);
            }
            kept
        };
        for packet in [1, 63, 64, u16::MAX] {
            assert_eq!(kept(packet, true), 0);
            assert_eq!(kept(packet, false), 0, "it carried an event");
            assert_eq!(kept(packet, true), i64::MAX, "it carried something else");
            assert_eq!(kept(packet, true), 0);
        }
        assert_eq!((kept(0, false), kept(0, false)), (0, 0), "QoS 0");
        // It numbers on, also from the largest to the smallest, and from its save.
        for packet in [7, 20, 5, u16::MAX / 3, u16::MAX / 3 * 2, u16::MAX - 1, 1, 2] {
            redelivery.delivered(packet, false);
            assert!(!redelivery.numbers_anew, "{packet}");
        }
        redelivery.delivered(1, false);
        redelivery.delivered(300, true);
        assert_eq!(redelivery.again().kept, i64::MAX, "it does not number on");
    }

    #[test]
    fn a_clock_that_steps_back_does_not_make_what_is_new_look_old() {
        let [first, second] = [Token::new(), Token::new()];
        let mut redelivery = Redelivery::new(500, 700);
        assert_eq!(
            (redelivery.came(600, 1), redelivery.came(800, 2)),
            (700, 800)
        );
        redelivery.sent(first, 100);
        redelivery.accepted();
        redelivery.sent(second, 100);
        redelivery.answered(first);
        assert_eq!(redelivery.known(), 700);
        redelivery.answered(second);
        assert_eq!(redelivery.known(), 800);
    }
}
