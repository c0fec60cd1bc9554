//! Forgets old runs: rows in bounded steps, folders in a thread beside the loop.
//!
//! A unit is forgotten in two steps. A transaction deletes its row and marks its folder as
//! released. When the folder is removed, the mark is deleted too. A client that is killed in
//! between finds the mark, and never guesses what it may delete.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::engine::commit::step::{Step, Steps};
use crate::engine::config::SESSION_EXPIRY;
use crate::engine::pipeline::{Pipeline, now_ms};
use crate::engine::work::quota::{FRESH, Found, Look, Next, Quota, Task};
use crate::os::hooks;
use crate::os::logging::STACK;
use crate::store::ledger::{Op, Pruned, Retention, released_file};
use crate::store::payload_file;
use crate::store::room::size;
use crate::store::unit_dir::UnitDir;

/// Maximum number of folders to remove at once.
const PIECE: usize = 64;

/// Number of units that end, or events that are refused, between two prunings.
const PRUNE_EVERY: u32 = 256;

/// Number of prunings between two counts of all events.
const COUNT_EVERY: u32 = 16;

/// Maximum number of remembered events, to recognise redeliveries.
const MAX_EVENTS: u64 = 1_000_000;

/// Maximum number of remembered refused events.
const MAX_REFUSED: u64 = 10_000;

/// Maximum number of topics with a remembered retained message, to recognise it later.
const MAX_RETAINED: u64 = 100_000;

/// Minimum and maximum wait for something to expire.
const MIN_WAIT: Duration = Duration::from_secs(10 * 60);
const MAX_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// Time that a start has before old runs are forgotten, if no broker answers: to connect comes first.
const HEAD_START: Duration = Duration::from_secs(1);

/// Result of work in a thread beside the loop.
#[derive(Debug)]
pub enum Beside {
    /// Folders are removed.
    Removed(Removed),
    /// Something is known about the size of the state.
    Found(Found),
}

impl Beside {
    /// Returns the units whose folders are removed.
    pub fn removed(&self) -> &[String] {
        match self {
            Self::Removed(removed) => &removed.gone,
            Self::Found(_) => &[],
        }
    }
}

/// Result of removing some folders.
#[derive(Debug)]
pub struct Removed {
    /// Place of the last one in the order of release.
    last: i64,
    /// Units whose folders are removed.
    gone: Vec<String>,
    /// Size of what is removed, bytes; 0 if no one wants to know.
    bytes: u64,
}

/// State of the cleanup.
#[derive(Debug)]
pub struct Cleanup {
    done: (
        mpsc::UnboundedSender<Beside>,
        mpsc::UnboundedReceiver<Beside>,
    ),
    /// Whether folders are being removed, and rows.
    removing: bool,
    pruning: bool,
    /// Whether there are more rows to forget.
    more: bool,
    /// Place of the last released unit that was tried. A folder that cannot be removed is tried
    /// again by the next client.
    tried: i64,
    /// Number of new rows since the last pruning.
    since: u32,
    rounds: u32,
    due: Option<Instant>,
    /// Whether it was logged that there are too many events, refused events, and retained messages.
    said: [bool; 3],
    /// Whether nothing new is begun.
    leaving: bool,
    /// Units to release when they have ended. The ledger knows them too.
    wanted: HashSet<String>,
    quota: Quota,
}

impl Default for Cleanup {
    fn default() -> Self {
        Self {
            done: mpsc::unbounded_channel(),
            removing: false,
            pruning: false,
            more: false,
            tried: 0,
            since: 0,
            rounds: 0,
            due: Some(Instant::now() + HEAD_START),
            said: [false; 3],
            leaving: false,
            wanted: HashSet::new(),
            quota: Quota::new(HEAD_START),
        }
    }
}

impl Cleanup {
    /// Returns the result of work beside the loop. Cancel safe.
    pub async fn next(&mut self) -> Option<Beside> {
        self.done.1.recv().await
    }

    /// Returns when something expires, or the state must be measured; `has_live` is whether units have
    /// not ended.
    pub fn wake(&self, pipeline: &Pipeline, has_live: bool) -> Option<Instant> {
        let measure = self.quota.wake(&pipeline.room, has_live);
        let measure = measure.filter(|_| !self.leaving);
        [self.due, measure].into_iter().flatten().min()
    }

    /// Finishes what is running, and begins nothing more.
    pub const fn leave(&mut self) {
        self.leaving = true;
    }

    /// Releases `unit` when it has ended.
    pub fn release_at_end(&mut self, unit: &str) {
        self.wanted.insert(unit.to_owned());
    }

    /// Notes that the end of `unit` is on disk, whose output counts from now on.
    pub fn ended(&mut self, pipeline: &Pipeline, unit: &str, steps: &mut Steps) {
        self.quota.ended(&pipeline.room, &pipeline.dir(unit), unit);
        self.release_wanted(unit, steps);
    }

    /// Releases `unit`, which has ended, if a person wants that.
    pub fn release_wanted(&mut self, unit: &str, steps: &mut Steps) {
        if let Some(unit) = self.wanted.take(unit) {
            steps.push_back(Step::Release(unit, false));
        }
    }

