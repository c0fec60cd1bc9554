//! Reads both streams of a run in the order of writing, during the run and after it.

use std::io;

use crate::model::unit::Outcome;
use crate::store::unit_dir::UnitDir;
use crate::store::unit_dir::order::Order;
use crate::store::unit_dir::reader::{Chunk, Ended, OutputReader, output};
use crate::store::unit_dir::stream::Stream;

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Content of a stream: bytes, or missing ones.
    Of(Stream, Chunk),
    /// From here on the order is not known: stdout comes before stderr.
    Unordered,
    /// Nothing yet.
    Pending,
    /// The end of both streams.
    End,
}

/// The streams of a run, in the order of writing.
#[derive(Debug)]
pub struct BothReader {
    dir: UnitDir,
    stdout: OutputReader,
    stderr: OutputReader,
    order: Order,
    /// Number of the next switch.
    place: usize,
    /// Whether the rest has no order.
    unordered: bool,
}

/// Returns a reader of both streams of `unit`.
#[must_use]
pub fn both(unit: &UnitDir) -> BothReader {
    BothReader {
        dir: unit.clone(),
        stdout: output(unit, Stream::Stdout, 0),
        stderr: output(unit, Stream::Stderr, 0),
        order: Order::default(),
        place: 0,
        unordered: false,
    }
}

const fn other(stream: Stream) -> Stream {
    match stream {
        Stream::Stdout => Stream::Stderr,
        Stream::Stderr => Stream::Stdout,
    }
}

impl BothReader {
    /// Returns what comes next. The caller determines whether the run has `ended`, and with which
    /// outcome, before the call.
    ///
    /// # Errors
    /// As the file system.
    pub fn next(&mut self, ended: Option<Option<&Outcome>>) -> io::Result<Piece> {
        let of = |stream| ended.map_or(Ended::No, |outcome| Ended::with(outcome, stream));
        loop {
            // First the streams, then the order: it is noted before what it is about is written.
            let [stdout, stderr] =
                [Stream::Stdout, Stream::Stderr].map(|s| self.dir.stream(s).exists());
            self.order.refresh(self.dir.path())?;
            if self.unordered {
                return self.rest([Stream::Stdout, Stream::Stderr], of);
            }
            if stdout && stderr && !self.order.exists {
                self.unordered = true;
                return Ok(Piece::Unordered);
            }
            let Some((stream, end)) = self.order.switches.get(self.place).copied() else {
                if self.order.is_full {
                    self.unordered = true;
                    return Ok(Piece::Unordered);
                }
                let first = match self.order.switches.last() {
                    Some((last, _)) => other(*last),
                    None if stderr => Stream::Stderr,
                    None => Stream::Stdout,
                };
                let switches = self.order.switches.len();
                let before = self.reader(first).offset();
                let piece = self.rest([first, other(first)], of)?;
                self.order.refresh(self.dir.path())?;
                match self.order.switches.get(switches).copied() {
                    // What was read may come after a switch that has been noted since.
                    Some((stream, end)) if stream == first => {
                        match self.within(first, before, end, piece) {
                            Some(piece) => return Ok(piece),
                            None => continue,
                        }
                    }
                    Some(_) | None => return Ok(piece),
                }
            };
            let before = self.reader(stream).offset();
            if before >= end {
                self.place += 1;
                continue;
            }
            let chunk = self.reader(stream).next(of(stream))?;
            match chunk {
                // The rest of it is missing.
                Chunk::End => self.place += 1,
                Chunk::Pending => return Ok(Piece::Pending),
                chunk => {
                    if let Some(piece) = self.within(stream, before, end, Piece::Of(stream, chunk))
                    {
                        return Ok(piece);
                    }
                }
            }
        }
    }

