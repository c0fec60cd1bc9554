//! The folder of a unit: its streams, and the record of its run.
//!
//! ```text
//! units/<id>/stdout        what the command wrote
//! units/<id>/stderr
//! units/<id>/outcome       what its runner has noted, at last how it ended; locked by it till then
//! units/<id>/cancel-<id>   there once somebody has asked for the end
//! ```
//!
//! The folder of a run that has left nothing behind serves another unit once the ledger knows
//! how it ended. What is in a folder therefore names the unit that it belongs to: a power
//! failure may bring back what was there before.

pub mod gap;
pub mod hold;
pub mod output;
pub mod recycle;

use std::borrow::Cow;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::model::outcome::parse_outcome;
use crate::model::unit::Trace;
use crate::os::lock::Lock;

/// Creates `path` and its parents with mode 0700.
///
/// # Errors
/// When it cannot be created (73), or not now (75).
pub fn create_private_dir(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| Error::state(&e, format!("create folder {}: {e}", path.display())))
}

/// Begin the lines of a record, before the unit's id: the command may have started; its process;
/// how it ended.
pub(super) const BEGUN: &str = "begun";
pub(super) const PROCESS: &str = "process";
pub(super) const ENDED: &str = "ended";

/// Begin the lines about a stream that is not whole: its file has a hole; its file lacks bytes.
const HOLE: [&str; 2] = ["hole-stdout", "hole-stderr"];
const CUT: [&str; 2] = ["cut-stdout", "cut-stderr"];

/// One of a command's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    pub(super) const fn file(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    pub(super) const fn hole(self) -> &'static str {
        HOLE[self as usize]
    }

    pub(super) const fn cut(self) -> &'static str {
        CUT[self as usize]
    }
}

/// What the record `text` has noted of unit `id` after `word`. What a power failure has left of
/// a line is none.
pub(super) fn noted<'a>(text: &'a str, word: &str, id: &str) -> Option<&'a str> {
    let whole = text.split_inclusive('\n');
    let whole = whole.filter_map(|line| line.strip_suffix('\n'));
    let mut rests = whole.filter_map(|line| {
        let rest = line.strip_prefix(word)?.strip_prefix(' ')?;
        let rest = rest.strip_prefix(id)?;
        rest.is_empty().then_some("").or(rest.strip_prefix(' '))
    });
    rests.next()
}

/// Name of the folder, beside that of the units, for what belongs to no unit: what runners make
/// ahead, jobs, and what is being removed.
pub const RUNNERS: &str = "runners";

/// Name of the folder of all units.
pub const UNITS: &str = "units";

/// Begins the name of a folder that is being removed.
pub const GONE: &str = "gone-";

/// The folder of one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitDir {
    path: PathBuf,
}

impl UnitDir {
    /// The folder of unit `id` below the pipeline's folder.
    #[must_use]
    pub fn new(pipeline: &Path, id: &str) -> Self {
        Self {
            path: pipeline.join(UNITS).join(id),
        }
    }

    /// A unit's folder by its own path.
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

    /// The record of the run: nothing of the unit until it begins, then a line for each step of
    /// it. Its lock is held while a runner works on the unit.
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.path.join("outcome")
    }

    /// Waits until no runner works on the unit.
    ///
    /// # Errors
    /// When the lock cannot be opened.
    pub fn wait_unlocked(&self) -> Result<()> {
        Lock::wait(&self.record())
    }

    /// The process that the record names, if that was begun under this `boot`: its id and when
    /// it was started.
    #[must_use]
    pub fn read_process(&self, boot: &str) -> Option<(u32, u64)> {
        let text = fs::read_to_string(self.record()).ok()?;
        let mut words = noted(&text, PROCESS, &self.id())?.splitn(3, ' ');
        let (pid, start) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        (words.next()? == boot).then_some((pid, start))
    }

    /// Asks for the end of the unit: a runner that works on it ends it, one that takes it up
    /// later does not begin.
    ///
    /// # Errors
    /// As the file system.
    pub fn cancel(&self) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).mode(0o600);
        options.open(self.cancel_mark()).map(drop)
    }

    /// Whether somebody has asked for the end of the unit.
    #[must_use]
    pub fn is_canceled(&self) -> bool {
        self.cancel_mark().exists()
    }

    fn cancel_mark(&self) -> PathBuf {
        self.path.join(self.mark())
    }

    fn mark(&self) -> String {
        format!("cancel-{}", self.id())
    }

    /// Whether the end of `unit` was asked for while this was its folder.
    pub(super) fn is_marked_for(&self, unit: &Self) -> bool {
        self.path.join(unit.mark()).exists()
    }

    /// What the folder says about a run.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn trace(&self) -> Result<Trace> {
        let path = self.record();
        let failed = |e: &io::Error| Error::state(e, format!("read {}: {e}", path.display()));
        // It may be removed while we look.
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Trace::Fresh),
            Err(e) => return Err(failed(&e)),
        };
        // The lock is let go after the outcome is written: ask in that order.
        let looking = file.try_clone().map_err(|e| failed(&e))?;
        if Lock::is_held(looking)? {
            return Ok(Trace::Alive);
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|e| failed(&e))?;
        let (text, id) = (String::from_utf8_lossy(&bytes), self.id());
        match noted(&text, ENDED, &id) {
            Some(outcome) => parse_outcome(outcome.as_bytes())
                .map(Trace::Ended)
                .ok_or_else(|| {
                    let cause = "it holds no outcome of ours";
                    Error::cannot_create(format!("read {}: {cause}", path.display()))
                }),
            None if noted(&text, BEGUN, &id).is_some() => Ok(Trace::Gone),
            None => Ok(Trace::Fresh),
        }
    }

    /// Opens a stream for reading.
    ///
    /// # Errors
    /// As the file system.
    pub fn read_stream(&self, stream: Stream) -> io::Result<File> {
        File::open(self.path.join(stream.file()))
    }

    /// The last `bytes` of a stream; nothing if it cannot be read.
    #[must_use]
    pub fn tail(&self, stream: Stream, bytes: u64) -> Vec<u8> {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = self.read_stream(stream)?;
            let start = file.metadata()?.len().saturating_sub(bytes);
            file.seek(SeekFrom::Start(start))?;
            let mut tail = Vec::new();
            file.take(bytes).read_to_end(&mut tail)?;
            Ok(tail)
        };
        read().unwrap_or_default()
    }

    /// Deletes the folder with all that is in it.
    ///
    /// It gets another name first: a runner may take it for another unit at any moment, and what
    /// it has taken must not be deleted under it.
    ///
    /// # Errors
    /// As the file system; that it is gone already is none.
    pub fn remove(&self) -> io::Result<()> {
        let aside = self.path.parent().and_then(Path::parent).map(|pipeline| {
            let name = format!("{GONE}{}", self.id());
            pipeline.join(RUNNERS).join(name)
        });
        let path = match aside {
            Some(aside) if fs::rename(&self.path, &aside).is_ok() => aside,
            // Somebody else was faster.
            _ if fs::symlink_metadata(&self.path).is_err() => return Ok(()),
            _ => self.path.clone(),
        };
        match fs::remove_dir_all(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}
