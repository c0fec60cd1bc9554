//! The process that supervises one unit at a time, and outlives its client.
//!
//! It reads a job from its standard input: a line of JSON, then the payload. It prepares the unit
//! while the ledger accepts it. Then it reads one more byte, [`BEGIN`] or [`DROP`]. It answers on
//! its standard output:
//!
//! ```text
//! started MS         the command has started, at this time (milliseconds since 1970)
//! ended OUTCOME      it has ended
//! refused CAUSE      the unit was not begun, and can be tried again
//! begun              another runner has begun the unit
//! idle               ready for the next job
//! leaving            a process outlives the command: the runner takes no other job
//! ```
//!
//! When its client is gone it finishes its unit, writes the outcome, and leaves. It has no async
//! runtime and no threads.

mod supervise;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::io::ioctl_fionread;
use serde::{Deserialize, Serialize};

use crate::model::outcome::outcome_text;
use crate::model::unit::{End, Outcome, Stopped};
use crate::model::variables::Variables;
use crate::os::command::{Became, Running, Spawn};
use crate::os::descent::{adopt_descendants, children_left};
use crate::os::memory::give_back;
use crate::os::process::{Sender, boot_id, detach, sender};
use crate::store::unit_dir::UnitDir;
use crate::store::unit_dir::locked::LockedDir;
use crate::store::unit_dir::output::{Output, Rest};
use crate::store::unit_dir::recycle::EndedDir;
use crate::store::unit_dir::stream::Stream;
use supervise::{Run, Sign, drain_rest, read_rest};

/// First argument that turns one of our binaries into a runner. The second is the folder for other
/// files of runners.
pub const ARGUMENT: &str = "--tael-runner";

/// Prefix of a line that names the file, in that folder, of a job that is too long for a pipe.
pub const FILE: &str = "@";

/// Tells a runner to begin the unit: the ledger has accepted it.
pub const BEGIN: u8 = b'!';

/// Tells a runner to drop the unit.
pub const DROP: u8 = b'-';

/// Stands for neither of them.
const SILENCE: u8 = 0;

/// Delay before an outcome that found no space is written again.
const RETRY: Duration = Duration::from_secs(1);

/// Maximum time until an outcome that the client has received is synced. While events come fast,
/// the ledger of the client has it on disk before that.
const SYNC_DELAY: Duration = Duration::from_millis(100);

/// Exit codes of a shell for a program that cannot be executed, and for one that is missing
/// (POSIX.1-2017, Shell Command Language, section 2.8.2).
const CANNOT_EXECUTE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// One unit for a runner.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The unit.
    pub unit: String,
    /// Number of bytes of the command's standard input, which follow the line.
    pub stdin: usize,
    /// File that is the command's standard input instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin_file: Option<PathBuf>,
    /// Whether someone may wait for its output from its first moments on.
    #[serde(default)]
    pub is_followed: bool,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Program and arguments if the system finds no interpreter for `argv`: a shell runs it.
    pub shell_argv: Vec<String>,
    /// Working directory of the command (default: the runner's).
    pub cwd: Option<PathBuf>,
    /// Variables besides the inherited ones.
    pub variables: Variables,
    /// Time after which the command is ended, milliseconds.
    pub timeout: Option<u64>,
    /// Time between TERM and KILL, milliseconds.
    pub grace: u64,
    /// Maximum number of bytes kept of each output stream; 0 keeps all.
    pub max_output: u64,
}

/// Runs as a runner: takes jobs from standard input until the client is gone.
#[must_use]
pub fn main(runners: Option<PathBuf>) -> ExitCode {
    detach();
    adopt_descendants();
    let bug = ExitCode::from(crate::error::Kind::Bug.exit_code());
    let (Some(runners), Ok(requests)) = (runners, io::stdin().as_fd().try_clone_to_owned()) else {
        return bug;
    };
    match runners.parent() {
        Some(pipeline) => serve(requests, io::stdout(), &runners, pipeline),
        None => return bug,
    }
    ExitCode::SUCCESS
}

