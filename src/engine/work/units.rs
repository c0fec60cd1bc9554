//! A pipeline's units: handed to runners, watched, booked when they end.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::engine::client::{Live, Pipeline, Then, now_ms};
use crate::engine::config::make_folders;
use crate::engine::report::settle;
use crate::engine::work::job::job;
use crate::engine::work::pool::Report;
use crate::error::{Error, Kind};
use crate::model::spec::Spec;
use crate::model::text::printable_bytes;
use crate::model::unit::{End, Outcome, State, Stopped, Trace, Unit};
use crate::os::hooks;
use crate::runner::Job;
use crate::store::ledger::Op;
use crate::store::unit_dir::reader::{Ended, tail};
use crate::store::unit_dir::stream::Stream;

/// Wait before a unit is started again that found no process, descriptor or space.
const SHORTAGE_RETRY: Duration = Duration::from_secs(1);

/// So often a unit is handed to a runner that dies before it begins.
const MAX_HANDOVERS: u32 = 3;

/// How much of a failed run's output is logged.
const TAIL_BYTES: u64 = 2048;
const TAIL_LINES: usize = 10;

/// Why no runner could make a unit ready.
pub(crate) enum NotReady {
    /// There is nothing to run.
    Job(String),
    /// There is no runner.
    Runner(std::io::Error),
    /// The ledger does not give what the command reads.
    Payload(Error),
}

impl Pipeline {
    /// A new unit that has to wait.
    pub(crate) fn arrive(&mut self, unit: &Unit) {
        let displaced = self.queue.arrive(unit.lane(), &unit.id);
        for dropped in displaced.dropped {
            info!(
                TAEL_UNIT = dropped,
                "not run: another run goes on or came after it"
            );
            let op = settle::dropped(&dropped, "dropped by the overlap policy");
            self.submit(op, Then::Nothing);
        }
        if let Some(running) = displaced.cancel {
            info!(TAEL_UNIT = running, "canceled for a newer event");
            self.signal(&running);
        }
    }

    /// Asks the runner of `unit` to end it.
    pub(crate) fn signal(&self, unit: &str) {
        if let Err(e) = self.dir(unit).cancel() {
            warn!(TAEL_UNIT = unit, "cannot cancel: {e}");
        }
    }

    // --- Starting ---

    /// Starts what may start now.
    ///
    /// # Errors
    /// When the ledger cannot be read any more.
    pub(crate) fn start_waiting(&mut self) -> Result<(), Error> {
        let mut units = Vec::new();
        if self.pressure.holds_until(Instant::now()).is_some() {
            // What comes is taken in first: it is safe then.
            return Ok(());
        }
        while self.held_until.is_none_or(|until| Instant::now() >= until)
            && self.runners.held_until().is_none()
            && let Some((trigger, unit)) = self.queue.next(self.ticks())
        {
            let found = self.reader.unit(&unit).and_then(|record| {
                let payload = self.reader.payload(&unit)?;
                Ok(record.zip(payload))
            });
            let (record, payload) = match found {
                Ok(Some(found)) => found,
                Ok(None) => {
                    self.queue.remove(&trigger, &unit);
                    continue;
                }
                Err(e) if e.kind() != Kind::TryAgain => return Err(e),
                Err(e) => {
                    self.short_of(&unit, &format_args!("start it: {e}"));
                    self.postpone(&trigger, &unit);
                    continue;
                }
            };
            let record = Arc::new(Unit {
                spec: Arc::clone(self.config.triggers.spec_for(&record.unit.spec)),
                payload: Some(payload),
                ..record.unit
            });
            // If it fails, it is tried again when the start is on disk.
            let word = self.runners.reserve(&unit).ok();
            let op = Op::Start {
                unit,
                spec: Arc::clone(&record.spec),
                boot: self.boot.clone(),
            };
            self.submit(op, Then::Start(Arc::clone(&record), word));
            units.push(record);
        }
        self.make_ready(&units);
        Ok(())
    }

