//! Leaves a session that ends with its connection in good order. Otherwise messages that the broker
//! still has for us, or that are not acknowledged, would be lost.

use crate::model::topic::Filter;
use crate::net::mqtt::Number;

/// Number of the UNSUBSCRIBE that asks whether more messages come; subscriptions begin at 1.
pub const FENCE: Number = 0;

/// Finds out when the broker has no more messages for us. It answers in order. If no message came
/// between an UNSUBSCRIBE, sent with everything acknowledged, and its answer, none is left.
#[derive(Debug)]
pub struct Leave {
    filter: Filter,
    asked: bool,
    quiet: bool,
}

impl Leave {
    /// Begins to leave; `filter` is one of our subscriptions.
    pub const fn new(filter: Filter) -> Self {
        Self {
            filter,
            asked: false,
            quiet: false,
        }
    }

    /// Notes that a message has come.
    pub const fn came(&mut self) {
        self.quiet = false;
    }

    /// Notes that everything is acknowledged. Returns the filter to unsubscribe from under number
    /// [`FENCE`], unless that answer is pending.
    pub fn ask(&mut self) -> Option<Filter> {
        if std::mem::replace(&mut self.asked, true) {
            return None;
        }
        self.quiet = true;
        Some(self.filter.clone())
    }

    /// Notes the answer. Returns whether the broker has no more messages.
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
