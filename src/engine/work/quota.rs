//! The quota of the state folder: measures it beside the loop, and finds what to forget when it is
//! nearly full.
//!
//! Without a limit nothing is measured. The ends of units are added to the sum as they come, so that a
//! measurement only corrects it. Nothing is forgotten but after a measurement.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::error::Result;
use crate::store::ledger::Reader;
use crate::store::ledger::oldest::oldest;
use crate::store::payload_file;
use crate::store::room::{Fill, Room, size};
use crate::store::unit_dir::UnitDir;

/// Interval between two measurements while units run or end.
const EVERY: Duration = Duration::from_secs(5 * 60);

/// Minimum time between two measurements, when the folder is nearly full.
const PAUSE: Duration = Duration::from_secs(1);

/// Minimum time between two measurements, in lengths of a measurement: it takes 2 % of the time of a
/// disk at most.
const LENGTHS: u32 = 50;

/// Time for which submitted work that has ended is kept in any case: its submitter may be about to
/// fetch the output.
pub const FRESH: Duration = Duration::from_secs(60);

/// Maximum number of units to forget before the folder is looked at again.
const UNITS: usize = 256;

/// What was found out beside the loop.
#[derive(Debug)]
pub enum Found {
    /// The folder was measured.
    Measured(Measured),
    /// These units can be forgotten.
    Oldest(Result<Vec<String>>),
}

/// The size of a state folder.
#[derive(Debug)]
pub struct Measured {
    /// The sum when it began.
    before: i64,
    /// Size of all, bytes.
    all: u64,
    /// Sizes of the folders of units that have not ended, bytes.
    live: HashMap<String, u64>,
    /// How long it took.
    took: Duration,
}

/// What to find out beside the loop.
#[derive(Debug)]
pub enum Task {
    /// Measure the folder of the pipeline, and those of its units that have not ended.
    Measure {
        /// The folder of the pipeline.
        home: PathBuf,
        /// The sum now.
        before: i64,
        /// The units.
        live: Vec<String>,
    },
    /// Find units to forget.
    Choose {
        /// The folder of the pipeline.
        home: PathBuf,
        /// Number of bytes to make free.
        excess: u64,
        /// Submitted work that ended then, or later, stays; milliseconds since 1970.
        fresh: i64,
    },
}

impl Task {
    /// Does it. May take seconds.
    pub fn perform(self) -> Found {
        match self {
            Self::Measure { home, before, live } => {
                let begin = Instant::now();
                let all = size(&home);
                let of = |unit: String| {
                    let bytes = size(UnitDir::new(&home, &unit).path());
                    (unit, bytes)
                };
                Found::Measured(Measured {
                    before,
                    all,
                    live: live.into_iter().map(of).collect(),
                    took: begin.elapsed(),
                })
            }
            Self::Choose {
                home,
                excess,
                fresh,
            } => Found::Oldest(choose(&home, excess, fresh)),
        }
    }
}

/// Returns units that have ended and hold at least `excess` bytes together, or some of them. Passes
/// over those that hold nothing but their row: to forget them makes no room.
fn choose(home: &Path, excess: u64, fresh: i64) -> Result<Vec<String>> {
    let reader = Reader::open(home)?;
    let (mut chosen, mut sum) = (Vec::new(), 0_u64);
    oldest(&reader, fresh, |unit| {
        let file = unit.file.as_deref();
        let file = file.map_or(0, |name| size(&payload_file::path(home, name)));
        let bytes = size(UnitDir::new(home, &unit.id).path()) + file + unit.payload;
        if bytes > 0 {
            sum = sum.saturating_add(bytes);
            chosen.push(unit.id);
        }
        sum < excess && chosen.len() < UNITS
    })?;
    Ok(chosen)
}

/// What the quota waits for.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// A reason to measure.
    Idle,
    /// The result of a task.
    Looking,
    /// The removal of units, of which these are not yet out of the ledger.
    Removing {
        left: HashSet<String>,
        /// Number of bytes that were made free.
        freed: u64,
    },
}

