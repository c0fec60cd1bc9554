//! An orderly leave from a session that ends with its connection: what the broker has for us and
//! did not get acknowledged would be lost with it.

use crate::model::topic::Filter;
use crate::net::mqtt::Number;

/// Number of the UNSUBSCRIBE that asks whether more is to come; subscriptions begin at 1.
pub const FENCE: Number = 0;

/// Finds out when the broker has nothing more for us. It answers in order: when nothing came
/// between an UNSUBSCRIBE, sent with everything acknowledged, and its answer, nothing is left.
#[derive(Debug)]
pub struct Leave {
    filter: Filter,
    asked: bool,
    quiet: bool,
}

impl Leave {
    /// Begins to leave; `filter` is one that we were subscribed to.
    pub const fn new(filter: Filter) -> Self {
        Self {
            filter,
            asked: false,
            quiet: false,
        }
    }

    /// A message has come.
    pub const fn came(&mut self) {
        self.quiet = false;
    }

    /// Everything that came is acknowledged: returns the filter to unsubscribe from under number
    /// [`FENCE`], unless the answer to that is awaited.
    pub fn ask(&mut self) -> Option<Filter> {
        if std::mem::replace(&mut self.asked, true) {
            return None;
        }
        self.quiet = true;
        Some(self.filter.clone())
    }

    /// The broker has answered; returns whether it has nothing more.
    pub const fn answered(&mut self) -> bool {
        self.asked = false;
        self.quiet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_before_the_answer_asks_again() {
        let mut leave = Leave::new(Filter::new("a").expect("filter"));
        assert!(leave.ask().is_some() && leave.ask().is_none());
        leave.came();
        assert!(!leave.answered());
        assert!(leave.ask().is_some());
        assert!(leave.answered());
    }
}
