//! Runs that an earlier client, or their runner, has left.

use std::cell::LazyCell;
use std::collections::HashSet;
use std::sync::Arc;

use tracing::{info, warn};

use crate::engine::pipeline::Pipeline;
use crate::engine::work::job::UNIT_VARIABLE;
use crate::error::Result;
use crate::model::spec::Spec;
use crate::model::unit::{Outcome, Recovery, State, Unit, recover};
use crate::model::work::node_of_lane;
use crate::os::descent::{kill_orphans, values_of};
use crate::store::ledger::Record;

/// A unit that has not ended in the ledger, and what to do with it.
#[derive(Debug)]
pub enum Left {
    /// It waits.
    Waiting {
        /// Its id.
        unit: String,
        /// Its spec.
        spec: Arc<Spec>,
        /// Earliest start, milliseconds since 1970.
        due: i64,
        /// Whether it is not a retry: its trigger starts few runs a minute.
        paced: bool,
        /// Whether the ledger has given it to a runner.
        handed_over: bool,
    },
    /// It was begun.
    Begun {
        /// The unit, without its payload.
        unit: Box<Unit>,
        /// When its start was booked, milliseconds since 1970.
        started: Option<i64>,
        /// What to do.
        recovery: Recovery,
    },
    /// Another node runs it, or was to.
    Delegated {
        /// The unit, without its payload.
        unit: Box<Unit>,
        /// When its command was heard to have started, milliseconds since 1970.
        started: Option<i64>,
        /// Whether the earlier client has noted what it waits for.
        noted: bool,
    },
}

/// Checks every unit that has not ended. Nothing large is read of units that wait, because there
/// may be many.
///
/// # Errors
/// When the ledger or a folder cannot be read.
pub fn survey(pipeline: &Pipeline) -> Result<Vec<Left>> {
    let (mut left, reader) = (Vec::new(), &pipeline.reader);
    // One look at all processes takes milliseconds, and most clients need none.
    let processes = LazyCell::new(|| values_of(UNIT_VARIABLE));
    // A unit that was handed over and never begun came before those of its lane that wait.
    for state in [State::Running, State::Pending] {
        let mut page = reader.live_page(state, 0)?;
        while let Some(last) = page.last() {
            let seq = last.seq;
            for record in page {
                left.push(look(pipeline, record, &processes)?);
            }
            page = reader.live_page(state, seq)?;
        }
    }
    Ok(left)
}

/// Returns what to do with a unit. `processes` are the units that processes belong to.
fn look(
    pipeline: &Pipeline,
    record: Record,
    processes: &LazyCell<HashSet<String>, impl FnOnce() -> HashSet<String>>,
) -> Result<Left> {
    let is_away = node_of_lane(record.unit.lane()).is_some();
    if is_away && record.state == State::Running {
        let record = pipeline.reader.unit(&record.unit.id)?.unwrap_or(record);
        return Ok(Left::Delegated {
            started: record.started,
            noted: record.note.is_some(),
            unit: Box::new(record.unit),
        });
    }
    let trace = pipeline.dir(&record.unit.id).trace()?;
    let same_boot = record.boot.as_deref() == Some(&*pipeline.boot);
    let unit = &record.unit.id;
    let recovery = match recover(record.state, trace, same_boot, record.started.is_some()) {
        // A command may have removed its own folder before its start was booked.
        Recovery::Queue if record.boot.is_some() && processes.contains(unit) => {
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
    // It is published, and possibly retried.
    let record = pipeline.reader.unit(unit)?.unwrap_or(record);
    Ok(Left::Begun {
        started: record.started,
        unit: Box::new(record.unit),
        recovery,
    })
}

/// Ends the remaining processes of a run that has lost its runner, and returns the outcome of the
/// run. Otherwise no one would see their end, and its event could run again beside them.
pub fn end_orphans(pipeline: &Pipeline, unit: &str, started: Option<i64>) -> Outcome {
    // The process may have been killed before it could be noted, or have ended since.
    let noted = pipeline.dir(unit).notes().process(&pipeline.boot);
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
