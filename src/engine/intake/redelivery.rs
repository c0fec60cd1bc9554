//! Times since which a redelivered message may have been accepted.
//!
//! Messages without an id are distinguished by their content only. The broker may send again what
//! it does not know to be acknowledged. It knows everything of ours that reached it before a
//! message that it has answered, because one connection keeps the order. Redeliveries come first on
//! the next connection, before the broker answers anything there (MQTT 5.0, section 4.4). Until a
//! delivery is acknowledged, no answer counts beyond the time since which it can have been accepted.
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
    /// Deliveries of this connection that are not acknowledged, oldest first: acknowledgements keep
    /// that order. As many as the broker has in flight.
    waiting: VecDeque<Waiting>,
    /// How many of them may be redeliveries.
    again: usize,
    /// Messages in flight to the broker, and the time since which events before each may be
    /// unacknowledged.
    sent: VecDeque<(T, i64)>,
    answered: i64,
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

/// A delivery that is not acknowledged.
#[derive(Debug)]
struct Waiting {
    packet: u16,
    /// When it came.
    at: i64,
    /// Whether it may be a redelivery, accepted before it came.
    again: bool,
    /// Whether its acknowledgement waits for those before it only.
    settled: bool,
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
            again: 0,
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

    /// Notes a delivery under `packet` at `now`, and whether it may be a redelivery (`again`). It leaves
    /// nothing in the ledger unless [`Redelivery::came`] follows. At QoS 0 there is no identifier.
    pub fn delivered(&mut self, packet: u16, again: bool, now: i64) {
        if packet != 0 {
            let at = self.time(now);
            self.again += usize::from(again);
            self.waiting.push_back(Waiting {
                packet,
                at,
                again,
                settled: false,
            });
        }
        if packet != 0 && !again {
            // After the largest identifier comes the smallest, and a save is behind by some.
            let before = self.number.wrapping_sub(packet);
            self.numbers_anew |= packet == 1 && before < u16::MAX / 2;
            self.number = packet;
        }
        self.unrecorded_before = self.mark(packet, true);
    }

    /// Notes that the delivery under `packet` of this connection is acknowledged when those before it
    /// are.
    pub fn settled(&mut self, packet: u16) {
        let mut waiting = self.waiting.iter_mut();
        if let Some(waiting) = waiting.find(|one| one.packet == packet && !one.settled) {
            waiting.settled = true;
        }
        while self.waiting.front().is_some_and(|first| first.settled) {
            let first = self.waiting.pop_front();
            self.again -= usize::from(first.is_some_and(|first| first.again));
        }
    }

    /// Returns the time since which an unacknowledged delivery can have been accepted, if there is one.
    fn unacknowledged(&self) -> Option<i64> {
        // What came on this connection came after all that the broker knew when it began.
        match self.again {
            0 => self.waiting.front().map(|first| first.at),
            _ => Some(self.since),
        }
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

    /// Notes that the current message is an event, at `now` under `packet`. Returns the time for the
    /// ledger.
    pub fn came(&mut self, now: i64, packet: u16) -> i64 {
        self.mark(packet, false);
        self.time(now)
    }

    /// Notes a message that is sent at `now`.
    pub fn sent(&mut self, token: T, now: i64) {
        let now = self.time(now);
        self.sent
            .push_back((token, self.unacknowledged().unwrap_or(now)));
    }

    /// Notes that the broker has answered the message, on the connection on which it was sent.
    pub fn answered(&mut self, token: T) {
        if let Some(place) = self.sent.iter().position(|(sent, _)| *sent == token)
            && let Some((_, since)) = self.sent.remove(place)
        {
            // A redelivery may have come after the message was sent.
            let since = since.min(self.unacknowledged().unwrap_or(since));
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
        self.waiting.clear();
        self.again = 0;
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
        redelivery.delivered(1, false, 10);
        assert_eq!(redelivery.came(10, 1), 10);
        redelivery.settled(1);
        redelivery.sent(first, 20);
        redelivery.delivered(2, false, 30);
        redelivery.sent(second, 40);
        redelivery.settled(2);
        redelivery.answered(first);
        assert_eq!(redelivery.known(), 20);
        redelivery.answered(second);
        assert_eq!(redelivery.known(), 30, "that one was not acknowledged yet");
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
        redelivery.delivered(1, false, 10);
        redelivery.settled(1);
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
        redelivery.delivered(1, true, 25);
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
    fn no_answer_covers_what_waits_for_room_or_for_the_ledger() {
        let [first, second, third] = [Token::new(), Token::new(), Token::new()];
        let mut redelivery = Redelivery::new(5, 10);
        // The second is acknowledged after the first only. The third is no event, at QoS 0.
        redelivery.delivered(1, true, 20);
        redelivery.delivered(2, false, 21);
        redelivery.delivered(0, false, 22);
        redelivery.settled(2);
        redelivery.sent(first, 30);
        // Its acknowledgement comes after the first message, and before the second.
        redelivery.settled(1);
        redelivery.sent(second, 40);
        redelivery.answered(first);
        assert_eq!(redelivery.known(), 5);
        redelivery.answered(second);
        assert_eq!(redelivery.known(), 40);
        redelivery.delivered(3, false, 50);
        redelivery.delivered(4, false, 60);
        redelivery.settled(4);
        redelivery.sent(third, 70);
        redelivery.answered(third);
        assert_eq!(redelivery.known(), 50, "the third is not acknowledged");
        // Acknowledgements of a connection end with it.
        redelivery.disconnected(None);
        redelivery.settled(3);
        redelivery.sent(third, 80);
        redelivery.answered(third);
        assert_eq!(redelivery.known(), 80);
    }

    #[test]
    fn what_an_identifier_has_carried_since_is_told_apart() {
        let mut redelivery = Redelivery::<Token>::new(0, 0);
        redelivery.delivered(1, true, 0);
        assert_eq!(redelivery.again().kept, i64::MAX, "nothing was cut");
        redelivery.came(SAVE_AGE, 1);
        redelivery.disconnected(Some(SAVE_AGE));
        redelivery.disconnected(None);
        let mut kept = |packet: u16, recorded: bool| {
            redelivery.delivered(packet, true, 0);
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
            redelivery.delivered(packet, false, 0);
            assert!(!redelivery.numbers_anew, "{packet}");
        }
        redelivery.delivered(1, false, 0);
        redelivery.delivered(300, true, 0);
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
        redelivery.delivered(3, false, 100);
        redelivery.sent(first, 100);
        redelivery.settled(3);
        redelivery.sent(second, 900);
        redelivery.answered(first);
        assert_eq!(redelivery.known(), 800);
        redelivery.answered(second);
        assert_eq!(redelivery.known(), 900);
    }
}
