//! Stops a client: units stay with their runners, and the last statuses are published within a
//! bounded time.

use std::time::Duration;

use tokio::time::Instant;

use crate::engine::config::Config;
use crate::model::message::Message;

/// Maximum time for the last statuses.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum time for folders that are being removed.
pub const CLEANUP_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum time for a worker to take what the broker has for it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(30);

/// A client that is stopping. `T` identifies a publish.
#[derive(Debug)]
pub struct Stopping<T> {
    /// When the client leaves at the latest.
    pub deadline: Instant,
    /// Whether the broker still has messages for a worker whose session ends with it.
    pub leaving: bool,
    waits_for_units: bool,
    /// The last message, until it is published.
    farewell: Option<Message>,
    sent: Option<T>,
    answered: bool,
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
    /// Whether the broker is connected.
    pub online: bool,
}

/// The next stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Work remains.
    Busy,
    /// Only the goodbye remains.
    Farewell,
    /// Nothing remains.
    Done,
}

impl<T: Copy + PartialEq> Stopping<T> {
    /// Begins to stop a client that is `online`; its last message is `farewell`.
    pub fn begin(config: &Config, online: bool, farewell: Message) -> Self {
        let mut deadline = Instant::now() + FLUSH_TIMEOUT;
        let waits_for_units = config.stop_units;
        if waits_for_units {
            let grace = config.triggers.iter().map(|t| t.spec.limits.grace).max();
            deadline += grace.unwrap_or_default();
        }
        // The session of a worker ends with it, and with the session what the broker holds for it.
        let leaving = config.triggers.are_shared() && online;
        if leaving {
            deadline = deadline.max(Instant::now() + LEAVE_TIMEOUT);
        }
        Self {
            deadline,
            leaving,
            waits_for_units,
            farewell: Some(farewell),
            sent: None,
            answered: false,
        }
    }

    /// Returns the next stage.
    pub const fn stage(&mut self, remains: Remains) -> Stage {
        // Without a connection nothing can be published, and the ledger keeps it.
        let away = !remains.online;
        self.leaving = self.leaving && !away;
        let busy = remains.uncommitted
            || (remains.units && self.waits_for_units)
            || self.leaving
            || (remains.statuses && !away);
        match (busy, away || self.answered) {
            (true, _) => Stage::Busy,
            (false, true) => Stage::Done,
            (false, false) => Stage::Farewell,
        }
    }

    /// Passes the farewell to `publish`, unless it is in flight.
    pub fn say_goodbye(&mut self, publish: impl FnOnce(Message) -> Option<T>) {
        if let Some(message) = self.farewell.take() {
            self.sent = publish(message.clone());
            if self.sent.is_none() {
                self.farewell = Some(message);
            }
        }
    }

    /// Notes that this publish has ended.
    pub fn published(&mut self, name: T) {
        self.answered |= Some(name) == self.sent;
    }
}
