//! Payloads that are too large for the ledger: each in a file of its own.
//!
//! A file is written and synced before the ledger names it. When the ledger does not need it any more,
//! it marks it as released, and the file is removed after that. A file without a row and without a mark
//! was left by a client that was killed before its commit.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::error::{Error, Result};
use crate::os::host::{is_id, new_id};
use crate::store::aside::ASIDE;
use crate::store::ledger::Reader;
use crate::store::ledger::submitted::payload_files;
use crate::store::private::create_private_dir;

/// Mode of a file.
const MODE: u32 = 0o600;

/// Name of the folder of the files, in that of the pipeline.
const FOLDER: &str = "payloads";

/// Returns the path of the file called `name` of the pipeline in the folder `home`.
#[must_use]
pub fn path(home: &Path, name: &str) -> PathBuf {
    home.join(FOLDER).join(name)
}

/// A file that is being written. It is removed when this is dropped, unless it was kept.
#[derive(Debug)]
pub struct Writing {
    file: File,
    name: String,
    path: PathBuf,
    bytes: u64,
    kept: bool,
}

impl Writing {
    /// Creates a file for the pipeline in the folder `home`.
    ///
    /// # Errors
    /// When it cannot be created (73).
    pub fn create(home: &Path) -> Result<Self> {
        create_private_dir(&home.join(FOLDER))?;
        let name = new_id();
        let path = path(home, &name);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(MODE);
        let file = options.open(&path);
        let file = file.map_err(|e| Error::state(&e, format!("create {}: {e}", path.display())))?;
        Ok(Self {
            file,
            name,
            path,
            bytes: 0,
            kept: false,
        })
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// As the file system.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Writes the file and its name to disk, and keeps the file until it is [removed](remove).
    /// Returns its name and its size.
    ///
    /// # Errors
    /// As the file system.
    pub fn keep(mut self) -> io::Result<(String, u64)> {
        self.file.sync_all()?;
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        self.kept = true;
        Ok((std::mem::take(&mut self.name), self.bytes))
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.kept {
            // The next start removes one that stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes the file called `name` of the pipeline in the folder `home`, if there is one.
///
/// # Errors
/// As the file system.
pub fn remove(home: &Path, name: &str) -> io::Result<()> {
    match fs::remove_file(path(home, name)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Removes files of the pipeline in the folder `home` that its ledger does not know. If the ledger was
/// `replaced` by another one, they are moved aside. Nothing may be submitted meanwhile.
///
/// # Errors
/// When the ledger or the folder cannot be read.
pub fn sweep(home: &Path, reader: &Reader, replaced: bool) -> Result<()> {
    let folder = home.join(FOLDER);
    let unreadable = |e: io::Error| Error::state(&e, format!("read {}: {e}", folder.display()));
    let entries = match fs::read_dir(&folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(unreadable)?,
    };
    let known: HashSet<String> = payload_files(reader)?.into_iter().collect();
    for entry in entries {
        let name = entry.map_err(unreadable)?.file_name();
        let name = name.to_string_lossy();
        // Everything else was put there by another program.
        if !is_id(&name) || known.contains(&*name) {
            continue;
        }
        let aside = home.join(ASIDE);
        let done = match replaced {
            true => create_private_dir(&aside).is_ok_and(|()| {
                let aside = aside.join(format!("payload-{name}"));
                fs::rename(path(home, &name), aside).is_ok()
            }),
            false => remove(home, &name).is_ok(),
        };
        match (done, replaced) {
            (true, true) => info!("moved payload {name} to {}", aside.display()),
            (true, false) => info!("removed a payload that was not accepted: {name}"),
            (false, _) => warn!("cannot remove payload {name}, which no unit has"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_stays_only_if_it_is_kept() {
        let home = tempfile::tempdir().expect("tempdir");
        let count = || {
            fs::read_dir(home.path().join(FOLDER))
                .expect("folder")
                .count()
        };
        let write = || {
            let mut writing = Writing::create(home.path()).expect("create");
            writing.write(b"ab").expect("write");
            writing.write(b"c").expect("write");
            writing
        };
        drop(write());
        assert_eq!(count(), 0);
        let (name, bytes) = write().keep().expect("keep");
        assert_eq!((count(), bytes), (1, 3));
        assert_eq!(fs::read(path(home.path(), &name)).expect("read"), b"abc");
        for _ in 0..2 {
            remove(home.path(), &name).expect("remove");
        }
        assert_eq!(count(), 0);
    }
}
