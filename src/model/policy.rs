//! Decisions of policies: which unit waits, which is dropped, which is retried.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::duration::millis;
use crate::model::outcome::{End, Outcome};
use crate::model::state::State;

/// Policy for an event while all jobs of its lane are busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overlap {
    /// It waits its turn.
    #[default]
    Queue,
    /// It is dropped.
    Skip,
    /// It replaces the oldest run, which is canceled; waiting events are dropped.
    Replace,
    /// It replaces the event that waits.
    Coalesce,
}

/// Effect of a unit that gets no job at once on its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It waits behind the others.
    Waits,
    /// It is dropped.
    IsDropped,
    /// It waits, and the units that wait for a job are dropped.
    WaitsAlone {
        /// Whether the oldest run is canceled for it.
        cancels: bool,
    },
}

impl Overlap {
    /// Parses the value of the option.
    ///
    /// # Errors
    /// A text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "queue" => Ok(Self::Queue),
            "skip" => Ok(Self::Skip),
            "replace" => Ok(Self::Replace),
            "coalesce" => Ok(Self::Coalesce),
            _ => Err(format!(
                "'{text}' is not an overlap policy: queue, skip, replace or coalesce"
            )),
        }
    }

    /// Decides about a unit that comes to its lane and gets no job at once. `busy` is whether all
    /// jobs run, `wanted` whether another unit waits for one.
    #[must_use]
    pub const fn on_arrival(self, busy: bool, wanted: bool) -> Arrival {
        match self {
            Self::Skip if busy || wanted => Arrival::IsDropped,
            Self::Queue | Self::Skip => Arrival::Waits,
            Self::Coalesce => Arrival::WaitsAlone { cancels: false },
            Self::Replace => Arrival::WaitsAlone { cancels: busy },
        }
    }
}

/// Concurrency of a lane, and the policy for further units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Maximum number of concurrent runs, at least 1.
    pub jobs: usize,
    /// Policy for an event while all jobs are busy.
    pub overlap: Overlap,
    /// Maximum number of runs a minute that messages without a number of hops start; 0 for no
    /// limit. `None` means [`DEFAULT_LOOP_RATE`] for messages of pipelines.
    pub loop_rate: Option<u32>,
}

/// Default number of runs a minute that messages of pipelines without a number of hops start.
pub const DEFAULT_LOOP_RATE: u32 = 60;

impl Default for Policy {
    fn default() -> Self {
        Self {
            jobs: 1,
            overlap: Overlap::default(),
            loop_rate: None,
        }
    }
}

/// Policy for a run that vanished, so that its end is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnInterrupt {
    /// The run has failed.
    #[default]
    Fail,
    /// The run has failed, and its event runs again.
    Rerun,
}

impl OnInterrupt {
    /// Parses the value of the option.
    ///
    /// # Errors
    /// A text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "fail" => Ok(Self::Fail),
            "rerun" => Ok(Self::Rerun),
            _ => Err(format!("'{text}' is not a choice: fail or rerun")),
        }
    }
}

/// How often and when a failed run is retried.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Retries {
    /// Number of times to retry a failed run.
    pub limit: u32,
    /// Delay before each retry.
    #[serde(with = "millis")]
    pub delay: Duration,
    /// Policy for a run that vanished with its host or its runner.
    pub on_interrupt: OnInterrupt,
}

/// Maximum number of reruns of an event after its run vanished. Otherwise a run that kills its own
/// runner would run without end.
const MAX_RERUNS: u32 = 3;

/// Delay before each of them.
const RERUN_DELAY: Duration = Duration::from_secs(1);

impl Retries {
    /// Returns the delay before the next attempt of a unit whose attempt `attempt`, from 1, has
    /// ended with `outcome`; `None` if there is none.
    #[must_use]
    pub fn after(&self, attempt: u32, outcome: &Outcome) -> Option<Duration> {
        // It would run beside the remaining processes of this attempt.
        if outcome.state() != State::Failed || outcome.remains.is_some() {
            return None;
        }
        let vanished = outcome.end == End::Interrupted && self.on_interrupt == OnInterrupt::Rerun;
        if vanished && attempt <= self.limit.saturating_add(MAX_RERUNS) {
            Some(RERUN_DELAY)
        } else if attempt <= self.limit {
            Some(self.delay)
        } else {
            None
        }
    }

    /// Returns the maximum delay before an attempt.
    #[must_use]
    pub fn longest_delay(&self) -> Duration {
        self.delay.max(RERUN_DELAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::unit::Stopped;

    #[test]
    fn a_unit_that_finds_no_job_waits_is_dropped_or_displaces_others() {
        use Arrival::{IsDropped, Waits};
        let alone = |cancels| Arrival::WaitsAlone { cancels };
        // Busy and wanted; busy; wanted; neither.
        let cases = [(true, true), (true, false), (false, true), (false, false)];
        let decide =
            |overlap: Overlap| cases.map(|(busy, wanted)| overlap.on_arrival(busy, wanted));
        assert_eq!(decide(Overlap::Queue), [Waits; 4]);
        assert_eq!(
            decide(Overlap::Skip),
            [IsDropped, IsDropped, IsDropped, Waits]
        );
        assert_eq!(decide(Overlap::Coalesce), [alone(false); 4]);
        let replace = [alone(true), alone(true), alone(false), alone(false)];
        assert_eq!(decide(Overlap::Replace), replace);
    }

    #[test]
    fn failed_runs_are_tried_again_within_the_limit() {
        let retries = Retries {
            limit: 2,
            delay: Duration::from_secs(30),
            on_interrupt: OnInterrupt::Fail,
        };
        let ended = |end| Outcome {
            end,
            ..Outcome::interrupted(1)
        };
        let failed = ended(End::Exited(1));
        let delays = [1, 2, 3].map(|attempt| retries.after(attempt, &failed));
        assert_eq!(delays, [Some(retries.delay), Some(retries.delay), None]);
        assert_eq!(retries.after(1, &ended(End::Exited(0))), None);
        let canceled = Outcome {
            stopped: Some(Stopped::Canceled),
            ..ended(End::Signaled(15))
        };
        assert_eq!(retries.after(1, &canceled), None);
        let remains = Outcome {
            remains: Some("process 7".into()),
            ..failed
        };
        assert_eq!(retries.after(1, &remains), None, "it would run beside it");
    }

    #[test]
    fn vanished_runs_are_tried_again_if_the_operator_says_so() {
        let vanished = Outcome::interrupted(1);
        let rerun = Retries {
            on_interrupt: OnInterrupt::Rerun,
            ..Retries::default()
        };
        let tries = (1..10).filter(|attempt| rerun.after(*attempt, &vanished).is_some());
        assert_eq!(tries.count(), 3);
        assert_eq!(Retries::default().after(1, &vanished), None);
        assert_eq!(rerun.longest_delay(), RERUN_DELAY);
    }
}
