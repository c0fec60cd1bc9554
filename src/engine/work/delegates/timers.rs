//! When something is due, found once until something changes: the loop asks at every turn.

use std::cell::Cell;

use tokio::time::Instant;

/// When something is due.
#[derive(Debug, Default)]
pub struct Timers(Cell<Option<Option<Instant>>>);

impl Timers {
    /// Notes that something may be due at another time.
    pub fn changed(&self) {
        self.0.set(None);
    }

    /// Returns when something is due; `find` finds out.
    pub fn next(&self, find: impl FnOnce() -> Option<Instant>) -> Option<Instant> {
        if let Some(known) = self.0.get() {
            return known;
        }
        let next = find();
        self.0.set(Some(next));
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_is_found_again_after_a_change_only() {
        let timers = Timers::default();
        let now = Instant::now();
        assert_eq!(timers.next(|| Some(now)), Some(now));
        assert_eq!(timers.next(|| panic!("nothing has changed")), Some(now));
        timers.changed();
        assert_eq!(timers.next(|| None), None);
        assert_eq!(timers.next(|| panic!("nothing has changed")), None);
    }
}
