//! The process that supervises one unit at a time, and outlives its client.
//!
//! It reads jobs from its standard input, a line of JSON and the payload each, and makes all
//! ready for them while the ledger accepts them; then it reads one byte more, [`BEGIN`] or
//! [`DROP`]. It answers on its standard output: `started MS`, `ended OUTCOME`, `idle`; or
//! `begun` and `refused CAUSE` for a unit that it does not run; and `leaving` instead of `idle`
//! when something of the unit goes on. When nobody writes or listens
//! any more it finishes its unit, writes the outcome, and leaves. No runtime, no threads.

mod supervise;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::outcome::outcome_text;
use crate::model::unit::{End, Outcome, Stopped};
use crate::model::variables::Variables;
use crate::os::command::{Became, Running, Spawn};
use crate::os::descent::{adopt_descendants, children_left};
use crate::os::process::{Sender, boot_id, detach, sender};
use crate::store::unit_dir::hold::Hold;
use crate::store::unit_dir::output::Output;
use crate::store::unit_dir::recycle::RecycledDir;
use crate::store::unit_dir::{Stream, UnitDir};
use supervise::{Run, look_after_rest};

/// The first argument that turns one of our binaries into a runner; the second is the folder
/// for what runners need beside their units.
pub const ARGUMENT: &str = "--tael-runner";

/// Begins a line that names the file, beside us, of a job that is too long for a pipe.
pub const FILE: &str = "@";

/// The unit may begin: the ledger has accepted it.
pub const BEGIN: u8 = b'!';

/// The unit is not to run.
pub const DROP: u8 = b'-';

/// Wait before an outcome that found no space is written again.
const RETRY: Duration = Duration::from_secs(1);

/// How long an outcome that the client has been told may wait to be synced. While events come
/// fast the client's ledger has it on disk before.
const SYNC_DELAY: Duration = Duration::from_millis(100);

/// The exit code of a shell for a program that cannot be executed, and one that is missing
/// (POSIX.1-2017, Shell Command Language, section 2.8.2).
const CANNOT_EXECUTE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// One unit for a runner.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The unit.
    pub unit: String,
    /// Bytes of the command's standard input, which follow the line.
    pub stdin: usize,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// What to execute when the system finds no interpreter for `argv`: a shell does.
    pub shell_argv: Vec<String>,
    /// Where the command runs; the runner's own working directory without.
    pub cwd: Option<PathBuf>,
    /// Variables besides the inherited ones.
    pub variables: Variables,
    /// Time after which the command is ended, milliseconds.
    pub timeout: Option<u64>,
    /// Time between TERM and KILL, milliseconds.
    pub grace: u64,
    /// Bytes kept of each output stream.
    pub max_output: u64,
}

/// Works off jobs until nobody sends any more.
#[must_use]
pub fn main(runners: Option<PathBuf>) -> ExitCode {
    detach();
    adopt_descendants();
    let bug = ExitCode::from(crate::error::Kind::Bug.exit_code());
    let (Some(runners), Ok(pipe)) = (runners, io::stdin().as_fd().try_clone_to_owned()) else {
        return bug;
    };
    let Some(pipeline) = runners.parent() else {
        return bug;
    };
    let mut state = RunnerState {
        jobs: BufReader::with_capacity(4096, File::from(pipe)),
        runners: &runners,
        boot: boot_id(),
        ahead: None,
        ended: None,
        rest: None,
        free: None,
        heard: None,
        began: None,
    };
    loop {
        state.make_ahead();
        if state.wait() == Sender::Gone {
            // Nobody would take up what we began now; the next client will.
            break;
        }
        match read(&mut state.jobs, &runners) {
            Ok(Some((job, payload))) => {
                state.work(&job, UnitDir::new(pipeline, &job.unit), &payload);
                // What outlives its command must not pass for a part of the next unit.
                if state.rest.is_some() || children_left() {
                    say("leaving");
                    state.sync();
                    break;
                }
                say("idle");
            }
            // What cannot be read is the next one's to try.
            Ok(None) | Err(_) => break,
        }
    }
    if let Some(ahead) = state.ahead.take() {
        ahead.discard();
    }
    if let Some((mut output, files)) = state.rest {
        look_after_rest(&mut output, &files);
    }
    ExitCode::SUCCESS
}

