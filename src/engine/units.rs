//! A pipeline's units: handed to runners, watched, booked when they end.

use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info, warn};

use crate::engine::connect::SESSION_EXPIRY;
use crate::engine::failpoint;
use crate::engine::job::{UNIT_VARIABLE, job};
use crate::engine::pipeline::{Live, Pipeline, Then, now_ms};
use crate::engine::recovery::Left;
use crate::engine::runner::Job;
use crate::engine::runners::Report;
use crate::engine::settle;
use crate::model::text::printable_bytes;
use crate::model::trigger::Policy;
use crate::model::unit::{End, Outcome, Recovery, State, Stopped, Trace, Unit};
use crate::os::process::{kill_orphan, leader_with};
use crate::store::ledger::Op;
use crate::store::streams::Stream;

/// Wait before a unit is started again that found no process, descriptor or space.
const SHORTAGE_RETRY: Duration = Duration::from_secs(1);

/// So often a unit is handed to a runner that dies before it begins.
const MAX_HANDOVERS: u32 = 3;

/// Units that end between two prunings.
const PRUNE_EVERY: u32 = 256;

/// How much of a failed run's output is logged.
const TAIL_BYTES: u64 = 2048;
const TAIL_LINES: usize = 10;

/// Why no runner could make a unit ready.
pub(super) enum NotReady {
    /// There is nothing to run.
    Job(String),
    /// There is no runner.
    Runner(std::io::Error),
}

impl Pipeline {
    /// A new unit that has to wait.
    pub(super) fn arrive(&mut self, unit: &Unit) {
        let displaced = self.queue.arrive(&unit.trigger, &unit.id);
        for dropped in displaced.dropped {
            info!(
                TAEL_UNIT = dropped,
                "not run: another run goes on or came after it"
            );
            let op = settle::dropped(&dropped, "dropped by the overlap policy");
            self.submit(op, Then::Nothing);
        }
        if let Some(running) = displaced.cancel {
            info!(TAEL_UNIT = running, "cancelled for a newer event");
            self.signal(&running);
        }
    }

    /// Asks the runner of `unit` to end it.
    pub(super) fn signal(&self, unit: &str) {
        if let Err(e) = self.dir(unit).cancel() {
            warn!(TAEL_UNIT = unit, "cannot cancel: {e}");
        }
    }

    // --- Starting ---

    pub(super) fn start_waiting(&mut self) {
        let mut units = Vec::new();
        while let Some((trigger, unit)) = self.queue.next(now_ms()) {
            let record = match self.reader.unit(&unit) {
                Ok(Some(record)) => record,
                Ok(None) => {
                    self.queue.remove(&trigger, &unit);
                    continue;
                }
                Err(e) => {
                    self.short_of(&unit, &format_args!("start it: {e}"));
                    self.postpone(&trigger, &unit);
                    continue;
                }
            };
            let record = Arc::new(record.unit);
            // If it fails, it is tried again when the start is on disk.
            let word = self.runners.reserve(&unit).ok();
            let op = Op::Start {
                unit,
                boot: self.boot.clone(),
            };
            self.submit(op, Then::Start(Arc::clone(&record), word));
            units.push(record);
        }
        self.make_ready(&units);
    }

    /// Has the ledger accept what was submitted, and meanwhile the runners that were taken for
    /// `units` make all ready for them.
    pub(super) fn make_ready(&mut self, units: &[Arc<Unit>]) {
        if units.is_empty() {
            return;
        }
        self.ledger.send();
        for unit in units {
            // What fails now is tried again when it is to begin.
            match self.job(unit) {
                Ok(job) => {
                    let _ = self.runners.make_ready(&unit.id, &job, &unit.payload);
                }
                Err(_) => self.runners.let_go(&unit.id),
            }
        }
    }

    fn job(&self, unit: &Unit) -> Result<Job, NotReady> {
        let trigger = self.trigger(&unit.trigger).ok_or_else(|| {
            NotReady::Job(format!("there is no trigger '{}' any more", unit.trigger))
        })?;
        job(&self.config, trigger, unit).map_err(NotReady::Job)
    }

    /// Hands a unit to a runner that may begin it.
    fn hand_over(&mut self, unit: &Unit) -> Result<(), NotReady> {
        let job = self.job(unit)?;
        loop {
            let word = self.runners.reserve(&unit.id).map_err(NotReady::Runner)?;
            failpoint::reached("spawn.before");
            word.give(true);
            match self.runners.make_ready(&unit.id, &job, &unit.payload) {
                Ok(()) => break,
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
                Err(e) => return Err(NotReady::Runner(e)),
            }
        }
        self.runners.told(&unit.id);
        Ok(())
    }

