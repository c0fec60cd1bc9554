//! Commands, each in a process group of its own: prepared, started, watched and reaped.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, getpid, getppid, setpgid};
use rustix::event::{PollFd, PollFlags};

use crate::model::unit::End;
use crate::model::variables::Value;
use crate::os::descent::end_run;
use crate::os::process::{POLL_AGAIN, poll_until};
use crate::os::program::{Program, Strings};

/// Stack of a process until it has become its command, bytes. Unused pages take no memory.
const STACK: usize = 256 * 1024;

/// A command to start.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// Program and arguments, at least one.
    pub argv: &'a [String],
    /// What to execute if the system finds no interpreter for `argv`: a shell runs scripts without
    /// an interpreter line (POSIX `execvp`).
    pub shell_argv: &'a [String],
    /// Working directory; by default our own.
    pub cwd: Option<&'a Path>,
    /// Variables in addition to the inherited ones.
    pub variables: &'a [(String, Value)],
    /// Standard input.
    pub stdin: File,
    /// Standard output.
    pub stdout: File,
    /// Standard error.
    pub stderr: File,
}

/// Result of a process that was prepared for a command.
#[derive(Debug)]
pub enum Became<T> {
    /// It runs the command.
    Command(Running),
    /// It was told not to start, for this reason.
    Nothing(T),
    /// The program could not be executed (`chdir(2)`, `execve(2)`).
    Failed(io::Error),
}

impl Spawn<'_> {
    /// Prepares a new process for the command, as the leader of its own group. The new process
    /// calls `told`, which may wait, and becomes the command, unless `told` returns a reason not
    /// to. Returns after that. Until then this process stands still, and the new one dies with it.
    ///
    /// `told` runs in the new process, but in the memory of this one. It must not panic, and this
    /// must be the only thread.
    ///
    /// # Errors
    /// As `clone(2)`: there is no process, or it was killed or failed before it called `told`.
    /// `InvalidInput` if a string contains a NUL.
    pub fn start<T>(self, mut told: impl FnMut() -> Result<(), T>) -> io::Result<Became<T>> {
        let variables = self.environment();
        let path = variables.get(OsStr::new("PATH")).cloned();
        let direct = Program::new(self.argv, path.as_deref())?;
        let shell = Program::new(self.shell_argv, path.as_deref())?;
        let environment = Strings::new(variables.into_iter().map(|(mut entry, value)| {
            entry.push("=");
            entry.push(value);
            entry.into_vec()
        }))?;
        let parent = getpid();
        let (mut stayed, mut asked, mut may) = (None, false, false);
        let mut way = || {
            let mut told = || {
                asked = true;
                told()
            };
            stayed = Some(match self.settle_in(parent, &mut told) {
                Ok(()) => {
                    may = true;
                    Became::Failed(match direct.execute(&environment) {
                        Errno::ENOEXEC => shell.execute(&environment).into(),
                        error => error.into(),
                    })
                }
                Err(stayed) => stayed,
            });
        };
        let mut stack = vec![0; STACK];
        // SAFETY: this is the only thread, as the caller has promised.
        let running = unsafe { vfork(&mut way, &mut stack) }?;
        match stayed {
            None if may => Ok(Became::Command(running)),
            stayed => {
                // It has ended already.
                let _ = running.reap();
                match stayed {
                    Some(Became::Failed(e)) if may => {
                        Ok(Became::Failed(direct.explain(e, self.cwd)))
                    }
                    Some(Became::Failed(e)) if !asked => Err(io::Error::other(e)),
                    Some(stayed) => Ok(stayed),
                    None => Err(io::Error::other("it was killed before it began")),
                }
            }
        }
    }

    /// Returns the inherited variables and those of the command, which win.
    fn environment(&self) -> BTreeMap<OsString, OsString> {
        let own = self.variables.iter();
        let own = own.map(|(name, value)| (name.into(), value.as_os_str().to_owned()));
        env::vars_os().chain(own).collect()
    }

    /// Prepares the new process, and executes the command.
    fn settle_in<T>(
        &self,
        parent: Pid,
        told: &mut impl FnMut() -> Result<(), T>,
    ) -> Result<(), Became<T>> {
        let failed = |e: Errno| Became::Failed(e.into());
        set_pdeathsig(Signal::SIGKILL).map_err(failed)?;
        if getppid() != parent {
            return Err(Became::Failed(Errno::ESRCH.into()));
        }
        setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(failed)?;
        dup2_stdin(&self.stdin).map_err(failed)?;
        dup2_stdout(&self.stdout).map_err(failed)?;
        dup2_stderr(&self.stderr).map_err(failed)?;
        // SAFETY: no handler is set. Rust's runtime ignores SIGPIPE, and a command would inherit
        // that.
        unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.map_err(failed)?;
        told().map_err(Became::Nothing)?;
        if let Some(cwd) = self.cwd {
            env::set_current_dir(cwd).map_err(|e| {
                // Otherwise a missing folder would look like a missing program.
                let cause = format!("cannot work in {}: {e}", cwd.display());
                Became::Failed(io::Error::other(cause))
            })?;
        }
        // A command outlives its supervisor, until its end has been handled.
        set_pdeathsig(None).map_err(failed)
    }
}

