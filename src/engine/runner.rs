//! The process that supervises one unit at a time, and outlives its client.
//!
//! It reads jobs from its standard input, a line of JSON each, and answers on its standard
//! output: `started MS`, `ended OUTCOME`, `idle`. When nobody writes or listens any more it
//! finishes its unit, writes the outcome, and leaves. No runtime, no threads.

use std::io::{self, BufRead, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::model::unit::{End, Outcome, Stopped};
use crate::os::process::{Running, Spawn, Woken, boot_id, detach, start_time};
use crate::store::outcome::outcome_text;
use crate::store::streams::UnitDir;

/// The first argument that turns one of our binaries into a runner.
pub const ARGUMENT: &str = "--tael-runner";

/// Begins a line that names the file of a job that is too long for a pipe.
pub const FILE: &str = "@";

/// Wait before an outcome that found no space is written again.
const RETRY: Duration = Duration::from_secs(1);

/// The exit code of a shell for a program that cannot be executed, and one that is missing
/// (POSIX.1-2017, Shell Command Language, section 2.8.2).
const CANNOT_EXECUTE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// One unit for a runner.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The unit's folder.
    pub dir: std::path::PathBuf,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// What to execute when the system finds no interpreter for `argv`: a shell does.
    pub shell_argv: Vec<String>,
    /// Variables besides the inherited ones.
    pub variables: Vec<(String, String)>,
    /// Time after which the command is ended, milliseconds.
    pub timeout: Option<u64>,
    /// Time between TERM and KILL, milliseconds.
    pub grace: u64,
    /// Bytes kept of each output stream.
    pub max_output: u64,
}

/// Works off jobs until nobody sends any more.
#[must_use]
pub fn main() -> ExitCode {
    detach();
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let text = match line.strip_prefix(FILE) {
            Some(path) => std::fs::read_to_string(path).unwrap_or_default(),
            None => line,
        };
        let Ok(job) = serde_json::from_str::<Job>(&text) else {
            return ExitCode::from(crate::error::Kind::Bug.exit_code());
        };
        run(&job);
        say("idle");
    }
    ExitCode::SUCCESS
}

/// Tells the client, if there still is one.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn ended(outcome: &Outcome) {
    say(&format!("ended {}", outcome_text(outcome)));
}

fn run(job: &Job) {
    let dir = UnitDir::at(job.dir.clone());
    let lock = match dir.lock() {
        Ok(Some(lock)) => lock,
        // Somebody has begun it before us: theirs is the outcome.
        Ok(None) => return say("begun"),
        Err(e) => return ended(&Outcome::not_started(e)),
    };
    let outcome = supervise(job, &dir).unwrap_or_else(Outcome::not_started);
    ended(&outcome);
    while let Err(e) = dir.write_outcome(&outcome) {
        // Released meanwhile: nobody wants to know.
        if e.kind() == io::ErrorKind::NotFound {
            break;
        }
        thread::sleep(RETRY);
    }
    drop(lock);
}

/// Runs the command of `job` to its end.
fn supervise(job: &Job, dir: &UnitDir) -> io::Result<Outcome> {
    let control = dir.open_control()?;
    if dir.is_cancelled() {
        return Ok(Outcome {
            stopped: Some(Stopped::Canceled),
            ..Outcome::not_started("cancelled before it began")
        });
    }
    dir.mark_begun()?;
    let (started, clock) = (Timestamp::now().as_millisecond(), Instant::now());
    let running = match start(job, dir) {
        Ok(running) => running,
        Err(e) => return Ok(could_not_execute(job, dir, started, &e)),
    };
    say(&format!("started {started}"));
    // Only needed should we be killed; without it the command would be left alone.
    if let Some(start) = start_time(running.pid()) {
        let _ = dir.write_process(running.pid(), start, &boot_id());
    }
    let limit = job
        .timeout
        .and_then(|limit| clock.checked_add(Duration::from_millis(limit)));
    let mut trim = Trim::new(job.max_output);
    let stopped = loop {
        let wake = trim.next_check();
        let until = [limit, wake].into_iter().flatten().min();
        match running.wait(Some(control.as_fd()), until)? {
            Woken::Ended => break None,
            Woken::Cancelled => break Some(Stopped::Canceled),
            Woken::TimedOut if limit.is_some_and(|limit| Instant::now() >= limit) => {
                break Some(Stopped::TimedOut);
            }
            Woken::TimedOut => trim.check(dir),
        }
    };
    if stopped.is_some() {
        running.terminate(Duration::from_millis(job.grace));
    }
    let (end, usage) = running.reap()?;
    trim.check(dir);
    Ok(Outcome {
        end,
        stopped,
        started,
        elapsed: u64::try_from(clock.elapsed().as_micros()).unwrap_or(u64::MAX),
        max_rss: usage.max_rss,
        cpu: usage.cpu,
        dropped: trim.dropped,
    })
}

fn start(job: &Job, dir: &UnitDir) -> io::Result<Running> {
    let spawn = |argv: &[String]| {
        let [stdin, stdout, stderr] = dir.open_streams()?;
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        Running::spawn(Spawn {
            argv: &argv,
            variables: &job.variables,
            stdin,
            stdout,
            stderr,
        })
    };
    match spawn(&job.argv) {
        // A script without an interpreter line is for a shell to run (POSIX `execvp`).
        Err(e) if e.raw_os_error() == Some(Errno::ENOEXEC as i32) => spawn(&job.shell_argv),
        other => other,
    }
}

/// The outcome that a shell would have made of a program that is missing or cannot be
/// executed; anything else was no fault of the command's.
fn could_not_execute(job: &Job, dir: &UnitDir, started: i64, error: &io::Error) -> Outcome {
    let program = job.argv.first().map_or("", String::as_str);
    let code = match error.kind() {
        io::ErrorKind::NotFound => Some(NOT_FOUND),
        io::ErrorKind::PermissionDenied => Some(CANNOT_EXECUTE),
        _ => None,
    };
    if code.is_some()
        && let Ok([_, _, mut stderr]) = dir.open_streams()
    {
        let _ = writeln!(stderr, "tael: cannot execute {program}: {error}");
    }
    let outcome = Outcome::not_started(error);
    match code {
        Some(code) => Outcome {
            end: End::Exited(code),
            started,
            ..outcome
        },
        None => outcome,
    }
}

/// Keeps the output streams of a running command within bounds.
struct Trim {
    limit: u64,
    next: Instant,
    dropped: [u64; 2],
}

/// How often the size of the streams is looked at. What a command writes between two looks is
/// on the disk for so long.
const LOOK: Duration = Duration::from_millis(500);

impl Trim {
    fn new(limit: u64) -> Self {
        Self {
            limit,
            next: Instant::now() + LOOK,
            dropped: [0, 0],
        }
    }

    fn next_check(&self) -> Option<Instant> {
        (self.limit > 0).then_some(self.next)
    }

    fn check(&mut self, dir: &UnitDir) {
        self.next = Instant::now() + LOOK;
        if self.limit > 0 {
            for (dropped, bytes) in self.dropped.iter_mut().zip(dir.trim_streams(self.limit)) {
                *dropped = (*dropped).max(bytes);
            }
        }
    }
}
