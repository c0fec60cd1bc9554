//! Order of starts: jobs, overlap, waiting retries, pausing. Pure.
//!
//! Its clock counts milliseconds, begins above 0, and never goes back.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::model::policy::{Arrival, Overlap, Policy};
use crate::model::work::node_of_lane;

/// A unit that waits or runs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    unit: String,
    /// Number in the order of arrival.
    number: u64,
    /// For a retry: its earliest start, on the clock of the queue.
    due: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Lane {
    jobs: usize,
    overlap: Overlap,
    running: Vec<Entry>,
    waiting: VecDeque<Entry>,
    /// Units without a job that are being written to the ledger, and will wait.
    coming: usize,
}

/// Effect of a new waiting unit on others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Displaced {
    /// Units that will not run, possibly the new one itself.
    pub dropped: Vec<String>,
    /// A running unit to cancel.
    pub cancel: Option<String>,
}

/// The lanes of all triggers and work types of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lanes {
    lanes: HashMap<String, Lane>,
    /// Names of the lanes in which a unit waits or runs: a few of thousands.
    waiting: BTreeSet<String>,
    busy: BTreeSet<String>,
    paused: bool,
    /// Number of units so far.
    numbers: u64,
}

impl Lanes {
    /// Returns empty lanes of these names and policies.
    pub fn new<'a>(policies: impl Iterator<Item = (&'a str, &'a Policy)>) -> Self {
        let mut lanes = Self::default();
        lanes.reconfigure(policies);
        lanes
    }

    /// Applies the `policies` of lanes; waiting and running units stay.
    pub fn reconfigure<'a>(&mut self, policies: impl Iterator<Item = (&'a str, &'a Policy)>) {
        for (name, policy) in policies {
            let lane = self.lanes.entry(name.to_owned()).or_default();
            lane.jobs = policy.jobs;
            lane.overlap = policy.overlap;
        }
    }

    fn lane(&mut self, trigger: &str) -> &mut Lane {
        // A trigger that was removed from the configuration still has its old units, one by one.
        // Other nodes have limits of their own.
        let jobs = node_of_lane(trigger).map_or(1, |_| usize::MAX);
        self.lanes
            .entry(trigger.to_owned())
            .or_insert_with(|| Lane {
                jobs,
                ..Lane::default()
            })
    }

    /// Notes whether a unit waits or runs in the lane of `trigger`.
    fn note(&mut self, trigger: &str) {
        let lane = self.lanes.get(trigger);
        let marks = [
            (
                &mut self.waiting,
                lane.is_some_and(|l| !l.waiting.is_empty()),
            ),
            (&mut self.busy, lane.is_some_and(|l| !l.running.is_empty())),
        ];
        for (names, is_in) in marks {
            if !is_in {
                names.remove(trigger);
            } else if !names.contains(trigger) {
                names.insert(trigger.to_owned());
            }
        }
    }

    fn entry(&mut self, unit: &str, due: i64) -> Entry {
        self.numbers += 1;
        Entry {
            unit: unit.to_owned(),
            number: self.numbers,
            due,
        }
    }

    /// Stops or allows new starts.
    pub const fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Returns whether starts are paused.
    pub const fn is_paused(&self) -> bool {
        self.paused
    }

    /// Takes a job for `unit` at once, if one is free and no other unit waits or will wait for it.
    /// Otherwise [`Lanes::came`] must follow.
    pub fn claim(&mut self, trigger: &str, unit: &str) -> bool {
        let paused = self.paused;
        let entry = self.entry(unit, 0);
        let lane = self.lane(trigger);
        let first = lane.waiting.is_empty() && lane.coming == 0;
        // Work that is submitted again has the id of its unit, which may run.
        let is_new = || lane.running.iter().all(|running| running.unit != unit);
        let free = !paused && first && lane.running.len() < lane.jobs && is_new();
        if free {
            lane.running.push(entry);
        } else {
            lane.coming += 1;
        }
        self.note(trigger);
        free
    }

    /// Notes a unit that will wait; [`Lanes::came`] must follow.
    pub fn announce(&mut self, trigger: &str) {
        self.lane(trigger).coming += 1;
    }

    /// Notes that a unit without a job from [`Lanes::claim`] is in the ledger, or was there before.
    pub fn came(&mut self, trigger: &str) {
        let lane = self.lane(trigger);
        lane.coming = lane.coming.saturating_sub(1);
    }

    /// Returns how many units of `lane` run or want a job, and how many wait for their time.
    pub fn load(&self, lane: &str) -> (usize, usize) {
        let Some(lane) = self.lanes.get(lane) else {
            return (0, 0);
        };
        let want = lane.waiting.iter().filter(|entry| entry.wants_a_job());
        let want = want.count();
        let busy = lane.running.len() + lane.coming + want;
        (busy, lane.waiting.len() - want)
    }

    /// Counts `unit` as running, also without a free job.
    pub fn adopt(&mut self, trigger: &str, unit: &str) {
        let entry = self.entry(unit, 0);
        self.lane(trigger).running.push(entry);
        self.note(trigger);
    }

    /// Returns whether `unit` waits or runs in the lane of `trigger`.
    pub fn holds(&self, trigger: &str, unit: &str) -> bool {
        self.lanes.get(trigger).is_some_and(|lane| {
            let mut entries = lane.running.iter().chain(&lane.waiting);
            entries.any(|entry| entry.unit == unit)
        })
    }

    /// Gives back the job of `unit`, or its place in the queue.
    pub fn remove(&mut self, trigger: &str, unit: &str) {
        let lane = self.lane(trigger);
        lane.running.retain(|running| running.unit != unit);
        lane.waiting.retain(|waiting| waiting.unit != unit);
        self.note(trigger);
    }

    /// Takes the job from `unit`, which could not begin. It waits again, before all later ones.
    pub fn put_back(&mut self, trigger: &str, unit: &str) {
        let last = self.entry(unit, 0);
        let lane = self.lane(trigger);
        let place = lane.running.iter().position(|r| r.unit == unit);
        let entry = place.map_or(last, |place| lane.running.remove(place));
        let after = |waiting: &Entry| waiting.number > entry.number;
        let place = lane.waiting.iter().position(after);
        lane.waiting
            .insert(place.unwrap_or(lane.waiting.len()), entry);
        self.note(trigger);
    }

    /// Queues a new `unit` by the policy of the trigger.
    pub fn arrive(&mut self, trigger: &str, unit: &str) -> Displaced {
        let lane = self.lane(trigger);
        let busy = lane.running.len() >= lane.jobs;
        let wanted = lane.waiting.iter().any(Entry::wants_a_job);
        let mut displaced = Displaced::default();
        match lane.overlap.on_arrival(busy, wanted) {
            Arrival::IsDropped => {
                displaced.dropped.push(unit.to_owned());
                return displaced;
            }
            Arrival::Waits => {}
            Arrival::WaitsAlone { cancels } => {
                displaced.dropped = lane.drop_waiting();
                if cancels {
                    displaced.cancel = lane.running.first().map(|first| first.unit.clone());
                }
            }
        }
        self.wait(trigger, unit, 0);
        displaced
    }

    /// Queues `unit` at the end, for every policy, with `due` as its earliest start.
    pub fn wait(&mut self, trigger: &str, unit: &str, due: i64) {
        let entry = self.entry(unit, due);
        self.lane(trigger).waiting.push_back(entry);
        self.note(trigger);
    }

    /// Returns a unit that can start now, with its trigger, and takes its job.
    pub fn next(&mut self, now: i64) -> Option<(String, String)> {
        if self.paused {
            return None;
        }
        let found = self.waiting.iter().find_map(|trigger| {
            let lane = self.lanes.get_mut(trigger)?;
            if lane.running.len() >= lane.jobs {
                return None;
            }
            let place = lane.waiting.iter().position(|waiting| waiting.due <= now)?;
            let entry = lane.waiting.remove(place)?;
            let unit = entry.unit.clone();
            lane.running.push(entry);
            Some((trigger.clone(), unit))
        });
        if let Some((trigger, _)) = &found {
            self.note(trigger);
        }
        found
    }

    /// Returns when the next unit that only waits for its time is due.
    pub fn next_due(&self, now: i64) -> Option<i64> {
        self.waiting
            .iter()
            .filter_map(|trigger| self.lanes.get(trigger))
            .filter(|lane| !self.paused && lane.running.len() < lane.jobs)
            .flat_map(|lane| &lane.waiting)
            .map(|waiting| waiting.due)
            .filter(|due| *due > now)
            .min()
    }

    /// Returns the ids of the running units.
    pub fn running(&self) -> impl Iterator<Item = &String> {
        let lanes = self.busy.iter().filter_map(|name| self.lanes.get(name));
        lanes
            .flat_map(|lane| &lane.running)
            .map(|entry| &entry.unit)
    }

    /// Returns whether another unit may come to a lane in which at most `limit` may wait: a job is
    /// free, or there is room.
    pub fn has_room(&self, lane: &str, limit: usize) -> bool {
        self.lanes.get(lane).is_none_or(|lane| {
            let wait = lane.waiting.len() + lane.coming;
            wait < limit || (wait == 0 && !self.paused && lane.running.len() < lane.jobs)
        })
    }

    /// Returns how many units wait.
    pub fn waiting(&self) -> usize {
        let lanes = self.waiting.iter().filter_map(|name| self.lanes.get(name));
        lanes.map(|lane| lane.waiting.len()).sum()
    }
}

