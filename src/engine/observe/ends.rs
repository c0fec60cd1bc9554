//! Runs that have ended: how many, when the last ones did, and how long they took.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::warn;

use crate::model::unit::{Outcome, State};
use crate::store::ledger::last_ends::LastEnds;

/// Upper bounds of the buckets of the histogram of run times, seconds: from a script to a run of
/// days.
pub const BUCKETS: [f64; 11] = [
    0.1, 1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 10_800.0, 43_200.0, 86_400.0, 259_200.0,
];

/// Maximum number of triggers whose ends are kept. A configuration that is reloaded with other
/// triggers again and again must not fill the memory.
const MAX_TRIGGERS: usize = 1000;

/// Ends of the runs of one trigger.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OfTrigger {
    /// When the last run ended, milliseconds since 1970.
    pub last: Option<i64>,
    /// When the last run ended that succeeded.
    pub last_success: Option<i64>,
    /// Number of runs since the client started, by the first bucket that holds their time. Those
    /// beyond all buckets come last.
    taken: [u64; BUCKETS.len() + 1],
    /// Time of these runs.
    pub seconds: f64,
}

impl OfTrigger {
    fn count(&mut self, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        let bucket = BUCKETS.partition_point(|bound| *bound < seconds);
        if let Some(taken) = self.taken.get_mut(bucket) {
            *taken += 1;
        }
        self.seconds += seconds;
    }

    /// Returns the number of runs that took at most as long as each bound of [`BUCKETS`], and of all
    /// runs.
    pub fn cumulative(&self) -> [u64; BUCKETS.len() + 1] {
        let mut sum = 0;
        self.taken.map(|taken| {
            sum += taken;
            sum
        })
    }
}

/// Runs that have ended since the client started, and the last ends of each trigger, those of earlier
/// clients included.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ends {
    /// Runs that ended with 0.
    pub succeeded: u64,
    /// Runs that ended otherwise.
    pub failed: u64,
    /// Runs that were canceled.
    pub canceled: u64,
    /// Time of all these runs, seconds.
    pub seconds: f64,
    triggers: BTreeMap<String, OfTrigger>,
    full: bool,
}

impl Ends {
    /// Returns the ends that the ledger knows, with nothing counted.
    pub fn of(known: Vec<LastEnds>) -> Self {
        let mut ends = Self::default();
        for LastEnds {
            lane,
            last,
            success,
        } in known
        {
            if let Some(of) = ends.of_trigger(&lane) {
                of.last = of.last.max(Some(last));
                of.last_success = of.last_success.max(success);
            }
        }
        ends
    }

    fn of_trigger(&mut self, name: &str) -> Option<&mut OfTrigger> {
        if !self.triggers.contains_key(name) {
            if self.triggers.len() >= MAX_TRIGGERS {
                if !std::mem::replace(&mut self.full, true) {
                    warn!("runs of more than {MAX_TRIGGERS} triggers: metrics leave out the rest");
                }
                return None;
            }
            self.triggers.insert(name.to_owned(), OfTrigger::default());
        }
        self.triggers.get_mut(name)
    }

    /// Counts a run of `trigger` that has ended at `at`, milliseconds since 1970.
    pub fn count(&mut self, trigger: &str, outcome: &Outcome, at: i64) {
        let state = outcome.state();
        match state {
            State::Succeeded => self.succeeded += 1,
            State::Canceled => self.canceled += 1,
            _ => self.failed += 1,
        }
        let elapsed = Duration::from_micros(outcome.elapsed);
        self.seconds += elapsed.as_secs_f64();
        if let Some(of) = self.of_trigger(trigger) {
            of.count(elapsed);
            of.last = of.last.max(Some(at));
            if state == State::Succeeded {
                of.last_success = of.last_success.max(Some(at));
            }
        }
    }

    /// Returns the ends of each trigger that had one, by its name.
    pub fn by_trigger(&self) -> impl Iterator<Item = (&str, &OfTrigger)> {
        self.triggers.iter().map(|(name, of)| (name.as_str(), of))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::unit::End;

    fn outcome(code: i32, millis: u64) -> Outcome {
        Outcome {
            end: End::Exited(code),
            elapsed: millis * 1000,
            ..Outcome::interrupted(1)
        }
    }

    #[test]
    fn runs_are_counted_in_the_first_bucket_that_holds_them() {
        let mut ends = Ends::default();
        for (millis, code) in [(0, 0), (100, 0), (101, 3), (60_000, 0), (300_000_000, 0)] {
            ends.count("t", &outcome(code, millis), 5);
        }
        let (_, of) = ends.by_trigger().next().expect("trigger");
        assert_eq!(of.cumulative(), [2, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 5]);
        assert_eq!((ends.succeeded, ends.failed), (4, 1));
        assert_eq!(of.seconds, ends.seconds);
    }

    #[test]
    fn the_ledger_and_later_runs_say_when_the_last_one_ended() {
        let known = |last, success| LastEnds {
            lane: "t".into(),
            last,
            success,
        };
        // Two specs of one trigger.
        let mut ends = Ends::of(vec![known(9, Some(7)), known(8, None)]);
        let last = |ends: &Ends| {
            let (_, of) = ends.by_trigger().next().expect("trigger");
            (of.last, of.last_success)
        };
        assert_eq!(last(&ends), (Some(9), Some(7)));
        ends.count("t", &outcome(1, 1), 10);
        assert_eq!(last(&ends), (Some(10), Some(7)));
        ends.count("t", &outcome(0, 1), 11);
        assert_eq!(last(&ends), (Some(11), Some(11)));
    }

    #[test]
    fn triggers_are_bounded() {
        let mut ends = Ends::default();
        for n in 0..=MAX_TRIGGERS {
            ends.count(&n.to_string(), &outcome(0, 1), 1);
        }
        assert_eq!(ends.by_trigger().count(), MAX_TRIGGERS);
        assert_eq!(ends.succeeded, MAX_TRIGGERS as u64 + 1, "still counted");
    }
}
