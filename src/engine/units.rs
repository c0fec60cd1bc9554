//! A pipeline's units: handed to runners, watched, booked when they end.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use tracing::{error, info, warn};

use crate::engine::config::Config;
use crate::engine::connect::SESSION_EXPIRY;
use crate::engine::failpoint;
use crate::engine::pipeline::{Live, Pipeline, Then, now_ms};
use crate::engine::recovery::Left;
use crate::engine::runner::Job;
use crate::engine::runners::Report;
use crate::engine::settle;
use crate::model::env_file;
use crate::model::text::printable_bytes;
use crate::model::trigger::{Policy, Trigger};
use crate::model::unit::{End, Outcome, Recovery, State, Stopped, Trace, Unit};
use crate::os::process::{kill_orphan, leader_with};
use crate::store::ledger::Op;
use crate::store::streams::Stream;

/// Wait before a unit that found no space for its folder is started again.
const NO_SPACE_RETRY: Duration = Duration::from_secs(1);

/// Bytes of a file of variables at most.
const MAX_ENV_FILE: u64 = 1024 * 1024;

/// Names the unit to its command.
const UNIT_VARIABLE: &str = "TAEL_UNIT";

/// So often a unit is handed to a runner that dies before it begins.
const MAX_HANDOVERS: u32 = 3;

/// Units that end between two prunings.
const PRUNE_EVERY: u32 = 256;

/// How much of a failed run's output is logged.
const TAIL_BYTES: u64 = 2048;
const TAIL_LINES: usize = 10;

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
        while let Some((trigger, unit)) = self.queue.next(now_ms()) {
            let op = Op::Start {
                unit: unit.clone(),
                boot: self.boot.clone(),
            };
            self.submit(op, Then::Start { trigger, unit });
        }
    }

    /// Hands a unit, which the ledger says is running, to a runner.
    pub(super) fn dispatch(&mut self, unit: Unit, handovers: Option<u32>) {
        let Some(trigger) = self.trigger(&unit.trigger) else {
            let cause = format!("there is no trigger '{}' any more", unit.trigger);
            return self.finish(unit, false, &Outcome::not_started(cause));
        };
        let job = match job(&self.config, trigger, &unit) {
            Ok(job) => job,
            Err(cause) => return self.finish(unit, false, &Outcome::not_started(cause)),
        };
        failpoint::reached("spawn.before");
        if let Err(e) = self.runners.dispatch(&unit.id, &job, &unit.payload) {
            error!(
                TAEL_UNIT = unit.id,
                "cannot start a runner: {e}; the unit waits"
            );
            return self.postpone(&unit.trigger, &unit.id);
        }
        failpoint::reached("spawn.after");
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

    /// Lets a unit that could not be started wait a little.
    pub(super) fn postpone(&mut self, trigger: &str, unit: &str) {
        self.queue.remove(trigger, unit);
        let op = Op::Unstart {
            unit: unit.to_owned(),
        };
        self.submit(op, Then::Nothing);
        let wait = i64::try_from(NO_SPACE_RETRY.as_millis()).unwrap_or(0);
        self.queue.wait(trigger, unit, now_ms() + wait);
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
                self.submit(op, Then::Nothing);
            }
            Report::Ended(unit, outcome) => {
                failpoint::reached("outcome.before");
                if let Some(live) = self.live.remove(&unit) {
                    self.finish(live.unit, live.said, &outcome);
                }
            }
            Report::Refused(unit, cause) => {
                if let Some(live) = self.live.remove(&unit) {
                    if !std::mem::replace(&mut self.refusing, true) {
                        error!(
                            TAEL_UNIT = unit,
                            "cannot create the unit's folder: {cause}; units wait until that passes"
                        );
                    }
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

fn job(config: &Config, trigger: &Trigger, unit: &Unit) -> Result<Job, String> {
    // What the event brings was asked for by name or prefix, and wins.
    let mut variables = match &trigger.env_file {
        Some(path) => read_env_file(path)?,
        None => Vec::new(),
    };
    variables.extend(unit.variables.iter().cloned());
    let hops = unit.hops.to_string();
    let attempt = unit.attempt.to_string();
    let own = [
        ("TAEL_TOPIC", &unit.topic),
        ("TAEL_REASON", &unit.reason),
        ("TAEL_WHO", &config.who),
        (UNIT_VARIABLE, &unit.id),
        ("TAEL_EVENT", &unit.event),
        ("TAEL_ATTEMPT", &attempt),
        ("TAEL_HOPS", &hops),
    ];
    variables.extend(own.map(|(name, value)| (name.to_owned(), value.clone())));
    if let Some(traceparent) = &unit.traceparent {
        variables.push(("TRACEPARENT".into(), traceparent.clone()));
    }
    let owned = |argv: Vec<&str>| argv.into_iter().map(str::to_owned).collect();
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    Ok(Job {
        unit: unit.id.clone(),
        stdin: unit.payload.len(),
        argv: owned(trigger.command.argv()),
        shell_argv: owned(trigger.command.shell_argv()),
        variables,
        timeout: trigger.policy.timeout.map(millis),
        grace: millis(trigger.policy.grace),
        max_output: config.max_output,
        cwd: trigger.cwd.clone(),
    })
}

fn read_env_file(path: &Path) -> Result<Vec<(String, String)>, String> {
    let wrong = |cause: &dyn std::fmt::Display| format!("read {}: {cause}", path.display());
    // One end of a FIFO must not wait for the other.
    let mut options = std::fs::File::options();
    options.read(true).custom_flags(nix::libc::O_NONBLOCK);
    let file = options.open(path).map_err(|e| wrong(&e))?;
    let meta = file.metadata().map_err(|e| wrong(&e))?;
    if !meta.is_file() || meta.len() > MAX_ENV_FILE {
        return Err(wrong(&format_args!(
            "it is no file of up to {MAX_ENV_FILE} bytes"
        )));
    }
    let text = std::io::read_to_string(file).map_err(|e| wrong(&e))?;
    env_file::parse(&text).map_err(|e| wrong(&e))
}
