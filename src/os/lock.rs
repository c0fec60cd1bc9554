//! Locks of the kernel, which end with their holder.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;

use crate::error::{Error, Result};

/// Maximum length of the signature of a holder, bytes.
const MAX_SIGNATURE: u64 = 512;

/// An exclusive `flock(2)`, released when dropped or when the process ends.
#[derive(Debug)]
pub struct Lock {
    file: Flock<File>,
}

impl Lock {
    /// Waits without a limit until no process holds the lock on `path`.
    ///
    /// # Errors
    /// When the file cannot be opened or waited for.
    pub fn wait(path: &Path) -> Result<()> {
        let refused = |cause: &str| {
            Error::cannot_create(format!("wait for lock {}: {cause}", path.display()))
        };
        let mut file = File::open(path).map_err(|e| refused(&e.to_string()))?;
        loop {
            file = match Flock::lock(file, FlockArg::LockShared) {
                Ok(_) => return Ok(()),
                Err((file, Errno::EINTR)) => file,
                Err((_, e)) => return Err(refused(e.desc())),
            };
        }
    }

    /// Returns whether a process holds the lock on `file`. Processes that only ask do not block
    /// each other.
    ///
    /// # Errors
    /// When that cannot be determined.
    pub fn is_held(file: File) -> Result<bool> {
        let mut file = file;
        loop {
            file = match Flock::lock(file, FlockArg::LockSharedNonblock) {
                Ok(_) => return Ok(false),
                Err((_, Errno::EWOULDBLOCK)) => return Ok(true),
                Err((file, Errno::EINTR)) => file,
                Err((_, e)) => {
                    let cause = e.desc();
                    return Err(Error::cannot_create(format!("look at a lock: {cause}")));
                }
            };
        }
    }

    /// Takes the lock on `path`, creating the file with mode 0600; `None` if another
    /// process holds it.
    ///
    /// # Errors
    /// When the file cannot be created or locked at all.
    pub fn try_acquire(path: &Path) -> Result<Option<Self>> {
        Self::take(path, FlockArg::LockExclusiveNonblock)
    }

    /// Takes the lock on `path`, creating the file with mode 0600, and waits for it if
    /// another process holds it.
    ///
    /// # Errors
    /// When the file cannot be created or locked at all.
    pub fn acquire(path: &Path) -> Result<Self> {
        let refused = || Error::cannot_create(format!("lock {}: it is held", path.display()));
        Self::take(path, FlockArg::LockExclusive)?.ok_or_else(refused)
    }

    /// Writes `holder` into the file, for processes that find it locked.
    ///
    /// # Errors
    /// As the file system.
    pub fn sign(&self, holder: &str) -> io::Result<()> {
        self.file.write_all_at(holder.as_bytes(), 0)?;
        // To cut a file off can take milliseconds.
        let length = u64::try_from(holder.len()).unwrap_or(u64::MAX);
        if self.file.metadata()?.len() > length {
            self.file.set_len(length)?;
        }
        Ok(())
    }

    /// Returns what the holder of the lock on `path` has written, if anything.
    #[must_use]
    pub fn signature(path: &Path) -> Option<String> {
        let mut text = String::new();
        let file = File::open(path).ok()?;
        file.take(MAX_SIGNATURE).read_to_string(&mut text).ok()?;
        (!text.trim().is_empty()).then(|| text.trim().to_owned())
    }

    /// Returns the locked file, open for writing.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Releases the lock and keeps the file; `None` if the kernel refuses, and has closed the file.
    #[must_use]
    pub fn release(self) -> Option<File> {
        self.file.unlock().ok()
    }

    fn take(path: &Path, how: FlockArg) -> Result<Option<Self>> {
        let refused =
            |cause: &io::Error| Error::state(cause, format!("lock {}: {cause}", path.display()));
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(|e| refused(&e))?;
        loop {
            file = match Flock::lock(file, how) {
                Ok(file) => return Ok(Some(Self { file })),
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                Err((file, Errno::EINTR)) => file,
                Err((_, e)) => return Err(refused(&e.into())),
            };
        }
    }
}
