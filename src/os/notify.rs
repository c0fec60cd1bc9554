//! Notifications to the service manager, in the protocol of `sd_notify(3)`.

use std::env;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tracing::debug;

/// Variables of the service manager for us, which commands do not get.
pub const VARIABLES: &[&str] = &["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// The service manager, if one listens.
#[derive(Debug)]
pub struct Notify {
    manager: Option<(UnixDatagram, SocketAddr)>,
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

    /// Returns the time within which the manager expects a sign of life, if it does.
    #[must_use]
    pub const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
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
