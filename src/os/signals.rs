//! Signals to stop, or to read the configuration again.

use std::fs;
use std::io::IsTerminal;
use std::sync::mpsc::sync_channel;
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
    let (listens, is_listening) = sync_channel(1);
    let wait = move || {
        let runtime = Builder::new_current_thread().enable_all().build();
        // Without a runtime the process cannot receive the signal either.
        let Ok(runtime) = runtime else { return };
        runtime.block_on(async {
            if let Ok(mut stop) = Stop::listen(false) {
                let _ = listens.send(());
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
        .map_err(|e| Error::new(Kind::TryAgain, format!("start a thread: {e}")))?;
    // Otherwise the rest of the process could take a signal that comes now.
    let _ = is_listening.recv();
    Ok(())
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
    use std::env;
    use std::process::Command;
    use std::sync::mpsc;
    use std::thread;

    use nix::sys::signal::{Signal as Number, kill};
    use nix::unistd::Pid;

    use super::*;

    /// Set in the process that sends itself signals.
    const APART: &str = "TAEL_TEST_SIGNALS";

    /// A process that listens itself takes a signal away from a part that listens later.
    #[test]
    fn a_signal_right_after_the_start_of_a_guard_is_heard_by_it() {
        const TIMES: usize = 100;
        if env::var_os(APART).is_none() {
            let own =
                "os::signals::tests::a_signal_right_after_the_start_of_a_guard_is_heard_by_it";
            let mut apart = Command::new(env::current_exe().expect("path"));
            let apart = apart.args(["--exact", own]).env(APART, "1").output();
            let output = apart.expect("test");
            assert!(output.status.success(), "{output:?}");
            return;
        }
        let (listens, is_listening) = mpsc::channel();
        thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build();
            runtime.expect("runtime").block_on(async {
                let mut stop = Stop::listen(false).expect("signals");
                listens.send(()).expect("test");
                loop {
                    stop.requested().await;
                }
            });
        });
        is_listening.recv().expect("listener");
        for time in 0..TIMES {
            let (hears, heard) = mpsc::channel();
            let begin = move || hears.send(()).expect("test");
            give_up_with(begin, Duration::from_secs(3600)).expect("guard");
            kill(Pid::this(), Number::SIGTERM).expect("signal");
            let heard = heard.recv_timeout(Duration::from_secs(10));
            assert!(heard.is_ok(), "signal {time} is not heard");
        }
    }

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