    /// Notes that `unit` is out of the ledger.
    pub fn released(&mut self, unit: &str) {
        self.quota.released(unit);
    }

    /// Notes that the limit of the state may be another.
    pub fn reconfigured(&mut self) {
        self.quota.reconfigured();
    }

    /// Returns whether folders are being removed.
    pub const fn is_removing(&self) -> bool {
        self.removing
    }

    /// Returns how long ended units and events are kept, milliseconds. The broker may send an event
    /// again as long as it keeps our session.
    fn ages(pipeline: &Pipeline) -> (i64, i64) {
        let ms = |age: Duration| i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        let keep = pipeline.config.keep;
        (ms(keep), ms(keep.max(SESSION_EXPIRY)))
    }

    /// Forgets what is beyond the limits, unless that is running already.
    pub fn prune(&mut self, pipeline: &Pipeline, steps: &mut Steps) {
        if std::mem::replace(&mut self.pruning, true) {
            return;
        }
        self.since = 0;
        self.due = None;
        let (units, events) = Self::ages(pipeline);
        let counts = self.rounds.is_multiple_of(COUNT_EVERY);
        self.rounds = self.rounds.wrapping_add(1);
        let now = now_to_age(pipeline);
        let retention = Retention {
            units_since: now.saturating_sub(units),
            units: pipeline.config.keep_units,
            events_since: now.saturating_sub(events),
            events: counts.then_some(MAX_EVENTS),
            refused: MAX_REFUSED,
            retained: MAX_RETAINED,
        };
        steps.push_back(Step::Commit(Op::Prune(retention)));
    }

    /// Notes that a unit has ended, or an event was refused: one more row to keep.
    pub fn one_more_to_keep(&mut self, pipeline: &Pipeline, steps: &mut Steps) {
        self.since += 1;
        let keep = u32::try_from(pipeline.config.keep_units).unwrap_or(u32::MAX);
        if self.since >= PRUNE_EVERY.min(keep.max(1)) {
            return self.prune(pipeline, steps);
        }
        // Only the first one has to ask, because later ones expire later.
        if self.due.is_none() && !self.pruning {
            self.expire_at(pipeline, Some(now_ms()), None);
        }
    }

    /// Sets the next check to when the oldest unit or event expires.
    fn expire_at(&mut self, pipeline: &Pipeline, unit: Option<i64>, event: Option<i64>) {
        let (units, events) = Self::ages(pipeline);
        let times = [
            unit.map(|at| at.saturating_add(units)),
            event.map(|at| at.saturating_add(events)),
        ];
        self.due = times.into_iter().flatten().min().map(|at| {
            let wait = u64::try_from(at.saturating_sub(now_ms())).unwrap_or(0);
            let shortest = MIN_WAIT.min(pipeline.config.keep.max(Duration::from_secs(1)));
            Instant::now() + Duration::from_millis(wait).clamp(shortest, MAX_WAIT)
        });
    }

    /// Handles what has expired, and measures the state if it is time; `live` returns the units that
    /// have not ended, if it `has_live` ones.
    pub fn on_time(
        &mut self,
        pipeline: &Pipeline,
        (has_live, live): (bool, impl FnOnce() -> Vec<String>),
        steps: &mut Steps,
    ) {
        if self.due.is_some_and(|due| Instant::now() >= due) {
            self.prune(pipeline, steps);
        }
        if self.leaving {
            return;
        }
        let home = &pipeline.home.path;
        if let Some(task) = self.quota.on_time(&pipeline.room, home, has_live, live) {
            self.begin(task);
        }
    }

    /// Does a task of the quota beside the loop.
    fn begin(&mut self, task: Task) {
        let begun = self.beside(move || Beside::Found(task.perform()));
        if let Err(e) = begun {
            warn!("cannot start a thread to measure the state: {e}");
            self.quota.not_begun();
        }
    }

    /// Does what the quota wants next.
    fn follow(&mut self, next: Next, steps: &mut Steps) {
        match next {
            Next::Nothing => {}
            Next::Do(task) => self.begin(task),
            Next::Forget(units) => {
                let release = |unit| Step::Release(unit, false);
                steps.extend(units.into_iter().map(release));
            }
        }
    }

    /// Does `work` in a thread beside the loop, which hears of its result.
    fn beside(&self, work: impl FnOnce() -> Beside + Send + 'static) -> io::Result<()> {
        let done = self.done.0.clone();
        let thread = std::thread::Builder::new().name("cleanup".into());
        let thread = thread.stack_size(STACK).spawn(move || {
            let _ = done.send(work());
        });
        thread.map(drop)
    }