    /// Has the ledger accept what was submitted, and meanwhile the runners that were taken for
    /// `units` make all ready for them.
    pub(crate) fn make_ready(&mut self, units: &[Arc<Unit>]) {
        if units.is_empty() {
            return;
        }
        self.ledger.send();
        for unit in units {
            // What fails now is tried again when it is to begin.
            let payload = unit.payload.as_deref().unwrap_or_default();
            match self.job(unit, payload.len()) {
                Ok(job) => {
                    let _ = self.runners.make_ready(&unit.id, &job, payload);
                }
                Err(_) => self.runners.let_go(&unit.id),
            }
        }
    }

    fn job(&self, unit: &Unit, stdin: usize) -> Result<Job, NotReady> {
        job(&self.config, &unit.spec, unit, stdin).map_err(NotReady::Job)
    }

    /// Hands a unit to a runner that may begin it.
    fn hand_over(&mut self, unit: &Unit) -> Result<(), NotReady> {
        let payload = match &unit.payload {
            Some(payload) => payload.clone(),
            None => {
                let payload = self.reader.payload(&unit.id).map_err(NotReady::Payload)?;
                payload.ok_or_else(|| NotReady::Job("it was released".into()))?
            }
        };
        let job = self.job(unit, payload.len())?;
        loop {
            let word = self.runners.reserve(&unit.id).map_err(NotReady::Runner)?;
            hooks::failpoint("spawn.before");
            word.give(true);
            match self.runners.make_ready(&unit.id, &job, &payload) {
                Ok(()) => break,
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {}
                Err(e) => return Err(NotReady::Runner(e)),
            }
        }
        self.runners.told(&unit.id);
        Ok(())
    }

