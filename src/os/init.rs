//! The first process of a container. It must reap every process that loses its parent there
//! (`pid_namespaces(7)`). Otherwise each orphan keeps a process id until none is left.

use std::io;
use std::process::{self, ExitCode};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use crate::os::logging::say;

/// Exit code of a process that lacks a resource (`sysexits.h`).
const TRY_AGAIN: u8 = 75;

/// In the first process of a process id namespace: continues in a child, reaps every process that
/// ends, passes signals on, and ends like the child. Returns the exit code in the first process
/// after that, and `None` at once in every other process.
///
/// There must be no other thread yet.
pub fn reap_as_first_process() -> Option<ExitCode> {
    if process::id() != 1 {
        return None;
    }
    // A signal that comes before the child exists waits.
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

/// Passes signals on to `child`, and reaps until it ends. Returns its exit code, or 128 + signal.
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
        // The terminal has sent it to the child too.
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

/// Reaps every child that has ended. Returns the exit code of `child` if it was among them.
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
            // The child is gone, and another process has reaped it.
            Err(_) => return Some(u8::MAX),
        }
    }
}