    /// Has a unit begin, which the ledger says is running.
    pub(super) fn dispatch(&mut self, unit: Unit, handovers: Option<u32>) {
        if !self.runners.told(&unit.id) {
            match self.hand_over(&unit) {
                Ok(()) => {}
                Err(NotReady::Runner(e)) => {
                    self.short_of(&unit.id, &format_args!("start a runner: {e}"));
                    return self.postpone(&unit.trigger, &unit.id);
                }
                Err(NotReady::Job(cause)) => {
                    return self.finish(unit, false, &Outcome::not_started(cause));
                }
            }
        }
        let live = Live {
            said: false,
            started: None,
            handovers: handovers.unwrap_or(0) + 1,
            adopted: false,
            unit,
        };
        let id = live.unit.id.clone();
        self.live.insert(id.clone(), live);
        if self.cancels_all {
            self.signal(&id);
        }
    }

    /// Removes the folder of a unit that the ledger does not hold.
    pub(super) fn forget(&mut self, unit: &str) {
        if let Err(e) = self.dir(unit).remove() {
            warn!(TAEL_UNIT = unit, "cannot remove the unit's folder: {e}");
        }
    }

    /// Says, once, what units wait for.
    fn short_of(&mut self, unit: &str, what: &std::fmt::Arguments<'_>) {
        if !std::mem::replace(&mut self.refusing, true) {
            error!(
                TAEL_UNIT = unit,
                "cannot {what}; units wait until that passes"
            );
        }
    }

    /// Lets a unit that could not be started wait a little, and all others with it.
    pub(super) fn postpone(&mut self, trigger: &str, unit: &str) {
        let wait = i64::try_from(SHORTAGE_RETRY.as_millis()).unwrap_or(0);
        self.requeue(trigger, unit, now_ms() + wait);
    }

    fn requeue(&mut self, trigger: &str, unit: &str, until: i64) {
        let op = Op::Unstart {
            unit: unit.to_owned(),
        };
        self.submit(op, Then::Nothing);
        self.queue.put_back(trigger, unit, until);
    }

    // --- What runners report ---

    pub(super) fn on_report(&mut self, report: Report) {
        match report {
            Report::Started(unit, at) => {
                let Some(live) = self.live.get_mut(&unit) else {
                    return;
                };
                failpoint::reached("started.before");
                self.refusing = false;
                (live.said, live.started) = (true, Some(at));
                let op = settle::started(&self.config, &live.unit, at);
                info!(
                    TAEL_UNIT = unit,
                    TAEL_EVENT = live.unit.event,
                    TAEL_TOPIC = live.unit.topic,
                    "started"
                );
                self.later.started(op);
            }
            Report::Ended(unit, outcome) => {
                failpoint::reached("outcome.before");
                if let Some(live) = self.live.remove(&unit) {
                    self.finish(live.unit, live.said, &outcome);
                }
            }
            Report::Refused(unit, cause) => {
                if let Some(live) = self.live.remove(&unit) {
                    self.short_of(&unit, &format_args!("create the unit's folder: {cause}"));
                    self.postpone(&live.unit.trigger, &unit);
                }
            }
            Report::Unknown(unit) => self.on_unknown(&unit),
        }
    }

    /// A runner has let go of a unit, and its folder knows why.
    pub(super) fn on_unknown(&mut self, unit: &str) {
        let Some(live) = self.live.remove(unit) else {
            return;
        };
        match self.dir(unit).trace() {
            Ok(Trace::Ended(outcome)) => self.finish(live.unit, live.said, &outcome),
            Ok(Trace::Alive) => self.adopt(Live {
                adopted: true,
                ..live
            }),
            // Released: nobody wants to know any more.
            Ok(Trace::Fresh) if matches!(self.reader.unit(unit), Ok(None)) => {
                self.queue.remove(&live.unit.trigger, unit);
            }
            // Its folder is gone, but it was begun.
            Ok(Trace::Fresh)
                if live.said || (live.adopted && !self.dir(unit).record().exists()) =>
            {
                self.interrupted(live);
            }
            // It was ready when its client died; perhaps its start is not in the ledger.
            Ok(Trace::Fresh) if live.adopted => {
                self.requeue(&live.unit.trigger, unit, 0);
            }
            Ok(Trace::Fresh) if live.handovers < MAX_HANDOVERS => {
                self.dispatch(live.unit, Some(live.handovers));
            }
            Ok(Trace::Fresh) => {
                let cause = "its runner died before it began".to_owned();
                self.finish(live.unit, live.said, &Outcome::not_started(cause));
            }
            Ok(Trace::Gone) => {
                self.interrupted(live);
            }
            Err(e) => {
                error!(TAEL_UNIT = unit, "{e}");
                self.interrupted(live);
            }
        }
    }

    /// Books a run that has lost its runner, and ends what is left of it.
    fn interrupted(&mut self, live: Live) {
        self.end_orphan(&live.unit.id);
        let outcome = Outcome::interrupted(live.started.unwrap_or(0));
        self.finish(live.unit, live.said, &outcome);
    }

    /// Ends a command that has lost its runner: nobody would see its end, and its event may
    /// run again.
    fn end_orphan(&self, unit: &str) {
        let noted = self.dir(unit).read_process(&self.boot);
        // It may have been killed before it could note that.
        let process = noted.or_else(|| leader_with(&format!("{UNIT_VARIABLE}={unit}")));
        if process.is_some_and(|(pid, start)| kill_orphan(pid, start)) {
            warn!(
                TAEL_UNIT = unit,
                "killed a command that had lost its supervisor"
            );
        }
    }

