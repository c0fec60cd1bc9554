//! Publishes that wait because the broker is slow.

use std::sync::{Arc, Mutex, PoisonError};

use tracing::warn;

/// Maximum number of publishes that wait.
const MAX_NUMBER: usize = 1024;

/// Maximum memory of them, bytes; a larger one waits alone.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// Counts the waiting publishes of one connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiting(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    number: usize,
    bytes: usize,
    /// Whether a lack of room was logged since there was plenty.
    said: bool,
}

impl Waiting {
    /// Counts a publish of `bytes`; `false` if too much waits already.
    pub fn enter(&self, bytes: usize) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = counts.bytes.saturating_add(bytes);
        let fits = counts.number < MAX_NUMBER && (counts.number == 0 || sum <= MAX_BYTES);
        if fits {
            counts.number += 1;
            counts.bytes = sum;
        } else if !std::mem::replace(&mut counts.said, true) {
            warn!(
                "{} messages wait for a broker that takes none: statuses wait longer, replies \
                 are dropped",
                counts.number
            );
        }
        fits
    }

    /// Stops counting a publish of `bytes`, which was handed over.
    pub fn leave(&self, bytes: usize) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.number = counts.number.saturating_sub(1);
        counts.bytes = counts.bytes.saturating_sub(bytes);
        counts.said &= counts.number > MAX_NUMBER / 2 || counts.bytes > MAX_BYTES / 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_and_bytes_are_bounded() {
        let waiting = Waiting::default();
        assert!(waiting.enter(MAX_BYTES * 2), "one goes");
        assert!(!waiting.enter(1));
        waiting.leave(MAX_BYTES * 2);
        let taken = (0..).take_while(|_| waiting.enter(1)).count();
        assert_eq!(taken, MAX_NUMBER);
        waiting.leave(1);
        assert!(waiting.enter(1));
    }
}