/// Takes jobs from `requests` until the client is gone, or a process outlives its command; reports
/// on `reports`. `runners` is the folder for other files of runners, in the folder of the
/// `pipeline`.
///
/// The calling process must have no other thread and no other children, and must be a child
/// subreaper.
fn serve(requests: OwnedFd, reports: impl Write + AsFd, runners: &Path, pipeline: &Path) {
    let mut runner = Runner {
        requests: BufReader::with_capacity(4096, File::from(requests)),
        reports,
        runners,
        boot: boot_id(),
        ahead: None,
        ended: None,
        rest: None,
        free: None,
        heard: [SILENCE],
        began: None,
    };
    give_back();
    loop {
        runner.make_ahead();
        if runner.wait() == Sender::Gone {
            // The next client takes up what we would begin now.
            break;
        }
        match read(&mut runner.requests, runners) {
            Ok(Some((job, payload))) => {
                runner.work(&job, UnitDir::new(pipeline, &job.unit), &payload);
                // A process that outlives its command must not become part of the next unit.
                if runner.rest.is_some() || children_left() {
                    runner.say("leaving");
                    runner.sync();
                    break;
                }
                runner.say("idle");
            }
            // The next runner tries what cannot be read.
            Ok(None) | Err(_) => break,
        }
    }
    if let Some(ahead) = runner.ahead.take() {
        ahead.discard();
    }
    if let Some(mut rest) = runner.rest {
        drain_rest(&mut rest);
    }
}

/// Reads a job with its payload; `None` at the end.
fn read(requests: &mut impl BufRead, runners: &Path) -> io::Result<Option<(Job, Vec<u8>)>> {
    let mut line = String::new();
    if requests.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    if let Some(name) = line.trim_end().strip_prefix(FILE) {
        let path = runners.join(name);
        let job = File::open(&path).and_then(|file| read(&mut BufReader::new(file), runners));
        let _ = fs::remove_file(path);
        return job;
    }
    let job: Job = serde_json::from_str(&line)?;
    let mut payload = vec![0; job.stdin];
    requests.read_exact(&mut payload)?;
    Ok(Some((job, payload)))
}

/// Why a unit that was prepared is not begun.
#[derive(Debug)]
enum NotBegun {
    /// The client has dropped it.
    Dropped,
    /// The client is gone, and the next one takes the unit up.
    ClientGone,
    /// It was canceled.
    Canceled,
    /// Its record cannot be written.
    Record(io::Error),
    /// There is no process for it, or it was killed.
    Process(io::Error),
}

/// A runner, and its folders and descriptors.
struct Runner<'a, W> {
    requests: BufReader<File>,
    reports: W,
    runners: &'a Path,
    boot: String,
    /// The folder of the next unit.
    ahead: Option<LockedDir>,
    /// The folder of the last unit, until the client's ledger holds its outcome.
    ended: Option<EndedDir>,
    /// The output of processes that outlive the command of that unit.
    rest: Option<Rest>,
    /// A folder whose outcome the ledger holds.
    free: Option<EndedDir>,
    /// Byte of the client for the current unit: [`BEGIN`], [`DROP`], or [`SILENCE`] so far.
    heard: [u8; 1],
    /// When the command began, by the clock of the host and by a monotonic one.
    began: Option<(i64, Instant)>,
}

