//! The units that runners have, and what becomes of each when its runner releases it.

use std::collections::HashMap;

use tracing::{error, warn};

use crate::engine::commit::step::{Step, Steps};
use crate::engine::pipeline::Pipeline;
use crate::engine::work::adopted::Adopted;
use crate::engine::work::end::Ended;
use crate::engine::work::recovery::end_orphans;
use crate::model::unit::{Outcome, Trace, Unit};
use crate::os::hooks;

/// Maximum number of times that a unit goes to a runner that dies before it begins.
const MAX_HANDOVERS: u32 = 3;

/// A unit that a runner has.
#[derive(Debug)]
struct Live {
    unit: Unit,
    /// Whether its start is being committed.
    said: bool,
    started: Option<i64>,
    handovers: u32,
    /// Whether the runner of an earlier client has begun it.
    adopted: bool,
}

/// What becomes of a unit that its runner has released.
#[derive(Debug)]
pub enum Fate {
    /// It has ended.
    Ended(Ended),
    /// It has not begun, and waits again.
    Waits(Unit),
    /// It has not begun, and goes to another runner. This many had it.
    HandsOver(Unit, u32),
    /// It was released: the ledger does not hold it any more.
    Released(Unit),
}

/// The units that runners have.
#[derive(Debug, Default)]
pub struct LiveUnits {
    units: HashMap<String, Live>,
    /// Number of them that other nodes have.
    away: usize,
    /// Runs whose runner another client has started.
    adopted: Adopted,
    /// Whether each unit that starts is canceled: the client stops with its units.
    cancels_all: bool,
}

impl LiveUnits {
    /// Returns how many runners of this host have.
    pub fn len(&self) -> usize {
        self.units.len() - self.away
    }

    /// Returns whether there are any, here or on other nodes.
    pub fn has_any(&self) -> bool {
        !self.units.is_empty()
    }

    /// Returns whether the runner of an earlier client has `unit`.
    pub fn is_adopted(&self, unit: &str) -> bool {
        self.units.get(unit).is_some_and(|live| live.adopted)
    }

    /// Returns the next adopted unit whose runner is gone. Cancel safe.
    pub async fn next_unlocked(&mut self) -> Option<String> {
        self.adopted.next().await
    }

    /// Notes that a runner has `unit`, after this many others.
    pub fn begin(&mut self, unit: Unit, handovers: u32, steps: &mut Steps) {
        let id = unit.id.clone();
        if self.cancels_all && unit.delegation().is_none() {
            steps.push_back(Step::Signal(id.clone()));
        }
        let live = Live {
            said: false,
            started: None,
            handovers: handovers + 1,
            adopted: false,
            // The runner has the payload now, and so has the ledger.
            unit: Unit {
                payload: None,
                ..unit
            },
        };
        self.add(id, live);
    }

    fn add(&mut self, id: String, live: Live) {
        self.away += usize::from(live.unit.delegation().is_some());
        self.units.insert(id, live);
    }

    fn take(&mut self, unit: &str) -> Option<Live> {
        let live = self.units.remove(unit)?;
        self.away -= usize::from(live.unit.delegation().is_some());
        Some(live)
    }

    /// Notes that the runner of an earlier client has `unit`, and `started` its command at this
    /// time (milliseconds since 1970).
    pub fn adopt(&mut self, pipeline: &Pipeline, unit: Unit, started: Option<i64>) {
        let live = Live {
            said: started.is_some(),
            started,
            handovers: 1,
            adopted: true,
            unit,
        };
        self.wait_for(pipeline, live);
    }

    /// Notes that another node has `unit`, and has `started` its command at this time (milliseconds
    /// since 1970).
    pub fn delegated(&mut self, unit: &Unit, started: Option<i64>) {
        let live = Live {
            said: started.is_some(),
            started,
            handovers: 1,
            adopted: false,
            unit: unit.clone(),
        };
        self.add(unit.id.clone(), live);
    }

    fn wait_for(&mut self, pipeline: &Pipeline, live: Live) {
        let unit = live.unit.id.clone();
        self.adopted.wait_for(pipeline, unit.clone());
        self.add(unit, live);
    }

    /// Cancels all that run here, and each that begins from now on.
    pub fn cancel_all(&mut self, steps: &mut Steps) {
        self.cancels_all = true;
        let here = |live: &&Live| live.unit.delegation().is_none();
        let units = self.units.values().filter(here);
        steps.extend(units.map(|live| Step::Signal(live.unit.id.clone())));
    }

    // --- What runners report ---

    /// Notes that the command of a unit has started, at `at` (milliseconds since 1970), and returns
    /// the unit.
    pub fn started(&mut self, unit: &str, at: i64) -> Option<&Unit> {
        let live = self.units.get_mut(unit)?;
        hooks::failpoint("started.before");
        (live.said, live.started) = (true, Some(at));
        Some(&live.unit)
    }

    /// Takes a unit that has ended.
    pub fn ended(&mut self, pipeline: &Pipeline, unit: &str, outcome: Outcome) -> Option<Fate> {
        hooks::failpoint("outcome.before");
        let live = self.take(unit)?;
        let is_here = live.unit.delegation().is_none();
        if self.cancels_all && is_here && outcome.was_canceled_before_it_began() {
            // We are stopping, and that must not use up its event.
            if let Err(e) = pipeline.dir(unit).remove() {
                warn!(TAEL_UNIT = unit, "cannot remove the unit's folder: {e}");
            }
            return Some(Fate::Waits(live.unit));
        }
        Some(live.end(outcome))
    }

    /// Takes a unit that its runner has not begun.
    pub fn refused(&mut self, unit: &str) -> Option<Unit> {
        self.take(unit).map(|live| live.unit)
    }

    /// Takes a unit unless its runner still has it, and finds out from its folder why that has
    /// released it.
    pub fn unknown(&mut self, pipeline: &Pipeline, unit: &str) -> Option<Fate> {
        let live = self.take(unit)?;
        let dir = pipeline.dir(unit);
        Some(match dir.trace() {
            Ok(Trace::Ended(outcome)) => live.end(outcome),
            Ok(Trace::Alive) => {
                let live = Live {
                    adopted: true,
                    ..live
                };
                self.wait_for(pipeline, live);
                return None;
            }
            // Nothing is reported of it.
            Ok(Trace::Fresh) if matches!(pipeline.reader.holds(unit), Ok(false)) => {
                Fate::Released(live.unit)
            }
            // Its folder is gone, but it was begun.
            Ok(Trace::Fresh) if live.said || (live.adopted && !dir.record().exists()) => {
                live.interrupted(pipeline)
            }
            // It was ready when its client died, and its start may not be in the ledger.
            Ok(Trace::Fresh) if live.adopted => Fate::Waits(live.unit),
            Ok(Trace::Fresh) if live.handovers < MAX_HANDOVERS => {
                Fate::HandsOver(live.unit, live.handovers)
            }
            Ok(Trace::Fresh) => live.end(Outcome::not_started("its runner died before it began")),
            Ok(Trace::Gone) => live.interrupted(pipeline),
            Err(e) => {
                error!(TAEL_UNIT = unit, "{e}");
                live.interrupted(pipeline)
            }
        })
    }
}

impl Live {
    fn end(self, outcome: Outcome) -> Fate {
        Fate::Ended(Ended {
            unit: self.unit,
            outcome,
            said: self.said,
        })
    }

    /// Ends a run that has lost its runner, with its remaining processes.
    fn interrupted(self, pipeline: &Pipeline) -> Fate {
        let outcome = end_orphans(pipeline, &self.unit.id, self.started);
        self.end(outcome)
    }
}
