//! An output stream, copied as it grows.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use crate::os::logging::say;
use crate::store::unit_dir::gap::Gap;
use crate::store::unit_dir::{Stream, UnitDir};

/// Number of bytes copied at a time.
const CHUNK: usize = 64 * 1024;

/// Copies a stream to stdout, and remembers how far it is.
pub(super) struct Copier {
    stream: Stream,
    /// Bytes of the stream that were copied or left out.
    at: u64,
    /// Size of the file when it was last looked at.
    size: u64,
    buffer: Vec<u8>,
}

impl Copier {
    /// To copy `stream` from offset `at`.
    pub(super) fn new(stream: Stream, at: u64) -> Self {
        Self {
            stream,
            at,
            size: 0,
            buffer: vec![0; CHUNK],
        }
    }

    /// Bytes of the stream that were copied or left out.
    pub(super) const fn at(&self) -> u64 {
        self.at
    }

    /// Copies what there is in `file`, that of the stream in `dir`. Of a gap only a note on stderr
    /// is left. `dropped` is what the outcome of the run says is missing, once it has ended.
    pub(super) fn copy(
        &mut self,
        dir: &UnitDir,
        file: &File,
        dropped: Option<u64>,
    ) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let copied = self.copy_to(&mut out, dir, file, dropped);
        if let Err(e) = copied.and_then(|()| out.flush()) {
            crate::tools::ended_by_reader(&e);
            return Err(e);
        }
        Ok(())
    }

    fn copy_to(
        &mut self,
        out: &mut impl Write,
        dir: &UnitDir,
        file: &File,
        dropped: Option<u64>,
    ) -> io::Result<()> {
        loop {
            let size = file.metadata()?.len();
            let gap = dir.gap(self.stream, size, dropped);
            let shorter = size < std::mem::replace(&mut self.size, size);
            // One that cannot have holes becomes shorter when it has grown too large.
            if shorter && gap.is_none_or(|gap| gap.is_hole) {
                out.flush()?;
                say("the output has become shorter: somebody has cut it off; from its start");
                self.at = 0;
            }
            if let Some(gap) = gap
                && gap.at <= self.at
                && self.at < gap.end()
            {
                let Some(bytes) = gap.bytes else {
                    // What comes after it is there when the command has ended.
                    return Ok(());
                };
                out.flush()?;
                let left = gap.at + bytes - self.at;
                say(&format!("{left} bytes were dropped here"));
                self.at = gap.end();
            }
            let want = match gap {
                Some(gap) if self.at < gap.at => gap.at - self.at,
                _ => u64::MAX,
            };
            let want = usize::try_from(want.min(CHUNK as u64)).unwrap_or(CHUNK);
            let place = self.place(gap);
            let read = file.read_at(&mut self.buffer[..want], place)?;
            if read == 0 {
                return Ok(());
            }
            let whole = self.whole(read, dir, file, dropped)?;
            out.write_all(&self.buffer[..whole])?;
            self.at += whole as u64;
        }
    }

    /// Where in the file the stream goes on.
    fn place(&self, gap: Option<Gap>) -> u64 {
        match gap {
            Some(gap) if !gap.is_hole && self.at > gap.at => {
                self.at - gap.bytes.unwrap_or(0).min(self.at)
            }
            _ => self.at,
        }
    }

    /// As many of the bytes just read as were there: the middle may have been given back
    /// meanwhile, and a hole reads as zeros.
    fn whole(
        &self,
        read: usize,
        dir: &UnitDir,
        file: &File,
        dropped: Option<u64>,
    ) -> io::Result<usize> {
        let gap = dir.gap(self.stream, file.metadata()?.len(), dropped);
        let before = match gap {
            Some(gap) if gap.is_hole && gap.end() > self.at => gap.at.saturating_sub(self.at),
            _ => u64::MAX,
        };
        Ok(usize::try_from(before).unwrap_or(usize::MAX).min(read))
    }
}
