//! The output of a command, on its way from pipes into the files of its unit.
//!
//! A command writes to pipes, not to the files. A command that opens `/dev/stderr` or
//! `/proc/self/fd/2` again (`> /dev/stderr`, `tee /dev/stderr`) opens the same file again, at its
//! beginning, and mostly truncates it. A pipe that is opened again is the same pipe, and output
//! stays in order. Nothing else does that: append-only files need privileges, a sealed file or
//! Landlock makes the second open fail, and a socket cannot be opened at all. The pipes also bound
//! the disk at every moment. They cost a run little: creating files is what takes time, so that a
//! file is created with its first byte only.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use crate::store::unit_dir::UnitDir;
use crate::store::unit_dir::holes::punch;
use crate::store::unit_dir::locked::LockedDir;
use crate::store::unit_dir::order::OrderNotes;
use crate::store::unit_dir::stream::{self, Stream, StreamFiles};

/// Number of bytes taken from a pipe at once: the capacity of a pipe (`pipe(7)`).
const CHUNK: usize = 64 * 1024;

/// Number of bytes taken at once until a command has written as many. Most commands write a few
/// lines, and need no buffer on the heap.
const SMALL: usize = 4 * 1024;

/// Maximum number of chunks taken from one pipe in a row, so that other events get their turn. It
/// empties a pipe of the maximum capacity (1 MiB).
const ROUNDS: usize = 16;

/// Number of bytes by which a file outgrows its limit before its middle is given back.
const SLACK: u64 = 256 * 1024;

/// Number of bytes by which a file outgrows its limit at most while there is no space to note that it
/// has a hole. Then its end is given back as well, which makes space.
const UNNOTED: u64 = 4 * 1024 * 1024;

/// Alignment of holes, a multiple of the block size of file systems. A hole gives back whole
/// blocks only, so that the next hole starts in the last block of the one before.
const BLOCK: u64 = 64 * 1024;

/// Maximum number of bytes kept of the end of a stream whose file cannot have holes, or cannot
/// grow. They are held in memory until the command ends.
pub const TAIL: u64 = 256 * 1024;

/// The output of one command.
#[derive(Debug)]
pub struct Output {
    sources: [Source; 2],
    sinks: [Sink; 2],
    order: OrderNotes,
    buffer: Vec<u8>,
    limit: u64,
}

impl Output {
    /// Makes the pipes of a command. At most `limit` bytes are kept of each stream, everything with
    /// 0. Also returns the ends for the command, stdout and stderr.
    ///
    /// # Errors
    /// As `pipe(2)`.
    pub fn new(limit: u64) -> io::Result<(Self, [File; 2])> {
        let (stdout, to_stdout) = Source::new()?;
        let (stderr, to_stderr) = Source::new()?;
        let output = Self {
            sources: [stdout, stderr],
            sinks: [Stream::Stdout, Stream::Stderr].map(|stream| Sink::new(stream, limit)),
            order: OrderNotes::default(),
            buffer: Vec::new(),
            limit,
        };
        Ok((output, [to_stdout, to_stderr]))
    }

    /// Returns what becomes readable when something was written; nothing once no process can write.
    pub fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let pipes = self.sources.iter().filter_map(|source| source.0.as_ref());
        pipes.map(AsFd::as_fd)
    }

    /// Number of bytes that the command has written so far.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.sinks.iter().map(|sink| sink.seen).sum()
    }

    /// Whether a process can still write.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.sources().next().is_some()
    }

    /// Moves the bytes in the pipes into the files of `dir`, and returns their number.
    pub fn pump(&mut self, dir: &mut LockedDir) -> usize {
        let Self {
            sources: [from_stdout, from_stderr],
            sinks: [stdout, stderr],
            order,
            buffer,
            ..
        } = self;
        let mut moved = 0;
        let mut drain = |source: &mut Source, sink: &mut Sink, other: u64| {
            source.drain(buffer, |bytes| {
                moved += bytes.len();
                order.came(dir.dir().path(), sink.stream, other);
                sink.put(dir, bytes);
            });
        };
        drain(from_stdout, stdout, stderr.seen);
        drain(from_stderr, stderr, stdout.seen);
        moved
    }

    /// Takes the rest when the command has ended, and brings the files into their last form.
    /// Returns the number of bytes dropped from stdout and stderr.
    pub fn finish(&mut self, dir: &mut LockedDir) -> [u64; 2] {
        self.pump(dir);
        let [stdout, stderr] = &mut self.sinks;
        [stdout.finish(dir), stderr.finish(dir)]
    }

    /// Stops writing the file of stdout, as without space.
    #[cfg(test)]
    pub(super) fn cut_stdout(&mut self, dir: &mut LockedDir) {
        let [stdout, _] = &mut self.sinks;
        stdout.cut(dir);
    }
}

/// The output of the processes that outlive a command.
#[derive(Debug)]
pub struct Rest {
    output: Output,
    dir: UnitDir,
    files: StreamFiles,
    /// Bytes kept of each stream so far.
    taken: [u64; 2],
}

