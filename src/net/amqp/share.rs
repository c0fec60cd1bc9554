//! How many messages a consumer may hold, beside those that earlier consumers of its connection hold.
//!
//! A broker counts the messages without acknowledgement for each consumer. One that begins when a pause is
//! over would take as many again.

use std::collections::BTreeSet;

/// The messages without acknowledgement of one connection.
#[derive(Debug)]
pub struct Share {
    limit: u16,
    /// Numbers of their deliveries, which grow.
    held: BTreeSet<u64>,
    /// The last of them that an earlier consumer has brought; 0 for none.
    earlier: u64,
}

impl Share {
    /// Returns that of a connection that may hold `limit` messages.
    pub const fn new(limit: u16) -> Self {
        Self {
            limit,
            held: BTreeSet::new(),
            earlier: 0,
        }
    }

    /// Notes a delivery.
    pub fn came(&mut self, number: u64) {
        self.held.insert(number);
    }

    /// Notes that a delivery is acknowledged, or given back. Returns whether the consumer may hold one more
    /// than it knows.
    pub fn went(&mut self, number: u64) -> bool {
        self.held.remove(&number) && number <= self.earlier
    }

    /// Returns how many a consumer may hold that begins now; `None` if none.
    pub fn begin(&mut self) -> Option<u16> {
        self.earlier = self.held.last().copied().unwrap_or_default();
        let held = u16::try_from(self.held.len()).unwrap_or(u16::MAX);
        Some(self.limit.saturating_sub(held)).filter(|free| *free > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumers_share_a_limit() {
        let mut share = Share::new(3);
        assert_eq!(share.begin(), Some(3));
        (1..4).for_each(|number| share.came(number));
        assert!(!share.went(1), "the broker counts it for its consumer");
        share.came(4);
        assert_eq!(share.begin(), None);
        assert!(share.went(3) && !share.went(3));
        assert_eq!(share.begin(), Some(1));
        share.came(5);
        assert!(!share.went(5));
        assert!(share.went(2) && share.went(4));
        assert_eq!(share.begin(), Some(3));
        // What comes beyond it, while a consumer ends, counts too.
        (6..20).for_each(|number| share.came(number));
        assert_eq!(share.begin(), None);
    }
}
