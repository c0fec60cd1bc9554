//! The process between this one and a script: it ends everything that the script has started when the
//! script ends, when it is told to, and when this process dies without a chance to do it.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::signal::{self, SigHandler, Signal, raise};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpid, getppid};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{PidfdFlags, pidfd_open};

use crate::os::descent;
use crate::os::logging::say;
use crate::os::process::poll_until;

/// First argument that turns this program into the guard of a script. The second is its path.
pub const ARGUMENT: &str = "--tael-script";

/// Time between two looks whether a script has ended whose output is still open elsewhere.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// Exit code of a guard whose script cannot be started, which it says on a line (POSIX.1-2017, Shell
/// Command Language, section 2.8.2).
pub(super) const CANNOT_EXECUTE: u8 = 126;

/// Signals that do not end a guard: it has to end its script first. The kernel sends HUP to a process group that was
/// stopped and loses its parent (POSIX.1-2017, `_exit`).
const IGNORED: [Signal; 3] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];

/// Runs the script at `path` until it ends, or until standard input does: then its parent wants it to end,
/// or is dead. Ends what it has started, and returns its exit code. A script that a signal has ended ends
/// this process by the same.
#[must_use]
pub fn main(path: &Path) -> u8 {
    for ignored in IGNORED {
        // SAFETY: it sets no handler.
        let _ = unsafe { signal::signal(ignored, SigHandler::SigIgn) };
    }
    descent::adopt_descendants();
    let mut child = match start(path) {
        Ok(child) => child,
        Err(e) => {
            say(&format!("it cannot be started: {e}"));
            return CANNOT_EXECUTE;
        }
    };
    wait(&child);
    // Its parent kills what is left.
    let _ = descent::kill_run(Some(child.id()), thread::sleep);
    match child.try_wait() {
        Ok(Some(status)) => end_like(status),
        // Its parent says that it does not end.
        _ => u8::MAX,
    }
}

/// Starts the script, which dies with this thread, the only one that starts any.
fn start(path: &Path) -> io::Result<Child> {
    let guard = getpid();
    let dies_with_us = move || {
        // It would ignore them too (execve(2)).
        for ignored in IGNORED {
            // SAFETY: it sets no handler.
            unsafe { signal::signal(ignored, SigHandler::SigDfl) }?;
        }
        set_pdeathsig(Signal::SIGKILL)?;
        match getppid() == guard {
            true => Ok(()),
            false => Err(Errno::ESRCH.into()),
        }
    };
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).process_group(0);
    // SAFETY: it only makes system calls, which are safe after a fork (signal-safety(7)).
    unsafe { command.pre_exec(dies_with_us) };
    command.spawn()
}

/// Waits until `child` has ended, without reaping it, or standard input has.
fn wait(child: &Child) {
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed());
    let ended = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let input = io::stdin();
    let mut fds = vec![PollFd::new(&input, PollFlags::IN)];
    match &ended {
        Some(ended) => {
            fds.push(PollFd::new(ended, PollFlags::IN));
            let _ = poll_until(&mut fds, None);
        }
        // Linux before 5.3 has no notification for both.
        None => {
            while !has_ended(child)
                && poll_until(&mut fds, Some(Instant::now() + LOOK)).is_ok_and(|ready| ready == 0)
            {
            }
        }
    }
}

/// Returns the exit code of a script that has ended, or ends this process by the signal that has ended it.
fn end_like(status: ExitStatus) -> u8 {
    let signal = status.signal().and_then(|n| Signal::try_from(n).ok());
    if let Some(ended) = signal {
        // The script has written its core already.
        let _ = set_dumpable(false);
        // SAFETY: no handler is set.
        let _ = unsafe { signal::signal(ended, SigHandler::SigDfl) };
        let _ = raise(ended);
    }
    let code = status.code().or(status.signal().map(|n| 128 + n));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

/// Returns whether `child` has ended; it is not reaped.
pub(super) fn has_ended(child: &Child) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    let id = Id::Pid(Pid::from_raw(child.id().cast_signed()));
    !matches!(waitid(id, flags), Ok(WaitStatus::StillAlive))
}