/// The quota of a state folder.
#[derive(Debug)]
pub struct Quota {
    stage: Stage,
    /// When the folder is measured in any case, if something has changed.
    due: Instant,
    /// Before that it is not measured.
    free: Instant,
    /// Whether units have ended since the last measurement.
    changed: bool,
    /// Number of bytes that shall fit.
    wanted: u64,
    /// Sizes of the folders of units that have not ended, which the sum contains, bytes.
    live: HashMap<String, u64>,
    /// Whether there was nothing to forget.
    stuck: bool,
    /// Whether it was logged that units are forgotten, and that there is nothing to forget.
    said: [bool; 2],
}

/// Returns the size above which units are forgotten, and down to which, bytes.
const fn marks(limit: u64) -> (u64, u64) {
    (limit / 100 * 90, limit / 100 * 85)
}

impl Quota {
    /// Returns a quota that is measured first after `delay`.
    pub fn new(delay: Duration) -> Self {
        let now = Instant::now();
        Self {
            stage: Stage::Idle,
            due: now + delay,
            free: now,
            changed: true,
            wanted: 0,
            live: HashMap::new(),
            stuck: false,
            said: [false; 2],
        }
    }

    /// Measures soon: the limit may be another.
    pub fn reconfigured(&mut self) {
        self.due = Instant::now();
        self.changed = true;
        self.stuck = false;
    }

    /// Returns when to measure, with or without units that have not ended.
    pub fn wake(&self, room: &Room, has_live: bool) -> Option<Instant> {
        let Fill { used, limit, .. } = room.fill()?;
        if self.stage != Stage::Idle {
            return None;
        }
        if room.is_wanted() || (used > marks(limit).0 && !self.stuck) {
            return Some(self.free);
        }
        (self.changed || has_live).then_some(self.due.max(self.free))
    }

    /// Returns the task to measure the folder `home`, if it is time; `live` returns the units that have
    /// not ended.
    pub fn on_time(
        &mut self,
        room: &Room,
        home: &Path,
        has_live: bool,
        live: impl FnOnce() -> Vec<String>,
    ) -> Option<Task> {
        let due = self.wake(room, has_live)?;
        if Instant::now() < due {
            return None;
        }
        self.stage = Stage::Looking;
        self.changed = false;
        self.wanted = room.take_wanted();
        Some(Task::Measure {
            home: home.to_owned(),
            before: room.sum(),
            live: live(),
        })
    }

    /// Notes that a task was not begun.
    pub fn not_begun(&mut self) {
        self.stage = Stage::Idle;
        self.free = Instant::now() + EVERY;
        self.due = self.free;
    }

    /// Adds the output of a unit that has ended.
    pub fn ended(&mut self, room: &Room, dir: &UnitDir, unit: &str) {
        if room.fill().is_none() {
            return;
        }
        let known = self.live.remove(unit).unwrap_or(0);
        let now = size(dir.path());
        room.grew(now.saturating_sub(known));
        room.shrank(known.saturating_sub(now));
        (self.changed, self.stuck) = (true, false);
    }

    /// Takes what was found out. Returns units to forget, or what to do next.
    pub fn found(&mut self, room: &Room, found: Found, look: Look<'_>) -> Next {
        self.stage = Stage::Idle;
        match found {
            Found::Measured(measured) => {
                room.measured(measured.before, measured.all);
                self.live = measured.live;
                let now = Instant::now();
                let length = measured.took.saturating_mul(LENGTHS);
                (self.free, self.due) = (now + PAUSE.max(length), now + EVERY.max(length));
                self.look(room, look)
            }
            Found::Oldest(Ok(units)) if units.is_empty() => {
                self.nothing_to_forget(room);
                Next::Nothing
            }
            Found::Oldest(Ok(units)) => {
                if !std::mem::replace(&mut self.said[0], true) {
                    info!("the state is nearly full (--max-state): the oldest runs are forgotten");
                }
                self.stage = Stage::Removing {
                    left: units.iter().cloned().collect(),
                    freed: 0,
                };
                Next::Forget(units)
            }
            Found::Oldest(Err(e)) => {
                warn!("cannot look for runs to forget: {e}");
                self.stuck = true;
                Next::Nothing
            }
        }
    }

