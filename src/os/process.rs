//! Commands in process groups of their own: started, watched, and ended as a whole.

use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet, Signal};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};

use crate::model::unit::End;

/// How often the members of a dying group are counted. Nothing tells when the last is gone.
const GROUP_CHECK: Duration = Duration::from_millis(20);

/// What a command starts with.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// Program and arguments, at least one.
    pub argv: &'a [&'a str],
    /// Where it runs; our own working directory without.
    pub cwd: Option<&'a Path>,
    /// Variables besides the inherited ones.
    pub variables: &'a [(String, String)],
    /// Standard input.
    pub stdin: File,
    /// Standard output.
    pub stdout: File,
    /// Standard error.
    pub stderr: File,
}

/// A running command and its process group.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pidfd: OwnedFd,
}

/// Why [`Running::wait`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// The command has ended.
    Ended,
    /// The other descriptor became readable.
    Changed,
    /// The deadline has passed.
    TimedOut,
}

impl Running {
    /// Starts a command as the leader of a new process group.
    ///
    /// # Errors
    /// As `fork(2)` and `execve(2)`.
    pub fn spawn(spawn: Spawn<'_>) -> io::Result<Self> {
        let (program, arguments) = spawn
            .argv
            .split_first()
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut command = Command::new(program);
        if let Some(cwd) = spawn.cwd {
            command.current_dir(cwd);
        }
        let mut child = command
            .args(arguments)
            .envs(spawn.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(spawn.stdin))
            .stdout(Stdio::from(spawn.stdout))
            .stderr(Stdio::from(spawn.stderr))
            .process_group(0)
            .spawn()?;
        let pid = rustix::process::Pid::from_child(&child);
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { child, pidfd }),
            Err(e) => {
                // Without it the command could not be watched: it must not go on unseen.
                let _ = child.kill();
                let _ = child.wait();
                Err(e.into())
            }
        }
    }

    /// Process id, and the id of the process group.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end of the command, for `other` to become readable, or for `deadline`.
    ///
    /// # Errors
    /// As `poll(2)`.
    pub fn wait(
        &self,
        other: Option<BorrowedFd<'_>>,
        deadline: Option<Instant>,
    ) -> io::Result<Woken> {
        loop {
            let timeout = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
            if let Some(other) = other {
                fds.push(PollFd::from_borrowed_fd(other, PollFlags::IN));
            }
            let timespec = timeout.and_then(|t| Timespec::try_from(t).ok());
            match poll(&mut fds, timespec.as_ref()) {
                Ok(0) => return Ok(Woken::TimedOut),
                Ok(_) if !fds[0].revents().is_empty() => return Ok(Woken::Ended),
                Ok(_) => return Ok(Woken::Changed),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Ends the whole process group: TERM, up to `grace` for all of it to go, then KILL.
    ///
    /// The command is not reaped before its group is gone, so that its process id, which
    /// names the group, cannot be given to strangers meanwhile.
    pub fn terminate(&self, grace: Duration) {
        end_group(self.child.id(), grace);
    }

    /// Reaps the command, which has ended, and says how, and what it used.
    ///
    /// # Errors
    /// As `wait4(2)`.
    pub fn reap(self) -> io::Result<(End, Usage)> {
        let pid = self.child.id().cast_signed();
        let mut status = 0;
        let mut usage = MaybeUninit::<libc::rusage>::zeroed();
        loop {
            // SAFETY: both pointers are to live, writable locals of the right types; the
            // process is our child and not yet reaped, as `self` owns it.
            let reaped = unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) };
            if reaped == pid {
                break;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        // SAFETY: all zeroes is a valid `rusage`, and the kernel has filled it in.
        let usage = unsafe { usage.assume_init() };
        let micros = |t: libc::timeval| {
            let micros = t.tv_sec.saturating_mul(1_000_000).saturating_add(t.tv_usec);
            u64::try_from(micros).unwrap_or(0)
        };
        let status = ExitStatus::from_raw(status);
        let end = match (status.code(), status.signal()) {
            (Some(code), _) => End::Exited(code),
            (None, Some(signal)) => End::Signaled(signal),
            (None, None) => End::Exited(i32::from(u8::MAX)),
        };
        let usage = Usage {
            max_rss: u64::try_from(usage.ru_maxrss).unwrap_or(0),
            cpu: micros(usage.ru_utime) + micros(usage.ru_stime),
        };
        Ok((end, usage))
    }
}

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

/// What a command and its waited-for children used (`getrusage(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Largest resident set, KiB.
    pub max_rss: u64,
    /// User and system time, microseconds.
    pub cpu: u64,
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