impl Rest {
    /// Returns the rest of `output`, for the files of `dir`, if a process can still write.
    #[must_use]
    pub fn of(output: Output, dir: &mut LockedDir) -> Option<Self> {
        output.is_open().then(|| Self {
            output,
            dir: dir.dir().clone(),
            files: dir.give_streams(),
            taken: [0; 2],
        })
    }

    /// Returns what becomes readable when something was written; nothing once no process can write.
    pub fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.output.sources()
    }

    /// Whether a process can still write.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.output.is_open()
    }

    /// Moves the bytes in the pipes into the files. As many bytes of each stream are kept as of the
    /// command's output. Later ones are dropped, since these processes may never end. Returns the
    /// number of bytes that were in the pipes.
    pub fn pump(&mut self) -> usize {
        let mut moved = 0;
        let limit = match self.output.limit {
            0 => u64::MAX,
            limit => limit,
        };
        let sources = self.output.sources.iter_mut().zip(&mut self.taken);
        for ((source, taken), stream) in sources.zip([Stream::Stdout, Stream::Stderr]) {
            source.drain(&mut self.output.buffer, |bytes| {
                moved += bytes.len();
                let room = usize::try_from(limit - *taken).unwrap_or(usize::MAX);
                let kept = bytes.get(..room).unwrap_or(bytes);
                if kept.is_empty() {
                    return;
                }
                // Without space, or without the folder, it is lost: the outcome was reported
                // already.
                let file = self.files.open(self.dir.path(), stream);
                *taken += file.map_or(0, |file| write_most(file, kept)) as u64;
            });
        }
        moved
    }
}

/// The end of a pipe that a command writes to; none once no process can write.
#[derive(Debug)]
struct Source(Option<File>);

impl Source {
    fn new() -> io::Result<(Self, File)> {
        let (from, to) = pipe2(OFlag::O_CLOEXEC)?;
        // This end only: few programs can deal with an output that is not ready.
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
                    put(chunk.get(..n).unwrap_or_default());
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
    /// This many bytes of its beginning; its end is held here.
    Cut(u64, Vec<u8>),
}

/// A file that a stream goes to.
#[derive(Debug)]
struct Sink {
    stream: Stream,
    /// Bytes kept of its beginning and of its end; `None` for all.
    kept: Option<(u64, u64)>,
    /// Number of bytes so far.
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

