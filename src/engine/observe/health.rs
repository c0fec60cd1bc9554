//! Reports to the service manager: readiness, status line, signs of life.

use tokio::time::{Duration, Instant};
use tracing::warn;

use crate::engine::observe::snapshot::Snapshot;
use crate::os::notify::{Notify, Watchdog};

/// Minimum time between two status lines.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// Signs of life of the tasks of the loop.
#[derive(Debug, Clone, Copy)]
pub struct Signs {
    /// Whether the network task makes no progress.
    pub stalled: bool,
    /// Attempts of the ledger to commit, while changes wait.
    pub attempts: Option<u64>,
}

/// State of a pipeline for the service manager.
#[derive(Debug)]
pub struct Health {
    /// Connection to the service manager.
    pub notify: Notify,
    ready: bool,
    said: String,
    /// When the next status line may be sent.
    free: Instant,
    /// Whether a line waits for that.
    stale: bool,
    watchdog: Watchdog,
    /// Attempts of the ledger at the last check, if it had work then.
    attempts: Option<u64>,
    /// Whether a missing sign of life was logged.
    worried: bool,
}

impl Health {
    /// Returns the state at the start.
    pub fn new(notify: Notify) -> Self {
        let now = Instant::now();
        Self {
            watchdog: notify.watchdog(),
            notify,
            ready: false,
            said: String::new(),
            free: now,
            stale: false,
            attempts: None,
            worried: false,
        }
    }

    /// Returns when [`Health::show`] has work without an event.
    pub fn wake(&self) -> Option<Instant> {
        let status = self.stale.then_some(self.free);
        [status, self.watchdog.at()].into_iter().flatten().min()
    }

    /// Reports, once, that the client is ready.
    pub fn ready(&mut self) {
        if !self.ready {
            self.ready = true;
            self.notify.ready();
        }
    }

    fn status(&mut self, line: String) {
        if line == self.said {
            self.stale = false;
        } else if Instant::now() < self.free {
            self.stale = true;
        } else {
            self.notify.status(&line);
            self.said = line;
            self.free = Instant::now() + STATUS_PAUSE;
            self.stale = false;
        }
    }

    /// Returns whether there is a service manager.
    pub fn is_heard(&self) -> bool {
        self.notify.is_heard()
    }

    /// Reports changes and signs of life to the service manager, if there is one.
    pub fn show(&mut self, snapshot: &Snapshot<'_>, signs: Signs) {
        if !self.is_heard() {
            return;
        }
        self.status(snapshot.line());
        if !self.watchdog.is_due() {
            return;
        }
        let hangs = signs.attempts.is_some() && signs.attempts == self.attempts;
        self.attempts = signs.attempts;
        let stands = match (signs.stalled, hangs) {
            (true, _) => "network task",
            (_, true) => "ledger",
            _ => {
                self.worried = false;
                return self.notify.alive();
            }
        };
        if !std::mem::replace(&mut self.worried, true) {
            warn!("the {stands} makes no progress: no sign of life for the service manager");
        }
    }
}
