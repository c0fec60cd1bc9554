//! What we inherit from the program that started us, and pass on to programs that we start.

use std::fs;
use std::os::fd::{BorrowedFd, RawFd};
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use crate::os::notify;

/// Variables for this process only: our passwords, and sockets of a service manager
/// (`sd_listen_fds(3)`).
const OUR_OWN: &[&str] = &[
    "TAEL_PASSWORD",
    "TAEL_QUEUE_PASSWORD",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
];

/// First descriptor after the standard streams.
const FIRST: RawFd = 3;

/// Keeps descriptors above the standard streams from programs that we start. Otherwise a lock
/// (`flock(1)`) or pipe of our starter would stay in use during a run. We keep them open ourselves.
pub fn keep_descriptors() {
    // SAFETY: it changes a flag of descriptors, and touches no memory.
    let marked = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if Errno::result(marked).is_ok() {
        return;
    }
    // Before Linux 5.11, or in a container that does not allow it.
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten();
    let numbers = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for fd in numbers.filter(|fd: &RawFd| *fd >= FIRST) {
        // SAFETY: it was open a moment ago, nothing else runs yet, and one that is closed by now
        // (that of the folder) answers EBADF.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let _ = fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
    }
}

/// Unblocks all signals. Our starter may have blocked some, and then only SIGKILL would end us.
pub fn unblock_signals() {
    // It fails for wrong arguments only.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Removes from `command` the variables for this process only.
pub fn keep_variables(command: &mut Command) {
    for name in notify::VARIABLES.iter().chain(OUR_OWN) {
        command.env_remove(name);
    }
}