    fn put(&mut self, dir: &mut LockedDir, bytes: &[u8]) {
        if let Form::Whole(_) = self.form {
            let written = self.write(dir, bytes);
            self.seen += written as u64;
            match bytes.get(written..) {
                Some(rest) if !rest.is_empty() => {
                    self.cut(dir);
                    self.put(dir, rest);
                }
                _ => self.trim(dir, SLACK),
            }
            return;
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

    /// Writes as much of `bytes` as possible.
    fn write(&self, dir: &mut LockedDir, bytes: &[u8]) -> usize {
        let file = dir.stream(self.stream);
        file.map_or(0, |file| write_most(file, bytes))
    }

    /// Gives back the middle of a file that is larger than its limit by more than `slack` bytes.
    fn trim(&mut self, dir: &mut LockedDir, slack: u64) {
        let (Some((head, tail)), Form::Whole(hole)) = (self.kept, &mut self.form) else {
            return;
        };
        let end = self.seen.saturating_sub(tail);
        if end <= hole.unwrap_or(head) + slack {
            return;
        }
        // A reader that does not know of the hole would read zeros.
        if hole.is_none() && dir.note_hole(self.stream, head, tail).is_err() {
            // There may be space for the note later.
            if end > head + UNNOTED {
                self.cut(dir);
            }
            return;
        }
        let start = hole.map_or(head, |hole| (hole / BLOCK * BLOCK).max(head));
        let punched = dir.stream(self.stream);
        match punched.and_then(|file| punch(file, start, end)) {
            Ok(()) => *hole = Some(end),
            Err(_) => self.cut(dir),
        }
    }

    /// Stops writing: the file keeps the beginning of the stream. A file that has grown because it
    /// cannot have holes becomes shorter.
    fn cut(&mut self, dir: &mut LockedDir) {
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
        if let Ok(mut file) = stream::open(&dir.dir().stream(self.stream)) {
            let read = file.seek(SeekFrom::Start(from));
            let _ = read.and_then(|_| file.take(limit).read_to_end(&mut tail));
        }
        let noted = dir.note_cut(self.stream, head);
        if self.seen > head
            && let Ok(file) = dir.stream(self.stream)
        {
            let _ = file.set_len(head);
        }
        if noted.is_err() {
            // There may be space now.
            let _ = dir.note_cut(self.stream, head);
        }
        self.form = Form::Cut(head, tail);
    }

    /// Maximum number of bytes of the end that are held in memory.
    fn tail_limit(&self) -> usize {
        let room = match (self.kept, &self.form) {
            (None, _) => TAIL,
            (Some((_, tail)), Form::Whole(_)) => tail,
            // The file may have kept more than the beginning: everything so far.
            (Some((head, tail)), Form::Cut(kept, _)) => (head + tail).saturating_sub(*kept),
        };
        usize::try_from(room.min(TAIL)).unwrap_or(usize::MAX)
    }

    /// Brings the file into its last form. Returns the number of bytes that are missing from it.
    fn finish(&mut self, dir: &mut LockedDir) -> u64 {
        self.trim(dir, 0);
        let limit = self.tail_limit();
        if let Form::Cut(_, tail) = &mut self.form {
            tail.drain(..tail.len().saturating_sub(limit));
        }
        match &self.form {
            Form::Whole(hole) => {
                let head = self.kept.map_or(0, |(head, _)| head);
                hole.map_or(0, |hole| hole - head)
            }
            Form::Cut(head, tail) => {
                let written = self.write(dir, tail);
                self.seen - *head - written as u64
            }
        }
    }
}

/// Writes as much of `bytes` as possible, and returns how many bytes that are.
fn write_most(mut file: &File, bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(n) if n > 0 => rest = rest.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    bytes.len() - rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::unit_dir::locked::tests::state;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    /// Writes `parts` as a command would, with a limit. Returns what is kept, what was dropped, and
    /// the blocks of the file.
    fn through(limit: u64, parts: &[&[u8]]) -> (Vec<u8>, u64, u64) {
        let (_state, _, unit) = state();
        let mut dir = LockedDir::take(None, unit.clone())
            .expect("take")
            .expect("new");
        let (mut output, [mut stdout, _stderr]) = Output::new(limit).expect("pipes");
        for part in parts {
            for piece in part.chunks(CHUNK) {
                stdout.write_all(piece).expect("write");
                output.pump(&mut dir);
            }
        }
        let [dropped, _] = output.finish(&mut dir);
        assert!(output.is_open());
        drop(stdout);
        output.pump(&mut dir);
        assert_eq!(output.sources().count(), 1, "stderr");
        let path = unit.stream(Stream::Stdout);
        let kept = fs::read(&path).unwrap_or_default();
        let blocks = fs::metadata(path).map_or(0, |meta| meta.blocks());
        (kept, dropped, blocks * 512)
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

    /// A reader that does not know of a hole reads zeros.
    #[test]
    fn a_hole_that_cannot_be_noted_is_not_made() {
        let (_state, _, unit) = state();
        let mut dir = LockedDir::take(None, unit.clone())
            .expect("take")
            .expect("new");
        let mut sink = Sink::new(Stream::Stdout, 200_000);
        let whole = |dir: &LockedDir| {
            let path = dir.dir().stream(Stream::Stdout);
            !fs::read(path).expect("read").contains(&0)
        };
        let chunk = vec![b'x'; 300_000];
        let full = File::options().write(true).open("/dev/full");
        let before = replace(dir.record(), &full.expect("full"));
        sink.put(&mut dir, &chunk);
        sink.put(&mut dir, &chunk);
        assert!(whole(&dir) && unit.notes().hole(Stream::Stdout).is_none());
        // It is made when there is space again.
        replace(dir.record(), &before);
        sink.put(&mut dir, &chunk);
        assert!(!whole(&dir));
        assert_eq!(unit.notes().hole(Stream::Stdout), Some((100_000, 100_000)));
        // Without space for very long, the file does not grow without a limit.
        let other = UnitDir::at(unit.path().with_file_name("u2"));
        let mut dir = LockedDir::take(None, other.clone())
            .expect("take")
            .expect("new");
        let mut sink = Sink::new(Stream::Stdout, 200_000);
        let full = File::options().write(true).open("/dev/full");
        replace(dir.record(), &full.expect("full"));
        (0..40).for_each(|_| sink.put(&mut dir, &chunk));
        let size = fs::metadata(other.stream(Stream::Stdout))
            .expect("size")
            .len();
        assert_eq!(size, 100_000);
    }

    /// Makes the descriptor of `file` one of `other`, and returns what it was.
    fn replace(file: &File, other: &File) -> File {
        use std::os::fd::AsRawFd;
        let before = file.try_clone().expect("clone");
        // SAFETY: both descriptors are open, and the number of `file` stays its own.
        let number = unsafe { nix::libc::dup2(other.as_raw_fd(), file.as_raw_fd()) };
        assert_eq!(number, file.as_raw_fd());
        before
    }

    #[test]
    fn a_full_disk_costs_the_middle_only() {
        let (_state, _, unit) = state();
        let mut dir = LockedDir::take(None, unit.clone())
            .expect("take")
            .expect("new");
        let mut sink = Sink::new(Stream::Stdout, 0);
        sink.put(&mut dir, b"head");
        sink.cut(&mut dir);
        (0..20).for_each(|_| sink.put(&mut dir, &[b'x'; 100_000]));
        sink.put(&mut dir, b"tail");
        let dropped = sink.finish(&mut dir);
        let kept = fs::read(unit.path().join("stdout")).expect("read");
        assert_eq!(kept.len() as u64, 4 + TAIL);
        assert_eq!(dropped, 4 + 2_000_000 + 4 - kept.len() as u64);
        assert!(kept.starts_with(b"headx") && kept.ends_with(b"xtail"));
    }
}
