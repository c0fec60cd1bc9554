//! Assembles a stream of bytes from pieces, which may come twice, and of which some may be missing.

use std::cmp::Ordering;

use bytes::{Buf, Bytes};

use crate::model::remote::ACK_EVERY;
use crate::model::remote::wire::Dropped;

/// What a piece brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// These bytes are next.
    Next(Bytes),
    /// Nothing: it came before.
    Known,
    /// Nothing: what comes before it is missing.
    Early,
}

/// What a gap brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// Its bytes are next.
    Next,
    /// Nothing: it came before.
    Known,
    /// Nothing: what comes before it is missing.
    Early,
}

/// How a stream that was received fits its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// It is what the sender keeps: their digests are the same.
    Same,
    /// It has bytes that the sender has dropped since, so that their digests differ.
    More,
    /// More is to come.
    Short,
    /// It cannot be the stream of this end.
    Wrong,
}

/// A stream that is received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Assembly {
    /// Number of bytes so far.
    at: u64,
    /// Number of bytes that were acknowledged.
    acked: u64,
    /// Number of bytes that were dropped before they came.
    missing: u64,
    /// Whether all bytes from here on are missing.
    is_cut: bool,
}

impl Assembly {
    /// Returns a stream that is here up to `offset`.
    #[must_use]
    pub const fn from(offset: u64) -> Self {
        Self {
            at: offset,
            acked: offset,
            missing: 0,
            is_cut: false,
        }
    }

