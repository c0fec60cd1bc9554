//! Times since which a redelivered message may have been accepted.
//!
//! Messages without an id are distinguished by their content only. The broker may send again what
//! it does not know to be acknowledged. It knows everything of ours that reached it before a
//! message that it has answered, because one connection keeps the order. Redeliveries come first on
//! the next connection, before the broker answers anything there (MQTT 5.0, section 4.4), and count
//! as accepted then.
//!
//! A broker that died and was restored from an older save has forgotten a part of that. It
//! continues its numbers, so a message with the identifier of an earlier one is that message. Other
//! brokers number anew with each connection, and a message that such a broker has sent to an absent
//! client looks the same. Only after a connection that was dropped under us can the broker have
//! died.

use std::collections::VecDeque;

use crate::store::ledger::Again;

/// What the broker knows to be acknowledged. Times are milliseconds since 1970; while the clock of
/// the host steps back, they stand still. `T` identifies a publish.
#[derive(Debug)]
pub struct Redelivery<T> {
    /// When the events came that the ledger has not accepted yet, oldest first.
    waiting: VecDeque<i64>,
    /// Messages in flight to the broker, and the time since which events before each may be
    /// unacknowledged.
    sent: VecDeque<(T, i64)>,
    answered: i64,
    /// Whether a message on this connection is left to the next client.
    left: bool,
    since: i64,
    latest: i64,
    /// Time since which a broker may have forgotten its knowledge, if it has dropped the last
    /// connection.
    forgotten: Option<i64>,
    /// Identifier of the last new message, and whether the broker has begun again at 1.
    number: u16,
    numbers_anew: bool,
    /// A bit for each packet identifier: whether its last message left nothing in the ledger. Empty
    /// until there is one.
    unrecorded: Vec<u64>,
    /// The same for the message before the current one, under its identifier.
    unrecorded_before: bool,
}

/// Maximum age of the save from which a broker is restored, milliseconds: twice the interval that
/// docs/broker.md sets for mosquitto.
const SAVE_AGE: i64 = 120_000;

/// Words of 64 bits for all packet identifiers.
const PACKET_WORDS: usize = 1024;

impl<T: Copy + PartialEq> Redelivery<T> {
    /// Returns the state after an earlier client, whose broker knew that what came before `since`
    /// was acknowledged, and whose last event came at `latest`.
    pub fn new(since: i64, latest: i64) -> Self {
        Self {
            waiting: VecDeque::new(),
            sent: VecDeque::new(),
            answered: since,
            left: false,
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

    /// Notes a delivery under `packet`, and whether it may be a redelivery (`again`). It leaves
    /// nothing in the ledger unless [`Redelivery::came`] follows. At QoS 0 there is no identifier.
    pub fn delivered(&mut self, packet: u16, again: bool) {
        if packet != 0 && !again {
            // After the largest identifier comes the smallest, and a save is behind by some.
            let before = self.number.wrapping_sub(packet);
            self.numbers_anew |= packet == 1 && before < u16::MAX / 2;
            self.number = packet;
        }
        self.unrecorded_before = self.mark(packet, true);
    }

    /// Sets the bit of `packet`, and returns its earlier value.
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

    /// Notes an event that comes at `now` under `packet`, and returns the time for the ledger.
    pub fn came(&mut self, now: i64, packet: u16) -> i64 {
        self.mark(packet, false);
        let at = self.time(now);
        self.waiting.push_back(at);
        at
    }

    /// Notes that the ledger has accepted the first of these.
    pub fn accepted(&mut self) {
        self.waiting.pop_front();
    }

    /// Notes that a message was delivered and is never acknowledged on this connection. It may have
    /// been accepted on an earlier one, so that no answer tells any more what the broker knows.
    pub const fn left(&mut self) {
        self.left = true;
    }

    /// Notes a message that is sent at `now`.
    pub fn sent(&mut self, token: T, now: i64) {
        let now = self.time(now);
        let since = self.waiting.front().copied().unwrap_or(now);
        self.sent.push_back((token, since));
    }

    /// Notes that the broker has answered the message, on the connection on which it was sent.
    pub fn answered(&mut self, token: T) {
        if let Some(place) = self.sent.iter().position(|(sent, _)| *sent == token)
            && let Some((_, since)) = self.sent.remove(place)
            && !self.left
        {
            self.answered = self.answered.max(since);
        }
    }

    /// Notes that the message was not sent, or that its answer does not come from the broker.
    pub fn unanswered(&mut self, token: T) {
        self.sent.retain(|(sent, _)| *sent != token);
    }

    /// Returns the time before which the broker knows our acknowledgements.
    pub const fn known(&self) -> i64 {
        self.answered
    }

    /// Notes that the connection is gone, or failed; `cut` is when the other side has dropped it.
    pub fn disconnected(&mut self, cut: Option<i64>) {
        self.sent.clear();
        self.left = false;
        self.since = self.answered;
        if let Some(cut) = cut {
            self.forgotten = Some(cut.saturating_sub(SAVE_AGE));
        }
    }

    /// Returns when the current message can have been accepted, if it may be a redelivery: since
    /// the last knowledge of the broker, or, if it has forgotten that, since its last save, unless
    /// its packet identifier has carried something else since.
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
    fn no_answer_covers_what_is_left_to_the_next_client() {
        let [first, second] = [Token::new(), Token::new()];
        // The client before has accepted it at 10, and was killed.
        let mut redelivery = Redelivery::new(5, 10);
        redelivery.sent(first, 20);
        redelivery.delivered(1, true);
        redelivery.left();
        redelivery.sent(second, 30);
        redelivery.answered(first);
        redelivery.answered(second);
        redelivery.disconnected(None);
        assert_eq!(redelivery.again().unacknowledged, 5);
        redelivery.sent(first, 40);
        redelivery.answered(first);
        assert_eq!(redelivery.known(), 40, "on the next connection it counts");
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
        // It continues its numbers, also from the largest to the smallest, and from its save.
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
