//! The output streams of a command, and the files that hold them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};

use crate::model::remote::wire::StreamName;

/// Mode of the files in a unit's folder.
pub(super) const MODE: u32 = 0o600;

/// An output stream of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Name of its file in the unit's folder.
    #[must_use]
    pub const fn file(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

impl From<StreamName> for Stream {
    fn from(name: StreamName) -> Self {
        match name {
            StreamName::Stdout => Self::Stdout,
            StreamName::Stderr => Self::Stderr,
        }
    }
}

/// Opens the file of a stream at `path` for reading. A pipe that another process has put there must not
/// block us.
///
/// # Errors
/// As `open(2)`.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(O_NONBLOCK);
    options.open(path)
}

/// The files that a runner writes a command's streams to.
///
/// A file is created with its first byte: creating files costs a file system more than anything
/// else a run does, and most commands write nothing, or to one stream only.
#[derive(Debug, Default)]
pub struct StreamFiles([Option<File>; 2]);

impl StreamFiles {
    /// Whether no file was opened: the command has written nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        matches!(self.0, [None, None])
    }

    /// Returns the file of `stream` in `folder`, open for appending.
    ///
    /// # Errors
    /// As `open(2)`.
    pub(super) fn open(&mut self, folder: &Path, stream: Stream) -> io::Result<&File> {
        let [stdout, stderr] = &mut self.0;
        let slot = match stream {
            Stream::Stdout => stdout,
            Stream::Stderr => stderr,
        };
        let file = match slot.take() {
            Some(file) => file,
            None => {
                let mut options = OpenOptions::new();
                options.append(true).create(true);
                // A pipe that another process has put there must not block the runner.
                options.mode(MODE).custom_flags(O_NOFOLLOW | O_NONBLOCK);
                options.open(folder.join(stream.file()))?
            }
        };
        Ok(slot.insert(file))
    }
}
