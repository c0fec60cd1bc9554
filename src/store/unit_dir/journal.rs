//! The record of a run: a line for each step, written by its runner.
//!
//! ```text
//! begun ID                      the command may have started
//! process ID PID START BOOT     the command's process, when it started, and under which boot
//! hole-stdout ID HEAD TAIL      the file has a hole between its first and last bytes
//! cut-stdout ID HEAD            the stream's bytes after the first HEAD are not in the file yet
//! ended ID OUTCOME              how the command ended, as JSON
//! ```
//!
//! A folder can serve another unit later, and a power failure can bring back an old record. Every
//! line therefore names its unit. The runner holds the lock of the file until the run has ended.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::Result;
use crate::model::outcome::{outcome_text, parse_outcome};
use crate::model::unit::Outcome;
use crate::os::lock::Lock;
use crate::store::unit_dir::stream::Stream;

/// First words of the lines.
const BEGUN: &str = "begun";
const PROCESS: &str = "process";
const ENDED: &str = "ended";
const HOLE: [&str; 2] = ["hole-stdout", "hole-stderr"];
const CUT: [&str; 2] = ["cut-stdout", "cut-stderr"];

const fn of(words: [&'static str; 2], stream: Stream) -> &'static str {
    let [stdout, stderr] = words;
    match stream {
        Stream::Stdout => stdout,
        Stream::Stderr => stderr,
    }
}

/// A record, as it was read.
#[derive(Debug)]
pub struct Notes {
    text: String,
    id: String,
}

impl Notes {
    /// Reads the record of unit `id`. It is empty if it cannot be read.
    pub(super) fn read(path: &Path, id: &str) -> Self {
        Self::new(&fs::read(path).unwrap_or_default(), id)
    }

    /// What `bytes` say about unit `id`.
    pub(super) fn new(bytes: &[u8], id: &str) -> Self {
        Self {
            text: String::from_utf8_lossy(bytes).into_owned(),
            id: id.to_owned(),
        }
    }

    /// Returns the rest of the first whole line that begins with `word` and the unit's id. A line
    /// without a line feed is what a power failure has left, and does not count.
    fn find(&self, word: &str) -> Option<&str> {
        let whole = self.text.split_inclusive('\n');
        let whole = whole.filter_map(|line| line.strip_suffix('\n'));
        let mut rests = whole.filter_map(|line| {
            let rest = line.strip_prefix(word)?.strip_prefix(' ')?;
            let rest = rest.strip_prefix(self.id.as_str())?;
            rest.is_empty().then_some("").or(rest.strip_prefix(' '))
        });
        rests.next()
    }

    /// Whether the command may have started.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.find(BEGUN).is_some()
    }

    /// Returns the command's process, if it started under this `boot`: id and start time.
    #[must_use]
    pub fn process(&self, boot: &str) -> Option<(u32, u64)> {
        let mut words = self.find(PROCESS)?.splitn(3, ' ');
        let (pid, start) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        (words.next()? == boot).then_some((pid, start))
    }

    /// Returns how the command ended, if it has: `Some(None)` for an outcome that cannot be read.
    #[must_use]
    #[allow(clippy::option_option)] // no line, and a line that says nothing, are different things
    pub fn outcome(&self) -> Option<Option<Outcome>> {
        self.find(ENDED).map(|text| parse_outcome(text.as_bytes()))
    }

    /// Returns how many bytes at the head and at the tail of `stream` a hole leaves.
    #[must_use]
    pub fn hole(&self, stream: Stream) -> Option<(u64, u64)> {
        let (head, tail) = self.find(of(HOLE, stream))?.split_once(' ')?;
        Some((head.parse().ok()?, tail.parse().ok()?))
    }

    /// Returns how many bytes of `stream` its file holds before the first that is missing.
    #[must_use]
    pub fn cut(&self, stream: Stream) -> Option<u64> {
        self.find(of(CUT, stream))?.parse().ok()
    }
}

/// The record of a run, in the hands of its runner.
#[derive(Debug)]
pub struct Journal {
    lock: Lock,
    /// Bytes of the record that are whole lines.
    whole: u64,
}

impl Journal {
    /// Opens the record at `path`, creates it if it is missing, and takes its lock. Waits for
    /// processes that look at the lock.
    ///
    /// # Errors
    /// As the file system.
    pub(super) fn open(path: &Path) -> Result<Self> {
        Lock::acquire(path).map(|lock| Self { lock, whole: 0 })
    }

    /// Reads the record at `path`, which is this one, and continues after its last whole line.
    ///
    /// # Errors
    /// As the file system.
    pub(super) fn resume(&mut self, path: &Path, id: &str) -> io::Result<Notes> {
        let bytes = fs::read(path)?;
        let whole = bytes.iter().rposition(|b| *b == b'\n');
        self.whole = whole.map_or(0, |at| at as u64 + 1);
        Ok(Notes::new(&bytes, id))
    }

    fn note(&mut self, text: &str) -> io::Result<()> {
        let file = self.lock.file();
        let noted = file.write_all_at(text.as_bytes(), self.whole);
        match noted {
            Ok(()) => self.whole += text.len() as u64,
            // Otherwise half a line would run into the next one.
            Err(_) => file.set_len(self.whole)?,
        }
        noted
    }

    /// Notes that the command may have started. Readers believe that under the same boot only, so
    /// that it needs no sync.
    ///
    /// # Errors
    /// As the file system; likewise below.
    pub(super) fn begin(&mut self, id: &str) -> io::Result<()> {
        self.note(&format!("{BEGUN} {id}\n"))
    }

    pub(super) fn process(&mut self, id: &str, pid: u32, start: u64, boot: &str) -> io::Result<()> {
        self.note(&format!("{PROCESS} {id} {pid} {start} {boot}\n"))
    }

    pub(super) fn end(&mut self, id: &str, outcome: &Outcome) -> io::Result<()> {
        self.note(&format!("{ENDED} {id} {}\n", outcome_text(outcome)))
    }

    pub(super) fn hole(&mut self, id: &str, of_: Stream, head: u64, tail: u64) -> io::Result<()> {
        self.note(&format!("{} {id} {head} {tail}\n", of(HOLE, of_)))
    }

    pub(super) fn cut(&mut self, id: &str, of_: Stream, head: u64) -> io::Result<()> {
        self.note(&format!("{} {id} {head}\n", of(CUT, of_)))
    }

    /// The file, open for writing.
    pub(super) fn file(&self) -> &File {
        self.lock.file()
    }

    /// Releases the lock and keeps the file, unless the kernel has closed it.
    pub(super) fn release(self) -> Option<File> {
        self.lock.release()
    }
}
