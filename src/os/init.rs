//! The first process of a container, which has to reap whatever loses its parent there
//! (`pid_namespaces(7)`): otherwise each orphan keeps a process id until none is left.

use std::io;
use std::process::{self, ExitCode};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use crate::os::logging::say;

/// The code of a process that cannot do its work for want of a resource (`sysexits.h`).
const TRY_AGAIN: u8 = 75;

/// If this is the first process of its process id namespace: goes on in a child, and stays as what
/// reaps all that ends, passes signals on, and ends as the child does. Returns the exit code in
/// the first process once that has happened; `None` in every other process, at once.
///
/// There must be no other thread yet.
pub fn reap_as_first_process() -> Option<ExitCode> {
    if process::id() != 1 {
        return None;
    }
    // A signal that comes before the child is there waits.
    let all = SigSet::all();
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None);
    // SAFETY: there is no other thread, whose locks the child could find held.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => {
            let none = SigSet::empty();
            let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&none), None);
            None
        }
        Ok(ForkResult::Parent { child }) => {
            let code = look_after(child, &all);
            Some(ExitCode::from(code.unwrap_or(TRY_AGAIN)))
        }
        Err(e) => {
            let cause = e.desc();
            say(&format!("start a process: {cause}; are too many running?"));
            Some(ExitCode::from(TRY_AGAIN))
        }
    }
}

/// Passes signals on to `child` and reaps until it ends; returns its exit code, 128+signal for a
/// death by signal.
fn look_after(child: Pid, signals: &SigSet) -> io::Result<u8> {
    let signals = SignalFd::new(signals)?;
    loop {
        if let Some(code) = reap(child) {
            return Ok(code);
        }
        let Some(info) = signals.read_signal()? else {
            continue;
        };
        let number = i32::try_from(info.ssi_signo).unwrap_or(0);
        // A terminal has sent it to the child as well.
        let from_terminal = info.ssi_code == libc::SI_KERNEL;
        match Signal::try_from(number) {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            Ok(_) if from_terminal => {}
            Ok(signal) => {
                let _ = kill(child, signal);
            }
        }
    }
}

/// Reaps all that has ended; the exit code if `child` was among it.
fn reap(child: Pid) -> Option<u8> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => {
                return Some(u8::try_from(code & 0xff).unwrap_or(u8::MAX));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                return Some(u8::try_from(128 + signal as i32).unwrap_or(u8::MAX));
            }
            Ok(WaitStatus::StillAlive) => return None,
            Ok(_) | Err(Errno::EINTR) => {}
            // The child is gone, and somebody else has reaped it.
            Err(_) => return Some(u8::MAX),
        }
    }
}
