//! The folder of a unit: its streams, its lock and its outcome.
//!
//! ```text
//! units/<id>/stdin     the event's payload
//! units/<id>/stdout    what the command wrote
//! units/<id>/stderr
//! units/<id>/begun     there once the command may have started; then its process
//! units/<id>/lock      held while the runner works on the unit
//! units/<id>/control   a FIFO: one byte cancels
//! units/<id>/cancel    there once somebody has asked for the end
//! units/<id>/outcome   how it ended
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::sys::stat::Mode;

use crate::error::{Error, Result};
use crate::model::unit::{Outcome, Trace};
use crate::os::lock::Lock;
use crate::store::outcome::{outcome_text, parse_outcome};

/// Creates `path` and its parents with mode 0700.
///
/// # Errors
/// When it cannot be created (73).
pub fn create_private_dir(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| Error::cannot_create(format!("create folder {}: {e}", path.display())))
}

/// One of a command's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    const fn file(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

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
            path: pipeline.join("units").join(id),
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

    /// Creates the folder with the command's standard input and all that a runner opens, so
    /// that a runner has less to do when it counts.
    ///
    /// # Errors
    /// As the file system.
    pub fn create(&self, stdin: &[u8]) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.path) {
            // A client that died before the run began has left it.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        self.create_file("stdin")?.write_all(stdin)?;
        for name in ["stdout", "stderr", "lock"] {
            self.create_file(name)?;
        }
        match nix::unistd::mkfifo(&self.path.join("control"), Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn create_file(&self, name: &str) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.path.join(name))
    }

    /// Keeps a job that is too long for a runner's pipe, and returns its path.
    ///
    /// # Errors
    /// As the file system.
    pub fn write_job(&self, text: &str) -> io::Result<String> {
        self.create_file("job")?.write_all(text.as_bytes())?;
        Ok(self.path.join("job").to_string_lossy().into_owned())
    }

    /// Opens the command's three streams.
    ///
    /// # Errors
    /// As the file system.
    pub fn open_streams(&self) -> io::Result<[File; 3]> {
        let append = |name| {
            OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(self.path.join(name))
        };
        Ok([
            File::open(self.path.join("stdin"))?,
            append("stdout")?,
            append("stderr")?,
        ])
    }

    /// Takes the lock that says: a runner works on this unit. Waits for whoever looks
    /// whether it is held; `None` if the unit was begun by another runner already.
    ///
    /// # Errors
    /// When the file cannot be created or locked.
    pub fn lock(&self) -> Result<Option<Lock>> {
        let lock = Lock::acquire(&self.path.join("lock"))?;
        Ok(lock.filter(|_| !self.path.join("begun").exists()))
    }

    /// Waits until no runner works on the unit.
    ///
    /// # Errors
    /// When the lock cannot be opened.
    pub fn wait_unlocked(&self) -> Result<()> {
        Lock::wait(&self.path.join("lock"))
    }

    /// Marks that the command may have started. It is only read by clients under the same
    /// boot, so it needs no sync.
    ///
    /// # Errors
    /// As the file system.
    pub fn mark_begun(&self) -> io::Result<()> {
        self.create_file("begun").map(drop)
    }

    /// Notes the process that was begun: its id, when it was started, and under which boot.
    ///
    /// # Errors
    /// As the file system.
    pub fn write_process(&self, pid: u32, start: u64, boot: &str) -> io::Result<()> {
        self.create_file("begun")?
            .write_all(format!("{pid} {start} {boot}").as_bytes())
    }

    /// The process that [`UnitDir::write_process`] noted, if that was under this `boot`.
    #[must_use]
    pub fn read_process(&self, boot: &str) -> Option<(u32, u64)> {
        let text = fs::read_to_string(self.path.join("begun")).ok()?;
        let mut words = text.splitn(3, ' ');
        let (pid, start) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        (words.next()? == boot).then_some((pid, start))
    }

    /// Opens the runner's end of the FIFO over which the unit is cancelled.
    ///
    /// # Errors
    /// As `open(2)`.
    pub fn open_control(&self) -> io::Result<File> {
        // Open for writing too, so that it never reads as closed.
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(self.path.join("control"))
    }

    /// Asks for the end of the unit: a runner that works on it ends it, one that takes it up
    /// later does not begin. `false` if no runner was there to hear it.
    ///
    /// # Errors
    /// As the file system.
    pub fn cancel(&self) -> io::Result<bool> {
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        // The mark first: a runner looks for it after it has opened the FIFO.
        self.create_file("cancel")?;
        let opened = OpenOptions::new()
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(self.path.join("control"));
        match opened {
            Ok(mut fifo) => match fifo.write_all(b"c") {
                // Full of requests already.
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
                _ => Ok(true),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) if e.raw_os_error() == Some(Errno::ENXIO as i32) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether somebody has asked for the end of the unit.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.path.join("cancel").exists()
    }

    /// Gives back the disk space in the middle of an output stream that has more than `limit`
    /// bytes: half of that is kept of its head, half of its tail. The stream keeps its size,
    /// so that offsets stay what they were. Returns the bytes dropped from stdout and stderr.
    ///
    /// A file system that cannot do this keeps everything, and nothing counts as dropped.
    #[must_use]
    pub fn trim_streams(&self, limit: u64) -> [u64; 2] {
        [Stream::Stdout, Stream::Stderr].map(|stream| self.trim(stream, limit).unwrap_or(0))
    }

    fn trim(&self, stream: Stream, limit: u64) -> io::Result<u64> {
        let file = OpenOptions::new()
            .write(true)
            .open(self.path.join(stream.file()))?;
        let surplus = file.metadata()?.len().saturating_sub(limit);
        if surplus == 0 {
            return Ok(0);
        }
        let range = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, flags, range(limit / 2), range(surplus))?;
        Ok(surplus)
    }

    /// Writes the outcome so that it is there whole or not at all, also after a power failure.
    ///
    /// # Errors
    /// As the file system.
    pub fn write_outcome(&self, outcome: &Outcome) -> io::Result<()> {
        let (whole, part) = (self.path.join("outcome"), self.path.join("outcome.part"));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)?;
        file.write_all(outcome_text(outcome).as_bytes())?;
        file.sync_data()?;
        fs::rename(part, whole)
    }

    /// The outcome, if there is one.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn read_outcome(&self) -> Result<Option<Outcome>> {
        let path = self.path.join("outcome");
        let wrong = |cause: &dyn std::fmt::Display| {
            Error::cannot_create(format!("read {}: {cause}", path.display()))
        };
        match fs::read(&path) {
            Ok(bytes) => parse_outcome(&bytes)
                .map(Some)
                .ok_or_else(|| wrong(&"it is not an outcome")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(wrong(&e)),
        }
    }

    /// What the folder says about a run.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn trace(&self) -> Result<Trace> {
        if !self.path.join("lock").exists() {
            return Ok(Trace::Fresh);
        }
        // The lock is let go after the outcome is written: ask in that order.
        let Some(_lock) = Lock::try_acquire(&self.path.join("lock"))? else {
            return Ok(Trace::Alive);
        };
        if let Some(outcome) = self.read_outcome()? {
            return Ok(Trace::Ended(outcome));
        }
        if self.path.join("begun").exists() {
            Ok(Trace::Gone)
        } else {
            Ok(Trace::Fresh)
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
    /// # Errors
    /// As the file system; that it is gone already is none.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_tells_what_became_of_its_unit() {
        let state = tempfile::tempdir().expect("tempdir");
        create_private_dir(&state.path().join("units")).expect("units");
        let dir = UnitDir::new(state.path(), "u1");
        assert_eq!(dir.trace(), Ok(Trace::Fresh));
        dir.create(b"in").expect("create");
        assert_eq!(dir.trace(), Ok(Trace::Fresh));
        assert!(!dir.cancel().expect("cancel"), "nobody listens yet");
        assert!(dir.is_cancelled());
        let lock = dir.lock().expect("lock").expect("free");
        dir.mark_begun().expect("begun");
        let control = dir.open_control().expect("control");
        assert_eq!(dir.trace(), Ok(Trace::Alive));
        assert!(dir.cancel().expect("cancel"));
        drop((lock, control));
        assert_eq!(dir.trace(), Ok(Trace::Gone));
        assert!(!dir.cancel().expect("cancel"), "nobody listens any more");
        let outcome = Outcome::interrupted(1);
        dir.write_outcome(&outcome).expect("outcome");
        assert_eq!(dir.trace(), Ok(Trace::Ended(outcome)));
        dir.remove().expect("remove");
        dir.remove().expect("remove again");
    }
}
