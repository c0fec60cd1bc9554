//! Stops a client: units stay with their runners, and the last statuses are published within a
//! bounded time.

use std::time::Duration;

use tokio::time::Instant;

use crate::engine::config::Config;

/// Maximum time for the last statuses.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum time for folders that are being removed.
pub const CLEANUP_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum time for a worker to take what the broker has for it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(30);

/// A client that is stopping.
#[derive(Debug)]
pub struct Stopping {
    /// When the client leaves at the latest.
    pub deadline: Instant,
    waits_for_units: bool,
}

/// Work that remains.
#[derive(Debug, Clone, Copy)]
pub struct Remains {
    /// Whether changes wait for the ledger.
    pub uncommitted: bool,
    /// Whether units run.
    pub units: bool,
    /// Whether statuses wait.
    pub statuses: bool,
    /// Whether the broker has messages for a worker, whose session ends with it.
    pub messages: bool,
    /// Whether the goodbye waits for the broker.
    pub goodbye: bool,
    /// Whether the broker is connected.
    pub online: bool,
}

/// The next stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Work remains.
    Busy,
    /// Only the goodbye remains.
    Goodbye,
    /// Nothing remains.
    Done,
}

impl Stopping {
    /// Begins to stop a client; one that `leaves` takes what the broker has for it.
    pub fn begin(config: &Config, leaves: bool) -> Self {
        let mut deadline = Instant::now() + FLUSH_TIMEOUT;
        let waits_for_units = config.stop_units;
        if waits_for_units {
            let triggers = config.triggers.iter().map(|t| &t.spec);
            let specs = triggers.chain(config.work.iter().map(|w| &w.spec));
            let grace = specs.map(|spec| spec.limits.grace).max();
            deadline += grace.unwrap_or_default();
        }
        if leaves {
            deadline = deadline.max(Instant::now() + LEAVE_TIMEOUT);
        }
        Self {
            deadline,
            waits_for_units,
        }
    }

    /// Returns the next stage.
    pub const fn stage(&self, remains: Remains) -> Stage {
        // Without a connection nothing can be published, and the ledger keeps it.
        let Remains { online, .. } = remains;
        let busy = remains.uncommitted
            || (remains.units && self.waits_for_units)
            || (online && (remains.messages || remains.statuses));
        match (busy, online && remains.goodbye) {
            (true, _) => Stage::Busy,
            (false, true) => Stage::Goodbye,
            (false, false) => Stage::Done,
        }
    }
}