    /// Waits for a run whose runner another client has started.
    fn adopt(&mut self, live: Live) {
        let unit = live.unit.id.clone();
        let (dir, adopted, id) = (self.dir(&unit), self.adopted.0.clone(), unit.clone());
        self.live.insert(unit, live);
        // One thread for each run that was going on when the client started.
        let waiter = std::thread::Builder::new().name("adopted".into());
        let waiting = waiter.stack_size(64 * 1024).spawn(move || {
            if let Err(e) = dir.wait_unlocked() {
                warn!("{e}");
            }
            let _ = adopted.send(id);
        });
        if let Err(e) = waiting {
            error!("cannot wait for an adopted run: {e}");
        }
    }

    /// Books the end of a unit and gives its job back.
    fn finish(&mut self, unit: Unit, said: bool, outcome: &Outcome) {
        self.queue.remove(&unit.trigger, &unit.id);
        self.log_end(&unit, outcome);
        if let Some(metrics) = &mut self.metrics {
            metrics.count(outcome);
        }
        let policy = match self.trigger(&unit.trigger) {
            Some(trigger) => trigger.policy.clone(),
            // Its trigger is gone from the configuration: nothing is tried again.
            None => Policy::default(),
        };
        let (op, retry) = settle::ended(&self.config, &policy, &unit, outcome, !said);
        failpoint::reached("settle.before");
        self.submit(
            op,
            Then::Settled {
                retry: retry.map(Box::new),
                last: Box::new(settle::end_status(&unit, outcome, now_ms()).into()),
            },
        );
        self.ended += 1;
        if self.ended.is_multiple_of(PRUNE_EVERY) {
            self.prune();
        }
    }

    fn log_end(&self, unit: &Unit, outcome: &Outcome) {
        let seconds = Duration::from_micros(outcome.elapsed).as_secs_f64();
        let topic = &unit.topic;
        if outcome.state() == State::Succeeded {
            info!(
                TAEL_UNIT = unit.id,
                TAEL_EVENT = unit.event,
                TAEL_TOPIC = topic,
                "finished after {seconds:.3} s"
            );
            return;
        }
        let why = match outcome.stopped {
            Some(Stopped::TimedOut) => " (timed out)",
            Some(Stopped::Canceled) | None => "",
        };
        if outcome.state() == State::Canceled {
            info!(
                TAEL_UNIT = unit.id,
                TAEL_EVENT = unit.event,
                TAEL_TOPIC = topic,
                "cancelled after {seconds:.3} s"
            );
            return;
        }
        warn!(
            TAEL_UNIT = unit.id,
            TAEL_EVENT = unit.event,
            TAEL_TOPIC = topic,
            "failed after {seconds:.3} s: {}{why}",
            outcome.end
        );
        if matches!(outcome.end, End::Exited(_) | End::Signaled(_)) {
            let tail = self.dir(&unit.id).tail(Stream::Stderr, TAIL_BYTES);
            let lines: Vec<&[u8]> = tail
                .split(|b| *b == b'\n')
                .filter(|l| !l.is_empty())
                .collect();
            for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
                warn!(
                    TAEL_UNIT = unit.id,
                    "stderr: {}",
                    printable_bytes(line, 500)
                );
            }
        }
    }

    // --- Taking up what was left ---

    pub(super) fn take_up(&mut self, left: Left) {
        let Left {
            unit,
            started,
            handed_over,
            recovery,
        } = left;
        let said = started.is_some();
        match recovery {
            Recovery::Queue => {
                if handed_over {
                    let op = Op::Unstart {
                        unit: unit.id.clone(),
                    };
                    self.submit(op, Then::Nothing);
                }
                self.queue.wait(&unit.trigger, &unit.id, unit.due);
            }
            Recovery::Settle(outcome) => self.finish(unit, said, &outcome),
            Recovery::Interrupted => {
                self.end_orphan(&unit.id);
                self.finish(unit, said, &Outcome::interrupted(started.unwrap_or(0)))
            }
            Recovery::Adopt => {
                self.queue.adopt(&unit.trigger, &unit.id);
                self.adopt(Live {
                    said,
                    started,
                    handovers: 1,
                    adopted: true,
                    unit,
                });
            }
        }
    }

    pub(super) fn prune(&mut self) {
        let keep = i64::try_from(self.config.keep.as_millis()).unwrap_or(i64::MAX);
        let expiry = i64::try_from(SESSION_EXPIRY.as_millis()).unwrap_or(i64::MAX);
        let op = Op::Prune {
            before: now_ms().saturating_sub(keep),
            // The broker may send an event again as long as it keeps our session.
            events_before: now_ms().saturating_sub(keep.max(expiry)),
            keep: self.config.keep_units,
        };
        self.submit(op, Then::Nothing);
    }
}
