//! Reads what a run has written, from any offset, during the run and after it.
//!
//! An offset counts the bytes that the command wrote. The file of a stream does not hold all of
//! them if there were too many: its middle was given back and is a hole, or its end follows its
//! beginning at once. The record of the run tells which.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use crate::model::unit::{End, Outcome};
use crate::store::unit_dir::UnitDir;
use crate::store::unit_dir::journal::Notes;
use crate::store::unit_dir::stream::{self, Stream};

/// Maximum number of bytes in a chunk.
const CHUNK: usize = 64 * 1024;

/// Whether a run has ended, as far as the reader of its output knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It has not: there may be more.
    No,
    /// It has, and this many bytes of the stream are missing; `None` if they were not counted.
    Yes(Option<u64>),
}

impl Ended {
    /// Returns what `outcome` reports of `stream`. A run can end without an outcome: it was
    /// canceled before it began.
    #[must_use]
    pub fn with(outcome: Option<&Outcome>, stream: Stream) -> Self {
        Self::Yes(outcome.and_then(|outcome| {
            let [stdout, stderr] = outcome.dropped;
            let dropped = match stream {
                Stream::Stdout => stdout,
                Stream::Stderr => stderr,
            };
            // The bytes of a killed runner were not counted.
            (dropped > 0 || outcome.end != End::Interrupted).then_some(dropped)
        }))
    }

    const fn dropped(self) -> Option<u64> {
        match self {
            Self::No => None,
            Self::Yes(dropped) => dropped,
        }
    }
}

/// Content at an offset of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    /// These bytes.
    Bytes(Bytes),
    /// This many bytes that are missing; `None`: all bytes from here to the end of the stream.
    Gap(Option<u64>),
    /// The file has become shorter, because another program has truncated it. The reader begins
    /// again at offset 0.
    Truncated,
    /// Nothing yet.
    Pending,
    /// The end of the stream: the run has ended, and everything was read.
    End,
}

/// Returns a reader of a stream of `unit` that begins at `offset`.
#[must_use]
pub fn output(unit: &UnitDir, stream: Stream, offset: u64) -> OutputReader {
    OutputReader {
        dir: unit.clone(),
        stream,
        file: None,
        at: offset,
        size: 0,
        lost: false,
    }
}

/// Returns at most the last `bytes` bytes of a stream of `unit`, without what is missing among
/// them; nothing if it cannot be read.
#[must_use]
pub fn tail(unit: &UnitDir, stream: Stream, bytes: u64, ended: Ended) -> Vec<u8> {
    let mut reader = output(unit, stream, 0);
    let mut tail = Vec::new();
    let Ok(length) = reader.length(ended) else {
        return tail;
    };
    reader.at = length.saturating_sub(bytes);
    while reader.at < length {
        match reader.next(ended) {
            Ok(Chunk::Bytes(chunk)) => {
                let room = usize::try_from(bytes).unwrap_or(usize::MAX) - tail.len();
                tail.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
            }
            Ok(Chunk::Gap(_)) => {}
            Ok(Chunk::Truncated | Chunk::Pending | Chunk::End) | Err(_) => break,
        }
    }
    tail
}

/// Returns how many bytes of both streams of `unit` can be read; `outcome` is that of a run that has
/// ended.
#[must_use]
pub fn stored(unit: &UnitDir, outcome: Option<&Outcome>) -> u64 {
    let of = |stream| {
        let mut reader = output(unit, stream, 0);
        // Nothing is read of a file that cannot be.
        let (Ok(()), Ok(size)) = (reader.open(), reader.file_size()) else {
            return 0;
        };
        let ended = match outcome {
            Some(outcome) => Ended::with(Some(outcome), stream),
            None => Ended::No,
        };
        match reader.gap(size, ended) {
            Some(gap) if gap.is_hole => size.saturating_sub(gap.bytes.unwrap_or(0)),
            _ => size,
        }
    };
    of(Stream::Stdout) + of(Stream::Stderr)
}

/// A stream of a run that is read in order.
#[derive(Debug)]
pub struct OutputReader {
    dir: UnitDir,
    stream: Stream,
    /// Its file; `None` until the command has written something.
    file: Option<File>,
    /// Offset of the next chunk.
    at: u64,
    /// Size of the file at the last look.
    size: u64,
    /// Whether the rest of the stream is gone.
    lost: bool,
}