/// Starts a new process that runs `way` in our memory and on `stack`, and ends if `way` returns.
/// Returns when it has ended or executes another program.
///
/// # Errors
/// As `clone(2)`; then there is no process.
///
/// # Safety
/// This process must have no other thread, and `way` must not unwind.
unsafe fn vfork<F: FnMut()>(way: &mut F, stack: &mut [u8]) -> io::Result<Running> {
    extern "C" fn go<F: FnMut()>(way: *mut libc::c_void) -> libc::c_int {
        // SAFETY: it is the `way` below, borrowed for as long as this runs, and nothing else uses it.
        unsafe { (*way.cast::<F>())() };
        0
    }
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let mut pidfd: libc::c_int = -1;
    // The stack grows down, from a multiple of 16.
    let top = stack.as_mut_ptr_range().end;
    let top = top.wrapping_sub(top.addr() % 16).cast();
    // SAFETY: the two processes share their memory, and CLONE_VFORK has this one, which has no
    // other thread, stand still until the other has left it by `execve` or `_exit`. So `way` runs
    // like a function that is called here, once, on a stack of its own, which like all that it
    // borrows outlives it. What it changes of its process (descriptors, directory, group,
    // signals) is not shared. The descriptor is written to a live local before anything runs.
    let pid = unsafe {
        libc::clone(
            go::<F>,
            top,
            flags,
            ptr::from_mut(way).cast(),
            &raw mut pidfd,
        )
    };
    let pid = Pid::from_raw(Errno::result(pid)?);
    if pidfd < 0 {
        // It could not be supervised, so it must not run.
        let _ = kill(pid, Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, None);
        return Err(io::Error::other("the kernel is older than Linux 5.3"));
    }
    // SAFETY: the kernel has just opened it for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Running { pid, pidfd })
}

/// A running command and its process group.
#[derive(Debug)]
pub struct Running {
    pid: Pid,
    pidfd: OwnedFd,
}

/// Why [`Running::wait`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// The command has ended.
    Ended,
    /// One of the other descriptors is readable, or has ended, or may be: `poll(2)` has failed.
    Readable,
    /// The deadline has passed.
    TimedOut,
}

impl Running {
    /// Returns the process id, which is also the id of the process group.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().cast_unsigned()
    }

    /// Waits for the end of the command, for one of `others` to become readable or to end, or for
    /// `deadline`. A shortage that makes `poll(2)` fail passes, and does not end the wait.
    pub fn wait<'a>(
        &self,
        others: impl IntoIterator<Item = BorrowedFd<'a>>,
        deadline: Option<Instant>,
    ) -> Woken {
        let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        let others = others.into_iter();
        fds.extend(others.map(|other| PollFd::from_borrowed_fd(other, PollFlags::IN)));
        let Ok(ready) = poll_until(&mut fds, deadline) else {
            return self.look(deadline);
        };
        let ended = fds.first().is_some_and(|own| !own.revents().is_empty());
        match (ready, ended) {
            (0, _) => Woken::TimedOut,
            (_, true) => Woken::Ended,
            (_, false) => Woken::Readable,
        }
    }

    /// Returns whether the command has ended, by `waitid(2)`, and otherwise waits a little.
    fn look(&self, deadline: Option<Instant>) -> Woken {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        if !matches!(waitid(Id::Pid(self.pid), flags), Ok(WaitStatus::StillAlive)) {
            return Woken::Ended;
        }
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Woken::TimedOut;
        }
        thread::sleep(left.unwrap_or(POLL_AGAIN).min(POLL_AGAIN));
        Woken::Readable
    }

    /// Ends every process that descends from the command: TERM, up to `grace` for all to end, then
    /// KILL. Calls `pause` to wait; it must take the given time. Returns what could not be ended,
    /// for people. This process must be a child subreaper.
    ///
    /// The command is reaped after its group is gone. Otherwise its process id, which names the
    /// group, could be given to another process meanwhile.
    #[must_use]
    pub fn terminate(&self, grace: Duration, pause: impl FnMut(Duration)) -> Option<String> {
        end_run(self.pid(), grace, pause)
    }

    /// Reaps the command, which has ended. Returns how it ended, and what it used.
    ///
    /// # Errors
    /// As `wait4(2)`.
    pub fn reap(self) -> io::Result<(End, Usage)> {
        let pid = self.pid.as_raw();
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

/// Resources that a command and its reaped children used (`getrusage(2)`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Largest resident set, KiB.
    pub max_rss: u64,
    /// User and system time, microseconds.
    pub cpu: u64,
}
