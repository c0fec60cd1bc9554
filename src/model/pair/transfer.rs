//! The bytes between two ends, each way: numbers, window, seals, acknowledgements, and ends.

use std::collections::VecDeque;

use crate::model::pair::{End, Key, Kind, Letter, SoFar};

/// Maximum size of the payload of one message, bytes.
pub const MAX_CHUNK: usize = 16 * 1024;

/// Maximum number of messages that the other end has not acknowledged. So a slow reader holds the writer,
/// and an end keeps half a megabyte at most.
pub const WINDOW: u64 = 32;

/// Maximum number of messages after the last part: the end of the parts, and that of a command.
const ENDS: u64 = 2;

/// Number of messages after which an end acknowledges. With half a window the other never waits for it.
const ACK_EACH: u64 = WINDOW / 2;

/// Why a pair is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// A message is missing.
    Gap,
    /// More messages came than the window allows.
    Window,
    /// An acknowledgement of what was not sent.
    Ack,
    /// A message whose seal does not fit: another one has written it, or it was changed on its way.
    Forged,
    /// The other end leaves.
    Left,
}

/// What a message of the other end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// It does not fit: not from the other end, not to us, or again.
    Stray,
    /// Its payload is the next part.
    Data,
    /// There are no further parts.
    End(End),
    /// Messages of ours have arrived, or are not wanted: [`Transfer::is_done`], [`Transfer::can_send`]
    /// and [`Transfer::is_unwanted`] may have changed.
    Progress,
}

/// The transfer of one end.
#[derive(Debug)]
pub struct Transfer {
    own: String,
    other: String,
    key: Key,
    /// Public key with which the other end has said hello.
    other_key: String,
    /// Digests of what we have sent, from `acked` to `sent`.
    sent_so_far: VecDeque<SoFar>,
    /// Digests of what came, from `taken` to `received`.
    came_so_far: VecDeque<SoFar>,
    /// Number of our last message.
    sent: u64,
    /// Up to which of them the output of the other end has taken them.
    acked: u64,
    /// Number of parts among our messages.
    parts: u64,
    /// Number of the message that said that there are no further parts.
    ended: Option<u64>,
    /// Whether our last message was the last one of all.
    finished: bool,
    /// After which number the other end takes nothing, if it has said so.
    stopped: Option<u64>,
    /// Number of the last message that came.
    received: u64,
    /// Up to which our output has taken them.
    taken: u64,
    /// Up to which we have acknowledged them.
    told: u64,
    /// Number of the message that said that there are no further parts.
    their_end: Option<u64>,
    /// Whether the last message of all came.
    their_finish: bool,
    /// Whether we have said that our output takes nothing more.
    refused: bool,
}

impl Transfer {
    /// Returns the transfer of end `own` with end `other`; both are ids of claims. `key` is theirs, and
    /// `other_key` the public key of the other end.
    #[must_use]
    pub fn new(own: String, other: String, key: Key, other_key: String) -> Self {
        Self {
            own,
            other,
            key,
            other_key,
            sent_so_far: VecDeque::from([SoFar::default()]),
            came_so_far: VecDeque::from([SoFar::default()]),
            sent: 0,
            acked: 0,
            parts: 0,
            ended: None,
            finished: false,
            stopped: None,
            received: 0,
            taken: 0,
            told: 0,
            their_end: None,
            their_finish: false,
            refused: false,
        }
    }

    fn letter(&self, kind: Kind, number: u64, proof: String) -> Letter {
        Letter {
            kind,
            from: self.own.clone(),
            to: self.other.clone(),
            number,
            proof,
        }
    }

    /// Returns a sealed message; `so_far` is the digest up to `number`.
    fn sealed(&self, kind: Kind, number: u64, so_far: Option<&SoFar>) -> Letter {
        let so_far = so_far.copied().unwrap_or_default();
        let seal = self.key.seal(&self.own, kind, number, &so_far);
        self.letter(kind, number, seal)
    }

    /// Returns whether the next part of our input may be sent now.
    #[must_use]
    pub const fn can_send(&self) -> bool {
        !self.is_sent() && self.sent - self.acked < WINDOW
    }

    /// Returns whether nothing of our input remains to be sent.
    #[must_use]
    pub const fn is_sent(&self) -> bool {
        self.ended.is_some() || self.stopped.is_some()
    }

