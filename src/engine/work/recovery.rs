//! What a client does with runs that an earlier one, or their runner, has left.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::engine::client::{Live, Pipeline, Then};
use crate::engine::work::job::UNIT_VARIABLE;
use crate::error::Result;
use crate::model::spec::Spec;
use crate::model::unit::{Outcome, Recovery, State, Unit, recover};
use crate::os::descent::{is_in_use, kill_orphans};
use crate::os::logging::STACK;
use crate::store::ledger::{Op, Reader, Record};
use crate::store::unit_dir::UnitDir;

/// Wait before a run is looked at again that nobody could be had to wait for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A unit that has not ended in the ledger, and what is to be done with it.
#[derive(Debug)]
pub enum Left {
    /// It waits.
    Waiting {
        /// Its id.
        unit: String,
        /// What it runs.
        spec: Arc<Spec>,
        /// Not to be started before this time, milliseconds since the epoch.
        due: i64,
        /// Whether it is no retry: its trigger starts few runs a minute.
        paced: bool,
        /// Whether the ledger has handed it to a runner.
        handed_over: bool,
    },
    /// It was begun.
    Begun {
        /// The unit, without its payload.
        unit: Box<Unit>,
        /// When its start was booked, milliseconds since the epoch.
        started: Option<i64>,
        /// What to do.
        recovery: Recovery,
    },
}

/// Looks at every unit that has not ended. Of those that wait nothing large is read: there may be
/// many.
///
/// # Errors
/// When the ledger or a folder cannot be read.
pub fn survey(pipeline: &Path, reader: &Reader, boot: &str) -> Result<Vec<Left>> {
    let mut left = Vec::new();
    // A unit that was handed over and never begun came before those of its lane that wait.
    for state in [State::Running, State::Pending] {
        let mut page = reader.live_page(state, 0)?;
        while let Some(last) = page.last() {
            let seq = last.seq;
            for record in page {
                left.push(look(pipeline, reader, record, boot)?);
            }
            page = reader.live_page(state, seq)?;
        }
    }
    Ok(left)
}

fn look(pipeline: &Path, reader: &Reader, record: Record, boot: &str) -> Result<Left> {
    let trace = UnitDir::new(pipeline, &record.unit.id).trace()?;
    let same_boot = record.boot.as_deref() == Some(boot);
    let unit = &record.unit.id;
    let recovery = match recover(record.state, trace, same_boot, record.started.is_some()) {
        // A command may have removed its own folder before its start was booked.
        Recovery::Queue
            if record.boot.is_some() && is_in_use(&format!("{UNIT_VARIABLE}={unit}")) =>
        {
            Recovery::Interrupted
        }
        other => other,
    };
    match &recovery {
        Recovery::Queue => {
            return Ok(Left::Waiting {
                handed_over: record.boot.is_some(),
                paced: record.unit.retry_of.is_none(),
                unit: record.unit.id,
                spec: record.unit.spec,
                due: record.unit.due,
            });
        }
        Recovery::Adopt => info!(TAEL_UNIT = unit, "run goes on, adopted"),
        Recovery::Settle(_) => info!(TAEL_UNIT = unit, "run has ended meanwhile"),
        Recovery::Interrupted => warn!(TAEL_UNIT = unit, "run was interrupted"),
    }
    // It is told, and perhaps tried again.
    let record = reader.unit(unit)?.unwrap_or(record);
    Ok(Left::Begun {
        started: record.started,
        unit: Box::new(record.unit),
        recovery,
    })
}

impl Pipeline {
    /// Goes on with a unit that was left.
    pub(crate) fn take_up(&mut self, left: Left) {
        let (unit, started, recovery) = match left {
            Left::Waiting {
                unit,
                spec,
                due,
                paced,
                handed_over,
            } => {
                if handed_over {
                    let op = Op::Unstart { unit: unit.clone() };
                    self.submit(op, Then::Nothing);
                }
                return match due {
                    1.. if paced => self.wait_in_pace(&spec.lane, &unit, due),
                    due => self.wait(&spec, &unit, due),
                };
            }
            Left::Begun {
                unit,
                started,
                recovery,
            } => (*unit, started, recovery),
        };
        let said = started.is_some();
        match recovery {
            Recovery::Queue => self.wait(&unit.spec, &unit.id, unit.due),
            Recovery::Settle(outcome) => self.finish(unit, said, &outcome),
            Recovery::Interrupted => {
                let outcome = self.end_orphans(&unit.id, started);
                self.finish(unit, said, &outcome);
            }
            Recovery::Adopt => {
                self.queue.adopt(unit.lane(), &unit.id);
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

    /// Waits for a run whose runner another client has started.
    pub(crate) fn adopt(&mut self, live: Live) {
        let unit = live.unit.id.clone();
        let (dir, adopted, id) = (self.dir(&unit), self.adopted.0.clone(), unit.clone());
        self.live.insert(unit.clone(), live);
        // One thread for each run that was going on when the client started.
        let waiter = std::thread::Builder::new().name("adopted".into());
        let waiting = waiter.stack_size(STACK).spawn(move || {
            if let Err(e) = dir.wait_unlocked() {
                warn!("{e}");
            }
            let _ = adopted.send(id);
        });
        if let Err(e) = waiting {
            error!(
                TAEL_UNIT = unit,
                "cannot wait for an adopted run: {e}; trying on"
            );
            let adopted = self.adopted.0.clone();
            tokio::spawn(async move {
                sleep(LOOK_AGAIN).await;
                let _ = adopted.send(unit);
            });
        }
    }

    /// Books a run that has lost its runner, and ends what is left of it.
    pub(crate) fn interrupted(&mut self, live: Live) {
        let outcome = self.end_orphans(&live.unit.id, live.started);
        self.finish(live.unit, live.said, &outcome);
    }

    /// Ends what is left of a run that has lost its runner: nobody would see its end, and its event
    /// may run again. Returns the outcome of the run.
    fn end_orphans(&self, unit: &str, started: Option<i64>) -> Outcome {
        // The process may have been killed before it could be noted, or have ended since.
        let noted = self.dir(unit).notes().process(&self.boot);
        let (killed, remains) = kill_orphans(&format!("{UNIT_VARIABLE}={unit}"), noted);
        if killed > 0 {
            warn!(
                TAEL_UNIT = unit,
                "killed {killed} processes of a run that had lost its supervisor"
            );
        }
        Outcome {
            remains,
            ..Outcome::interrupted(started.unwrap_or(0))
        }
    }
}
