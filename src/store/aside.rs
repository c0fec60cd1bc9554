//! Folders in a state folder that belong to no unit of the ledger.
//!
//! Only marked folders are deleted: a table of the ledger names the units that were released, and
//! the name of a folder shows that it is being removed. All other folders are moved. The ledger may
//! have been moved away or replaced by an older one, and then the folder of a run holds its only
//! output.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::error::{Error, Result};
use crate::model::unit::Trace;
use crate::os::host::is_id;
use crate::store::ledger::Reader;
use crate::store::private::create_private_dir;
use crate::store::unit_dir::{GONE, RUNNERS, UNITS, UnitDir};

/// Name of the folder for units that the ledger does not know, beside that of the units.
pub(super) const ASIDE: &str = "units-aside";

/// Maximum number of folders that are moved under one name.
const NAMESAKES: u32 = 100;

/// Moves the folders of unknown units aside, and removes what killed runners have left. Released
/// units are handled elsewhere.
///
/// Returns whether there were any: then the ledger is not the last one of this folder.
///
/// # Errors
/// When the ledger or the folders cannot be read.
pub fn sweep(pipeline: &Path, reader: &Reader) -> Result<bool> {
    let mut aside = 0;
    let mut ids = names(&pipeline.join(UNITS))?;
    // Everything else was put there by another program.
    ids.retain(|id| is_id(id));
    ids.sort_unstable();
    for id in reader.unknown(&ids)? {
        let dir = UnitDir::new(pipeline, id);
        if is_folder(dir.path()) && !reader.is_released(id)? {
            aside += usize::from(set_aside(pipeline, &dir)?);
        }
    }
    if aside > 0 {
        let place = pipeline.join(ASIDE);
        warn!(
            "the ledger does not know {aside} of the runs whose folders are here; moved them to \
             {}: delete them there when their output is not needed any more",
            place.display()
        );
    }
    let runners = pipeline.join(RUNNERS);
    for name in names(&runners)? {
        sweep_runner(&runners.join(&name), &name)?;
    }
    Ok(aside > 0)
}

/// Removes what a killed runner has left, and what was being removed.
fn sweep_runner(path: &Path, name: &str) -> Result<()> {
    let removed = if name.ends_with(".job") {
        fs::remove_file(path)
    } else if is_folder(path)
        && (name.starts_with(GONE) || name.bytes().all(|b| b.is_ascii_digit()))
        && UnitDir::at(path.to_owned()).trace()? != Trace::Alive
    {
        fs::remove_dir_all(path)
    } else {
        Ok(())
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            warn!("cannot remove {}: {e}", path.display());
        }
        _ => {}
    }
    Ok(())
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let unreadable = |e| Error::state(&e, format!("read {}: {e}", folder.display()));
    let entries = fs::read_dir(folder).map_err(unreadable)?;
    entries
        .map(|entry| {
            let name = entry.map_err(unreadable)?.file_name();
            Ok(name.to_string_lossy().into_owned())
        })
        .collect()
}

/// Moves the folder aside; returns whether it did. An empty folder of a run that never began is
/// removed. A folder in use by a runner stays.
fn set_aside(pipeline: &Path, dir: &UnitDir) -> Result<bool> {
    if matches!(dir.trace(), Ok(Trace::Alive)) || remove_empty(dir.path()).is_ok() {
        return Ok(false);
    }
    let place = pipeline.join(ASIDE);
    create_private_dir(&place)?;
    let moved = free_name(&place, dir.path()).and_then(|free| fs::rename(dir.path(), free));
    if let Err(e) = &moved {
        warn!("cannot move {} aside: {e}", dir.path().display());
    }
    Ok(moved.is_ok())
}

fn free_name(place: &Path, dir: &Path) -> io::Result<PathBuf> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let names = (0..NAMESAKES).map(|n| match n {
        0 => place.join(&*name),
        n => place.join(format!("{name}.{n}")),
    });
    let mut free = names.filter(|path| fs::symlink_metadata(path).is_err());
    free.next()
        .ok_or_else(|| io::ErrorKind::AlreadyExists.into())
}

/// Removes the folder `path` if all files in it are empty.
fn remove_empty(path: &Path) -> io::Result<()> {
    let entries: Vec<_> = fs::read_dir(path)?.collect::<io::Result<_>>()?;
    for entry in &entries {
        let meta = entry.metadata()?;
        if !meta.is_file() || meta.len() > 0 {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
    }
    for entry in &entries {
        fs::remove_file(entry.path())?;
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_empty_is_removed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let unit = dir.path().join("u");
        fs::create_dir(&unit).expect("folder");
        let file = |name: &str, text: &str| fs::write(unit.join(name), text).expect("file");
        file("stdout", "");
        file("stderr", "x");
        assert!(remove_empty(&unit).is_err() && unit.join("stdout").exists());
        file("stderr", "");
        fs::create_dir(unit.join("made")).expect("folder");
        assert!(remove_empty(&unit).is_err() && unit.join("stdout").exists());
        fs::remove_dir(unit.join("made")).expect("remove");
        remove_empty(&unit).expect("empty");
        assert!(!unit.exists());
    }

    #[test]
    fn a_name_that_is_taken_gets_a_number() {
        let dir = tempfile::tempdir().expect("tempdir");
        let unit = Path::new("elsewhere/u");
        let free = || free_name(dir.path(), unit).expect("free");
        assert_eq!(free(), dir.path().join("u"));
        fs::create_dir(dir.path().join("u")).expect("folder");
        assert_eq!(free(), dir.path().join("u.1"));
    }
}
