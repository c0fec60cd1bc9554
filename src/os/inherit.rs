//! What passes from whoever started us to us, and from us to what we start.

use std::fs;
use std::os::fd::{BorrowedFd, RawFd};
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use crate::os::notify;

/// Variables that concern us alone: our password, and what a service manager says of sockets
/// (`sd_listen_fds(3)`), which go no further than to us.
const OUR_OWN: &[&str] = &[
    "TAEL_PASSWORD",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
];

/// The first descriptor that is no standard stream.
const FIRST: RawFd = 3;

/// Keeps every descriptor above the standard streams from what we start: a lock (`flock(1)`) or a
/// pipe of whoever started us would stay in use for as long as a run goes on. We have it still.
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
    // Before Linux 5.11, or where a container does not allow it.
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

/// Makes this process hear all signals: whoever started us may have blocked some, which is
/// inherited, and then only SIGKILL would end us.
pub fn unblock_signals() {
    // It fails for wrong arguments only.
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Takes from `command` the variables that concern us alone.
pub fn keep_variables(command: &mut Command) {
    for name in notify::VARIABLES.iter().chain(OUR_OWN) {
        command.env_remove(name);
    }
}
