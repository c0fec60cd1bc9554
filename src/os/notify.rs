//! Notifications to the service manager, in the protocol of `sd_notify(3)`.

use std::env;
use std::future::pending;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

/// Variables of the service manager for us, which commands do not get.
pub const VARIABLES: &[&str] = &["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// The service manager, if one listens.
#[derive(Debug)]
pub struct Notify {
    manager: Option<(UnixDatagram, SocketAddr)>,
    /// Time within which it expects a sign of life.
    watchdog: Option<Duration>,
}

impl Notify {
    /// Reads the environment: `NOTIFY_SOCKET`, and `WATCHDOG_USEC` with `WATCHDOG_PID`
    /// (`sd_watchdog_enabled(3)`).
    #[must_use]
    pub fn from_environment() -> Self {
        let manager = env::var_os("NOTIFY_SOCKET").and_then(|path| {
            let address = match path.as_bytes() {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
                [b'/', ..] => SocketAddr::from_pathname(&path),
                _ => return None,
            };
            let socket = UnixDatagram::unbound().ok()?;
            // A manager that does not read must not block us.
            socket.set_nonblocking(true).ok()?;
            Some((socket, address.ok()?))
        });
        let text = |name: &str| env::var(name).ok();
        let ours = text("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let watchdog = text("WATCHDOG_USEC")
            .filter(|_| ours && manager.is_some())
            .and_then(|usec| usec.parse().ok())
            .filter(|usec| *usec > 0)
            .map(Duration::from_micros);
        Self { manager, watchdog }
    }

    /// Returns whether a service manager listens.
    #[must_use]
    pub const fn is_heard(&self) -> bool {
        self.manager.is_some()
    }

    /// Returns when the manager expects signs of life.
    #[must_use]
    pub fn watchdog(&self) -> Watchdog {
        Watchdog::within(self.watchdog)
    }

    fn say(&self, text: &str) {
        if let Some((socket, manager)) = &self.manager
            && let Err(e) = socket.send_to_addr(text.as_bytes(), manager)
        {
            debug!("cannot notify the service manager: {e}");
        }
    }

    /// Reports that the service works; also ends a reload.
    pub fn ready(&self) {
        self.say("READY=1");
    }

    /// Reports that the service reads its configuration again.
    pub fn reloading(&self) {
        let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
            return;
        };
        let usec = Duration::from(now).as_micros();
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
    }

    /// Reports that the service is stopping.
    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    /// Reports a status line for people.
    pub fn status(&self, line: &str) {
        self.say(&format!("STATUS={}", line.replace('\n', " ")));
    }

    /// Reports a sign of life.
    pub fn alive(&self) {
        self.say("WATCHDOG=1");
    }
}

/// The times at which the service manager expects signs of life.
#[derive(Debug)]
pub struct Watchdog {
    /// When the next one is due, and the interval.
    next: Option<(Instant, Duration)>,
}

impl Watchdog {
    /// Returns two times within each `limit` (`sd_watchdog_enabled(3)`).
    fn within(limit: Option<Duration>) -> Self {
        let pause = limit.map(|limit| limit / 2);
        Self {
            next: pause.map(|pause| (Instant::now() + pause, pause)),
        }
    }

    /// Returns when the next sign of life is due, if one is expected.
    pub fn at(&self) -> Option<Instant> {
        self.next.map(|(at, _)| at)
    }

    /// Returns whether a sign of life is due, and plans the next one then.
    pub fn is_due(&mut self) -> bool {
        let now = Instant::now();
        match &mut self.next {
            Some((at, pause)) if *at <= now => {
                *at = now + *pause;
                true
            }
            _ => false,
        }
    }

    /// Waits until a sign of life is due, and plans the next one. Waits for ever if none is expected.
    /// Cancel safe.
    pub async fn due(&mut self) {
        while !self.is_due() {
            match self.at() {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn signs_of_life_are_due_twice_within_the_limit() {
        let mut watchdog = Watchdog::within(Some(Duration::from_millis(200)));
        let start = Instant::now();
        assert!(!watchdog.is_due());
        for n in 1..=2 {
            watchdog.due().await;
            assert!(start.elapsed() >= n * Duration::from_millis(100));
            assert!(!watchdog.is_due(), "once");
        }
        let mut none = Watchdog::within(None);
        assert!(none.at().is_none() && !none.is_due());
    }
}
