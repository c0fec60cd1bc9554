//! Bounds loops without a count.
//!
//! The status of a pipeline has the number of pipelines before it in `tael-hops`, so that a loop
//! ends. A bridge that speaks MQTT 3.1.1 drops it. Two pipelines that wait for the ends of each
//! other over such a bridge start each other without end. So do commands that publish plain
//! messages. Such statuses start a limited number of runs a minute, and so do other messages if the
//! operator sets that: their sender may have another reason to be fast. The others wait, so that
//! nothing is lost.

use std::collections::HashMap;
use std::sync::Arc;

use tracing::warn;

use crate::engine::intake::bridge::BridgeHint;
use crate::engine::intake::judge::Admission;
use crate::engine::pipeline::{Pipeline, now_ms};
use crate::engine::work::MAX_PACE_DELAY;
use crate::model::event::Refusal;
use crate::model::message::{Delivery, property};
use crate::model::policy::DEFAULT_LOOP_RATE;
use crate::store::ledger::{Part, Refused};

/// Period of `--loop-rate`, milliseconds.
const WINDOW: i64 = 60_000;

/// When each trigger may start its next run, if it had used its whole rate: the generic cell rate
/// algorithm (ITU-T I.371, annex A.2), on our own clock.
#[derive(Debug, Default)]
pub struct Pace {
    arrivals: HashMap<String, i64>,
    /// Whether it was logged that messages wait because they may be a loop.
    said: bool,
}

impl Pace {
    /// Returns how long the next run of `trigger` must wait at `now`, both in milliseconds, when
    /// `rate` may start in [`WINDOW`]; `None` if that is too long.
    fn delay(&mut self, trigger: &str, rate: u32, now: i64) -> Option<i64> {
        let interval = WINDOW / i64::from(rate.max(1));
        let known = self.arrivals.get(trigger).copied().unwrap_or(now);
        let arrival = known.max(now);
        let delay = (arrival - (WINDOW - interval) - now).max(0);
        if delay > MAX_PACE_DELAY {
            return None;
        }
        self.arrivals.insert(trigger.to_owned(), arrival + interval);
        Some(delay)
    }

    /// Delays runs of a message that may be in a loop; those that would wait longer than
    /// [`MAX_PACE_DELAY`] are refused.
    pub fn hold_back(
        &mut self,
        pipeline: &Pipeline,
        delivery: &Delivery,
        admission: &mut Admission,
        bridge: &mut BridgeHint,
    ) {
        let topic = std::str::from_utf8(&delivery.topic);
        if delivery.properties.user(property::HOPS).is_some() {
            return;
        }
        let of_a_pipeline = topic.is_ok_and(is_of_a_pipeline);
        let is_status = delivery.topic.ends_with(b"/status");
        if of_a_pipeline && is_status && delivery.properties.user(property::WHO).is_none() {
            bridge.give(delivery);
        }
        let now = pipeline.ticks();
        for part in &mut admission.parts {
            let Part::Run { unit, retained, .. } = part else {
                continue;
            };
            let trigger = pipeline.trigger(unit.lane());
            let chosen = trigger.and_then(|trigger| trigger.policy.loop_rate);
            let rate = chosen.or(of_a_pipeline.then_some(DEFAULT_LOOP_RATE));
            let Some(rate) = rate.filter(|rate| *rate > 0) else {
                continue;
            };
            match self.delay(unit.lane(), rate, now) {
                Some(0) => continue,
                Some(delay) => {
                    // This is the only reference so far.
                    if let Some(unit) = Arc::get_mut(unit) {
                        unit.due = now_ms() + delay;
                    }
                }
                None => {
                    let refusal = Refusal::LoopRate(rate);
                    *part = Part::Refuse {
                        trigger: unit.lane().to_owned(),
                        refused: Box::new(Refused {
                            code: refusal.code(),
                            detail: refusal.to_string(),
                            status: None,
                            answer: None,
                            letters: Vec::new(),
                        }),
                        retained: *retained,
                    };
                }
            }
            if !std::mem::replace(&mut self.said, true) {
                warn!(
                    TAEL_TOPIC = admission.topic,
                    "more than {rate} messages a minute came without tael-hops: they wait, in case \
                     they start one another in a circle (--loop-rate)"
                );
            }
        }
    }
}

/// Returns whether `topic` belongs to a pipeline of any root.
fn is_of_a_pipeline(topic: &str) -> bool {
    let mut levels = topic.rsplit('/').skip(2);
    levels.next() == Some("pipelines") && levels.next() == Some("infrastructure")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_the_rate_go_at_once_and_others_one_by_one() {
        let mut pace = Pace::default();
        let mut delays = |now: i64, count: usize| -> Vec<Option<i64>> {
            (0..count).map(|_| pace.delay("t", 3, now)).collect()
        };
        assert_eq!(delays(5, 3), [Some(0); 3]);
        assert_eq!(delays(5, 2), [Some(20_000), Some(40_000)]);
        assert_eq!(delays(30_005, 1), [Some(30_000)]);
        // After a minute without runs, the whole rate is available again.
        assert_eq!(
            delays(1_000_000, 4)[..],
            [Some(0), Some(0), Some(0), Some(20_000)]
        );
        assert_eq!(Pace::default().delay("other", 3, 5), Some(0));
    }

    #[test]
    fn topics_of_pipelines() {
        for topic in [
            "lab/infrastructure/pipelines/p/status",
            "a/b/infrastructure/pipelines/p/last",
        ] {
            assert!(is_of_a_pipeline(topic), "{topic}");
        }
        for topic in [
            "lab/seq/status",
            "status",
            "lab/infrastructure/p/status",
            "",
        ] {
            assert!(!is_of_a_pipeline(topic), "{topic}");
        }
    }

    #[test]
    fn what_would_wait_for_too_long_is_refused() {
        let mut pace = Pace::default();
        let accepted = (0..1000).filter_map(|_| pace.delay("t", 1, 0)).count();
        assert_eq!(accepted, 61);
        assert_eq!(pace.delay("t", 1, 120_000), Some(MAX_PACE_DELAY - WINDOW));
    }
}
