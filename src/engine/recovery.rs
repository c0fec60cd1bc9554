//! What a client does with runs that an earlier one, or their runner, has left.

use std::path::Path;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::engine::job::UNIT_VARIABLE;
use crate::engine::pipeline::{Live, Pipeline, Then};
use crate::error::{Error, Result};
use crate::model::unit::{Outcome, Recovery, Trace, Unit, recover};
use crate::os::descent::{is_in_use, kill_orphans};
use crate::os::host::is_id;
use crate::store::ledger::{Op, Reader, Record};
use crate::store::streams::{RUNNERS, UnitDir};

/// Wait before a run is looked at again that nobody could be had to wait for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A unit that has not ended in the ledger, and what is to be done with it.
#[derive(Debug)]
pub struct Left {
    /// The unit.
    pub unit: Unit,
    /// When its start was booked, milliseconds since the epoch.
    pub started: Option<i64>,
    /// Whether the ledger has handed it to a runner.
    pub handed_over: bool,
    /// What to do.
    pub recovery: Recovery,
}

/// Looks at every unit that has not ended.
///
/// # Errors
/// When the ledger or a folder cannot be read.
pub fn survey(pipeline: &Path, reader: &Reader, boot: &str) -> Result<Vec<Left>> {
    reader
        .units(true)?
        .into_iter()
        .map(|record| look(pipeline, reader, record, boot))
        .collect()
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
    // What only waits is read whole when it starts; anything else may be tried again.
    let record = match recovery {
        Recovery::Queue => record,
        _ => reader.unit(unit)?.unwrap_or(record),
    };
    let unit = &record.unit.id;
    match &recovery {
        Recovery::Queue => {}
        Recovery::Adopt => info!(TAEL_UNIT = unit, "run goes on, adopted"),
        Recovery::Settle(_) => info!(TAEL_UNIT = unit, "run has ended meanwhile"),
        Recovery::Interrupted => warn!(TAEL_UNIT = unit, "run was interrupted"),
    }
    Ok(Left {
        handed_over: record.boot.is_some(),
        started: record.started,
        unit: record.unit,
        recovery,
    })
}

/// Removes the folders of units that the ledger does not hold, released ones that could not
/// be removed; and what killed runners have left.
///
/// # Errors
/// When the ledger or the folders cannot be read.
pub fn sweep(pipeline: &Path, reader: &Reader) -> Result<()> {
    for id in names(&pipeline.join("units"))? {
        let dir = UnitDir::new(pipeline, &id);
        // What is no folder, or has another name than units have, somebody else has put there.
        if is_id(&id) && dir.path().is_dir() && reader.unit(&id)?.is_none() {
            discard(&dir)?;
        }
    }
    let runners = pipeline.join(RUNNERS);
    for name in names(&runners)? {
        let path = runners.join(name);
        if path.is_dir() {
            discard(&UnitDir::at(path))?;
        } else if let Err(e) = std::fs::remove_file(&path) {
            warn!("cannot remove {}: {e}", path.display());
        }
    }
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let unreadable = |e| Error::cannot_create(format!("read {}: {e}", folder.display()));
    let entries = std::fs::read_dir(folder).map_err(unreadable)?;
    entries
        .map(|entry| {
            let name = entry.map_err(unreadable)?.file_name();
            Ok(name.to_string_lossy().into_owned())
        })
        .collect()
}

/// Removes a folder that no runner holds.
fn discard(dir: &UnitDir) -> Result<()> {
    if dir.trace()? != Trace::Alive
        && let Err(e) = dir.remove()
    {
        warn!("cannot remove {}: {e}", dir.path().display());
    }
    Ok(())
}

impl Pipeline {
    /// Goes on with a unit that was left.
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
                self.wait(&unit.trigger, &unit.id, unit.due);
            }
            Recovery::Settle(outcome) => self.finish(unit, said, &outcome),
            Recovery::Interrupted => {
                let outcome = self.end_orphans(&unit.id, started);
                self.finish(unit, said, &outcome);
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

    /// Waits for a run whose runner another client has started.
    pub(super) fn adopt(&mut self, live: Live) {
        let unit = live.unit.id.clone();
        let (dir, adopted, id) = (self.dir(&unit), self.adopted.0.clone(), unit.clone());
        self.live.insert(unit.clone(), live);
        // One thread for each run that was going on when the client started.
        let waiter = std::thread::Builder::new().name("adopted".into());
        let waiting = waiter.stack_size(64 * 1024).spawn(move || {
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
    pub(super) fn interrupted(&mut self, live: Live) {
        let outcome = self.end_orphans(&live.unit.id, live.started);
        self.finish(live.unit, live.said, &outcome);
    }

    /// Ends what is left of a run that has lost its runner: nobody would see its end, and its event
    /// may run again. Returns the outcome of the run.
    fn end_orphans(&self, unit: &str, started: Option<i64>) -> Outcome {
        // The process may have been killed before it could be noted, or have ended since.
        let noted = self.dir(unit).read_process(&self.boot);
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