    fn reader(&mut self, stream: Stream) -> &mut OutputReader {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// Returns what the streams still have, one after the other.
    fn rest(&mut self, streams: [Stream; 2], of: impl Fn(Stream) -> Ended) -> io::Result<Piece> {
        for stream in streams {
            match self.reader(stream).next(of(stream))? {
                Chunk::End => {}
                Chunk::Pending => return Ok(Piece::Pending),
                chunk => return Ok(Piece::Of(stream, chunk)),
            }
        }
        Ok(Piece::End)
    }

    /// Returns what of a piece of `stream`, which was read from `before` on, comes before its byte
    /// `end`; the rest is read again later.
    fn within(&mut self, stream: Stream, before: u64, end: u64, piece: Piece) -> Option<Piece> {
        match piece {
            Piece::Of(of, Chunk::Bytes(bytes)) if of == stream => {
                let room = usize::try_from(end.saturating_sub(before)).unwrap_or(usize::MAX);
                if bytes.len() > room {
                    self.reader(stream).go_back(end.max(before));
                }
                let kept = bytes.slice(..room.min(bytes.len()));
                (!kept.is_empty()).then_some(Piece::Of(stream, Chunk::Bytes(kept)))
            }
            Piece::Of(_, Chunk::Truncated) => {
                self.unordered = true;
                Some(piece)
            }
            // It was looked at before the switch.
            Piece::Pending | Piece::End => None,
            other => Some(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    use crate::model::unit::End;
    use crate::store::unit_dir::locked::LockedDir;
    use crate::store::unit_dir::locked::tests::state;
    use crate::store::unit_dir::order::MAX_SWITCHES;
    use crate::store::unit_dir::output::Output;

    const OUT: Stream = Stream::Stdout;
    const ERR: Stream = Stream::Stderr;

    /// A command that writes, and a reader of what it has written.
    struct Run {
        _state: tempfile::TempDir,
        dir: LockedDir,
        output: Output,
        pipes: [fs::File; 2],
        unit: UnitDir,
        reader: BothReader,
    }

    impl Run {
        fn new(limit: u64) -> Self {
            let (state, _, unit) = state();
            let dir = LockedDir::take(None, unit.clone())
                .expect("take")
                .expect("new");
            let (output, pipes) = Output::new(limit).expect("pipes");
            Self {
                _state: state,
                dir,
                output,
                pipes,
                reader: both(&unit),
                unit,
            }
        }

        fn write(&mut self, stream: Stream, text: &str) {
            let [stdout, stderr] = &mut self.pipes;
            let pipe = if stream == OUT { stdout } else { stderr };
            pipe.write_all(text.as_bytes()).expect("write");
            self.output.pump(&mut self.dir);
        }

        fn end(&mut self) -> Outcome {
            Outcome {
                dropped: self.output.finish(&mut self.dir),
                end: End::Exited(0),
                ..Outcome::interrupted(1)
            }
        }

        /// Reads on to where nothing follows now. Bytes of stderr stand in brackets.
        fn read(&mut self, ended: Option<&Outcome>) -> String {
            let mut text = String::new();
            loop {
                match self.reader.next(ended.map(Some)).expect("read") {
                    Piece::Of(stream, Chunk::Bytes(bytes)) => {
                        let bytes = String::from_utf8_lossy(&bytes).into_owned();
                        text += &if stream == OUT {
                            bytes
                        } else {
                            format!("[{bytes}]")
                        };
                    }
                    Piece::Of(_, Chunk::Gap(bytes)) => text += &format!("<{bytes:?}>"),
                    Piece::Of(_, other) => panic!("{other:?}"),
                    Piece::Unordered => text += "<?>",
                    Piece::Pending => return text,
                    Piece::End => return text + ".",
                }
            }
        }

        fn has_notes(&self) -> bool {
            self.unit.path().join("order").exists()
        }
    }

    #[test]
    fn streams_come_in_the_order_of_writing() {
        let parts = [
            (OUT, "a"),
            (OUT, "b"),
            (ERR, "c"),
            (OUT, "d"),
            (ERR, "e"),
            (ERR, "f"),
        ];
        // After the run, and at every moment of it.
        for follows in [false, true] {
            let (mut run, mut text) = (Run::new(0), String::new());
            for (stream, part) in parts {
                run.write(stream, part);
                if follows {
                    text += &run.read(None);
                }
            }
            let outcome = run.end();
            text += &run.read(Some(&outcome));
            let text = text.replace("][", "");
            assert_eq!(text, "ab[c]d[ef].", "{follows}");
        }
    }

    #[test]
    fn a_run_that_writes_to_one_stream_notes_nothing() {
        for stream in [OUT, ERR] {
            let mut run = Run::new(0);
            assert_eq!(run.read(None), "");
            run.write(stream, "a");
            run.write(stream, "b");
            let outcome = run.end();
            let text = run.read(Some(&outcome));
            assert_eq!(text, if stream == OUT { "ab." } else { "[ab]." });
            assert!(!run.has_notes());
        }
        let mut silent = Run::new(0);
        let outcome = silent.end();
        assert_eq!(silent.read(Some(&outcome)), ".");
        assert!(!silent.has_notes());
    }

    #[test]
    fn what_an_earlier_version_has_written_has_no_order() {
        let mut run = Run::new(0);
        run.write(OUT, "a");
        run.write(ERR, "b");
        run.write(OUT, "c");
        fs::remove_file(run.unit.path().join("order")).expect("remove");
        let outcome = run.end();
        assert_eq!(run.read(Some(&outcome)), "<?>ac[b].");
    }

    #[test]
    fn notes_are_bounded_and_what_follows_them_is_complete() {
        let mut run = Run::new(0);
        for _ in 0..MAX_SWITCHES {
            run.write(OUT, "o");
            run.write(ERR, "e");
        }
        let size = fs::metadata(run.unit.path().join("order"))
            .expect("notes")
            .len();
        let outcome = run.end();
        let text = run.read(Some(&outcome));
        let ordered = "o[e]".repeat(usize::from(MAX_SWITCHES) / 2);
        let rest = usize::from(MAX_SWITCHES) / 2;
        assert_eq!(
            text,
            format!("{ordered}<?>{}[{}].", "o".repeat(rest), "e".repeat(rest))
        );
        assert!(size < 64 * 1024, "{size}");
        run.write(OUT, "o");
        assert_eq!(
            fs::metadata(run.unit.path().join("order"))
                .expect("notes")
                .len(),
            size
        );
    }

    #[test]
    fn a_trimmed_stream_keeps_the_order_of_what_is_left() {
        let mut run = Run::new(8);
        let long = "x".repeat(50_000);
        run.write(OUT, "abcd");
        run.write(ERR, "1");
        for _ in 0..10 {
            run.write(OUT, &long);
            run.write(ERR, "2");
        }
        run.write(OUT, "wxyz");
        let outcome = run.end();
        let [dropped, nothing] = outcome.dropped;
        assert_eq!((dropped, nothing), (500_000, 3));
        let text = run.read(Some(&outcome));
        let expected = format!("abcd[1]<Some({dropped})>[222]<Some(3)>[2222]wxyz.");
        assert_eq!(text.replace("][", ""), expected);
    }
}