    /// Decides whether units must be forgotten.
    fn look(&mut self, room: &Room, Look { home, fresh }: Look<'_>) -> Next {
        let Some(Fill { used, limit, .. }) = room.fill() else {
            return Next::Nothing;
        };
        let (high, low) = marks(limit);
        let fits = limit.saturating_sub(self.wanted);
        let most = if used > high { low.min(fits) } else { fits };
        if used <= most {
            self.wanted = 0;
            if used <= high {
                self.said = [false; 2];
            }
            return Next::Nothing;
        }
        self.stage = Stage::Looking;
        Next::Do(Task::Choose {
            home: home.to_owned(),
            excess: used - most,
            fresh,
        })
    }

    fn nothing_to_forget(&mut self, room: &Room) {
        self.stuck = true;
        let is_wanted = std::mem::take(&mut self.wanted) > 0;
        if let Some(Fill { used, limit, .. }) = room.fill()
            && (used >= limit || is_wanted)
            && !std::mem::replace(&mut self.said[1], true)
        {
            warn!(
                "the state has {used} of {limit} bytes (--max-state), and there is no run to forget: \
                 work that does not fit is refused, events still run; raise --max-state, or release units"
            );
        }
    }

    /// Notes that `unit` is out of the ledger.
    pub fn released(&mut self, unit: &str) {
        if let Stage::Removing { left, .. } = &mut self.stage {
            left.remove(unit);
        }
    }

    /// Notes that `bytes` were removed.
    pub fn removed(&mut self, room: &Room, bytes: u64) {
        room.shrank(bytes);
        self.stuck = false;
        if let Stage::Removing { freed, .. } = &mut self.stage {
            *freed += bytes;
        }
    }

    /// Notes that nothing is left to remove. Returns what to do next.
    pub fn all_removed(&mut self, room: &Room, look: Look<'_>) -> Next {
        let Stage::Removing { left, freed } = &self.stage else {
            return Next::Nothing;
        };
        if !left.is_empty() {
            return Next::Nothing;
        }
        let is_vain = *freed == 0;
        self.stage = Stage::Idle;
        if is_vain {
            self.nothing_to_forget(room);
            return Next::Nothing;
        }
        self.look(room, look)
    }
}

/// What a look for units to forget needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// The folder of the pipeline.
    pub home: &'a Path,
    /// Submitted work that ended then, or later, stays; milliseconds since 1970.
    pub fresh: i64,
}

/// What to do next.
#[derive(Debug)]
pub enum Next {
    /// Nothing.
    Nothing,
    /// Find something out beside the loop.
    Do(Task),
    /// Forget these units, which have ended.
    Forget(Vec<String>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const LIMIT: u64 = 1000;

    fn measured(room: &Room, all: u64) -> Found {
        Found::Measured(Measured {
            before: room.sum(),
            all,
            live: HashMap::new(),
            took: Duration::ZERO,
        })
    }

    fn look() -> Look<'static> {
        Look {
            home: Path::new("/nowhere"),
            fresh: 0,
        }
    }

    /// Measures `all` bytes. Returns how many must be made free.
    fn excess(quota: &mut Quota, room: &Room, all: u64) -> Option<u64> {
        match quota.found(room, measured(room, all), look()) {
            Next::Do(Task::Choose { excess, .. }) => Some(excess),
            _ => None,
        }
    }

