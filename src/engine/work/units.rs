//! The units of a client, from their event to their end: which waits, which starts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use crate::engine::commit::permit::StartPermit;
use crate::engine::commit::receipt::Receipt;
use crate::engine::commit::step::{Step, Steps};
use crate::engine::pipeline::{Pipeline, now_ms};
use crate::engine::work::end::Ended;
use crate::engine::work::handover::{NotReady, hand_over, make_ready};
use crate::engine::work::lanes::Lanes;
use crate::engine::work::live::{Fate, LiveUnits};
use crate::engine::work::pool::{Pool, Report};
use crate::engine::work::receipts::Receipts;
use crate::engine::work::recovery::{Left, end_orphans};
use crate::engine::work::shortage::Shortage;
use crate::engine::work::start::Start;
use crate::error::{Error, Kind};
use crate::model::policy::Policy;
use crate::model::spec::Spec;
use crate::model::unit::{Outcome, Recovery, Unit};
use crate::store::home::make_folders;
use crate::store::ledger::Op;

/// Maximum delay of an event because of its pace, milliseconds.
pub const MAX_PACE_DELAY: i64 = 60 * 60_000;

/// Maximum number of units that are found at once not to start any more. The ends of others are
/// committed before the next ones are looked at.
const MAX_REFUSED: usize = 100;

/// The units that wait and run.
pub struct Units {
    lanes: Lanes,
    pool: Pool,
    live: LiveUnits,
    receipts: Receipts,
    shortage: Shortage,
}

