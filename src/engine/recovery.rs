//! What a client does at start with the units that an earlier one has left.

use std::path::Path;

use tracing::{info, warn};

use crate::engine::config::RUNNERS;
use crate::error::{Error, Result};
use crate::model::unit::{Recovery, Trace, Unit, recover};
use crate::os::host::is_id;
use crate::store::ledger::{Reader, Record};
use crate::store::streams::UnitDir;

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
    let recovery = recover(record.state, trace, same_boot, record.started.is_some());
    let unit = &record.unit.id;
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
