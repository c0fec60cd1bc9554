//! When requests to a node are sent again: each may be lost, and so may its answer.

use std::time::Duration;

use tokio::time::Instant;

/// First and longest time without an answer after which a request is sent again.
const FIRST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(10 * 60);

/// Longest time after which a request is sent again that was refused for a reason that passes: a full
/// queue has room when a run has ended.
const LONGEST_REFUSAL: Duration = Duration::from_secs(60);

/// How long answers may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Until when an answer is awaited.
    until: Option<Instant>,
    /// How long the next answer may take.
    wait: Duration,
    /// Whether a request has no answer that stands for all: a cancel has one of its own.
    is_unanswered: bool,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            until: None,
            wait: FIRST_WAIT,
            is_unanswered: false,
        }
    }
}

impl Patience {
    /// Returns until when an answer is awaited.
    pub const fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Returns whether a request has no answer.
    pub const fn is_unanswered(&self) -> bool {
        self.is_unanswered
    }

    /// Waits for nothing, and for the next answer not longer than for the first one.
    pub const fn begin(&mut self) {
        (self.until, self.wait) = (None, FIRST_WAIT);
    }

    /// Waits for the next answer as long as `earlier` did.
    pub const fn go_on(&mut self, earlier: Self) {
        self.wait = earlier.wait;
    }

    /// Notes a request whose answer counts.
    pub const fn asked(&mut self) {
        self.is_unanswered = true;
    }

    /// Waits for an answer.
    pub fn wait(&mut self) {
        self.until = Some(Instant::now() + self.wait);
    }

    /// Waits for an answer, and longer for the next one.
    pub fn wait_longer(&mut self) {
        self.wait();
        self.wait = self.wait.saturating_mul(2).min(LONGEST_WAIT);
    }

    /// Waits before the request is sent again that was refused.
    pub fn refused(&mut self) {
        self.is_unanswered = true;
        self.wait = self.wait.min(LONGEST_REFUSAL);
        self.wait_longer();
    }

    /// Notes the answer that counts.
    pub const fn answered(&mut self) {
        (self.is_unanswered, self.wait) = (false, FIRST_WAIT);
    }

    /// Waits for nothing, unless a request has no answer.
    pub const fn rest(&mut self) {
        if !self.is_unanswered {
            self.until = None;
        }
    }
}
