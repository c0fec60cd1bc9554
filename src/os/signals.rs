//! Being told to stop, or to read the configuration again.

use std::io::IsTerminal;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, Result};

fn on(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|e| Error::bug(format!("listen for signals: {e}")))
}

/// SIGHUP, as daemons understand it.
///
/// # Errors
/// When the handler cannot be installed.
pub fn reload() -> Result<Signal> {
    on(SignalKind::hangup())
}

/// Waits for SIGTERM or SIGINT; and for SIGHUP, if that means that the terminal is gone.
#[derive(Debug)]
pub struct Stop {
    term: Signal,
    int: Signal,
    hup: Option<Signal>,
}

impl Stop {
    /// Starts to listen; must be called within a runtime. A daemon that reloads has SIGHUP
    /// mean that, unless it hangs on a terminal.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn listen(reloads: bool) -> Result<Self> {
        let hup = !reloads || std::io::stderr().is_terminal();
        Ok(Self {
            term: on(SignalKind::terminate())?,
            int: on(SignalKind::interrupt())?,
            hup: hup.then(reload).transpose()?,
        })
    }

    /// Returns when one of them has come; may be dropped and called again.
    pub async fn requested(&mut self) {
        let hup = async {
            match &mut self.hup {
                Some(hup) => hup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
            _ = hup => {}
        }
    }
}
