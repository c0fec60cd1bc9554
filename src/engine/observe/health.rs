//! What the service manager is told: ready, how it goes, and that we are alive.

use tokio::time::{Duration, Instant};
use tracing::warn;

use crate::engine::client::Pipeline;
use crate::os::notify::Notify;

/// Time between two lines of status at least.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// What the service manager knows of a pipeline.
#[derive(Debug)]
pub(crate) struct Health {
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

    /// When [`Pipeline::check_health`] is next to be called.
    pub fn wake(&self) -> Option<Instant> {
        let status = self.stale.then_some(self.free);
        let watchdog = self.watchdog.map(|(at, _)| at);
        [status, watchdog].into_iter().flatten().min()
    }

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
}

impl Pipeline {
    /// Tells the service manager, if there is one, what has changed, and that we are alive.
    pub(crate) fn check_health(&mut self) {
        if !self.health.notify.is_heard() {
            return;
        }
        let address = self.config.broker.address();
        let link = match self.is_online() {
            true => format!("connected to {address}"),
            false => format!("not connected to {address}"),
        };
        let (running, waiting) = (self.queue.running().count(), self.queue.waiting());
        let paused = if self.queue.is_paused() {
            ", paused"
        } else {
            ""
        };
        self.health.status(format!(
            "{link}; {running} running, {waiting} waiting{paused}"
        ));
        let Some((at, pause)) = self.health.watchdog else {
            return;
        };
        if Instant::now() < at {
            return;
        }
        self.health.watchdog = Some((Instant::now() + pause, pause));
        let attempts = (self.uncommitted > 0).then(|| self.ledger.attempts());
        let hangs = attempts.is_some() && attempts == self.health.attempts;
        self.health.attempts = attempts;
        let stands = match (self.session.is_stalled(), hangs) {
            (true, _) => "network task",
            (_, true) => "ledger",
            _ => {
                self.health.worried = false;
                return self.health.notify.alive();
            }
        };
        if !std::mem::replace(&mut self.health.worried, true) {
            warn!("the {stands} makes no progress: no sign of life for the service manager");
        }
    }
}
