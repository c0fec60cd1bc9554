//! Processes and their groups: told from others, and ended as a whole.

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

/// How often the members of a dying group are counted. Nothing tells when the last is gone.
const GROUP_CHECK: Duration = Duration::from_millis(20);

/// Ends process group `id`, whose leader is a child that was not reaped: TERM, up to `grace` for
/// all of it to go, then KILL.
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

/// What whoever writes to a pipe does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// It has written something.
    Wrote,
    /// It is gone, even if something of it is still to be read.
    Gone,
    /// It is there, and has written nothing.
    Silent,
}

/// Waits up to `patience`, or for ever, for something from `pipe` (`poll(2)`).
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

/// Waits until one of `sources` is readable or has ended, but not longer than `until`. Returns how
/// many are.
///
/// # Errors
/// As `poll(2)`.
pub fn wait_for_any<'a>(
    sources: impl Iterator<Item = BorrowedFd<'a>>,
    until: Instant,
) -> io::Result<usize> {
    let fds = sources.map(|source| PollFd::from_borrowed_fd(source, PollFlags::IN));
    poll_until(&mut fds.collect::<Vec<_>>(), Some(until))
}

/// Waits until something happens to one of `fds`, for ever without a `deadline`. Returns how many
/// it has happened to, 0 when the time is up.
///
/// # Errors
/// As `poll(2)`; a signal is none.
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

/// Signals that do nothing to a runner.
const HEARD: &[Signal] = &[
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGXFSZ,
    // Somebody opens a file that we look at (`is_open_elsewhere`).
    Signal::SIGIO,
];

/// Makes this process the leader of a session of its own, deaf to the signals that end its
/// parent's. A command that it starts is not: `execve(2)` sets handlers back to the default.
pub fn detach() {
    // For those who list processes; it was started as `exe`.
    let _ = nix::sys::prctl::set_name(c"tael-runner");
    // Fails only for a process group leader, which has no terminal to lose then either.
    let _ = nix::unistd::setsid();
    on_signals(HEARD);
    // What whoever started us has ignored, a command would ignore as well.
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

/// Has `signals` do nothing to this process.
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

/// Identifies this boot of the host (`random(4)`); empty where the kernel does not tell.
#[must_use]
pub fn boot_id() -> String {
    if let Some(pretended) = hooks::boot_id() {
        return pretended;
    }
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Has a write beyond `RLIMIT_FSIZE` fail, where it would end the process (`setrlimit(2)`).
/// A command that is started is not concerned: `execve(2)` sets handlers back.
pub fn survive_file_size_limit() {
    on_signals(&[Signal::SIGXFSZ]);
}

/// Has the kernel keep how our children end until we ask: whoever started us may have ignored
/// SIGCHLD, which is inherited, and then nobody could ask (`wait(2)`).
pub fn hear_of_children() {
    // SAFETY: no handler is set. It fails only for signals that cannot be caught.
    let _ = unsafe { signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) };
}

/// How many descriptors this process may have open (`getrlimit(2)`); none if there is no limit.
#[must_use]
pub fn descriptor_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// Raises how many descriptors this process may have open to as many as the system lets it, at most
/// `wanted`, and returns how many that are.
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

/// Bytes that the system allows for arguments and environment of a program.
#[must_use]
pub fn exec_limit() -> usize {
    exec::allowed(rustix::process::getrlimit(rustix::process::Resource::Stack).current)
}

/// Whether process group `id` has a member that is not a zombie.
fn group_is_alive(id: u32) -> bool {
    match proc::all() {
        Some(list) => list
            .iter()
            .any(|process| process.group == id && !process.ended),
        // Zombies count too then, which only makes for a longer wait.
        None => signal::killpg(Pid::from_raw(id.cast_signed()), None).is_ok(),
    }
}
