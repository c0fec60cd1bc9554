//! What is missing from the file of an output stream.

use std::fs;

use crate::store::unit_dir::{Stream, UnitDir, noted};

/// The bytes of a stream that its file does not hold. A stream has one gap at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// How many bytes of the stream come before it.
    pub at: u64,
    /// Bytes of the stream that are missing; `None` if that is not known yet.
    pub bytes: Option<u64>,
    /// Whether the file has a hole there; otherwise what comes after it follows at once.
    pub is_hole: bool,
}

impl Gap {
    /// Where the stream goes on in the file, or where it will.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.at.saturating_add(self.bytes.unwrap_or(u64::MAX))
    }
}

impl UnitDir {
    /// The gap in a stream whose file has `size` bytes, if it has one. `dropped` is what the
    /// outcome of the run says is missing, once it has ended.
    #[must_use]
    pub fn gap(&self, stream: Stream, size: u64, dropped: Option<u64>) -> Option<Gap> {
        if dropped == Some(0) {
            return None;
        }
        let record = fs::read(self.record()).unwrap_or_default();
        gap(
            &String::from_utf8_lossy(&record),
            &self.id(),
            stream,
            size,
            dropped,
        )
    }
}

fn gap(record: &str, id: &str, stream: Stream, size: u64, dropped: Option<u64>) -> Option<Gap> {
    if let Some(head) = noted(record, stream.cut(), id) {
        return Some(Gap {
            at: head.parse().ok()?,
            bytes: dropped,
            is_hole: false,
        });
    }
    let bytes = match noted(record, stream.hole(), id) {
        Some(kept) => {
            let (head, tail) = kept.split_once(' ')?;
            let (head, tail): (u64, u64) = (head.parse().ok()?, tail.parse().ok()?);
            let grown = size.saturating_sub(head.saturating_add(tail));
            return Some(Gap {
                at: head,
                bytes: Some(dropped.unwrap_or(grown)),
                is_hole: true,
            });
        }
        // Earlier versions have noted nothing: as much was kept of both ends.
        None => dropped?,
    };
    Some(Gap {
        at: size.saturating_sub(bytes) / 2,
        bytes: Some(bytes),
        is_hole: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_tell_where_a_gap_is() {
        let gap = |record: &str, dropped| gap(record, "u1", Stream::Stdout, 1000, dropped);
        let some = |at, bytes, is_hole| Some(Gap { at, bytes, is_hole });
        assert_eq!(gap("begun u1\n", None), None);
        assert_eq!(
            gap("hole-stdout u1 10 20\n", None),
            some(10, Some(970), true)
        );
        assert_eq!(
            gap("hole-stdout u1 10 20\n", Some(5)),
            some(10, Some(5), true)
        );
        assert_eq!(
            gap("hole-stdout u1 900 200\n", None),
            some(900, Some(0), true)
        );
        // Of the other stream, of another unit, half a line.
        for record in [
            "hole-stderr u1 10 20\n",
            "hole-stdout u2 10 20\n",
            "hole-stdout u1 10",
        ] {
            assert_eq!(gap(record, None), None, "{record}");
            assert_eq!(
                gap(record, Some(200)),
                some(400, Some(200), true),
                "{record}"
            );
        }
        let both = "hole-stdout u1 10 20\ncut-stdout u1 10\n";
        assert_eq!(gap(both, None), some(10, None, false));
        assert_eq!(gap(both, Some(7)), some(10, Some(7), false));
    }
}