    /// Offset of the next byte.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.at
    }

    /// Takes a piece from `offset` on.
    pub fn take(&mut self, offset: u64, mut bytes: Bytes) -> Piece {
        let Some(known) = self.at.checked_sub(offset) else {
            return Piece::Early;
        };
        if known >= bytes.len() as u64 {
            return Piece::Known;
        }
        bytes.advance(
            usize::try_from(known)
                .unwrap_or(usize::MAX)
                .min(bytes.len()),
        );
        self.at = self.at.saturating_add(bytes.len() as u64);
        Piece::Next(bytes)
    }

    /// Takes a gap of `bytes` bytes from `offset` on.
    pub const fn skip(&mut self, offset: u64, bytes: u64) -> Gap {
        let end = offset.saturating_add(bytes);
        if offset > self.at {
            return Gap::Early;
        }
        if end <= self.at {
            return Gap::Known;
        }
        self.missing = self.missing.saturating_add(end - self.at);
        self.at = end;
        Gap::Next
    }

    /// Takes a gap from `offset` up to the end, which tells its length.
    pub const fn cut(&mut self, offset: u64) -> Gap {
        if offset > self.at {
            return Gap::Early;
        }
        match std::mem::replace(&mut self.is_cut, true) {
            false => Gap::Next,
            true => Gap::Known,
        }
    }

    /// Returns how this stream, which was received from its beginning on, fits an end that tells its
    /// `length` and what was `dropped` of it. All that was missing here is missing there.
    #[must_use]
    pub fn fits(&self, length: u64, dropped: Option<Dropped>) -> Fit {
        let there = match dropped {
            None => 0,
            Some(dropped) => dropped.bytes.unwrap_or(0),
        };
        // If the missing bytes were not counted, more may have come than is kept.
        let is_open = self.is_cut || dropped.is_some_and(|dropped| dropped.bytes.is_none());
        match self.at.cmp(&length) {
            Ordering::Equal if self.missing == there => Fit::Same,
            Ordering::Equal if self.missing < there => Fit::More,
            Ordering::Less if !self.is_cut => Fit::Short,
            _ if is_open => Fit::More,
            _ => Fit::Wrong,
        }
    }

    /// Returns whether an acknowledgement is due, and takes it as sent.
    pub const fn is_ack_due(&mut self) -> bool {
        let due = self.at - self.acked >= ACK_EVERY;
        if due {
            self.acked = self.at;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_gap_is_taken_once() {
        let mut stream = Assembly::from(10);
        assert_eq!(stream.skip(10, 5), Gap::Next);
        assert_eq!(stream.skip(10, 5), Gap::Known);
        assert_eq!(stream.skip(20, 5), Gap::Early);
        assert_eq!(stream.offset(), 15);
        assert_eq!(stream.skip(0, u64::MAX), Gap::Next);
        assert_eq!(stream.skip(0, u64::MAX), Gap::Known);
    }

    #[test]
    fn a_stream_fits_the_end_of_what_was_kept() {
        let at = |bytes| {
            let mut stream = Assembly::default();
            stream.take(0, vec![b'x'; bytes].into());
            stream
        };
        let gap = |offset, bytes| Some(Dropped { offset, bytes });
        let whole = at(10);
        assert_eq!(whole.fits(10, None), Fit::Same);
        assert_eq!(whole.fits(11, None), Fit::Short);
        assert_eq!(whole.fits(9, None), Fit::Wrong);
        // It came as it was written, and its middle was dropped since.
        assert_eq!(whole.fits(10, gap(2, Some(5))), Fit::More);
        // Its reader was slower than its writer, twice.
        let mut slow = at(2);
        assert_eq!(slow.skip(2, 3), Gap::Next);
        assert_eq!(slow.fits(10, gap(2, Some(5))), Fit::Short);
        slow.take(5, vec![b'x'; 1].into());
        assert_eq!(slow.skip(6, 1), Gap::Next);
        slow.take(7, vec![b'x'; 3].into());
        assert_eq!(slow.fits(10, gap(2, Some(5))), Fit::More);
        assert_eq!(slow.fits(10, gap(2, Some(4))), Fit::Same);
        // The sender does not say that so much is missing.
        assert_eq!(slow.fits(10, gap(2, Some(3))), Fit::Wrong);
        assert_eq!(slow.fits(10, None), Fit::Wrong);
    }

    #[test]
    fn a_stream_that_was_cut_ends_where_it_is() {
        let mut cut = Assembly::default();
        cut.take(0, vec![b'x'; 7].into());
        let dropped = |offset| {
            let bytes = None;
            Some(Dropped { offset, bytes })
        };
        assert_eq!(cut.fits(9, dropped(9)), Fit::Short);
        assert_eq!(cut.cut(7), Gap::Next);
        assert_eq!(cut.cut(7), Gap::Known);
        assert_eq!(cut.fits(7, dropped(7)), Fit::Same);
        // It came further than it is kept, or the file was truncated.
        assert_eq!(cut.fits(5, dropped(5)), Fit::More);
        assert_eq!(cut.fits(9, None), Fit::More);
    }

    #[test]
    fn a_stream_that_lacks_a_piece_before_its_cut_is_short() {
        let mut stream = Assembly::default();
        stream.take(0, vec![b'x'; 4].into());
        // The piece from 4 to 7 was lost on its way.
        assert_eq!(stream.cut(7), Gap::Early);
        let dropped = Dropped {
            offset: 7,
            bytes: None,
        };
        assert_eq!(stream.fits(7, Some(dropped)), Fit::Short);
        stream.take(4, vec![b'x'; 3].into());
        assert_eq!(stream.cut(7), Gap::Next);
        assert_eq!(stream.fits(7, Some(dropped)), Fit::Same);
    }

    #[test]
    fn acknowledgements_come_with_the_bytes() {
        let mut stream = Assembly::default();
        assert!(!stream.is_ack_due());
        assert_eq!(stream.skip(0, ACK_EVERY), Gap::Next);
        assert!(stream.is_ack_due() && !stream.is_ack_due());
    }

    proptest! {
        /// Pieces of any size come in any order, each at least once, and the sender goes back when
        /// one is missing.
        #[test]
        fn the_stream_is_whole_whatever_comes_twice_or_is_missing(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            pieces in prop::collection::vec((0..220_u64, 0..80_usize), 0..40),
        ) {
            let bytes = Bytes::from(bytes);
            let (mut stream, mut whole) = (Assembly::default(), Vec::new());
            let mut take = |offset: u64, size: usize| {
                let start = usize::try_from(offset).expect("small").min(bytes.len());
                let end = (start + size).min(bytes.len());
                let before = stream.offset();
                match stream.take(start as u64, bytes.slice(start..end)) {
                    Piece::Next(next) => whole.extend_from_slice(&next),
                    Piece::Known => assert!(end as u64 <= before),
                    Piece::Early => assert!(start as u64 > before),
                }
                stream.offset()
            };
            for (offset, size) in pieces {
                take(offset, size);
            }
            let at = take(0, 0);
            take(at, usize::MAX / 2);
            prop_assert_eq!(&whole[..], &bytes[..]);
        }
    }
}
