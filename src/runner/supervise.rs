//! Supervises one command from its start to its end.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::model::unit::{End, Outcome, Stopped};
use crate::os::command::{Running, Usage, Woken};
use crate::os::descent::{children_left, kill_run, reap_orphans};
use crate::os::proc::start_time;
use crate::os::process::wait_for_any;
use crate::runner::Job;
use crate::store::unit_dir::locked::LockedDir;
use crate::store::unit_dir::output::{Output, Rest};

/// Time during which the runner only waits for the command. Most commands have ended then, and
/// their output, if it fits into a pipe, is read at once.
const BRIEF: Duration = Duration::from_millis(2);

/// A command that ends within this time needs no supervision except waiting and reading its output.
const SHORT: Duration = Duration::from_millis(20);

/// Delay between two reads of the output of a command that writes little at a time. Otherwise every
/// line would wake the runner.
const GATHER: Duration = Duration::from_millis(5);

/// Number of bytes in one read from which the next one does not wait: the pipe, which holds 64 KiB
/// (`pipe(7)`), would fill up and hold up the command.
const FAST: usize = 32 * 1024;

/// Interval between two reaps of orphans, and between two checks of a folder that cannot be
/// watched.
const LOOK: Duration = Duration::from_millis(500);

/// Interval between two checks of a process that outlives its command.
const LOOK_AT_REST: Duration = Duration::from_secs(5);

/// What the supervisor says while a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// The command takes longer than most. It is said once.
    TakesLonger,
    /// It has written something, and someone may wait for that.
    Wrote,
}

/// A running command, and what belongs to it.
pub(super) struct Run<'a> {
    running: Running,
    dir: &'a mut LockedDir,
    output: &'a mut Output,
    /// When it began, on a monotonic clock.
    clock: Instant,
    /// Deadline of the run.
    limit: Option<Instant>,
    grace: Duration,
    /// When to read the output again, if that waits for more.
    gather: Option<Instant>,
    /// Whether someone may wait for the output from the start.
    is_followed: bool,
    /// Number of bytes of output that were announced.
    announced: u64,
}

impl<'a> Run<'a> {
    /// Returns the run of `job`, whose command has begun at `clock` and writes to `output`.
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
            gather: None,
            is_followed: job.is_followed,
            announced: 0,
        }
    }

    /// Supervises the command until its end. It has begun at `started` (milliseconds since 1970);
    /// `boot` identifies this boot of the host. Calls `say` meanwhile.
    ///
    /// # Errors
    /// When the system does not report how the command has ended.
    pub(super) fn supervise(
        mut self,
        started: i64,
        boot: &str,
        mut say: impl FnMut(Sign),
    ) -> io::Result<Outcome> {
        let mut stopped = None;
        if !self.is_over_within(BRIEF) && !self.is_over_while_pumped(SHORT, &mut say) {
            say(Sign::TakesLonger);
            stopped = self.watch(boot, &mut say);
        }
        let (output, dir) = (self.output, self.dir);
        let mut remains = None;
        if stopped.is_some() {
            let meanwhile = |time| pause(output, dir, time);
            remains = self.running.terminate(self.grace, meanwhile);
        }
        let (end, usage) = if remains.is_some() && !is_over_by(&self.running, Instant::now()) {
            // Waiting for it could take without a limit.
            (End::Interrupted, Usage::default())
        } else {
            self.running.reap()?
        };
        // A process that lost its parent during the last check has become ours.
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
            note: None,
        })
    }

    /// Returns whether the command ends within `time`, or within its own limit. Its output waits.
    fn is_over_within(&self, time: Duration) -> bool {
        is_over_by(&self.running, self.before_limit(time))
    }

    fn is_over_while_pumped(&mut self, time: Duration, say: &mut impl FnMut(Sign)) -> bool {
        let until = self.before_limit(time);
        loop {
            match self.wait_and_read(until) {
                Woken::Readable if Instant::now() < until => {
                    if self.is_followed {
                        self.announce(say);
                    }
                }
                Woken::Readable | Woken::TimedOut => return false,
                Woken::Ended => return true,
            }
        }
    }

    /// Waits for the end of the command, for its output, for a change of the folder, or until
    /// `until`. Reads the output.
    fn wait_and_read(&mut self, until: Instant) -> Woken {
        let gather = self.gather.take();
        let wake = gather.map_or(until, |at| at.min(until));
        let sources = self.output.sources().filter(|_| gather.is_none());
        let others = sources.chain(self.dir.changes());
        match self.running.wait(others, Some(wake)) {
            Woken::TimedOut if gather.is_none_or(|at| at > until) => Woken::TimedOut,
            Woken::TimedOut | Woken::Readable => {
                let bytes = self.output.pump(self.dir);
                self.gather = (1..FAST).contains(&bytes).then(|| Instant::now() + GATHER);
                Woken::Readable
            }
            Woken::Ended => Woken::Ended,
        }
    }

    /// Says that the command has written something, if it has.
    fn announce(&mut self, say: &mut impl FnMut(Sign)) {
        let seen = self.output.seen();
        if seen > self.announced {
            self.announced = seen;
            say(Sign::Wrote);
        }
    }

    fn before_limit(&self, time: Duration) -> Instant {
        let until = Instant::now() + time;
        self.limit.map_or(until, |limit| limit.min(until))
    }

    /// Supervises a command that takes longer, until it ends or must be ended.
    fn watch(&mut self, boot: &str, say: &mut impl FnMut(Sign)) -> Option<Stopped> {
        self.dir.watch();
        let pid = self.running.pid();
        // It is needed only if we are killed. Without it the command would then be left alone.
        if let Some(start) = start_time(pid) {
            let _ = self.dir.note_process(pid, start, boot);
        }
        let mut look = Instant::now() + LOOK;
        loop {
            if self.dir.is_canceled() {
                return Some(Stopped::Canceled);
            }
            if self.output.seen() > self.announced && self.dir.dir().is_followed() {
                self.announce(say);
            }
            if self.limit.is_some_and(|limit| Instant::now() >= limit) {
                return Some(Stopped::TimedOut);
            }
            if Instant::now() >= look {
                reap_orphans(pid);
                look = Instant::now() + LOOK;
            }
            let until = self.limit.map_or(look, |limit| limit.min(look));
            match self.wait_and_read(until) {
                Woken::Ended => return None,
                Woken::Readable | Woken::TimedOut => {}
            }
        }
    }
}

/// Returns whether the command has ended by `until`.
fn is_over_by(running: &Running, until: Instant) -> bool {
    loop {
        match running.wait([], Some(until)) {
            Woken::Ended => return true,
            Woken::TimedOut => return false,
            // There are no other descriptors, so poll(2) has failed.
            Woken::Readable => {}
        }
    }
}

/// Waits for `time`, and reads the output meanwhile.
fn pause(output: &mut Output, dir: &mut LockedDir, time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        wait_for_any(output.sources(), until);
        output.pump(dir);
    }
}

/// Waits for `time`, and reads the output of processes that outlive their command meanwhile.
pub(super) fn read_rest(rest: &mut Rest, time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        wait_for_any(rest.sources(), until);
        if rest.pump() < FAST {
            thread::sleep(GATHER);
        }
    }
}

/// Reads the output of processes that outlive their command, until none of them can write any more.
/// Without a reader their next write would end them.
pub(super) fn drain_rest(rest: &mut Rest) {
    while rest.is_open() {
        wait_for_any(rest.sources(), Instant::now() + LOOK_AT_REST);
        if rest.pump() < FAST {
            thread::sleep(GATHER);
        }
        let _ = children_left();
    }
}
