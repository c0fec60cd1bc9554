//! One command, watched from its start to its end.

use std::io;
use std::time::{Duration, Instant};

use crate::model::unit::{End, Outcome, Stopped};
use crate::os::command::{Running, Usage, Woken};
use crate::os::descent::{children_left, kill_run, reap_orphans};
use crate::os::proc::start_time;
use crate::os::process::wait_for_any;
use crate::runner::Job;
use crate::store::unit_dir::locked::LockedDir;
use crate::store::unit_dir::output::{Output, Rest};

/// For this time a command is only waited for. Most have ended then, and their output, if it is not
/// more than a pipe holds, is taken at once.
const BRIEF: Duration = Duration::from_millis(2);

/// A command that ends within this time needs no more than that somebody waits for it and takes
/// what it writes.
const SHORT: Duration = Duration::from_millis(20);

/// How often orphans of a run are reaped, and a folder is looked at that cannot be watched.
const LOOK: Duration = Duration::from_millis(500);

/// How often a process that outlives its command is looked at.
const LOOK_AT_REST: Duration = Duration::from_secs(5);

/// A command that runs, and what belongs to it.
pub(super) struct Run<'a> {
    running: Running,
    dir: &'a mut LockedDir,
    output: &'a mut Output,
    /// When it began, by a clock that only goes on.
    clock: Instant,
    /// Deadline of the run.
    limit: Option<Instant>,
    grace: Duration,
}

impl<'a> Run<'a> {
    /// The command of `job`, which has begun at `clock` and writes to `output`.
    pub(super) fn new(
        job: &Job,
        running: Running,
        dir: &'a mut LockedDir,
        output: &'a mut Output,
        clock: Instant,
    ) -> Self {
        let limit = job.timeout.map(Duration::from_millis);
        Self {
            running,
            dir,
            output,
            clock,
            limit: limit.and_then(|limit| clock.checked_add(limit)),
            grace: Duration::from_millis(job.grace),
        }
    }

    /// Watches the command to its end. It has begun at `started` (milliseconds since the epoch);
    /// `boot` names this boot of the host. Calls `meanwhile` once if it takes its time.
    ///
    /// # Errors
    /// When the system does not tell how the command has ended.
    pub(super) fn supervise(
        mut self,
        started: i64,
        boot: &str,
        meanwhile: impl FnOnce(),
    ) -> io::Result<Outcome> {
        let mut stopped = None;
        if !self.is_over_within(BRIEF) && !self.is_over_while_pumped(SHORT) {
            meanwhile();
            stopped = self.watch(boot);
        }
        let (output, dir) = (self.output, self.dir);
        let mut remains = None;
        if stopped.is_some() {
            let meanwhile = |time| pause(output, dir, time);
            remains = self.running.terminate(self.grace, meanwhile);
        }
        let (end, usage) = if remains.is_some() && !is_over(&self.running) {
            // It would be waited for until it likes to end.
            (End::Interrupted, Usage::default())
        } else {
            self.running.reap()?
        };
        // A process that lost its parent while the last look was taken is ours by now.
        if stopped.is_some() && remains.is_none() && children_left() {
            remains = kill_run(None, |time| pause(output, dir, time));
        }
        let dropped = output.finish(dir);
        Ok(Outcome {
            end,
            stopped,
            started,
            elapsed: u64::try_from(self.clock.elapsed().as_micros()).unwrap_or(u64::MAX),
            max_rss: usage.max_rss,
            cpu: usage.cpu,
            dropped,
            remains,
        })
    }

    /// Whether the command ends within `time`, or its own; its output waits.
    fn is_over_within(&self, time: Duration) -> bool {
        let until = self.before_limit(time);
        // Without a wake-up it is waited for until it ends.
        !matches!(self.running.wait([], Some(until)), Ok(Woken::TimedOut))
    }

    fn is_over_while_pumped(&mut self, time: Duration) -> bool {
        let until = self.before_limit(time);
        loop {
            match self.running.wait(self.output.sources(), Some(until)) {
                Ok(Woken::TimedOut) => return false,
                Ok(Woken::Readable) if Instant::now() < until => self.output.pump(self.dir),
                Ok(Woken::Readable) => return false,
                Ok(Woken::Ended) | Err(_) => return true,
            }
        }
    }

    fn before_limit(&self, time: Duration) -> Instant {
        let until = Instant::now() + time;
        self.limit.map_or(until, |limit| limit.min(until))
    }

    /// Watches a command that takes its time, until it ends or is to.
    fn watch(&mut self, boot: &str) -> Option<Stopped> {
        self.dir.watch();
        let pid = self.running.pid();
        // Only needed should we be killed; without it the command would be left alone.
        if let Some(start) = start_time(pid) {
            let _ = self.dir.note_process(pid, start, boot);
        }
        let mut look = Instant::now() + LOOK;
        loop {
            if self.dir.is_canceled() {
                return Some(Stopped::Canceled);
            }
            if self.limit.is_some_and(|limit| Instant::now() >= limit) {
                return Some(Stopped::TimedOut);
            }
            if Instant::now() >= look {
                reap_orphans(pid);
                look = Instant::now() + LOOK;
            }
            let until = self.limit.map_or(look, |limit| limit.min(look));
            let others = self.output.sources().chain(self.dir.changes());
            match self.running.wait(others, Some(until)) {
                Ok(Woken::Ended) | Err(_) => return None,
                Ok(Woken::Readable) => self.output.pump(self.dir),
                Ok(Woken::TimedOut) => {}
            }
        }
    }
}

fn is_over(running: &Running) -> bool {
    !matches!(running.wait([], Some(Instant::now())), Ok(Woken::TimedOut))
}

/// Lets `time` pass, and takes what is written meanwhile.
fn pause(output: &mut Output, dir: &mut LockedDir, time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        // A failure is a shortage that passes; the pipes are read in any case.
        let _ = wait_for_any(output.sources(), until);
        output.pump(dir);
    }
}

/// Takes what processes write that outlive their command, until none of them can write any more.
/// Without a reader their next write would end them.
pub(super) fn drain_rest(rest: &mut Rest) {
    while rest.is_open() {
        // A failure is a shortage that passes; the pipes are read in any case.
        let _ = wait_for_any(rest.sources(), Instant::now() + LOOK_AT_REST);
        rest.pump();
        let _ = children_left();
    }
}
