//! Signals to stop, or to read the configuration again.

use std::fs;
use std::io::IsTerminal;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use crate::error::{Error, Kind, Result};

fn on(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|e| Error::bug(format!("listen for signals: {e}")))
}

/// Listens for SIGHUP as a request to reload.
///
/// # Errors
/// When the handler cannot be installed.
pub fn reload() -> Result<Signal> {
    on(SignalKind::hangup())
}

/// Ends this process `after` a signal to stop, if it still runs: it may hang because its output is
/// not read. For tools that leave nothing unfinished.
///
/// # Errors
/// When there is no thread.
pub fn give_up_after(after: Duration) -> Result<()> {
    give_up_with(|| (), after)
}

/// The same, and calls `begin` at the signal, such as to end processes that would stay behind.
///
/// # Errors
/// When there is no thread.
pub fn give_up_with(begin: impl FnOnce() + Send + 'static, after: Duration) -> Result<()> {
    let wait = move || {
        let runtime = Builder::new_current_thread().enable_all().build();
        // Without a runtime the process cannot receive the signal either.
        let Ok(runtime) = runtime else { return };
        runtime.block_on(async {
            if let Ok(mut stop) = Stop::listen(false) {
                stop.requested().await;
                begin();
                sleep(after).await;
                std::process::exit(128 + nix::libc::SIGTERM);
            }
        });
    };
    let thread = std::thread::Builder::new().name("give-up".into());
    thread
        .spawn(wait)
        .map(|_| ())
        .map_err(|e| Error::new(Kind::TryAgain, format!("start a thread: {e}")))
}

/// Returns whether this process was started with SIGHUP ignored, as by `nohup(1)`: the process
/// shall outlast its terminal.
fn outlasts_its_terminal() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignores(&status, SignalKind::hangup())
}

/// Returns whether a process with this `status` (`proc_pid_status(5)`) ignores signals of this kind.
fn ignores(status: &str, kind: SignalKind) -> bool {
    let mut masks = status
        .lines()
        .filter_map(|line| line.strip_prefix("SigIgn:"));
    let mask = masks
        .next()
        .map(|mask| u64::from_str_radix(mask.trim(), 16));
    let bit = kind.as_raw_value() - 1;
    mask.is_some_and(|mask| mask.is_ok_and(|mask| mask >> bit & 1 == 1))
}

/// Waits for SIGTERM or SIGINT, and for SIGHUP if that means that the terminal is gone.
#[derive(Debug)]
pub struct Stop {
    term: Signal,
    int: Signal,
    hup: Option<Signal>,
}

impl Stop {
    /// Starts to listen, within a runtime. For a daemon that reloads, SIGHUP means that, unless it
    /// runs on a terminal. A process that was started with `nohup(1)` does not listen for it.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn listen(reloads: bool) -> Result<Self> {
        let hup = !reloads || std::io::stderr().is_terminal();
        let hup = hup && !outlasts_its_terminal();
        Ok(Self {
            term: on(SignalKind::terminate())?,
            int: on(SignalKind::interrupt())?,
            hup: hup.then(reload).transpose()?,
        })
    }

    /// Returns when one of them has come. May be dropped and called again.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_known() {
        let status =
            |mask: &str| format!("SigBlk:\t0000000000000001\nSigIgn:\t{mask}\nSigCgt:\t1\n");
        let hangup = |status: &str| ignores(status, SignalKind::hangup());
        assert!(hangup(&status("0000000000001001")));
        assert!(!hangup(&status("0000000000001000")));
        assert!(!hangup(&status("x")) && !hangup(""));
        assert!(ignores(
            &status("0000000000000002"),
            SignalKind::interrupt()
        ));
    }
}