impl Units {
    /// Returns the units of a client whose lanes have these `policies`; `folder` is for its runners.
    pub fn new<'a>(policies: impl Iterator<Item = (&'a str, &'a Policy)>, folder: PathBuf) -> Self {
        Self {
            lanes: Lanes::new(policies),
            pool: Pool::new(folder),
            live: LiveUnits::default(),
            receipts: Receipts::default(),
            shortage: Shortage::default(),
        }
    }

    /// Starts `program` as runners.
    #[cfg(test)]
    pub fn play(&mut self, program: PathBuf) {
        self.pool.play(program);
    }

    /// Returns what waits and runs.
    pub const fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// Returns whether runners or other nodes have units.
    pub fn has_live(&self) -> bool {
        self.live.has_any()
    }

    /// Returns how many units runners have.
    pub fn live(&self) -> usize {
        self.live.len()
    }

    /// Returns whether the runner of an earlier client has `unit`.
    pub fn is_adopted(&self, unit: &str) -> bool {
        self.live.is_adopted(unit)
    }

    /// Pauses or allows starts.
    pub const fn pause(&mut self, paused: bool) {
        self.lanes.pause(paused);
    }

    /// Applies the `policies` of lanes.
    pub fn reconfigure<'a>(&mut self, policies: impl Iterator<Item = (&'a str, &'a Policy)>) {
        self.lanes.reconfigure(policies);
    }

    /// Starts a runner ahead, if none is idle.
    pub fn keep_warm(&mut self) {
        self.pool.keep_warm();
    }

    /// Returns what a runner reports next; cancel safe.
    pub async fn next(&mut self) -> Report {
        tokio::select! {
            biased;
            report = self.pool.next() => report,
            Some(unit) = self.live.next_unlocked() => Report::Unknown(unit),
        }
    }

    /// Returns when a unit may start without an event.
    pub fn wake(&self, pipeline: &Pipeline, held: Option<Instant>) -> Option<Instant> {
        let now = pipeline.ticks();
        let due = self.lanes.next_due(now).and_then(|due| {
            Instant::now().checked_add(Duration::from_millis((due - now).cast_unsigned()))
        });
        let short = self.shortage.until();
        let held = short.or_else(|| self.pool.held_until()).or(held);
        let held = held.filter(|_| self.lanes.waiting() > 0);
        [due, held].into_iter().flatten().min()
    }

    /// Handles the passing of time.
    pub fn on_time(&mut self) {
        self.shortage.on_time();
    }

    // --- New units ---

    /// Takes a job for a new unit, which is being written to the ledger. Returns whether it starts
    /// at once; it waits if `holds`, if no job is free, or if it is work that comes again while its
    /// unit runs.
    pub fn claim(&mut self, unit: &Unit, holds: bool) -> bool {
        let runs = || self.lanes.running().any(|running| *running == unit.id);
        match unit.due {
            0 if holds || (unit.work.is_some() && runs()) => self.lanes.announce(unit.lane()),
            0 => return self.lanes.claim(unit.lane(), &unit.id),
            _ => {}
        }
        false
    }

    /// Takes a runner for a unit that starts here. If there is none now, [`Units::begin`] tries again.
    pub fn reserve(&mut self, unit: &Unit) -> Option<StartPermit> {
        match unit.delegation() {
            Some(_) => None,
            None => self.pool.reserve().ok(),
        }
    }

    /// Continues with the unit of an event that is on disk: it runs if the event is `fresh`. If it
    /// starts at once, a runner that was taken for it has got this `permit`.
    #[must_use]
    pub fn accepted(
        &mut self,
        pipeline: &Pipeline,
        unit: Arc<Unit>,
        (start, permit): (bool, Option<StartPermit>),
        fresh: bool,
        steps: &mut Steps,
    ) -> Option<Ended> {
        let waits = !start && unit.due == 0;
        if waits {
            self.lanes.came(unit.lane());
        }
        match fresh {
            false if start => self.not_started(&unit, permit.as_ref(), steps),
            false => {}
            true if start => return self.begin(pipeline, unit, permit.as_ref(), steps),
            true if waits => self.arrive(&unit, steps),
            true => {
                let delay = (unit.due - now_ms()).clamp(0, MAX_PACE_DELAY);
                let due = pipeline.ticks() + delay;
                self.lanes.wait(unit.lane(), &unit.id, due);
            }
        }
        None
    }

    /// Queues a new unit.
    fn arrive(&mut self, unit: &Unit, steps: &mut Steps) {
        let displaced = self.lanes.arrive(unit.lane(), &unit.id);
        for dropped in displaced.dropped {
            info!(
                TAEL_UNIT = dropped,
                "not run: another run goes on or came after it"
            );
            steps.push_back(Step::Drop(dropped, "dropped by the overlap policy"));
        }
        if let Some(running) = displaced.cancel {
            info!(TAEL_UNIT = running, "canceled for a newer event");
            steps.push_back(Step::Signal(running));
        }
    }

    /// Delays a retry until `due` (milliseconds since 1970), but not longer than its trigger says:
    /// the clock of the host may have stepped back since.
    pub fn wait(&mut self, pipeline: &Pipeline, spec: &Arc<Spec>, unit: &str, due: i64) {
        let retries = &pipeline.config.spec_for(spec).retries;
        let limit = i64::try_from(retries.longest_delay().as_millis()).unwrap_or(i64::MAX);
        let due = match due {
            0 => 0,
            due => pipeline
                .ticks()
                .saturating_add((due - now_ms()).clamp(0, limit)),
        };
        self.lanes.wait(&spec.lane, unit, due);
    }

    // --- Starting ---

    /// Starts the units that may start now, as the configuration says now. Returns those that cannot
    /// start any more, a few at a time: their events lack what their triggers require now.
    ///
    /// # Errors
    /// When the ledger cannot be read any more.
    pub fn start_waiting(
        &mut self,
        pipeline: &Pipeline,
        steps: &mut Steps,
    ) -> Result<Vec<Ended>, Error> {
        let mut refused = Vec::new();
        while refused.len() < MAX_REFUSED
            && !self.shortage.holds()
            && self.pool.held_until().is_none()
            && let Some((lane, unit)) = self.lanes.next(pipeline.ticks())
        {
            let record = match pipeline.reader.unit_with_payload(&unit) {
                Ok(Some(record)) => record,
                Ok(None) => {
                    self.released(&lane, &unit, steps);
                    continue;
                }
                Err(e) if e.kind() != Kind::TryAgain => return Err(e),
                Err(e) => {
                    self.short_of(&unit, &format_args!("start it: {e}"));
                    self.postpone(pipeline, &lane, &unit, steps);
                    continue;
                }
            };
            let (unit, anew) = match Start::of(&pipeline.config, record.unit) {
                Start::Begins { unit, anew } => (unit, anew),
                Start::Expired(unit) => {
                    self.lanes.remove(&lane, &unit.id);
                    steps.push_back(Step::Drop(
                        unit.id,
                        "expired: its requester waits no longer",
                    ));
                    continue;
                }
                Start::Refused(unit, refusal) => {
                    refused.push(self.finish(Ended {
                        unit,
                        outcome: Outcome::not_started(refusal),
                        said: false,
                    }));
                    continue;
                }
            };
            let permit = self.reserve(&unit);
            let unit = Arc::new(unit);
            steps.push_back(Step::Start { unit, anew, permit });
        }
        Ok(refused)
    }

    /// Makes the runners that were taken for `units` prepare them, while the ledger commits that
    /// they run.
    pub fn make_ready(&mut self, pipeline: &Pipeline, units: &[(Arc<Unit>, StartPermit)]) {
        make_ready(&mut self.pool, pipeline, units);
    }

    /// Begins a unit that is running in the ledger. A runner that was taken for it has got this
    /// `permit`.
    #[must_use]
    pub fn begin(
        &mut self,
        pipeline: &Pipeline,
        unit: Arc<Unit>,
        permit: Option<&StartPermit>,
        steps: &mut Steps,
    ) -> Option<Ended> {
        let unit = Arc::unwrap_or_clone(unit);
        if permit.is_some_and(|permit| self.pool.told(&unit.id, permit)) {
            self.live.begin(unit, 0, steps);
            return None;
        }
        self.dispatch(pipeline, unit, 0, steps)
    }

    fn dispatch(
        &mut self,
        pipeline: &Pipeline,
        unit: Unit,
        handovers: u32,
        steps: &mut Steps,
    ) -> Option<Ended> {
        if unit.delegation().is_some() {
            steps.push_back(Step::Delegate(Box::new(unit.clone())));
            self.live.begin(unit, handovers, steps);
            return None;
        }
        match hand_over(&mut self.pool, pipeline, &unit) {
            Ok(()) => self.live.begin(unit, handovers, steps),
            Err(NotReady::Runner(e)) => {
                self.short_of(&unit.id, &format_args!("start a runner: {e}"));
                self.postpone(pipeline, unit.lane(), &unit.id, steps);
            }
            Err(NotReady::Payload(e)) => {
                // If that lasts, the next start ends the client.
                self.short_of(&unit.id, &format_args!("start it: {e}"));
                self.postpone(pipeline, unit.lane(), &unit.id, steps);
            }
            Err(NotReady::Job(cause)) => {
                return Some(self.finish(Ended {
                    unit,
                    outcome: Outcome::not_started(cause),
                    said: false,
                }));
            }
        }
        None
    }

    /// Forgets a unit that the ledger did not start. A runner that was taken for it has heard that
    /// by this `permit`.
    pub fn not_started(&mut self, unit: &Unit, permit: Option<&StartPermit>, steps: &mut Steps) {
        if let Some(permit) = permit {
            self.pool.dropped(permit);
        }
        self.released(unit.lane(), &unit.id, steps);
    }

    /// Forgets a unit that the ledger has no longer.
    fn released(&mut self, lane: &str, unit: &str, steps: &mut Steps) {
        self.lanes.remove(lane, unit);
        self.settled(unit, None, steps);
    }

    /// Logs, once, what units wait for.
    fn short_of(&mut self, unit: &str, what: &std::fmt::Arguments<'_>) {
        self.pool.shortage();
        self.shortage.log(unit, what);
    }

    /// Delays a unit that could not be started, and all others with it.
    fn postpone(&mut self, pipeline: &Pipeline, lane: &str, unit: &str, steps: &mut Steps) {
        self.shortage.hold();
        // The folders may be what is missing.
        let _ = make_folders(&pipeline.home.path);
        self.requeue(lane, unit, steps);
    }

    fn requeue(&mut self, lane: &str, unit: &str, steps: &mut Steps) {
        steps.push_back(Step::Commit(Op::Unstart {
            unit: unit.to_owned(),
        }));
        self.lanes.put_back(lane, unit);
    }

    // --- What runners report ---

    /// Notes that the command of a unit has started, at `at` (milliseconds since 1970), and returns
    /// the unit.
    pub fn started(&mut self, unit: &str, at: i64) -> Option<&Unit> {
        let started = self.live.started(unit, at)?;
        self.shortage.passed();
        Some(started)
    }

    /// Notes that a unit has ended.
    #[must_use]
    pub fn ended(
        &mut self,
        pipeline: &Pipeline,
        unit: &str,
        outcome: Outcome,
        steps: &mut Steps,
    ) -> Option<Ended> {
        let fate = self.live.ended(pipeline, unit, outcome);
        self.go_on(pipeline, fate?, steps)
    }

    /// Notes that a runner failed at `what` for a unit, and has not begun it.
    pub fn refused(&mut self, pipeline: &Pipeline, unit: &str, what: &str, steps: &mut Steps) {
        if let Some(refused) = self.live.refused(unit) {
            self.short_of(unit, &format_args!("{what}"));
            self.postpone(pipeline, refused.lane(), unit, steps);
        }
    }

    /// Finds out from the folder of a unit why its runner has released it.
    #[must_use]
    pub fn unknown(&mut self, pipeline: &Pipeline, unit: &str, steps: &mut Steps) -> Option<Ended> {
        let fate = self.live.unknown(pipeline, unit);
        self.go_on(pipeline, fate?, steps)
    }

    fn go_on(&mut self, pipeline: &Pipeline, fate: Fate, steps: &mut Steps) -> Option<Ended> {
        match fate {
            Fate::Ended(ended) => return Some(self.finish(ended)),
            Fate::HandsOver(unit, times) => return self.dispatch(pipeline, unit, times, steps),
            Fate::Waits(unit) => self.requeue(unit.lane(), &unit.id, steps),
            Fate::Released(unit) => self.released(unit.lane(), &unit.id, steps),
        }
        None
    }

    /// Gives back the job of a unit that has ended.
    fn finish(&mut self, ended: Ended) -> Ended {
        self.lanes.remove(ended.unit.lane(), &ended.unit.id);
        ended
    }

    // --- Receipts ---

    /// Makes a receipt wait for the end of `units`. Returns it if there are none.
    pub fn attach(&mut self, receipt: Receipt, units: Vec<String>) -> Option<Receipt> {
        self.receipts.attach(receipt, units)
    }

    /// Notes that the end of `unit` is on disk; `retry` continues it.
    pub fn settled(&mut self, unit: &str, retry: Option<&str>, steps: &mut Steps) {
        self.receipts.ended(unit, retry, |receipt| {
            steps.push_back(Step::Settle(receipt, unit.to_owned()));
        });
    }

    // --- Canceling, recovery, stopping ---

    /// Cancels a unit that has not ended.
    pub fn cancel(&mut self, lane: &str, unit: &str, steps: &mut Steps) {
        if self.lanes.running().any(|running| running == unit) {
            steps.push_back(Step::Signal(unit.to_owned()));
        } else {
            self.lanes.remove(lane, unit);
            steps.push_back(Step::Drop(unit.to_owned(), "canceled by control message"));
        }
    }

    /// Continues with a unit that an earlier client has left.
    #[must_use]
    pub fn take_up(&mut self, pipeline: &Pipeline, left: Left, steps: &mut Steps) -> Option<Ended> {
        let (unit, started, recovery) = match left {
            Left::Waiting {
                unit,
                spec,
                due,
                paced,
                handed_over,
            } => {
                if handed_over {
                    let unit = unit.clone();
                    steps.push_back(Step::Commit(Op::Unstart { unit }));
                }
                match due {
                    1.. if paced => {
                        let delay = (due - now_ms()).clamp(0, MAX_PACE_DELAY);
                        self.lanes.wait(&spec.lane, &unit, pipeline.ticks() + delay);
                    }
                    due => self.wait(pipeline, &spec, &unit, due),
                }
                return None;
            }
            Left::Begun {
                unit,
                started,
                recovery,
            } => (*unit, started, recovery),
            Left::Delegated {
                unit,
                started,
                noted,
            } => {
                if noted {
                    // That may have passed.
                    let (unit, note) = (unit.id.clone(), None);
                    steps.push_back(Step::Commit(Op::Note { unit, note }));
                }
                self.lanes.adopt(unit.lane(), &unit.id);
                self.live.delegated(&unit, started);
                steps.push_back(Step::Resume(unit, started));
                return None;
            }
        };
        let outcome = match recovery {
            Recovery::Queue => {
                self.wait(pipeline, &unit.spec, &unit.id, unit.due);
                return None;
            }
            Recovery::Adopt => {
                self.lanes.adopt(unit.lane(), &unit.id);
                self.live.adopt(pipeline, unit, started);
                return None;
            }
            Recovery::Settle(outcome) => outcome,
            Recovery::Interrupted => end_orphans(pipeline, &unit.id, started),
        };
        Some(self.finish(Ended {
            unit,
            outcome,
            said: started.is_some(),
        }))
    }

    /// Cancels all units, and each that starts from now on.
    pub fn cancel_all(&mut self, steps: &mut Steps) {
        self.live.cancel_all(steps);
    }

    /// Leaves running units to their runners.
    pub fn dismiss(&mut self) {
        self.pool.dismiss();
    }
}
