//! What a command writes, on its way from a pipe into the files of its unit.
//!
//! A command does not get the files themselves: what opens `/dev/stderr` or `/proc/self/fd/2`
//! anew (`> /dev/stderr`, `tee /dev/stderr`) opens the same file once more, at its beginning and
//! mostly to cut it off. A pipe that is opened once more stays the same pipe, and what is written
//! to it comes after what was written before. Nothing else keeps it so: append-only files need
//! privileges, a sealed file or Landlock makes the second opening fail, and a socket cannot be
//! opened at all. Measured side by side, runs that write nothing, a line or 20 MB take as long
//! with pipes as with files. What is on the disk is bounded at every moment besides, and not only
//! at every look.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl};
use nix::unistd::pipe2;

use crate::os::hooks;
use crate::store::unit_dir::Stream;
use crate::store::unit_dir::hold::Hold;

/// Number of bytes that are taken from a pipe at once, which is what it holds (`pipe(7)`).
const CHUNK: usize = 64 * 1024;

/// Number of bytes taken at once from a command that has not written as many yet: most write a few
/// lines, and need no memory of their own for that.
const SMALL: usize = 4 * 1024;

/// Maximum number of chunks taken from one pipe in a row: other things happen in between. A pipe
/// that somebody has made as large as the system allows (1 MiB) is empty after that.
const ROUNDS: usize = 16;

/// Number of bytes by which a file outgrows its limit before its middle is given back.
const SLACK: u64 = 256 * 1024;

/// Multiple of the blocks of file systems. A hole gives back whole blocks only, so that the next
/// one begins at least one earlier than the last one has ended.
const BLOCK: u64 = 64 * 1024;

/// Maximum number of bytes at the end of a stream that are kept where a file cannot have holes,
/// or cannot be written any more. They are held in memory until the command ends.
pub const TAIL: u64 = 256 * 1024;

/// The output of one command.
#[derive(Debug)]
pub struct Output {
    sources: [Source; 2],
    sinks: [Sink; 2],
    buffer: Vec<u8>,
    limit: u64,
}

impl Output {
    /// Makes the pipes of a command of whose streams at most `limit` bytes each are kept, all with
    /// 0; and returns what the command is to write to, stdout and stderr.
    ///
    /// # Errors
    /// As `pipe(2)`.
    pub fn new(limit: u64) -> io::Result<(Self, [File; 2])> {
        let (stdout, to_stdout) = Source::new()?;
        let (stderr, to_stderr) = Source::new()?;
        let output = Self {
            sources: [stdout, stderr],
            sinks: [Stream::Stdout, Stream::Stderr].map(|stream| Sink::new(stream, limit)),
            buffer: Vec::new(),
            limit,
        };
        Ok((output, [to_stdout, to_stderr]))
    }

    /// What becomes readable when something was written; nothing once nobody can write any more.
    pub fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let pipes = self.sources.iter().filter_map(|source| source.0.as_ref());
        pipes.map(AsFd::as_fd)
    }

    /// Whether somebody may write still.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.sources().next().is_some()
    }

    /// Takes what was written into the files of `hold`.
    pub fn pump(&mut self, hold: &mut Hold) {
        for (source, sink) in self.sources.iter_mut().zip(&mut self.sinks) {
            source.drain(&mut self.buffer, |bytes| sink.put(hold, bytes));
        }
    }

    /// Takes the rest when the command has ended, and brings the files into their last form.
    /// Returns the bytes dropped from stdout and stderr.
    pub fn finish(&mut self, hold: &mut Hold) -> [u64; 2] {
        self.pump(hold);
        let [stdout, stderr] = &mut self.sinks;
        [stdout.finish(hold), stderr.finish(hold)]
    }

    /// Takes what is written by a process that outlives its command to `files`, stdout and stderr:
    /// of each as many bytes as are kept of a command's, `taken` so far. What comes later is
    /// dropped; nobody knows whether it ever ends.
    pub fn pump_rest(&mut self, files: &[File; 2], taken: &mut [u64; 2]) {
        let limit = match self.limit {
            0 => u64::MAX,
            limit => limit,
        };
        for ((source, file), taken) in self.sources.iter_mut().zip(files).zip(taken) {
            source.drain(&mut self.buffer, |bytes| {
                let room = usize::try_from(limit - *taken).unwrap_or(usize::MAX);
                // Without space it is lost: nobody is there any more who could be told.
                let written = write_most(file, &bytes[..bytes.len().min(room)]);
                *taken += written as u64;
            });
        }
    }
}

