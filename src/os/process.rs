//! Processes and process groups: identified, and ended as a whole.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet, Signal};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::model::exec;
use crate::os::{hooks, proc};

/// Interval between two checks of a group that is ending. There is no notification of the last
/// member.
const GROUP_CHECK: Duration = Duration::from_millis(20);

/// Ends process group `id`, whose leader is a child that was not reaped: TERM, up to `grace` for
/// all members to end, then KILL.
pub fn end_group(id: u32, grace: Duration) {
    let group = Pid::from_raw(id.cast_signed());
    let deadline = Instant::now() + grace;
    // A group without members answers ESRCH: it is gone already.
    let _ = signal::killpg(group, Signal::SIGTERM);
    // A stopped command would not see the TERM.
    let _ = signal::killpg(group, Signal::SIGCONT);
    while group_is_alive(id) {
        if Instant::now() >= deadline {
            let _ = signal::killpg(group, Signal::SIGKILL);
            break;
        }
        std::thread::sleep(GROUP_CHECK.min(deadline.saturating_duration_since(Instant::now())));
    }
}

/// State of the process that writes to a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// It has written something.
    Wrote,
    /// It is gone; some of its output may still be unread.
    Gone,
    /// It is there, and has written nothing.
    Silent,
}

/// Waits up to `patience`, by default without a limit, for something from `pipe` (`poll(2)`).
#[must_use]
pub fn sender(pipe: BorrowedFd<'_>, patience: Option<Duration>) -> Sender {
    let mut fds = [PollFd::from_borrowed_fd(pipe, PollFlags::IN)];
    let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
    match poll_until(&mut fds, deadline) {
        Ok(0) => Sender::Silent,
        Ok(_) if fds[0].revents() == PollFlags::IN => Sender::Wrote,
        _ => Sender::Gone,
    }
}

/// Delay before another look at descriptors that `poll(2)` cannot wait for.
pub const POLL_AGAIN: Duration = Duration::from_millis(10);

/// Waits until one of `sources` is readable or has ended, or until `until`; not long if `poll(2)`
/// fails, so that they are read in any case.
pub fn wait_for_any<'a>(sources: impl Iterator<Item = BorrowedFd<'a>>, until: Instant) {
    let fds = sources.map(|source| PollFd::from_borrowed_fd(source, PollFlags::IN));
    if poll_until(&mut fds.collect::<Vec<_>>(), Some(until)).is_err() {
        std::thread::sleep(POLL_AGAIN);
    }
}

/// Waits until something happens to one of `fds`, without a limit if there is no `deadline`.
/// Returns to how many it has happened; 0 at the deadline.
///
/// # Errors
/// As `poll(2)`, signals excepted.
pub fn poll_until(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<usize> {
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timespec = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(fds, timespec.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Signals that a runner ignores.
const HEARD: &[Signal] = &[
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGXFSZ,
];

/// Makes this process the leader of a session of its own, and ignores the signals that end its
/// parent. Commands do not ignore them: `execve(2)` resets handlers.
pub fn detach() {
    // For lists of processes; it was started as `exe`.
    let _ = nix::sys::prctl::set_name(c"tael-runner");
    // Fails only for a process group leader, which has no terminal to lose then either.
    let _ = nix::unistd::setsid();
    on_signals(HEARD);
    // A command would also ignore what our starter has ignored.
    let ours = [libc::SIGPIPE].into_iter();
    let ours: Vec<_> = ours
        .chain(HEARD.iter().map(|s| *s as libc::c_int))
        .collect();
    for signal in (1..=libc::SIGRTMAX()).filter(|signal| !ours.contains(signal)) {
        // SAFETY: no handler is set. It fails only for signals that cannot be caught, and for the
        // two that the C library keeps for itself.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Installs a handler that does nothing for `signals`.
fn on_signals(signals: &[Signal]) {
    extern "C" fn nothing(_: libc::c_int) {}
    let deaf = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    for signal in signals {
        // SAFETY: the handler does nothing at all, which is safe at any moment. It fails only
        // for signals that cannot be caught, which these can.
        let _ = unsafe { signal::sigaction(*signal, &deaf) };
    }
}

/// Returns the id of this boot of the host (`random(4)`); empty if the kernel has none.
#[must_use]
pub fn boot_id() -> String {
    if let Some(pretended) = hooks::boot_id() {
        return pretended;
    }
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Makes a write beyond `RLIMIT_FSIZE` fail instead of ending the process (`setrlimit(2)`).
/// Commands are not affected: `execve(2)` resets handlers.
pub fn survive_file_size_limit() {
    on_signals(&[Signal::SIGXFSZ]);
}

/// Makes the kernel keep the exit codes of our children until we ask. Our starter may have ignored
/// SIGCHLD, and we would inherit that and get none (`wait(2)`).
pub fn hear_of_children() {
    // SAFETY: no handler is set. It fails only for signals that cannot be caught.
    let _ = unsafe { signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) };
}

/// Returns the maximum number of open descriptors (`getrlimit(2)`); `None` without a limit.
#[must_use]
pub fn descriptor_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// Raises the maximum number of open descriptors to what the system allows, at most `wanted`.
/// Returns the new maximum.
#[must_use]
pub fn raise_descriptor_limit(wanted: u64) -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(wanted);
    let raised = limit.maximum.unwrap_or(wanted).min(wanted);
    if raised <= current {
        return current;
    }
    let higher = Rlimit {
        current: Some(raised),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, higher).map_or(current, |()| raised)
}

/// Returns the size that the system allows for arguments and environment of a program, bytes.
#[must_use]
pub fn exec_limit() -> usize {
    exec::allowed(rustix::process::getrlimit(rustix::process::Resource::Stack).current)
}

/// Returns whether process group `id` has a member that is not a zombie.
fn group_is_alive(id: u32) -> bool {
    match proc::all() {
        Some(list) => list
            .iter()
            .any(|process| process.group == id && !process.ended),
        // Then zombies count too, which only makes the wait longer.
        None => signal::killpg(Pid::from_raw(id.cast_signed()), None).is_ok(),
    }
}
