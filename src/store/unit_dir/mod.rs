//! The folder of a unit: its streams, and the record of its run.
//!
//! ```text
//! units/<id>/stdout        what the command wrote, if it wrote anything
//! units/<id>/stderr
//! units/<id>/order         switches between both, if it wrote to both
//! units/<id>/outcome       the record of the run, locked by its runner until the run has ended
//! units/<id>/cancel-<id>   created to cancel the unit
//! units/<id>/follow-<id>   created while someone waits for its output
//! ```
//!
//! The folder of a run that left nothing behind serves another unit, once the ledger knows how the
//! run ended. Everything in a folder therefore names its unit: a power failure can bring back what
//! was there before.

pub mod both;
pub mod holes;
pub mod incoming;
pub mod journal;
pub mod locked;
mod order;
pub mod output;
pub mod reader;
pub mod recycle;
pub mod stream;

use std::borrow::Cow;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::model::unit::Trace;
use crate::os::lock::Lock;
use crate::store::unit_dir::journal::Notes;
use crate::store::unit_dir::stream::{MODE, Stream};

/// Name of the folder, beside that of the units, for what belongs to no unit: folders that runners
/// make ahead, long jobs, and folders that are being removed.
pub const RUNNERS: &str = "runners";

/// Name of the folder of all units.
pub const UNITS: &str = "units";

/// Maximum number of attempts to mark a folder that runners withdraw at the same moment.
const MAX_CANCELS: u32 = 1000;

/// Prefix of a folder that is being removed.
pub const GONE: &str = "gone-";

/// The folder of one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitDir {
    path: PathBuf,
}

impl UnitDir {
    /// Returns the folder of unit `id` below the pipeline's folder.
    #[must_use]
    pub fn new(pipeline: &Path, id: &str) -> Self {
        Self {
            path: pipeline.join(UNITS).join(id),
        }
    }

    /// Returns a unit's folder by its own path.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name, which is the unit's id.
    pub(super) fn id(&self) -> Cow<'_, str> {
        self.path.file_name().unwrap_or_default().to_string_lossy()
    }

    /// Path of the record. A runner holds its lock while it works on the unit.
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.path.join("outcome")
    }

    /// Path of the file of a stream.
    #[must_use]
    pub fn stream(&self, stream: Stream) -> PathBuf {
        self.path.join(stream.file())
    }

    /// Reads the record; it is empty if it cannot be read.
    #[must_use]
    pub fn notes(&self) -> Notes {
        Notes::read(&self.record(), &self.id())
    }

    /// Waits until no runner works on the unit.
    ///
    /// # Errors
    /// When the lock cannot be opened.
    pub fn wait_unlocked(&self) -> Result<()> {
        Lock::wait(&self.record())
    }

    /// Cancels the unit: a runner that works on it ends it, and a runner that takes it up later
    /// does not begin.
    ///
    /// # Errors
    /// As the file system.
    pub fn cancel(&self) -> io::Result<()> {
        for _ in 0..MAX_CANCELS {
            match self.mark_canceled() {
                Ok(()) if self.is_canceled() => return Ok(()),
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                // A runner has withdrawn the folder meanwhile.
                _ => {}
            }
        }
        Err(io::Error::other("its folder comes and goes"))
    }

    fn mark_canceled(&self) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).mode(MODE);
        options.open(self.cancel_mark()).map(drop)
    }

    /// Whether the unit was canceled.
    #[must_use]
    pub fn is_canceled(&self) -> bool {
        self.cancel_mark().exists()
    }

    /// Makes the runner of the unit say when its command has written something. It looks for that from
    /// its first moments on.
    ///
    /// # Errors
    /// When the unit has no folder, or as the file system.
    pub fn follow(&self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).mode(MODE);
        options.open(self.follow_mark()).map(drop)
    }

    /// Ends that. A mark that stays costs a little time.
    pub fn unfollow(&self) {
        let _ = fs::remove_file(self.follow_mark());
    }

    /// Whether someone waits for what the command writes.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        self.follow_mark().exists()
    }

    fn follow_mark(&self) -> PathBuf {
        self.path.join(format!("follow-{}", self.id()))
    }

    fn cancel_mark(&self) -> PathBuf {
        self.path.join(self.mark())
    }

    fn mark(&self) -> String {
        format!("cancel-{}", self.id())
    }

    /// Whether `unit` was canceled while this was its folder.
    pub(super) fn is_marked_for(&self, unit: &Self) -> bool {
        self.path.join(unit.mark()).exists()
    }

    /// Returns what the folder says about the run.
    ///
    /// # Errors
    /// When the record cannot be read or understood.
    pub fn trace(&self) -> Result<Trace> {
        let path = self.record();
        let failed = |e: &io::Error| Error::state(e, format!("read {}: {e}", path.display()));
        let mut file = match File::open(&path) {
            Ok(file) => file,
            // Another process may remove it meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Trace::Fresh),
            Err(e) => return Err(failed(&e)),
        };
        // A runner writes the outcome and then releases the lock. Look in the other order.
        let looking = file.try_clone().map_err(|e| failed(&e))?;
        if Lock::is_held(looking)? {
            return Ok(Trace::Alive);
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|e| failed(&e))?;
        let notes = Notes::new(&bytes, &self.id());
        match notes.outcome() {
            Some(Some(outcome)) => Ok(Trace::Ended(outcome)),
            Some(None) => {
                let cause = "it holds no outcome that this version can read";
                Err(Error::cannot_create(format!(
                    "read {}: {cause}",
                    path.display()
                )))
            }
            None if notes.is_begun() => Ok(Trace::Gone),
            None => Ok(Trace::Fresh),
        }
    }

    /// Deletes the folder and everything in it; does nothing if it is gone already.
    ///
    /// The folder gets another name first. Otherwise a runner could take it for another unit, and
    /// lose what it has taken.
    ///
    /// # Errors
    /// As the file system.
    pub fn remove(&self) -> io::Result<()> {
        let aside = self.path.parent().and_then(Path::parent).map(|pipeline| {
            let name = format!("{GONE}{}", self.id());
            pipeline.join(RUNNERS).join(name)
        });
        let path = match aside {
            Some(aside) if fs::rename(&self.path, &aside).is_ok() => aside,
            // Another process was faster.
            _ if fs::symlink_metadata(&self.path).is_err() => return Ok(()),
            _ => self.path.clone(),
        };
        match fs::remove_dir_all(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}
