//! Ends of units that requesters were not told, because the ledger could not be read.

use std::collections::BTreeSet;

use tokio::time::{Duration, Instant};
use tracing::warn;

/// Time after which the ledger is read again.
const AGAIN: Duration = Duration::from_secs(5);

/// Maximum number of units. The requesters of further ones hear of the end when they ask again.
const MAX_UNTOLD: usize = 4096;

/// Units whose end could not be read.
#[derive(Debug, Default)]
pub struct Untold {
    units: BTreeSet<String>,
    /// When it is read again.
    at: Option<Instant>,
}

impl Untold {
    /// Adds a unit whose end could not be read at `now`.
    pub fn add(&mut self, unit: &str, now: Instant) {
        if self.units.len() >= MAX_UNTOLD {
            warn!(
                TAEL_UNIT = unit,
                "{MAX_UNTOLD} ends of units cannot be read: its requester is not told of its end"
            );
            return;
        }
        self.units.insert(unit.to_owned());
        self.at.get_or_insert(now + AGAIN);
    }

    /// Returns when the ledger is read again.
    pub const fn wake(&self) -> Option<Instant> {
        self.at
    }

    /// Takes the units whose end is read again at `now`.
    pub fn take_due(&mut self, now: Instant) -> BTreeSet<String> {
        if self.at.is_none_or(|at| at > now) {
            return BTreeSet::new();
        }
        self.at = None;
        std::mem::take(&mut self.units)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_cannot_be_read_is_read_again() {
        let mut untold = Untold::default();
        let now = Instant::now();
        assert_eq!(untold.wake(), None);
        assert!(untold.take_due(now).is_empty());
        untold.add("a", now);
        untold.add("b", now + AGAIN / 2);
        untold.add("a", now + AGAIN / 2);
        assert_eq!(untold.wake(), Some(now + AGAIN));
        assert!(untold.take_due(now + AGAIN / 2).is_empty());
        let due = untold.take_due(now + AGAIN);
        assert!(due.iter().eq(["a", "b"]));
        assert_eq!(untold.wake(), None);
        // It could not be read then either.
        untold.add("b", now + AGAIN);
        assert_eq!(untold.wake(), Some(now + AGAIN * 2));
    }

    #[test]
    fn the_number_of_units_is_bounded() {
        let mut untold = Untold::default();
        let now = Instant::now();
        for number in 0..=MAX_UNTOLD {
            untold.add(&number.to_string(), now);
        }
        assert_eq!(untold.take_due(now + AGAIN).len(), MAX_UNTOLD);
    }
}