    #[test]
    fn without_a_limit_nothing_wakes_and_an_idle_client_is_measured_once() {
        let mut quota = Quota::new(Duration::ZERO);
        assert_eq!(quota.wake(&Room::new(0), true), None);
        let room = Room::new(LIMIT);
        let task = quota.on_time(&room, Path::new("/nowhere"), false, Vec::new);
        assert!(matches!(task, Some(Task::Measure { .. })));
        assert_eq!(quota.wake(&room, true), None, "it is being measured");
        assert_eq!(excess(&mut quota, &room, 500), None);
        assert_eq!(quota.wake(&room, false), None);
        let later = Instant::now() + EVERY / 2;
        assert!(quota.wake(&room, true).expect("a unit runs") > later);
        assert!(room.share(600).is_err());
        let now = Instant::now() + PAUSE;
        assert!(quota.wake(&room, false).expect("something is wanted") <= now);
    }

    #[test]
    fn a_nearly_full_folder_and_what_is_wanted_make_room() {
        let room = Room::new(LIMIT);
        let mut quota = Quota::new(Duration::ZERO);
        assert_eq!(excess(&mut quota, &room, 900), None);
        assert_eq!(excess(&mut quota, &room, 901), Some(51));
        assert_eq!(excess(&mut quota, &room, 700), None);
        assert!(room.share(400).is_err());
        quota.free = Instant::now();
        let task = quota.on_time(&room, Path::new("/nowhere"), false, Vec::new);
        assert!(task.is_some());
        assert_eq!(excess(&mut quota, &room, 700), Some(100));
        let forget = quota.found(&room, Found::Oldest(Ok(vec!["u".into()])), look());
        assert!(matches!(forget, Next::Forget(units) if units == ["u"]));
        let next = quota.all_removed(&room, look());
        assert!(matches!(next, Next::Nothing), "it is in the ledger yet");
        quota.released("u");
        quota.removed(&room, 60);
        let next = quota.all_removed(&room, look());
        assert!(matches!(next, Next::Do(Task::Choose { excess: 40, .. })));
        let none = quota.found(&room, Found::Oldest(Ok(Vec::new())), look());
        assert!(matches!(none, Next::Nothing) && quota.wanted == 0);
    }

    #[test]
    fn a_folder_that_stays_does_not_cost_all_others() {
        let room = Room::new(LIMIT);
        let mut quota = Quota::new(Duration::ZERO);
        let task = quota.on_time(&room, Path::new("/nowhere"), false, Vec::new);
        assert!(task.is_some());
        assert_eq!(excess(&mut quota, &room, 1000), Some(150));
        let _ = quota.found(&room, Found::Oldest(Ok(vec!["u".into()])), look());
        quota.released("u");
        quota.removed(&room, 0);
        let next = quota.all_removed(&room, look());
        assert!(matches!(next, Next::Nothing));
        assert_eq!(quota.wake(&room, false), None, "until something changes");
        let dir = tempfile::tempdir().expect("tempdir");
        quota.ended(&room, &UnitDir::new(dir.path(), "v"), "v");
        assert!(quota.wake(&room, false).is_some());
    }

    #[test]
    fn the_output_of_a_unit_counts_once() {
        let home = tempfile::tempdir().expect("tempdir");
        let dir = UnitDir::new(home.path(), "u");
        fs::create_dir_all(dir.path()).expect("folder");
        fs::write(dir.path().join("stdout"), [1; 50_000]).expect("output");
        let room = Room::new(1 << 30);
        let used = || room.fill().expect("limit").used;
        let mut quota = Quota::new(Duration::ZERO);
        let live = || vec!["u".to_owned()];
        let task = quota.on_time(&room, home.path(), true, live).expect("task");
        let _ = quota.found(&room, task.perform(), look());
        let before = used();
        fs::write(dir.path().join("stderr"), [1; 20_000]).expect("output");
        quota.ended(&room, &dir, "u");
        let grown = used() - before;
        assert!((20_000..40_000).contains(&grown), "{grown}");
        quota.ended(&room, &UnitDir::new(home.path(), "silent"), "silent");
        assert_eq!(used(), before + grown);
        assert_eq!(used(), size(home.path()));
    }
}
