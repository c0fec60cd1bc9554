//! Subscription identifiers. A filter has the same one in all connections and processes. A broker
//! may deliver much later what it queued in an earlier connection, and such a message is not a copy
//! of an equal one of today.

use crate::model::topic::Filter;

/// Largest identifier (MQTT 5.0, section 3.8.2.1.2).
pub const LAST: u32 = 268_435_455;

/// Returns the identifier of a subscription to `filter`: a hash of it (FNV-1a), from 1 to [`LAST`].
#[must_use]
pub fn identifier(filter: &Filter) -> u32 {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    let hash = filter.as_str().as_bytes().iter().fold(0x811c_9dc5, step);
    hash % LAST + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_differ_and_stay() {
        let of = |text: &str| identifier(&Filter::new(text).expect("filter"));
        let filters = ["a/+", "+/b", "lab/#", "lab/+/status", "lab/seq/+"];
        let mut all: Vec<u32> = filters.into_iter().map(of).collect();
        assert!(all.iter().all(|id| (1..=LAST).contains(id)));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), filters.len());
        // Brokers store it, so later versions must compute the same.
        assert_eq!(of("a"), 0xe40c_292c % LAST + 1);
    }
}
