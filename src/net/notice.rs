//! Says that a command waits for its broker.

use std::io::{self, IsTerminal};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::os::logging::say;

/// Time without a connection after which a person at a terminal is told.
const AFTER: Duration = Duration::from_secs(1);

/// The same time where no person may look, such as in a script: only a longer wait is worth a line.
const AFTER_ANYWHERE: Duration = Duration::from_secs(5);

/// A line on stderr that is due once, unless there is a connection earlier.
#[derive(Debug, Default)]
pub struct Notice(Option<Instant>);

impl Notice {
    /// Returns a notice that is due soon, or never if stderr is not a terminal.
    pub fn new() -> Self {
        Self(io::stderr().is_terminal().then(|| Instant::now() + AFTER))
    }

    /// Returns a notice that is due soon on a terminal, and later elsewhere.
    pub fn anywhere() -> Self {
        match Self::new() {
            Self(None) => Self(Some(Instant::now() + AFTER_ANYWHERE)),
            soon => soon,
        }
    }

    /// Returns when it is due.
    pub const fn due(&self) -> Option<Instant> {
        self.0
    }

    /// Waits until it is due.
    pub async fn wait(&self) {
        match self.0 {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Prints it, with the `cause` of the last failure.
    pub fn say(&mut self, address: &str, cause: Option<&str>) {
        self.0 = None;
        let cause = cause.unwrap_or("no answer yet");
        say(&format!("waiting for broker {address}: {cause}"));
    }

    /// Drops it: there is a connection.
    pub const fn drop_it(&mut self) {
        self.0 = None;
    }
}
