//! Processes and their groups: told from others, and ended as a whole.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet, Signal};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

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
    let timespec = patience.and_then(|patience| Timespec::try_from(patience).ok());
    loop {
        let mut fds = [PollFd::from_borrowed_fd(pipe, PollFlags::IN)];
        match poll(&mut fds, timespec.as_ref()) {
            Ok(0) => return Sender::Silent,
            Ok(_) if fds[0].revents() == PollFlags::IN => return Sender::Wrote,
            Err(rustix::io::Errno::INTR) => {}
            _ => return Sender::Gone,
        }
    }
}

/// Makes this process the leader of a session of its own, deaf to the signals that end its
/// parent's. A command that it starts is not: `execve(2)` sets handlers back to the default.
pub fn detach() {
    // For those who list processes; it was started as `exe`.
    let _ = nix::sys::prctl::set_name(c"tael-runner");
    // Fails only for a process group leader, which has no terminal to lose then either.
    let _ = nix::unistd::setsid();
    on_signals(&[
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGXFSZ,
        // Somebody opens a file that we look at (`is_open_elsewhere`).
        Signal::SIGIO,
    ]);
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
    #[cfg(debug_assertions)]
    if let Ok(pretended) = std::env::var("TAEL_TEST_BOOT_ID") {
        return pretended;
    }
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// When process `pid` was started, in clock ticks since boot (`proc_pid_stat(5)`); `None` if
/// there is none. With it a process id names one process, not whoever has the number now.
#[must_use]
pub fn start_time(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    // Field 22; the first of these is field 3.
    rest.split(' ').nth(19)?.parse().ok()
}

/// Kills the process group of a command whose runner is gone, if its leader, process `pid`
/// started at `start`, is still there.
pub fn kill_orphan(pid: u32, start: u64) -> bool {
    start_time(pid) == Some(start)
        && signal::killpg(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).is_ok()
}

/// The process that was started first among the leaders of process groups that have
/// `variable`, a `NAME=VALUE`, in their environment (`proc_pid_environ(5)`): its id, and when
/// it was started.
#[must_use]
pub fn leader_with(variable: &str) -> Option<(u32, u64)> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let found = processes.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let environment = fs::read(entry.path().join("environ")).ok()?;
        let has = environment
            .split(|b| *b == 0)
            .any(|entry| entry == variable.as_bytes());
        (has && in_group(&entry.path().join("stat"), pid)).then_some(())?;
        Some((pid, start_time(pid)?))
    });
    found.min_by_key(|(_, start)| *start)
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

/// Whether process group `id` has a member that is not a zombie (`proc_pid_stat(5)`).
fn group_is_alive(id: u32) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else {
        // Zombies count too then, which only makes for a longer wait.
        return signal::killpg(Pid::from_raw(id.cast_signed()), None).is_ok();
    };
    processes.flatten().any(|entry| {
        let numeric = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()));
        numeric && in_group(&entry.path().join("stat"), id)
    })
}

fn in_group(stat: &Path, id: u32) -> bool {
    let Ok(text) = fs::read_to_string(stat) else {
        return false;
    };
    // The name in parentheses may hold anything, parentheses too.
    let Some((_, rest)) = text.rsplit_once(") ") else {
        return false;
    };
    let mut fields = rest.split(' ');
    let (state, group) = (fields.next(), fields.nth(1));
    !matches!(state, Some("Z" | "X")) && group.and_then(|g| g.parse().ok()) == Some(id)
}