impl Entry {
    /// Returns whether it waits for a job; a retry waits for its time.
    const fn wants_a_job(&self) -> bool {
        self.due == 0
    }
}

impl Lane {
    /// Drops the units that wait for a job.
    fn drop_waiting(&mut self) -> Vec<String> {
        let (dropped, kept) = self.waiting.drain(..).partition(Entry::wants_a_job);
        self.waiting = kept;
        let dropped: VecDeque<Entry> = dropped;
        dropped.into_iter().map(|waiting| waiting.unit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn queue(jobs: usize, overlap: Overlap) -> Lanes {
        let lane = Lane {
            jobs,
            overlap,
            ..Lane::default()
        };
        Lanes {
            lanes: [("t".to_owned(), lane)].into(),
            ..Lanes::default()
        }
    }

    fn start(queue: &mut Lanes) -> Option<String> {
        queue.next(1000).map(|(_, unit)| unit)
    }

    #[test]
    fn units_start_in_order_up_to_jobs() {
        let mut q = queue(2, Overlap::Queue);
        assert!(q.claim("t", "a") && q.claim("t", "b") && !q.claim("t", "c"));
        q.remove("t", "a");
        assert!(!q.claim("t", "d"), "nor past one that is on its way");
        q.adopt("t", "a");
        for unit in ["c", "d"] {
            q.came("t");
            assert_eq!(q.arrive("t", unit), Displaced::default());
        }
        assert_eq!(start(&mut q), None);
        q.remove("t", "a");
        assert!(!q.claim("t", "e"), "no unit jumps the queue");
        assert_eq!(start(&mut q).as_deref(), Some("c"));
        assert_eq!(start(&mut q), None);
        assert_eq!(q.waiting(), 1);
    }

    #[test]
    fn a_unit_that_runs_takes_no_second_job() {
        let mut q = queue(2, Overlap::Queue);
        assert!(q.claim("t", "a") && !q.claim("t", "a"));
        q.came("t");
        assert!(q.claim("t", "b"));
        assert_eq!(q.running().count(), 2);
    }

    #[test]
    fn overlap_policies() {
        let mut q = queue(1, Overlap::Skip);
        assert!(q.claim("t", "a"));
        assert_eq!(q.arrive("t", "b").dropped, ["b"]);

        let mut q = queue(1, Overlap::Coalesce);
        assert!(q.claim("t", "a"));
        assert_eq!(q.arrive("t", "b"), Displaced::default());
        assert_eq!(q.arrive("t", "c").dropped, ["b"]);
        q.remove("t", "a");
        assert_eq!(start(&mut q).as_deref(), Some("c"));

        let mut q = queue(1, Overlap::Replace);
        assert!(q.claim("t", "a"));
        let displaced = q.arrive("t", "b");
        assert_eq!(
            (displaced.cancel.as_deref(), displaced.dropped.len()),
            (Some("a"), 0)
        );
        assert_eq!(q.arrive("t", "c").dropped, ["b"]);
    }

    #[test]
    fn an_event_is_not_skipped_for_a_retry_that_waits_for_its_time() {
        let mut q = queue(1, Overlap::Skip);
        q.wait("t", "retry", 2000);
        assert!(!q.claim("t", "a"));
        q.came("t");
        assert_eq!(q.arrive("t", "a"), Displaced::default());
        assert_eq!(start(&mut q).as_deref(), Some("a"));
        assert_eq!(q.arrive("t", "b").dropped, ["b"]);
    }

    #[test]
    fn what_could_not_begin_waits_in_front() {
        let mut q = queue(2, Overlap::Queue);
        assert!(q.claim("t", "a") && q.claim("t", "b"));
        q.wait("t", "c", 0);
        // The runners of both refuse, in the other order.
        q.put_back("t", "b");
        q.put_back("t", "a");
        let mut next = || q.next(1000).map(|(_, unit)| unit);
        assert_eq!((next(), next()), (Some("a".into()), Some("b".into())));
        assert_eq!(next(), None);
        assert_eq!(q.waiting(), 1);
    }

    #[test]
    fn retries_wait_for_their_time_and_pausing_holds_all() {
        let mut q = queue(1, Overlap::Queue);
        q.wait("t", "later", 2000);
        q.wait("t", "now", 0);
        assert_eq!(q.next_due(1000), Some(2000));
        q.pause(true);
        assert_eq!((start(&mut q), q.next_due(1000)), (None, None));
        q.pause(false);
        assert_eq!(start(&mut q).as_deref(), Some("now"));
        assert_eq!(q.next_due(1000), None, "no job is free then anyway");
        q.remove("t", "now");
        assert_eq!(start(&mut q), None);
        assert_eq!(q.next(2000).map(|(_, unit)| unit).as_deref(), Some("later"));
    }

    #[test]
    fn a_lane_has_room_for_a_free_job_and_for_as_many_as_may_wait() {
        let mut q = queue(1, Overlap::Queue);
        assert!(q.has_room("t", 0) && q.claim("t", "a"));
        assert!(!q.has_room("t", 0) && q.has_room("t", 1));
        assert!(!q.claim("t", "b"));
        assert!(!q.has_room("t", 1), "one is on its way");
        q.came("t");
        q.arrive("t", "b");
        assert!(!q.has_room("t", 1) && q.has_room("t", 2));
        q.remove("t", "b");
        q.remove("t", "a");
        q.pause(true);
        assert!(!q.has_room("t", 0));
    }

    proptest! {
        #[test]
        fn never_more_than_jobs_and_none_twice(
            jobs in 1usize..4, policy in 0..4, steps in proptest::collection::vec(0..4, 1..60),
        ) {
            let overlap = [Overlap::Queue, Overlap::Skip, Overlap::Replace, Overlap::Coalesce][policy as usize];
            let mut q = queue(jobs, overlap);
            let mut started: Vec<String> = Vec::new();
            for (n, step) in steps.into_iter().enumerate() {
                let id = n.to_string();
                match step {
                    0 if q.claim("t", &id) => started.push(id),
                    0 => { q.came("t"); q.arrive("t", &id); }
                    1 => started.extend(start(&mut q)),
                    2 => {
                        let running = q.running().last().cloned();
                        running.iter().for_each(|id| q.put_back("t", id));
                        started.retain(|id| Some(id) != running.as_ref());
                    }
                    _ => {
                        let running = q.running().next().cloned();
                        running.iter().for_each(|id| q.remove("t", id));
                    }
                }
                prop_assert!(q.running().count() <= jobs);
            }
            let mut once = started.clone();
            once.sort();
            once.dedup();
            prop_assert_eq!(once.len(), started.len());
        }
    }
}
