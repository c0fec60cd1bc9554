//! One runner, for its client.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::PIPE_BUF;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::engine::commit::permit::StartPermit;
use crate::engine::work::job::UNIT_VARIABLE;
use crate::os::inherit::keep_variables;
use crate::os::program::DEFAULT_PATH;
use crate::runner::ARGUMENT;
/// A message of a runner.
pub(super) enum Line {
    /// The runner of this number has sent this line.
    Said(u64, String),
    /// The runner of this number, process of this id, is gone.
    Gone(u64, u32),
}

/// State of a runner.
pub(super) enum RunnerState {
    /// It is idle.
    Idle,
    /// It prepares a unit, and waits for this permit; with its lines meanwhile.
    Ready(StartPermit, Vec<String>),
    /// It has permission to begin a unit.
    Told(String),
    /// Its unit has begun.
    Begun(String),
    /// It has released its unit, or was not to begin it, and is not idle yet.
    Done,
}

impl RunnerState {
    /// Returns the unit whose runner reports on it.
    pub(super) fn into_unit(self) -> Option<String> {
        match self {
            Self::Told(unit) | Self::Begun(unit) => Some(unit),
            Self::Idle | Self::Ready(..) | Self::Done => None,
        }
    }
}

/// A runner.
pub(super) struct Handle {
    pub(super) number: u64,
    pub(super) requests: ChildStdin,
    pub(super) state: RunnerState,
    /// When it became idle.
    pub(super) idle_since: Instant,
    /// Number of bytes that its pipe takes while it reads nothing: 64 KiB, or one page if its user
    /// has many pipes (`pipe-user-pages-soft`, `pipe(7)`).
    pub(super) capacity: usize,
}

impl Handle {
    /// Starts `program` as the runner of this number, with `dir` for its other files. Its lines go
    /// to `lines`.
    ///
    /// # Errors
    /// When no process can be started.
    pub(super) fn start(
        number: u64,
        program: &Path,
        dir: &Path,
        lines: &mpsc::UnboundedSender<Line>,
    ) -> io::Result<Self> {
        let path = (std::env::var_os("PATH").is_none()).then_some(("PATH", DEFAULT_PATH));
        let mut command = Command::new(program);
        keep_variables(&mut command);
        let mut child = command
            .arg(ARGUMENT)
            .arg(dir)
            // A client identifier is for one connection. A `tael message` in a command that
            // inherited ours would take our session.
            .env_remove("TAEL_ID")
            // A client may be part of a run itself, and its own runs are not.
            .env_remove(UNIT_VARIABLE)
            .envs(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (Some(requests), Some(replies)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let replies = File::from(OwnedFd::from(replies));
        let replies = pipe::Receiver::from_file(replies)?;
        tokio::spawn(listen(number, child, replies, lines.clone()));
        Ok(Self::new(number, requests))
    }

    /// Returns the idle runner of this number, which reads `requests`.
    pub(super) fn new(number: u64, requests: ChildStdin) -> Self {
        let capacity = fcntl(&requests, FcntlArg::F_GETPIPE_SZ).unwrap_or_default();
        let capacity = usize::try_from(capacity).unwrap_or_default();
        Self {
            number,
            requests,
            state: RunnerState::Idle,
            idle_since: Instant::now(),
            capacity: capacity.max(PIPE_BUF),
        }
    }

    /// Returns whether it is idle.
    pub(super) const fn is_idle(&self) -> bool {
        matches!(self.state, RunnerState::Idle)
    }

    /// Returns whether it prepares a unit, and waits for `permit`.
    pub(super) fn waits_for(&self, permit: &StartPermit) -> bool {
        matches!(&self.state, RunnerState::Ready(own, _) if own.is(permit))
    }
}

async fn listen(
    number: u64,
    mut child: Child,
    replies: pipe::Receiver,
    lines: mpsc::UnboundedSender<Line>,
) {
    let mut replies = BufReader::with_capacity(512, replies).lines();
    while let Ok(Some(text)) = replies.next_line().await {
        if lines.send(Line::Said(number, text)).is_err() {
            return;
        }
    }
    // It has closed its side, so this returns at once.
    let _ = child.wait();
    let _ = lines.send(Line::Gone(number, child.id()));
}