impl<W: Write + AsFd> Runner<'_, W> {
    /// Tells the client, if there still is one.
    fn say(&mut self, line: &str) {
        let _ = writeln!(self.reports, "{line}").and_then(|()| self.reports.flush());
    }

    /// Tells the client that the command has written something, unless it has not read the last line
    /// yet: for every line, it looks at the output. So a client that stands still fills no pipe.
    fn say_wrote(&mut self) {
        if ioctl_fionread(&self.reports).is_ok_and(|bytes| bytes == 0) {
            self.say("wrote");
        }
    }

    /// Waits for a job, and syncs the last outcome unless one comes first.
    fn wait(&mut self) -> Sender {
        let client = |patience| sender(self.requests.get_ref().as_fd(), patience);
        let mut client_is = client(self.ended.is_some().then_some(SYNC_DELAY));
        if client_is != Sender::Wrote {
            self.sync();
        }
        if client_is == Sender::Silent {
            client_is = client(None);
        }
        client_is
    }

    /// Writes the last outcome to disk.
    fn sync(&self) {
        if let Some(ended) = &self.ended {
            ended.sync();
        }
    }

    /// Prepares a unit, and runs it when the client says so.
    fn work(&mut self, job: &Job, unit: UnitDir, payload: &[u8]) {
        // What came with the job is in our memory already.
        self.heard = self.requests.buffer().first().map_or([SILENCE], |b| [*b]);
        self.requests.consume(usize::from(self.heard != [SILENCE]));
        let mut dir = match LockedDir::take(self.ahead.take(), unit) {
            Ok(Some(dir)) => dir,
            other => {
                match other {
                    Err(e) => self.say(&format!("refused create the unit's folder: {e}")),
                    // Another runner has begun it, and tells the outcome.
                    Ok(_) => self.say("begun"),
                }
                // A client that is gone is noticed before the next job.
                let _ = self.hear();
                self.free_last();
                return;
            }
        };
        let begun = match start(job, payload, &mut dir, |dir| self.begin(dir)) {
            Ok(begun) => begun,
            // It never can.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => match self.begin(&mut dir) {
                Ok(()) => Begun::Failed(io::Error::other(e)),
                Err(not) => Begun::Nothing(not),
            },
            Err(e) => Begun::Nothing(self.hear().err().unwrap_or(NotBegun::Process(e))),
        };
        self.free_last();
        let mut rest = None;
        let outcome = match begun {
            Begun::Command(running, mut output) => {
                let now = || (Timestamp::now().as_millisecond(), Instant::now());
                let (began, clock) = self.began.take().unwrap_or_else(now);
                self.say(&format!("started {began}"));
                let boot = self.boot.clone();
                let run = Run::new(job, running, &mut dir, &mut output, clock);
                let outcome = run.supervise(began, &boot, |sign| match sign {
                    Sign::TakesLonger => self.make_ahead(),
                    Sign::Wrote => self.say_wrote(),
                });
                rest = Some(output);
                outcome.unwrap_or_else(Outcome::not_started)
            }
            Begun::Failed(e) => could_not_execute(job, &mut dir, &e),
            Begun::Nothing(NotBegun::Canceled) => Outcome {
                stopped: Some(Stopped::Canceled),
                ..Outcome::not_started("canceled before it began")
            },
            // The client gives a refused unit to another runner, for which the folder must be free.
            Begun::Nothing(NotBegun::Record(e)) => {
                drop(dir);
                return self.say(&format!("refused write the unit's record: {e}"));
            }
            Begun::Nothing(NotBegun::Process(e)) => {
                self.ahead = dir.withdraw(self.runners);
                return self.say(&format!("refused start a process: {e}"));
            }
            Begun::Nothing(NotBegun::Dropped) => {
                self.ahead = dir.withdraw(self.runners);
                return;
            }
            Begun::Nothing(NotBegun::ClientGone) => return,
        };
        self.say(&format!("ended {}", outcome_text(&outcome)));
        let mut rest = rest.and_then(|output| Rest::of(output, &mut dir));
        while dir.end(&outcome).is_err() {
            match &mut rest {
                Some(rest) => read_rest(rest, RETRY),
                None => thread::sleep(RETRY),
            }
        }
        self.ended = Some(EndedDir::new(dir, rest.as_ref()));
        self.rest = rest;
    }

    /// Waits until the client says whether the unit begins.
    ///
    /// The process that becomes the command calls it, and may be killed at any moment. The kernel
    /// writes the byte straight into our memory, so a byte that it has read does not die with it.
    fn hear(&mut self) -> Result<(), NotBegun> {
        while self.heard == [SILENCE] {
            match rustix::io::read(self.requests.get_ref(), &mut self.heard) {
                Ok(0) => return Err(NotBegun::ClientGone),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return Err(NotBegun::ClientGone),
            }
        }
        // Standard input can be the command's by now. The lock is held: a client that finds it free
        // knows that the unit was not begun.
        let client = sender(self.requests.get_ref().as_fd(), Some(Duration::ZERO));
        match (self.heard, client) {
            ([BEGIN], Sender::Gone) => Err(NotBegun::ClientGone),
            ([BEGIN], _) => Ok(()),
            _ => Err(NotBegun::Dropped),
        }
    }

    /// Keeps the folder of the last unit for the next one, if the client has said something since:
    /// the ledger commits in order, and got that end before this unit. Not in the process that
    /// becomes the command, which would close its own files only.
    fn free_last(&mut self) {
        if self.heard != [SILENCE] && self.free.is_none() {
            self.free = self.ended.take();
        }
    }

    /// Waits until the client says that the unit begins, and notes that.
    fn begin(&mut self, dir: &mut LockedDir) -> Result<(), NotBegun> {
        self.hear()?;
        if dir.dir().is_canceled() {
            return Err(NotBegun::Canceled);
        }
        dir.begin().map_err(NotBegun::Record)?;
        self.began = Some((Timestamp::now().as_millisecond(), Instant::now()));
        Ok(())
    }

    /// Makes the folder of the next unit, if there is none yet.
    fn make_ahead(&mut self) {
        if self.ahead.is_none() {
            let recycled = self.free.take().and_then(|free| free.recycle(self.runners));
            self.ahead = recycled.or_else(|| LockedDir::ahead(self.runners).ok());
        }
    }
}

