//! Assembles a stream of bytes from pieces, which may come twice, and of which some may be missing.

use bytes::{Buf, Bytes};

use crate::model::remote::ACK_EVERY;

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

/// A stream that is received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Assembly {
    /// Number of bytes so far.
    at: u64,
    /// Number of bytes that were acknowledged.
    acked: u64,
}

impl Assembly {
    /// Returns a stream that is here up to `offset`.
    #[must_use]
    pub const fn from(offset: u64) -> Self {
        Self {
            at: offset,
            acked: offset,
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

    /// Takes a gap of `bytes` bytes from `offset` on. Returns whether it is new.
    pub const fn skip(&mut self, offset: u64, bytes: u64) -> bool {
        let end = offset.saturating_add(bytes);
        let is_next = offset <= self.at && end > self.at;
        if is_next {
            self.at = end;
        }
        is_next
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
        assert!(stream.skip(10, 5) && !stream.skip(10, 5) && !stream.skip(20, 5));
        assert_eq!(stream.offset(), 15);
        assert!(stream.skip(0, u64::MAX) && !stream.skip(0, u64::MAX));
    }

    #[test]
    fn acknowledgements_come_with_the_bytes() {
        let mut stream = Assembly::default();
        assert!(!stream.is_ack_due());
        assert!(stream.skip(0, ACK_EVERY) && stream.is_ack_due() && !stream.is_ack_due());
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
