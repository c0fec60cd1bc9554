//! The bytes of one end: standard input and output, or those of a command. Threads read and write them,
//! because a pipe, a file or a terminal that others use too must not become non-blocking.

use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, dup2_stdin, dup2_stdout};
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Kind, Result};
use crate::model::command::DEFAULT_SHELL;
use crate::model::pair::WINDOW;
use crate::os::inherit::keep_variables;
use crate::os::process::{POLL_AGAIN, end_group};
use crate::os::stdout::stdout;

/// Number of parts that are read before there is room to send them.
const READ_AHEAD: usize = 2;

/// Time between SIGTERM and SIGKILL for the command.
const GRACE: Duration = Duration::from_secs(5);

/// What the output says.
#[derive(Debug)]
pub(super) enum Taken {
    /// It has taken one part.
    Part,
    /// It cannot be written.
    Refused(io::Error),
    /// It is closed after the last part.
    Closed,
}

/// Input and output of an end.
pub(super) struct Streams {
    /// What is read, until the end.
    pub input: Option<Input>,
    /// Takes the parts to write; dropped, it closes the output.
    pub output: Option<mpsc::Sender<Bytes>>,
    /// What became of them.
    pub taken: mpsc::UnboundedReceiver<Taken>,
    /// The command.
    pub command: Option<Running>,
}

/// The input of an end.
pub(super) struct Input {
    parts: mpsc::Receiver<io::Result<Bytes>>,
    /// Closed, it asks the reader to stop.
    reads: Option<PipeWriter>,
}

/// A running command.
pub(super) struct Running {
    child: Child,
    /// Comes with its exit code when it has ended; `None` after that.
    ended: Option<oneshot::Receiver<Option<u8>>>,
    /// Its exit code, when that is known.
    code: Option<u8>,
}

impl Streams {
    /// Returns standard input and output, which are no longer those of this process: so they close when
    /// they end.
    ///
    /// # Errors
    /// When they cannot be taken (73).
    pub fn own(max_part: usize) -> Result<Self> {
        let taken = || {
            let null = File::options().read(true).write(true).open("/dev/null")?;
            let input = io::stdin().as_fd().try_clone_to_owned()?;
            let output = stdout()?.as_fd().try_clone_to_owned()?;
            dup2_stdin(&null)?;
            dup2_stdout(&null)?;
            Ok((input, output))
        };
        let wrong = |e: io::Error| Error::cannot_create(format!("take stdin and stdout: {e}"));
        let (input, output) = taken().map_err(wrong)?;
        Self::new((input, max_part), output, None)
    }

    /// Starts `line` by the shell, as the leader of a process group, and returns its input and output.
    ///
    /// # Errors
    /// When it cannot be started (73).
    pub fn of_command(line: &str, max_part: usize) -> Result<Self> {
        let wrong = |e: io::Error| Error::cannot_create(format!("start '{line}': {e}"));
        let mut command = Command::new(DEFAULT_SHELL);
        keep_variables(&mut command);
        let mut child = command
            .args(["-c", line])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(wrong)?;
        let (Some(output), Some(input)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(wrong(ErrorKind::BrokenPipe.into()));
        };
        let pid = Pid::from_raw(child.id().cast_signed());
        let (tell, ended) = oneshot::channel();
        let running = Running {
            child,
            ended: Some(ended),
            code: None,
        };
        spawn("pair-command", move || {
            // It stays a zombie, so that its group has its number until we have ended it.
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            let status = loop {
                match waitid(Id::Pid(pid), flags) {
                    Err(Errno::EINTR) => {}
                    status => break status,
                }
            };
            let code = match status {
                Ok(WaitStatus::Exited(_, code)) => Some(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => Some(128 + signal as i32),
                _ => None,
            };
            let _ = tell.send(code.and_then(|code| u8::try_from(code).ok()));
        })?;
        Self::new((input.into(), max_part), output.into(), Some(running))
    }

    fn new(
        (input, max_part): (OwnedFd, usize),
        output: OwnedFd,
        command: Option<Running>,
    ) -> Result<Self> {
        let input = Input::new(input, max_part)?;
        // The window bounds what waits.
        let (write, waiting) = mpsc::channel(usize::try_from(WINDOW).unwrap_or(1));
        let (tell, taken) = mpsc::unbounded_channel();
        spawn("pair-output", move || {
            write_all(File::from(output), waiting, &tell);
            let _ = tell.send(Taken::Closed);
        })?;
        Ok(Self {
            input: Some(input),
            output: Some(write),
            taken,
            command,
        })
    }
}

impl Input {
    fn new(input: OwnedFd, max_part: usize) -> Result<Self> {
        let wrong = |e| Error::new(Kind::TryAgain, format!("make a pipe: {e}"));
        let (stop, reads) = io::pipe().map_err(wrong)?;
        let (parts, read) = mpsc::channel(READ_AHEAD);
        spawn("pair-input", move || {
            read_all(File::from(input), max_part, &stop, &parts);
        })?;
        Ok(Self {
            parts: read,
            reads: Some(reads),
        })
    }