    /// Has a unit begin, which the ledger says is running.
    pub(crate) fn dispatch(&mut self, unit: Unit, handovers: Option<u32>) {
        if !self.runners.told(&unit.id) {
            match self.hand_over(&unit) {
                Ok(()) => {}
                Err(NotReady::Runner(e)) => {
                    self.short_of(&unit.id, &format_args!("start a runner: {e}"));
                    return self.postpone(unit.lane(), &unit.id);
                }
                Err(NotReady::Payload(e)) => {
                    // If that does not pass, the next start ends the client.
                    self.short_of(&unit.id, &format_args!("start it: {e}"));
                    return self.postpone(unit.lane(), &unit.id);
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
            // The runner has the payload now, and the ledger should it be needed again.
            unit: Unit {
                payload: None,
                ..unit
            },
        };
        let id = live.unit.id.clone();
        self.live.insert(id.clone(), live);
        if self.cancels_all {
            self.signal(&id);
        }
    }

    /// Removes the folder of a unit that was not begun.
    pub(crate) fn forget(&mut self, unit: &str) {
        if let Err(e) = self.dir(unit).remove() {
            warn!(TAEL_UNIT = unit, "cannot remove the unit's folder: {e}");
        }
    }

    /// Says, once, what units wait for.
    fn short_of(&mut self, unit: &str, what: &std::fmt::Arguments<'_>) {
        self.runners.shortage();
        if !std::mem::replace(&mut self.refusing, true) {
            error!(
                TAEL_UNIT = unit,
                "cannot {what}; units wait until that passes"
            );
        }
    }

    /// Lets a unit that could not be started wait a little, and all others with it.
    pub(crate) fn postpone(&mut self, trigger: &str, unit: &str) {
        self.held_until = Some(Instant::now() + SHORTAGE_RETRY);
        // What is missing may be they.
        let _ = make_folders(&self.home.path);
        self.requeue(trigger, unit);
    }

    fn requeue(&mut self, trigger: &str, unit: &str) {
        let op = Op::Unstart {
            unit: unit.to_owned(),
        };
        self.submit(op, Then::Nothing);
        self.queue.put_back(trigger, unit);
    }

    // --- What runners report ---

    pub(crate) fn on_report(&mut self, report: Report) {
        match report {
            Report::Started(unit, at) => {
                let Some(live) = self.live.get_mut(&unit) else {
                    return;
                };
                hooks::failpoint("started.before");
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
                hooks::failpoint("outcome.before");
                let Some(live) = self.live.remove(&unit) else {
                    return;
                };
                if self.cancels_all && outcome.was_canceled_before_it_began() {
                    // We are leaving, and that is no reason for its event not to run.
                    self.forget(&unit);
                    self.requeue(live.unit.lane(), &unit);
                } else {
                    self.finish(live.unit, live.said, &outcome);
                }
            }
            Report::Refused(unit, what) => {
                if let Some(live) = self.live.remove(&unit) {
                    self.short_of(&unit, &format_args!("{what}"));
                    self.postpone(live.unit.lane(), &unit);
                }
            }
            Report::Unknown(unit) => self.on_unknown(&unit),
        }
    }

    /// A runner has let go of a unit, and its folder knows why.
    pub(crate) fn on_unknown(&mut self, unit: &str) {
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
            Ok(Trace::Fresh) if matches!(self.reader.holds(unit), Ok(false)) => {
                self.queue.remove(live.unit.lane(), unit);
            }
            // Its folder is gone, but it was begun.
            Ok(Trace::Fresh)
                if live.said || (live.adopted && !self.dir(unit).record().exists()) =>
            {
                self.interrupted(live);
            }
            // It was ready when its client died; perhaps its start is not in the ledger.
            Ok(Trace::Fresh) if live.adopted => {
                self.requeue(live.unit.lane(), unit);
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

    /// Books the end of a unit and gives its job back.
    pub(crate) fn finish(&mut self, unit: Unit, said: bool, outcome: &Outcome) {
        self.queue.remove(unit.lane(), &unit.id);
        self.log_end(&unit, outcome);
        if let Some(metrics) = &mut self.metrics {
            metrics.count(outcome);
        }
        let retries = &self.config.triggers.spec_for(&unit.spec).retries;
        let (op, retry) = settle::ended(&self.config, retries, &unit, outcome, !said);
        hooks::failpoint("settle.before");
        self.submit(
            op,
            Then::Settled {
                retry: retry.map(Box::new),
                last: Box::new(settle::end_status(&unit, outcome, now_ms()).into()),
            },
        );
        self.one_more_to_keep();
    }

    fn log_end(&self, unit: &Unit, outcome: &Outcome) {
        let seconds = Duration::from_micros(outcome.elapsed).as_secs_f64();
        let topic = &unit.topic;
        if let Some(remains) = &outcome.remains {
            error!(TAEL_UNIT = unit.id, "{remains}; it is not tried again");
        }
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
                "canceled after {seconds:.3} s"
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
            let ended = Ended::with(Some(outcome), Stream::Stderr);
            let tail = tail(&self.dir(&unit.id), Stream::Stderr, TAIL_BYTES, ended);
            let lines: Vec<&[u8]> = tail
                .split(|b| *b == b'\n')
                .filter(|l| !l.is_empty())
                .collect();
            let skipped = lines.len().saturating_sub(TAIL_LINES);
            for line in lines.iter().skip(skipped) {
                warn!(
                    TAEL_UNIT = unit.id,
                    "stderr: {}",
                    printable_bytes(line, 500)
                );
            }
        }
    }

    /// Has a retry wait until `due` (milliseconds since the epoch), but not for longer than it was
    /// to wait from the start: the host's clock may have stepped back since.
    pub(crate) fn wait(&mut self, spec: &Arc<Spec>, unit: &str, due: i64) {
        let limit = self.config.triggers.spec_for(spec).retries.longest_delay();
        let limit = i64::try_from(limit.as_millis()).unwrap_or(i64::MAX);
        let due = match due {
            0 => 0,
            due => self
                .ticks()
                .saturating_add((due - now_ms()).clamp(0, limit)),
        };
        self.queue.wait(&spec.lane, unit, due);
    }
}
