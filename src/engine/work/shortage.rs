//! Units that find no process, descriptor or space: all starts wait until that passes.

use std::time::Duration;

use tokio::time::Instant;
use tracing::error;

/// Delay before a unit is started again that found no process, descriptor or space.
const RETRY: Duration = Duration::from_secs(1);

/// Whether something is short.
#[derive(Debug, Default)]
pub struct Shortage {
    /// Whether it was logged that units cannot start.
    is_logged: bool,
    /// Until when no start is tried.
    until: Option<Instant>,
}

impl Shortage {
    /// Logs, once, what `unit` waits for.
    pub fn log(&mut self, unit: &str, what: &std::fmt::Arguments<'_>) {
        if !std::mem::replace(&mut self.is_logged, true) {
            error!(
                TAEL_UNIT = unit,
                "cannot {what}; runs wait until that passes"
            );
        }
    }

    /// Delays all starts.
    pub fn hold(&mut self) {
        self.until = Some(Instant::now() + RETRY);
    }

    /// Returns until when no start is tried.
    pub const fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Returns whether no start is tried now.
    pub fn holds(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() < until)
    }

    /// Handles the passing of time.
    pub fn on_time(&mut self) {
        self.until = self.until.filter(|until| Instant::now() < *until);
    }

    /// Notes that a command has started.
    pub const fn passed(&mut self) {
        self.is_logged = false;
    }
}