    /// Returns the next part; `None` at the end. Cancel safe.
    pub async fn next(&mut self) -> Option<io::Result<Bytes>> {
        self.parts.recv().await
    }

    /// Returns the next part if it is here.
    pub fn ready(&mut self) -> Option<Bytes> {
        self.parts.try_recv().ok()?.ok()
    }

    /// Has the input end with what is there now: parts that were read, and one more if it can be read
    /// without a wait.
    pub fn stop(&mut self) {
        self.reads = None;
    }
}

impl Running {
    /// Returns when the command has ended. Cancel safe.
    pub async fn ended(&mut self) {
        if let Some(ended) = &mut self.ended {
            self.code = ended.await.ok().flatten();
            self.ended = None;
        }
    }

    /// Returns whether [`Self::ended`] has returned.
    pub const fn has_ended(&self) -> bool {
        self.ended.is_none()
    }

    /// Returns its exit code, 128+signal for a death by signal, if it is known.
    pub const fn code(&self) -> Option<u8> {
        self.code
    }

    /// Ends what is left of its process group, and returns its exit code, 128+signal for a death by signal.
    pub fn end(mut self) -> u8 {
        end_group(self.child.id(), GRACE);
        let Ok(status) = self.child.wait() else {
            return Kind::Bug.exit_code();
        };
        let code = status.code().or(status.signal().map(|signal| 128 + signal));
        code.and_then(|code| u8::try_from(code).ok())
            .unwrap_or(u8::MAX)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            end_group(self.child.id(), GRACE);
            let _ = self.child.wait();
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = thread::Builder::new().name(name.into());
    let wrong = |e| Error::new(Kind::TryAgain, format!("start a thread: {e}"));
    thread.spawn(work).map(drop).map_err(wrong)
}

/// Reads `from` in parts of up to `max_part` bytes up to its end, until no task takes the `parts`, or until the other side of `stop` is closed:
/// then up to what can be read at that moment.
fn read_all(
    mut from: File,
    max_part: usize,
    stop: &PipeReader,
    parts: &mpsc::Sender<io::Result<Bytes>>,
) {
    let mut buffer = vec![0; max_part];
    let mut stopped = false;
    while !stopped {
        let there = match wait(&from, stop) {
            Ok((there, stop)) => {
                stopped = stop;
                there
            }
            // A read says what is wrong.
            Err(_) => true,
        };
        if !there {
            continue;
        }
        let part = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => Ok(Bytes::copy_from_slice(
                buffer.get(..count).unwrap_or_default(),
            )),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            // Another process was faster, and has made it non-blocking.
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                thread::sleep(POLL_AGAIN);
                continue;
            }
            Err(e) => Err(e),
        };
        let failed = part.is_err();
        if parts.blocking_send(part).is_err() || failed {
            return;
        }
    }
}

/// Waits until a read of `from` returns at once, or `stop` is closed; returns whether each is so.
fn wait(from: &File, stop: &PipeReader) -> nix::Result<(bool, bool)> {
    let mut both = [
        PollFd::new(from.as_fd(), PollFlags::POLLIN),
        PollFd::new(stop.as_fd(), PollFlags::empty()),
    ];
    loop {
        match poll(&mut both, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
            Ok(_) => {
                let [from, stop] = both.map(|fd| fd.any().unwrap_or(true));
                return Ok((from, stop));
            }
        }
    }
}

/// Writes all `parts` to `to`, and tells what became of each.
fn write_all(mut to: File, mut parts: mpsc::Receiver<Bytes>, tell: &mpsc::UnboundedSender<Taken>) {
    while let Some(part) = parts.blocking_recv() {
        let mut rest = &part[..];
        while !rest.is_empty() {
            match to.write(rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => thread::sleep(POLL_AGAIN),
                Err(e) => {
                    let _ = tell.send(Taken::Refused(e));
                    return;
                }
            }
        }
        let _ = tell.send(Taken::Part);
    }
}