    /// Returns whether the other end takes no more of our input.
    #[must_use]
    pub const fn is_unwanted(&self) -> bool {
        self.stopped.is_some()
    }

    /// Returns the message for the next part of our input, which [`Self::can_send`].
    pub fn data(&mut self, part: &[u8]) -> Letter {
        self.parts += 1;
        self.next_sent(Kind::Data, part)
    }

    /// Returns the message that says that our input has ended; `None` if that is said, or the other end takes
    /// no more and our command still runs.
    pub fn end(&mut self, end: End) -> Option<Letter> {
        if self.finished || end == End::Runs && self.is_sent() {
            return None;
        }
        self.finished = end != End::Runs;
        let letter = self.next_sent(Kind::End, end.payload().as_bytes());
        self.ended.get_or_insert(letter.number);
        Some(letter)
    }

    fn next_sent(&mut self, kind: Kind, payload: &[u8]) -> Letter {
        let before = self.sent_so_far.back().copied().unwrap_or_default();
        self.sent_so_far.push_back(before.and(kind, payload));
        self.sent += 1;
        self.sealed(kind, self.sent, self.sent_so_far.back())
    }

    /// Returns the message that ends the pair before its time.
    #[must_use]
    pub fn leave(&self) -> Letter {
        self.letter(Kind::Leave, 0, String::new())
    }

    /// Handles a message.
    ///
    /// # Errors
    /// When the pair is broken.
    pub fn receive(&mut self, letter: &Letter, payload: &[u8]) -> Result<Received, Broken> {
        if letter.from != self.other || letter.to != self.own || payload.len() > MAX_CHUNK {
            return Ok(Received::Stray);
        }
        match letter.kind {
            // Of two hellos with different keys one is forged: it may be the one that we have taken.
            Kind::Hello if letter.proof != self.other_key => Err(Broken::Forged),
            Kind::Hello => Ok(Received::Stray),
            Kind::Leave => Err(Broken::Left),
            Kind::Data | Kind::End => self.next(letter, payload),
            Kind::Ack | Kind::Stop => self.acknowledged(letter),
        }
    }

    fn acknowledged(&mut self, letter: &Letter) -> Result<Received, Broken> {
        if letter.number > self.sent {
            return Err(Broken::Ack);
        }
        let Some(more) = letter.number.checked_sub(self.acked) else {
            return Ok(Received::Stray);
        };
        let more = usize::try_from(more).unwrap_or(usize::MAX);
        if !self.fits(letter, self.sent_so_far.get(more)) {
            return Err(Broken::Forged);
        }
        self.sent_so_far.drain(..more);
        self.acked = letter.number;
        if letter.kind == Kind::Stop {
            self.stopped.get_or_insert(letter.number);
        }
        Ok(Received::Progress)
    }

    /// Returns whether the seal of `letter` is that of the other end; `so_far` is the digest up to its
    /// number.
    fn fits(&self, letter: &Letter, so_far: Option<&SoFar>) -> bool {
        so_far.is_some_and(|so_far| {
            self.key.fits(
                &letter.proof,
                &self.other,
                letter.kind,
                letter.number,
                so_far,
            )
        })
    }

    fn next(&mut self, letter: &Letter, payload: &[u8]) -> Result<Received, Broken> {
        if letter.number <= self.received {
            return Ok(Received::Stray);
        }
        let more = letter.kind == Kind::Data;
        if letter.number > self.received + 1
            || self.their_finish
            || more && self.their_end.is_some()
        {
            return Err(Broken::Gap);
        }
        let window = if more { WINDOW } else { WINDOW + ENDS };
        if letter.number - self.told > window {
            return Err(Broken::Window);
        }
        let before = self.came_so_far.back().copied().unwrap_or_default();
        let so_far = before.and(letter.kind, payload);
        if !self.fits(letter, Some(&so_far)) {
            return Err(Broken::Forged);
        }
        self.came_so_far.push_back(so_far);
        self.received = letter.number;
        if more {
            return Ok(Received::Data);
        }
        let end = End::from_payload(payload);
        self.their_end.get_or_insert(letter.number);
        self.their_finish = end != End::Runs;
        Ok(Received::End(end))
    }