impl OutputReader {
    /// Offset of the next chunk.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.at
    }

    /// Goes back to `offset`, which was passed.
    pub(super) const fn go_back(&mut self, offset: u64) {
        self.at = offset;
    }

    /// Returns the content at the offset, and moves on behind it. The caller determines whether the
    /// run has `ended` before the call: what the command wrote until then is read.
    ///
    /// # Errors
    /// As the file system.
    pub fn next(&mut self, ended: Ended) -> io::Result<Chunk> {
        let nothing = match ended {
            Ended::No => Chunk::Pending,
            Ended::Yes(_) => Chunk::End,
        };
        if self.lost {
            return Ok(Chunk::End);
        }
        loop {
            self.open()?;
            let size = self.file_size()?;
            let gap = self.gap(size, ended);
            let shorter = size < std::mem::replace(&mut self.size, size);
            // A file that cannot have holes becomes shorter when it has grown too large.
            if shorter && gap.is_none_or(|gap| gap.is_hole) {
                self.at = 0;
                return Ok(Chunk::Truncated);
            }
            if let Some(gap) = gap
                && gap.at <= self.at
                && self.at < gap.end()
            {
                return Ok(match (gap.bytes, ended) {
                    (Some(_), _) => self.skip(gap.end()),
                    // The bytes after the gap are written when the command has ended.
                    (None, Ended::No) => Chunk::Pending,
                    (None, Ended::Yes(_)) => {
                        self.lost = true;
                        Chunk::Gap(None)
                    }
                });
            }
            let chunk = self.read(gap, size)?;
            if chunk.is_empty() {
                return Ok(nothing);
            }
            // Its middle may have been given back meanwhile, and a hole reads as zeros.
            let gap = self.gap(self.file_size()?, ended);
            let whole = self.bytes_before(gap).min(chunk.len());
            if whole > 0 {
                self.at += whole as u64;
                return Ok(Chunk::Bytes(chunk.slice(..whole)));
            }
        }
    }

    fn skip(&mut self, to: u64) -> Chunk {
        let bytes = to - self.at;
        self.at = to;
        Chunk::Gap(Some(bytes))
    }

    /// Opens the file of the stream, if there is one: the command may have written nothing yet.
    fn open(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.file = match stream::open(&self.dir.stream(self.stream)) {
                Ok(file) => Some(file),
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => return Err(e),
            };
        }
        Ok(())
    }

    fn file_size(&self) -> io::Result<u64> {
        let size = |file: &File| file.metadata().map(|meta| meta.len());
        self.file.as_ref().map_or(Ok(0), size)
    }

    /// Returns the number of bytes that the command has written.
    ///
    /// # Errors
    /// As the file system.
    pub fn length(&mut self, ended: Ended) -> io::Result<u64> {
        self.open()?;
        let size = self.file_size()?;
        Ok(match self.gap(size, ended) {
            Some(gap) if !gap.is_hole => size + gap.bytes.unwrap_or(0),
            _ => size,
        })
    }

    /// Reads from the file, which has `size` bytes, up to the gap if that is still to come. A reader
    /// that waits holds no memory for bytes.
    fn read(&self, gap: Option<Gap>, size: u64) -> io::Result<Bytes> {
        let place = match gap {
            Some(gap) if !gap.is_hole && self.at > gap.at => {
                self.at - gap.bytes.unwrap_or(0).min(self.at)
            }
            _ => self.at,
        };
        let there = usize::try_from(size.saturating_sub(place)).unwrap_or(usize::MAX);
        let want = self.bytes_before(gap).min(there).min(CHUNK);
        let Some(file) = self.file.as_ref().filter(|_| want > 0) else {
            return Ok(Bytes::new());
        };
        let mut buffer = vec![0; want];
        let read = file.read_at(&mut buffer, place)?;
        buffer.truncate(read);
        Ok(buffer.into())
    }

    /// Number of bytes between the offset and a gap that is still to come.
    fn bytes_before(&self, gap: Option<Gap>) -> usize {
        let before = match gap {
            Some(gap) if self.at < gap.end() => gap.at.saturating_sub(self.at),
            _ => u64::MAX,
        };
        usize::try_from(before).unwrap_or(usize::MAX)
    }

    /// The gap in the stream, whose file has `size` bytes, if it has one.
    fn gap(&self, size: u64, ended: Ended) -> Option<Gap> {
        match ended.dropped() {
            Some(0) => None,
            dropped => gap(&self.dir.notes(), self.stream, size, dropped),
        }
    }
}

/// The bytes of a stream that its file does not hold. A stream has one gap at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gap {
    /// Offset of the first missing byte.
    at: u64,
    /// Number of missing bytes; `None` if that is not known yet.
    bytes: Option<u64>,
    /// Whether the file has a hole there; otherwise what comes after the gap follows at once.
    is_hole: bool,
}

impl Gap {
    /// Offset at which the stream continues, or will.
    fn end(&self) -> u64 {
        self.at.saturating_add(self.bytes.unwrap_or(u64::MAX))
    }
}

fn gap(notes: &Notes, stream: Stream, size: u64, dropped: Option<u64>) -> Option<Gap> {
    if let Some(head) = notes.cut(stream) {
        return Some(Gap {
            at: head,
            bytes: dropped,
            is_hole: false,
        });
    }
    if let Some((head, tail)) = notes.hole(stream) {
        let grown = size.saturating_sub(head.saturating_add(tail));
        return Some(Gap {
            at: head,
            bytes: Some(dropped.unwrap_or(grown)),
            is_hole: true,
        });
    }
    // Earlier versions noted nothing: they kept as much of both ends.
    let bytes = dropped?;
    Some(Gap {
        at: size.saturating_sub(bytes) / 2,
        bytes: Some(bytes),
        is_hole: true,
    })
}

#[cfg(test)]
mod tests;
