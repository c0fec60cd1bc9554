//! Receipts that wait for the end of units.

use tracing::warn;

use crate::engine::commit::receipt::Receipt;

/// Maximum number of receipts that wait, besides those of queues. A source whose receipt finds no room
/// does not get it, and offers the event again. A queue offers again only on its next connection; its
/// prefetch is the limit.
const MAX_WAITING: usize = 4096;

/// A receipt, and the units whose ends it waits for.
#[derive(Debug)]
struct Waiting {
    receipt: Receipt,
    units: Vec<String>,
}

/// The receipts that wait.
#[derive(Debug, Default)]
pub struct Receipts {
    waiting: Vec<Waiting>,
    /// Whether it was logged that there are too many.
    said: bool,
}

impl Receipts {
    /// Makes `receipt` wait until all of `units` have ended. Returns it if there are none.
    pub fn attach(&mut self, receipt: Receipt, units: Vec<String>) -> Option<Receipt> {
        if units.is_empty() {
            return Some(receipt);
        }
        if self.waiting.len() < MAX_WAITING || matches!(receipt, Receipt::Queue(_)) {
            self.waiting.push(Waiting { receipt, units });
        } else if !std::mem::replace(&mut self.said, true) {
            warn!(
                "more than {MAX_WAITING} events wait for their runs to end: later ones are offered \
                 again by their source"
            );
        }
        None
    }

    /// Notes that `unit` has ended, and that `retry` continues it. Passes each receipt that waits
    /// for nothing more to `settle`.
    pub fn ended(&mut self, unit: &str, retry: Option<&str>, mut settle: impl FnMut(Receipt)) {
        for at in (0..self.waiting.len()).rev() {
            let Some(waiting) = self.waiting.get_mut(at) else {
                continue;
            };
            let mut units = waiting.units.iter_mut();
            let Some(waited_for) = units.find(|id| *id == unit) else {
                continue;
            };
            match retry {
                Some(retry) => retry.clone_into(waited_for),
                None => waiting.units.retain(|id| id != unit),
            }
            if waiting.units.is_empty() {
                settle(self.waiting.swap_remove(at).receipt);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::commit::receipt::{QueueAck, Tag};

    fn ended(receipts: &mut Receipts, unit: &str, retry: Option<&str>) -> usize {
        let mut settled = 0;
        receipts.ended(unit, retry, |_| settled += 1);
        settled
    }

    #[test]
    fn a_receipt_waits_for_all_its_units_and_their_retries() {
        let mut receipts = Receipts::default();
        assert!(receipts.attach(Receipt::None, Vec::new()).is_some());
        let units = ["a".to_owned(), "b".to_owned()];
        assert!(receipts.attach(Receipt::None, units.to_vec()).is_none());
        assert!(
            receipts
                .attach(Receipt::None, units[..1].to_vec())
                .is_none()
        );
        assert_eq!(ended(&mut receipts, "b", Some("c")), 0);
        assert_eq!(ended(&mut receipts, "a", None), 1, "the second one");
        assert_eq!(ended(&mut receipts, "a", None), 0);
        assert_eq!(ended(&mut receipts, "c", None), 1);
        assert!(receipts.waiting.is_empty());
    }

    #[test]
    fn receipts_that_wait_are_bounded() {
        let mut receipts = Receipts::default();
        for _ in 0..=MAX_WAITING {
            let kept = receipts.attach(Receipt::None, vec!["a".into()]);
            assert!(kept.is_none());
        }
        assert_eq!(receipts.waiting.len(), MAX_WAITING);
        assert!(receipts.said);
        let tag = Tag {
            connection: 1,
            number: 1,
        };
        let ack = QueueAck {
            source: 1,
            tag,
            at_end: true,
        };
        receipts.attach(Receipt::Queue(ack), vec!["b".into()]);
        assert_eq!(
            ended(&mut receipts, "b", None),
            1,
            "the prefetch is its limit"
        );
    }
}