/// The end of a pipe that a command writes to; none once nobody can write any more.
#[derive(Debug)]
struct Source(Option<File>);

impl Source {
    fn new() -> io::Result<(Self, File)> {
        let (from, to) = pipe2(OFlag::O_CLOEXEC)?;
        // This end only: few programs know what to do with an output that is not ready.
        fcntl(&from, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok((Self(Some(from.into())), to.into()))
    }

    /// Reads what is there, a chunk at a time.
    fn drain(&mut self, buffer: &mut Vec<u8>, mut put: impl FnMut(&[u8])) {
        let mut small = [0; SMALL];
        for _ in 0..ROUNDS {
            let Some(pipe) = &mut self.0 else {
                return;
            };
            let chunk: &mut [u8] = match buffer.is_empty() {
                true => &mut small,
                false => buffer,
            };
            match pipe.read(chunk) {
                Ok(0) => self.0 = None,
                Ok(n) => {
                    put(&chunk[..n]);
                    if n == SMALL {
                        buffer.resize(CHUNK, 0);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.0 = None,
            }
        }
    }
}

/// How a file holds a stream.
#[derive(Debug)]
enum Form {
    /// Whole, or with a hole in its middle that ends here.
    Whole(Option<u64>),
    /// As many bytes of its beginning; its end waits here.
    Cut(u64, Vec<u8>),
}

/// A file that a stream goes to.
#[derive(Debug)]
struct Sink {
    stream: Stream,
    /// Bytes that are kept of its beginning and of its end; `None` for all.
    kept: Option<(u64, u64)>,
    /// Bytes that have come.
    seen: u64,
    form: Form,
}

impl Sink {
    fn new(stream: Stream, limit: u64) -> Self {
        Self {
            stream,
            kept: (limit > 0).then(|| (limit / 2, limit - limit / 2)),
            seen: 0,
            form: Form::Whole(None),
        }
    }

    fn put(&mut self, hold: &mut Hold, bytes: &[u8]) {
        if let Form::Whole(_) = self.form {
            let written = write_most(hold.stream(self.stream), bytes);
            self.seen += written as u64;
            if written == bytes.len() {
                self.trim(hold, SLACK);
                return;
            }
            self.cut(hold);
            return self.put(hold, &bytes[written..]);
        }
        self.seen += bytes.len() as u64;
        let limit = self.tail_limit();
        if let Form::Cut(_, tail) = &mut self.form {
            tail.extend_from_slice(bytes);
            if tail.len() > 2 * limit {
                tail.drain(..tail.len() - limit);
            }
        }
    }

    /// Gives back the middle of a file that is larger than its limit by more than `slack` bytes.
    fn trim(&mut self, hold: &mut Hold, slack: u64) {
        let (Some((head, tail)), Form::Whole(hole)) = (self.kept, &mut self.form) else {
            return;
        };
        let end = self.seen.saturating_sub(tail);
        if end <= hole.unwrap_or(head) + slack {
            return;
        }
        if hole.is_none() {
            // Who reads it has to know before. Without space for that it is known at the end.
            let _ = hold.note_hole(self.stream, head, tail);
        }
        let start = hole.map_or(head, |hole| (hole / BLOCK * BLOCK).max(head));
        match punch(hold.stream(self.stream), start, end) {
            Ok(()) => *hole = Some(end),
            Err(_) => self.cut(hold),
        }
    }

    /// Gives up to write on: the file keeps the beginning of the stream. One that has grown
    /// because it cannot have holes becomes shorter.
    fn cut(&mut self, hold: &mut Hold) {
        let Form::Whole(hole) = self.form else {
            return;
        };
        let head = match self.kept {
            Some((head, tail)) if hole.is_some() || self.seen > head + tail => head,
            _ => self.seen,
        };
        let limit = self.tail_limit() as u64;
        let from = self
            .seen
            .saturating_sub(limit)
            .max(hole.unwrap_or(head))
            .max(head);
        let mut tail = Vec::new();
        if let Ok(mut file) = hold.dir().read_stream(self.stream) {
            let read = file.seek(SeekFrom::Start(from));
            let _ = read.and_then(|_| file.take(limit).read_to_end(&mut tail));
        }
        let _ = hold.note_cut(self.stream, head);
        let _ = hold.stream(self.stream).set_len(head);
        self.form = Form::Cut(head, tail);
    }

    /// Maximum number of bytes of the end that are kept in memory.
    fn tail_limit(&self) -> usize {
        let tail = self.kept.map_or(TAIL, |(_, tail)| tail.min(TAIL));
        usize::try_from(tail).unwrap_or(usize::MAX)
    }

    /// Brings the file into its last form; returns the bytes that are missing from it.
    fn finish(&mut self, hold: &mut Hold) -> u64 {
        self.trim(hold, 0);
        let limit = self.tail_limit();
        match &mut self.form {
            Form::Whole(hole) => {
                let head = self.kept.map_or(0, |(head, _)| head);
                hole.map_or(0, |hole| hole - head)
            }
            Form::Cut(head, tail) => {
                tail.drain(..tail.len().saturating_sub(limit));
                let written = write_most(hold.stream(self.stream), tail);
                self.seen - *head - written as u64
            }
        }
    }
}

/// Writes as much of `bytes` as is possible.
fn write_most(mut file: &File, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(n) if n > 0 => written += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    written
}

/// Makes the range a hole in `file`, which keeps its size.
fn punch(file: &File, start: u64, end: u64) -> io::Result<()> {
    if hooks::no_holes() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let range = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    loop {
        match fallocate(file, flags, range(start), range(end - start)) {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Whether files in `folder` can have holes, by a file that is made and removed there.
///
/// # Errors
/// As the file system.
pub fn can_have_holes(folder: &Path) -> io::Result<bool> {
    let path = folder.join(format!("probe-{}", std::process::id()));
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let probed = options.open(&path).and_then(|mut file| {
        file.write_all(&[1; 8192])?;
        Ok(punch(&file, 0, 4096).is_ok())
    });
    let _ = fs::remove_file(path);
    probed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::unit_dir::hold::tests::state;
    use std::os::unix::fs::MetadataExt;

    /// Writes what `write` writes as a command would, with a limit, and returns what is kept,
    /// what was dropped, and the blocks of the file.
    fn through(limit: u64, parts: &[&[u8]]) -> (Vec<u8>, u64, u64) {
        let (_state, _, unit) = state();
        let mut hold = Hold::take(None, unit.clone()).expect("take").expect("new");
        let (mut output, [mut stdout, _stderr]) = Output::new(limit).expect("pipes");
        for part in parts {
            for piece in part.chunks(CHUNK) {
                stdout.write_all(piece).expect("write");
                output.pump(&mut hold);
            }
        }
        let [dropped, _] = output.finish(&mut hold);
        assert!(output.is_open());
        drop(stdout);
        output.pump(&mut hold);
        assert_eq!(output.sources().count(), 1, "stderr");
        let meta = hold.stream(Stream::Stdout).metadata().expect("meta");
        let kept = fs::read(unit.path().join("stdout")).expect("read");
        (kept, dropped, meta.blocks() * 512)
    }

    #[test]
    fn what_is_short_is_kept_as_it_is() {
        assert_eq!(
            through(100, &[b"ab", b"", b"c"]),
            (b"abc".to_vec(), 0, 4096)
        );
        assert_eq!(through(0, &[&[7; 300_000]]).0, [7; 300_000]);
        assert_eq!(through(100, &[]), (Vec::new(), 0, 0));
    }

    #[test]
    fn what_is_long_keeps_its_ends_and_bounds_the_disk() {
        let long = vec![b'x'; 8 * 1024 * 1024];
        let (kept, dropped, disk) = through(200_000, &[b"HEAD", &long, b"TAIL"]);
        let size = long.len() as u64 + 8;
        assert_eq!((kept.len() as u64, dropped), (size, size - 200_000));
        assert!(kept.starts_with(b"HEADx") && kept.ends_with(b"xTAIL"));
        assert!(kept[100_000..kept.len() - 100_000].iter().all(|b| *b == 0));
        assert!(disk < 400_000, "{disk}");
    }

    #[test]
    fn a_full_disk_costs_the_middle_only() {
        let (_state, _, unit) = state();
        let mut hold = Hold::take(None, unit.clone()).expect("take").expect("new");
        let mut sink = Sink::new(Stream::Stdout, 0);
        sink.put(&mut hold, b"head");
        sink.cut(&mut hold);
        (0..20).for_each(|_| sink.put(&mut hold, &[b'x'; 100_000]));
        sink.put(&mut hold, b"tail");
        let dropped = sink.finish(&mut hold);
        let kept = fs::read(unit.path().join("stdout")).expect("read");
        assert_eq!(kept.len() as u64, 4 + TAIL);
        assert_eq!(dropped, 4 + 2_000_000 + 4 - kept.len() as u64);
        assert!(kept.starts_with(b"headx") && kept.ends_with(b"xtail"));
    }
}