    /// Handles the result of a step of pruning.
    pub fn on_pruned(&mut self, pipeline: &Pipeline, pruned: &Pruned, steps: &mut Steps) {
        self.pruning = false;
        self.more = pruned.more;
        if pruned.crowded_out > 0 && !std::mem::replace(&mut self.said[0], true) {
            warn!(
                "more than {MAX_EVENTS} events within --keep: the oldest are forgotten, and run \
                 again if they are sent again"
            );
        }
        if pruned.refused_out > 0 && !std::mem::replace(&mut self.said[1], true) {
            info!("more than {MAX_REFUSED} events were refused: the oldest of them are forgotten");
        }
        if pruned.retained_out > 0 && !std::mem::replace(&mut self.said[2], true) {
            warn!(
                "more than {MAX_RETAINED} topics have retained messages that are accepted: the \
                 oldest are forgotten, and run again at the next start"
            );
        }
        self.expire_at(pipeline, pruned.oldest_unit, pruned.oldest_event);
        self.remove_released(pipeline, steps);
    }

    /// Removes some folders of released units. If there are none, continues with the rows.
    fn remove_released(&mut self, pipeline: &Pipeline, steps: &mut Steps) {
        if self.removing {
            return;
        }
        let released = match pipeline.reader.released(self.tried, PIECE) {
            Ok(released) => released,
            Err(e) => return warn!("cannot look for folders to remove: {e}"),
        };
        let Some((last, _)) = released.last() else {
            if !self.leaving && std::mem::take(&mut self.more) {
                self.prune(pipeline, steps);
            } else if !self.leaving {
                let next = self.quota.all_removed(&pipeline.room, look(pipeline));
                self.follow(next, steps);
            }
            return;
        };
        let last = *last;
        let marks: Vec<String> = released.into_iter().map(|(_, mark)| mark).collect();
        let home = pipeline.home.path.clone();
        let counts = pipeline.room.fill().is_some();
        let removing = self.beside(move || Beside::Removed(remove(&home, marks, last, counts)));
        match removing {
            Ok(()) => self.removing = true,
            // The next pruning tries again.
            Err(e) => warn!("cannot start a thread to remove folders: {e}"),
        }
    }

    /// Handles the result of work beside the loop.
    pub fn on_beside(&mut self, pipeline: &Pipeline, beside: Beside, steps: &mut Steps) {
        match beside {
            Beside::Removed(removed) => self.on_removed(pipeline, removed, steps),
            Beside::Found(_) if self.leaving => {}
            Beside::Found(found) => {
                let next = self.quota.found(&pipeline.room, found, look(pipeline));
                self.follow(next, steps);
            }
        }
    }

    /// Notes that some folders are removed.
    fn on_removed(&mut self, pipeline: &Pipeline, removed: Removed, steps: &mut Steps) {
        self.removing = false;
        self.quota.removed(&pipeline.room, removed.bytes);
        self.tried = removed.last;
        steps.push_back(Step::Commit(Op::Removed(removed.gone)));
        if !self.leaving {
            self.remove_released(pipeline, steps);
        }
    }
}

/// Returns the time for the age of runs, for a client that has started at `start` by the clock of
/// the host, `elapsed` ago. The clock `says` something else if it was set meanwhile, as on a host
/// that gets the time from the network. That must not make recent runs old. All values are
/// milliseconds; times are since 1970.
fn aging_clock(says: i64, start: i64, elapsed: i64) -> i64 {
    says.min(start.saturating_add(elapsed))
}

/// Returns the time for the age of runs of `pipeline`, milliseconds since 1970.
fn now_to_age(pipeline: &Pipeline) -> i64 {
    aging_clock(now_ms(), pipeline.since.as_millisecond(), pipeline.ticks())
}

/// Returns what a look for units to forget needs to know.
fn look(pipeline: &Pipeline) -> Look<'_> {
    let fresh = hooks::fresh().unwrap_or(FRESH);
    let fresh = i64::try_from(fresh.as_millis()).unwrap_or(i64::MAX);
    Look {
        home: &pipeline.home.path,
        fresh: now_to_age(pipeline).saturating_sub(fresh),
    }
}

/// Removes the folders and payloads in the folder `home` of a pipeline that have these `marks`, and
/// logs once if one stays. Measures them if that `counts`.
fn remove(home: &Path, marks: Vec<String>, last: i64, counts: bool) -> Removed {
    let mut gone = Vec::with_capacity(marks.len());
    let (mut said, mut bytes) = (false, 0);
    for mark in marks {
        let dir = UnitDir::new(home, &mark);
        let (path, file) = match released_file(&mark) {
            Some(file) => (payload_file::path(home, file), Some(file)),
            None => (dir.path().to_owned(), None),
        };
        let held = if counts { size(&path) } else { 0 };
        let removed = match file {
            Some(file) => payload_file::remove(home, file),
            None => dir.remove(),
        };
        match removed {
            Ok(()) => {
                bytes += held;
                gone.push(mark);
            }
            Err(e) if !std::mem::replace(&mut said, true) => {
                warn!("cannot remove what is left of unit {mark}: {e}");
            }
            Err(_) => {}
        }
    }
    Removed { last, gone, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_makes_nothing_old() {
        let year = 365 * 24 * 3_600_000;
        assert_eq!(aging_clock(1_060, 1_000, 60), 1_060);
        assert_eq!(aging_clock(1_000 + year, 1_000, 60), 1_060, "forward");
        assert_eq!(aging_clock(1_060, 1_000 + year, 60), 1_060, "back");
    }
}