/// Reads a job with its payload; none at the end.
fn read(jobs: &mut impl BufRead, runners: &Path) -> io::Result<Option<(Job, Vec<u8>)>> {
    let mut line = String::new();
    if jobs.read_line(&mut line)? == 0 {
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
    jobs.read_exact(&mut payload)?;
    Ok(Some((job, payload)))
}

/// Tells the client, if there still is one.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Why a unit that was made ready is not begun.
#[derive(Debug)]
enum Not {
    /// It is not to run.
    Wanted,
    /// The client is gone, and the next one will take the unit up.
    Heard,
    /// Somebody has canceled it.
    Canceled,
    /// Its record cannot be written.
    Noted(io::Error),
    /// There is no process for it, or it was killed.
    Able(io::Error),
}

/// Where a runner works.
struct RunnerState<'a> {
    jobs: BufReader<File>,
    runners: &'a Path,
    boot: String,
    /// The folder of the unit to come.
    ahead: Option<Hold>,
    /// The folder of the unit that has ended last, until the client's ledger holds its outcome.
    ended: Option<RecycledDir>,
    /// What is left of the output of that unit, and where it goes, while somebody may write still.
    rest: Option<(Output, [File; 2])>,
    /// A folder that nobody needs any more.
    free: Option<RecycledDir>,
    /// The word for the unit at hand.
    heard: Option<u8>,
    /// When the command began, by the clock of the host and by one that only goes on.
    began: Option<(i64, Instant)>,
}