    /// Notes that our output has taken one more message, in order. Returns an acknowledgement if one is
    /// due.
    pub fn took(&mut self) -> Option<Letter> {
        if self.taken < self.received {
            self.taken += 1;
            self.came_so_far.pop_front();
        }
        let last = self.their_end == Some(self.taken);
        (last || self.taken - self.told >= ACK_EACH).then(|| {
            self.told = self.taken;
            self.sealed(Kind::Ack, self.told, self.came_so_far.front())
        })
    }

    /// Notes that our output takes nothing more. Returns the message that says so, once, unless it has
    /// taken everything.
    pub fn refuse(&mut self) -> Option<Letter> {
        if self.is_received() || std::mem::replace(&mut self.refused, true) {
            return None;
        }
        Some(self.sealed(Kind::Stop, self.taken, self.came_so_far.front()))
    }

    /// Returns whether our output has taken everything of the other end, or takes nothing more.
    #[must_use]
    pub const fn is_received(&self) -> bool {
        match self.their_end {
            Some(end) => self.refused || self.taken >= end,
            None => self.refused,
        }
    }

    /// Returns whether both directions have ended, and both ends have said their last.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        let taken = match self.ended {
            Some(end) => self.acked >= end,
            None => false,
        };
        self.is_received()
            && self.their_finish
            && self.finished
            && (taken || self.stopped.is_some())
    }

    /// Returns whether the other end has stopped before it took all that was sent to it.
    #[must_use]
    pub fn is_cut_short(&self) -> bool {
        self.stopped.is_some_and(|taken| taken < self.parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn two() -> (Transfer, Transfer) {
        let new = |own: &str, other: &str| {
            let key = Key::new(b"of both");
            Transfer::new(own.into(), other.into(), key, other.into())
        };
        (new("x", "y"), new("y", "x"))
    }

    #[test]
    fn a_window_is_sent_and_half_a_window_acknowledged() {
        let (mut x, mut y) = two();
        let mut letters = VecDeque::new();
        while x.can_send() {
            letters.push_back(x.data(b"d"));
        }
        assert_eq!(letters.len() as u64, WINDOW);
        let mut acks = Vec::new();
        for letter in &letters {
            assert_eq!(y.receive(letter, b"d"), Ok(Received::Data));
            assert_eq!(y.receive(letter, b"d"), Ok(Received::Stray), "again");
            acks.extend(y.took());
        }
        let numbers: Vec<u64> = acks.iter().map(|ack| ack.number).collect();
        assert_eq!(numbers, [ACK_EACH, WINDOW]);
        assert_eq!(x.receive(&acks[0], b""), Ok(Received::Progress));
        assert!(x.can_send());
        assert_eq!(x.sent - x.acked, WINDOW - ACK_EACH);
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_a_gap_breaks() {
        let (mut x, mut y) = two();
        let first = x.data(b"d");
        for stray in [
            Letter {
                from: "z".into(),
                ..first.clone()
            },
            Letter {
                to: "z".into(),
                ..first.clone()
            },
            Letter {
                kind: Kind::Hello,
                proof: "x".into(),
                ..first.clone()
            },
        ] {
            assert_eq!(y.receive(&stray, b"d"), Ok(Received::Stray), "{stray:?}");
        }
        assert_eq!(y.receive(&first, &[0; MAX_CHUNK + 1]), Ok(Received::Stray));
        assert_eq!(y.receive(&first, b"d"), Ok(Received::Data));
        x.data(b"d");
        assert_eq!(y.receive(&x.data(b"d"), b"d"), Err(Broken::Gap));
        assert_eq!(
            x.receive(&y.sealed(Kind::Ack, 4, None), b""),
            Err(Broken::Ack),
            "not sent"
        );
        assert_eq!(x.receive(&y.leave(), b""), Err(Broken::Left));
    }

    #[test]
    fn a_message_that_another_has_written_or_changed_breaks() {
        let (mut x, mut y) = two();
        let first = x.data(b"d");
        let ack_of = |number| Letter {
            kind: Kind::Ack,
            from: "y".into(),
            to: "x".into(),
            number,
            proof: first.proof.clone(),
        };
        for kind in [Kind::Data, Kind::End] {
            for payload in [&b"e"[..], b"", b"dd"] {
                let (_, mut y) = two();
                let changed = Letter {
                    kind,
                    ..first.clone()
                };
                assert_eq!(y.receive(&changed, payload), Err(Broken::Forged));
            }
        }
        for kind in [Kind::Ack, Kind::Stop] {
            for number in [0, 1] {
                let forged = Letter {
                    kind,
                    ..ack_of(number)
                };
                assert_eq!(x.receive(&forged, b""), Err(Broken::Forged), "{forged:?}");
            }
        }
        let hello = Letter {
            kind: Kind::Hello,
            proof: "another key".into(),
            ..ack_of(0)
        };
        assert_eq!(x.receive(&hello, b""), Err(Broken::Forged));
        // A seal belongs to all that came before.
        assert_eq!(y.receive(&first, b"d"), Ok(Received::Data));
        let again = Letter { number: 2, ..first };
        assert_eq!(y.receive(&again, b"d"), Err(Broken::Forged));
        assert_eq!(y.receive(&x.data(b"e"), b"e"), Ok(Received::Data));
    }

    #[test]
    fn a_writer_that_ignores_the_window_breaks() {
        let (mut x, mut y) = two();
        for _ in 0..WINDOW {
            assert_eq!(y.receive(&x.data(b"d"), b"d"), Ok(Received::Data));
        }
        assert_eq!(y.receive(&x.data(b"d"), b"d"), Err(Broken::Window));
    }

    #[test]
    fn each_direction_ends_alone() {
        let (mut x, mut y) = two();
        let data = x.data(b"d");
        let end = x.end(End::Plain).expect("end");
        assert!(x.end(End::Plain).is_none() && !x.can_send());
        assert_eq!(y.receive(&data, b"d"), Ok(Received::Data));
        assert_eq!(y.receive(&end, b""), Ok(Received::End(End::Plain)));
        assert!(y.took().is_none() && !y.is_received());
        let ack = y.took().expect("all taken");
        assert!(y.is_received() && !y.is_done());
        assert_eq!(x.receive(&ack, b""), Ok(Received::Progress));
        assert!(!x.is_done(), "the other direction is open");
        assert!(y.can_send());
        let end = y.end(End::Plain).expect("end");
        assert_eq!(x.receive(&end, b""), Ok(Received::End(End::Plain)));
        let ack = x.took().expect("all taken");
        assert!(x.is_done() && !x.is_cut_short());
        assert_eq!(y.receive(&ack, b""), Ok(Received::Progress));
        assert!(y.is_done());
        assert_eq!(
            y.receive(&x.sealed(Kind::Data, 3, None), b"d"),
            Err(Broken::Gap)
        );
    }

    #[test]
    fn a_command_may_end_after_its_output() {
        for stops in [false, true] {
            let (mut x, mut y) = two();
            assert_eq!(y.receive(&x.data(b"d"), b"d"), Ok(Received::Data));
            let first = x.end(End::Runs).expect("end");
            assert!(x.end(End::Runs).is_none() && !x.can_send());
            let payload = End::Runs.payload();
            let came = y.receive(&first, payload.as_bytes());
            assert_eq!(came, Ok(Received::End(End::Runs)));
            if stops {
                let stop = y.refuse().expect("stop");
                assert_eq!(x.receive(&stop, b""), Ok(Received::Progress));
            } else {
                assert!(y.took().is_none());
                let ack = y.took().expect("all taken");
                assert_eq!(x.receive(&ack, b""), Ok(Received::Progress));
            }
            let end = y.end(End::Plain).expect("end");
            assert_eq!(x.receive(&end, b""), Ok(Received::End(End::Plain)));
            let ack = x.took().expect("all taken");
            assert_eq!(y.receive(&ack, b""), Ok(Received::Progress));
            assert!(!x.is_done() && !y.is_done(), "the command runs");
            let last = x.end(End::Exited(3)).expect("end");
            assert!(x.end(End::Exited(3)).is_none());
            let payload = End::Exited(3).payload();
            let came = y.receive(&last, payload.as_bytes());
            assert_eq!(came, Ok(Received::End(End::Exited(3))));
            assert!(x.is_done() && y.is_done());
            assert_eq!(x.is_cut_short(), stops, "a part");
            assert_eq!(
                y.receive(&x.sealed(Kind::End, 4, None), b""),
                Err(Broken::Gap)
            );
        }
        // A window of parts may be on its way, and both ends behind it.
        let (mut x, mut y) = two();
        for _ in 0..WINDOW {
            assert_eq!(y.receive(&x.data(b"d"), b"d"), Ok(Received::Data));
        }
        for end in [End::Runs, End::Exited(0)] {
            let letter = x.end(end).expect("end");
            let came = y.receive(&letter, end.payload().as_bytes());
            assert_eq!(came, Ok(Received::End(end)));
        }
    }

    #[test]
    fn an_output_that_stops_says_how_much_it_took() {
        let (mut x, mut y) = two();
        let letters = [x.data(b"d"), x.data(b"d")];
        for letter in &letters {
            assert_eq!(y.receive(letter, b"d"), Ok(Received::Data));
        }
        assert!(y.took().is_none());
        let stop = y.refuse().expect("stop");
        assert!(y.refuse().is_none() && y.is_received());
        assert_eq!(stop.number, 1);
        assert_eq!(x.receive(&stop, b""), Ok(Received::Progress));
        assert!(x.is_unwanted() && x.is_cut_short() && x.end(End::Runs).is_none());
        // How a command has ended is told all the same.
        assert!(x.end(End::Exited(3)).is_some());
        // One that took all parts, and only does not wait for the end, loses nothing.
        let (mut x, mut y) = two();
        assert_eq!(y.receive(&x.data(b"d"), b"d"), Ok(Received::Data));
        assert!(y.took().is_none());
        let stop = y.refuse().expect("stop");
        assert!(x.end(End::Plain).is_some());
        assert_eq!(x.receive(&stop, b""), Ok(Received::Progress));
        assert!(!x.is_cut_short());
    }

    proptest! {
        /// In every order in which both ends read, write and deliver, all parts come, once, in
        /// order, and both are done.
        #[test]
        fn everything_arrives_once(steps in proptest::collection::vec(0u8..6, 0..2000), parts in 0u64..200) {
            let (mut x, mut y) = two();
            let (mut to_y, mut to_x, mut pending) = (VecDeque::new(), VecDeque::new(), 0u64);
            let (mut left, mut came) = (parts, 0u64);
            to_x.extend(y.end(End::Plain));
            let mut step = |which: u8| -> Result<(), Broken> {
                match which {
                    0 | 1 if left > 0 && x.can_send() => {
                        to_y.push_back(x.data(b"d"));
                        left -= 1;
                    }
                    2 if left == 0 && x.can_send() => to_y.extend(x.end(End::Plain)),
                    3 => if let Some(letter) = to_y.pop_front() {
                        let payload: &[u8] = if letter.kind == Kind::End { b"" } else { b"d" };
                        match y.receive(&letter, payload)? {
                            Received::Data => { came += 1; pending += 1; }
                            Received::End(_) => pending += 1,
                            Received::Stray | Received::Progress => {}
                        }
                    },
                    4 if pending > 0 => {
                        pending -= 1;
                        to_x.extend(y.took());
                    }
                    5 => if let Some(letter) = to_x.pop_front()
                        && x.receive(&letter, b"")? == Received::End(End::Plain) {
                        to_y.extend(x.took());
                    },
                    _ => {}
                }
                Ok(())
            };
            for which in steps {
                prop_assert_eq!(step(which), Ok(()));
            }
            for _ in 0..2000 {
                for which in 0..6 {
                    prop_assert_eq!(step(which), Ok(()));
                }
            }
            prop_assert_eq!(came, parts);
            prop_assert!(x.is_done() && y.is_done());
        }

        #[test]
        fn no_message_makes_it_panic(letters in proptest::collection::vec((0usize..6, any::<u64>(), 0u64..4), 0..50)) {
            let (mut x, y) = two();
            x.data(b"d");
            for (kind, far, near) in letters {
                let kinds = [Kind::Hello, Kind::Data, Kind::End, Kind::Ack, Kind::Stop, Kind::Leave];
                for number in [far, near] {
                    let _ = x.receive(&y.sealed(kinds[kind], number, None), b"d");
                    let _ = x.took();
                    let _ = x.refuse();
                }
            }
            let _ = y.leave();
            prop_assert!(x.acked <= x.sent && x.taken <= x.received && x.told <= x.taken);
        }
    }
}