/// Result of a job.
enum Begun {
    /// It runs, and writes.
    Command(Running, Output),
    /// It is not begun.
    Nothing(NotBegun),
    /// The program could not be executed.
    Failed(io::Error),
}

fn start(
    job: &Job,
    payload: &[u8],
    dir: &mut LockedDir,
    mut begin: impl FnMut(&mut LockedDir) -> Result<(), NotBegun>,
) -> io::Result<Begun> {
    let (output, [stdout, stderr]) = Output::new(job.max_output)?;
    let spawn = Spawn {
        argv: &job.argv,
        shell_argv: &job.shell_argv,
        cwd: job.cwd.as_deref(),
        variables: &job.variables,
        stdin: match &job.stdin_file {
            Some(path) => File::open(path)?,
            None => LockedDir::stdin(payload)?,
        },
        stdout,
        stderr,
    };
    Ok(match spawn.start(|| begin(dir))? {
        Became::Command(running) => Begun::Command(running, output),
        Became::Nothing(not) => Begun::Nothing(not),
        Became::Failed(e) => Begun::Failed(e),
    })
}

/// Returns the outcome that a shell gives a program that is missing or cannot be executed. Any
/// other error is not the command's fault.
fn could_not_execute(job: &Job, dir: &mut LockedDir, error: &io::Error) -> Outcome {
    let program = job.argv.first().map_or("", String::as_str);
    let code = match error.kind() {
        io::ErrorKind::NotFound => Some(NOT_FOUND),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ExecutableFileBusy => Some(CANNOT_EXECUTE),
        _ => None,
    };
    if code.is_some()
        && let Ok(mut stderr) = dir.stream(Stream::Stderr)
    {
        let _ = writeln!(stderr, "tael: cannot execute {program}: {error}");
    }
    let outcome = Outcome::not_started(error);
    match code {
        Some(code) => Outcome {
            end: End::Exited(code),
            started: Timestamp::now().as_millisecond(),
            ..outcome
        },
        None => outcome,
    }
}