impl RunnerState<'_> {
    /// Waits for a job, and syncs the last outcome unless one comes first.
    fn wait(&mut self) -> Sender {
        let patience = self.ended.is_some().then_some(SYNC_DELAY);
        let mut sender_is = sender(io::stdin().as_fd(), patience);
        if sender_is != Sender::Wrote {
            self.sync();
        }
        if sender_is == Sender::Silent {
            sender_is = sender(io::stdin().as_fd(), None);
        }
        sender_is
    }

    /// Has the disk hold the last outcome.
    fn sync(&self) {
        if let Some(ended) = &self.ended {
            ended.sync();
        }
    }

    /// Makes a unit ready, and runs it when it is to begin.
    fn work(&mut self, job: &Job, unit: UnitDir, payload: &[u8]) {
        self.heard = None;
        let mut hold = match Hold::take(self.ahead.take(), unit) {
            Ok(Some(hold)) => hold,
            other => {
                match other {
                    Err(e) => say(&format!("refused create the unit's folder: {e}")),
                    // Somebody has begun it before us: theirs is the outcome.
                    Ok(_) => say("begun"),
                }
                // One that is gone is noticed before the next job.
                let _ = self.word();
                return;
            }
        };
        let begun = match start(job, payload, &mut hold, |hold| self.begin(hold)) {
            Ok(begun) => begun,
            // It never can.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => match self.begin(&mut hold) {
                Ok(()) => Begun::Failed(io::Error::other(e)),
                Err(not) => Begun::Nothing(not),
            },
            Err(e) => Begun::Nothing(self.word().err().unwrap_or(Not::Able(e))),
        };
        let mut rest = None;
        let outcome = match begun {
            Begun::Command(running, mut output) => {
                let now = || (Timestamp::now().as_millisecond(), Instant::now());
                let began = self.began.take().unwrap_or_else(now);
                say(&format!("started {}", began.0));
                let boot = self.boot.clone();
                let run = Run::new(job, running, &mut hold, &mut output, began.1);
                let outcome = run.supervise(began.0, &boot, || self.make_ahead());
                rest = output.is_open().then_some(output);
                outcome.unwrap_or_else(Outcome::not_started)
            }
            Begun::Failed(e) => could_not_execute(job, &hold, &e),
            Begun::Nothing(Not::Canceled) => Outcome {
                stopped: Some(Stopped::Canceled),
                ..Outcome::not_started("canceled before it began")
            },
            Begun::Nothing(Not::Noted(e)) => {
                return say(&format!("refused write the unit's record: {e}"));
            }
            Begun::Nothing(Not::Able(e)) => {
                say(&format!("refused start a process: {e}"));
                self.ahead = hold.withdraw(self.runners);
                return;
            }
            Begun::Nothing(Not::Wanted) => {
                self.ahead = hold.withdraw(self.runners);
                return;
            }
            Begun::Nothing(Not::Heard) => return,
        };
        say(&format!("ended {}", outcome_text(&outcome)));
        while hold.end(&outcome).is_err() {
            thread::sleep(RETRY);
        }
        let (ended, files) = RecycledDir::with_streams(hold);
        self.ended = Some(ended);
        self.rest = rest.map(|output| (output, files));
    }

    /// Waits for the word to begin.
    fn word(&mut self) -> Result<(), Not> {
        let mut word = [0];
        match self.heard {
            // By a process that was killed then.
            Some(heard) => word = [heard],
            None => self.jobs.read_exact(&mut word).map_err(|_| Not::Heard)?,
        }
        self.heard = Some(word[0]);
        // Standard input may be the command's by now. The lock is held: who finds it free knows
        // that the unit was not begun.
        let client = sender(self.jobs.get_ref().as_fd(), Some(Duration::ZERO));
        // The ledger commits in order, and was told of the end before of this unit. Nothing is
        // dropped here: the process that is to be the command would close files of its own only.
        if self.free.is_none() {
            self.free = self.ended.take();
        }
        match (word, client) {
            ([BEGIN], Sender::Gone) => Err(Not::Heard),
            ([BEGIN], _) => Ok(()),
            _ => Err(Not::Wanted),
        }
    }

    /// Waits for the word to begin, and notes that.
    fn begin(&mut self, hold: &mut Hold) -> Result<(), Not> {
        self.word()?;
        if hold.dir().is_canceled() {
            return Err(Not::Canceled);
        }
        hold.begin().map_err(Not::Noted)?;
        self.began = Some((Timestamp::now().as_millisecond(), Instant::now()));
        Ok(())
    }

    /// Makes the folder of the next unit, if there is none yet.
    fn make_ahead(&mut self) {
        if self.ahead.is_none() {
            let reused = self.free.take().and_then(|free| free.reuse(self.runners));
            self.ahead = reused.or_else(|| Hold::ahead(self.runners).ok());
        }
    }
}

/// What became of a job.
enum Begun {
    /// It runs, and writes.
    Command(Running, Output),
    /// It is not begun.
    Nothing(Not),
    /// The program could not be executed.
    Failed(io::Error),
}

fn start(
    job: &Job,
    payload: &[u8],
    hold: &mut Hold,
    mut begin: impl FnMut(&mut Hold) -> Result<(), Not>,
) -> io::Result<Begun> {
    let (output, [stdout, stderr]) = Output::new(job.max_output)?;
    let spawn = Spawn {
        argv: &job.argv,
        shell_argv: &job.shell_argv,
        cwd: job.cwd.as_deref(),
        variables: &job.variables,
        stdin: Hold::stdin(payload)?,
        stdout,
        stderr,
    };
    Ok(match spawn.start(|| begin(hold))? {
        Became::Command(running) => Begun::Command(running, output),
        Became::Nothing(not) => Begun::Nothing(not),
        Became::Failed(e) => Begun::Failed(e),
    })
}

/// The outcome that a shell would have made of a program that is missing or cannot be
/// executed; anything else was no fault of the command's.
fn could_not_execute(job: &Job, hold: &Hold, error: &io::Error) -> Outcome {
    let program = job.argv.first().map_or("", String::as_str);
    let code = match error.kind() {
        io::ErrorKind::NotFound => Some(NOT_FOUND),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ExecutableFileBusy => Some(CANNOT_EXECUTE),
        _ => None,
    };
    if code.is_some() {
        let mut stderr = hold.stream(Stream::Stderr);
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
