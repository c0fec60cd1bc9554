//! What the service manager is told: ready, how it goes, and that we are alive.

use tokio::time::{Duration, Instant};
use tracing::warn;

use crate::engine::observe::snapshot::Snapshot;
use crate::os::notify::Notify;

/// Time between two lines of status at least.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// Signs of life of those that work for the loop.
#[derive(Debug, Clone, Copy)]
pub struct Signs {
    /// Whether the network task has not been heard of for too long.
    pub stalled: bool,
    /// How often the ledger has tried to commit, while something waits for it.
    pub attempts: Option<u64>,
}

/// What the service manager knows of a pipeline.
#[derive(Debug)]
pub struct Health {
    /// The way to it.
    pub notify: Notify,
    ready: bool,
    said: String,
    /// When the next line of status may go out.
    free: Instant,
    /// Whether one waits for that.
    stale: bool,
    /// When the next sign of life is due, and the time between two.
    watchdog: Option<(Instant, Duration)>,
    /// The ledger's attempts at the last look, if it had something to do then.
    attempts: Option<u64>,
    /// Whether it was said that there is no sign of life.
    worried: bool,
}

impl Health {
    /// Returns what it knows at the start.
    pub fn new(notify: Notify) -> Self {
        let now = Instant::now();
        // Twice within the time that the manager allows (`sd_watchdog_enabled(3)`).
        let pause = notify.watchdog().map(|limit| limit / 2);
        let watchdog = pause.map(|pause| (now + pause, pause));
        Self {
            notify,
            ready: false,
            said: String::new(),
            free: now,
            stale: false,
            watchdog,
            attempts: None,
            worried: false,
        }
    }

    /// Returns when [`Health::show`] has something to do though nothing happens.
    pub fn wake(&self) -> Option<Instant> {
        let status = self.stale.then_some(self.free);
        let watchdog = self.watchdog.map(|(at, _)| at);
        [status, watchdog].into_iter().flatten().min()
    }

    /// Tells it, once, that the client is ready.
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

    /// Tells the service manager, if there is one, what has changed, and that we are alive.
    pub fn show(&mut self, snapshot: &Snapshot<'_>, signs: Signs) {
        if !self.is_heard() {
            return;
        }
        self.status(snapshot.line());
        let Some((at, pause)) = self.watchdog else {
            return;
        };
        if Instant::now() < at {
            return;
        }
        self.watchdog = Some((Instant::now() + pause, pause));
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
