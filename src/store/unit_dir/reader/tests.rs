//! A reader against a runner's files: in turn, at once, by property.

use super::*;
use crate::store::unit_dir::locked::LockedDir;
use crate::store::unit_dir::locked::tests::state;
use crate::store::unit_dir::output::Output;
use proptest::prelude::*;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// A run that has begun, and its command's stdout.
struct Run {
    dir: LockedDir,
    output: Output,
    stdout: File,
    /// What was written so far.
    written: Vec<u8>,
    _state: tempfile::TempDir,
}

impl Run {
    fn new(limit: u64) -> Self {
        let (state, _, unit) = state();
        let mut dir = LockedDir::take(None, unit).expect("take").expect("new");
        dir.begin().expect("begun");
        let (output, [stdout, _]) = Output::new(limit).expect("pipes");
        Self {
            dir,
            output,
            stdout,
            written: Vec::new(),
            _state: state,
        }
    }

    /// Writes `bytes` more, none of them zero, each with a value that tells its offset.
    fn write(&mut self, bytes: usize) {
        let from = self.written.len();
        self.written.extend((from..from + bytes).map(letter));
        for piece in self.written[from..].chunks(CHUNK) {
            self.stdout.write_all(piece).expect("write");
            self.output.pump(&mut self.dir);
        }
    }

    /// Ends the run, and returns what is known of its end.
    fn end(&mut self) -> Ended {
        let [dropped, _] = self.output.finish(&mut self.dir);
        let outcome = Outcome {
            end: End::Exited(0),
            dropped: [dropped, 0],
            ..Outcome::interrupted(1)
        };
        self.dir.end(&outcome).expect("end");
        Ended::with(Some(&outcome), Stream::Stdout)
    }

    fn reader(&self, offset: u64) -> OutputReader {
        output(self.dir.dir(), Stream::Stdout, offset)
    }

    fn file(&self) -> std::path::PathBuf {
        self.dir.dir().stream(Stream::Stdout)
    }
}

fn letter(offset: usize) -> u8 {
    u8::try_from(1 + offset % 251).expect("below 252")
}

/// Checks what a reader returns against what was written: every byte at its offset, or in a
/// gap. Returns the number of bytes, and how much is in gaps, at the next other chunk.
fn follow(reader: &mut OutputReader, ended: Ended) -> (u64, u64, Chunk) {
    let (mut read, mut missing) = (0, 0);
    loop {
        let from = usize::try_from(reader.offset()).expect("offset");
        match reader.next(ended).expect("read") {
            Chunk::Bytes(bytes) => {
                assert!(!bytes.is_empty() && bytes.len() <= CHUNK);
                let expected = (from..from + bytes.len()).map(letter);
                assert!(expected.eq(bytes.iter().copied()), "at {from}");
                read += bytes.len() as u64;
            }
            Chunk::Gap(Some(bytes)) => {
                assert!(bytes > 0, "at {from}");
                missing += bytes;
            }
            other => return (read, missing, other),
        }
    }
}

#[test]
fn a_run_without_output_has_no_file_and_ends() {
    let mut run = Run::new(100);
    let mut reader = run.reader(0);
    assert_eq!(reader.next(Ended::No).expect("read"), Chunk::Pending);
    let ended = run.end();
    assert!(!run.file().exists());
    assert_eq!(reader.next(ended).expect("read"), Chunk::End);
    assert!(tail(run.dir.dir(), Stream::Stdout, 10, ended).is_empty());
}

#[test]
fn what_comes_later_is_read_from_where_the_reader_is() {
    let mut run = Run::new(0);
    let mut reader = run.reader(2);
    run.write(5);
    assert_eq!(follow(&mut reader, Ended::No), (3, 0, Chunk::Pending));
    run.write(200_000);
    assert_eq!(follow(&mut reader, Ended::No), (200_000, 0, Chunk::Pending));
    let ended = run.end();
    assert_eq!(follow(&mut reader, ended), (0, 0, Chunk::End));
    let last = tail(run.dir.dir(), Stream::Stdout, 10, ended);
    assert_eq!(last, run.written[run.written.len() - 10..]);
}

#[test]
fn the_middle_of_a_long_stream_is_a_gap() {
    let mut run = Run::new(100_000);
    run.write(1_000_000);
    let mut live = run.reader(0);
    assert_eq!(
        follow(&mut live, Ended::No),
        (100_000, 900_000, Chunk::Pending)
    );
    run.write(1_000_000);
    let ended = run.end();
    assert_eq!(ended, Ended::Yes(Some(1_900_000)));
    // Of what came since, as much is kept as of any end.
    assert_eq!(follow(&mut live, ended), (50_000, 950_000, Chunk::End));
    let whole = follow(&mut run.reader(0), ended);
    assert_eq!(whole, (100_000, 1_900_000, Chunk::End));
    let inside = follow(&mut run.reader(60_000), ended);
    assert_eq!(inside, (50_000, 1_890_000, Chunk::End));
    let last = tail(run.dir.dir(), Stream::Stdout, 60_000, ended);
    assert_eq!(last, run.written[1_950_000..]);
}

#[test]
fn a_runner_that_was_killed_has_not_counted_and_leaves_no_zeros() {
    let mut run = Run::new(100_000);
    run.write(1_000_000);
    let interrupted = Outcome::interrupted(1);
    let ended = Ended::with(Some(&interrupted), Stream::Stdout);
    assert_eq!(ended, Ended::Yes(None));
    let read = follow(&mut run.reader(0), ended);
    assert_eq!(read, (100_000, 900_000, Chunk::End));
}

#[test]
fn a_file_that_was_truncated_is_noticed() {
    let mut run = Run::new(0);
    run.write(1000);
    let mut reader = run.reader(0);
    follow(&mut reader, Ended::No);
    File::create(run.file()).expect("truncate");
    assert_eq!(reader.next(Ended::No).expect("read"), Chunk::Truncated);
    assert_eq!(reader.offset(), 0);
    assert_eq!(reader.next(Ended::No).expect("read"), Chunk::Pending);
    run.stdout.write_all(b"more").expect("write");
    let ended = run.end();
    let more = Chunk::Bytes(Bytes::from_static(b"more"));
    assert_eq!(reader.next(ended).expect("read"), more);
    assert_eq!(reader.next(ended).expect("read"), Chunk::End);
}

#[test]
fn a_stream_without_space_for_its_file_is_one_gap() {
    let mut run = Run::new(0);
    // A folder in the place of the file.
    fs::create_dir(run.file()).expect("folder");
    run.write(10);
    let mut reader = run.reader(0);
    let ended = run.end();
    assert_eq!(ended, Ended::Yes(Some(10)));
    fs::remove_dir(run.file()).expect("remove");
    assert_eq!(follow(&mut reader, ended), (0, 10, Chunk::End));
}

fn notes(record: &str) -> Notes {
    Notes::new(record.as_bytes(), "u1")
}

#[test]
fn records_tell_where_a_gap_is() {
    let gap = |record: &str, dropped| gap(&notes(record), Stream::Stdout, 1000, dropped);
    let some = |at, bytes, is_hole| Some(Gap { at, bytes, is_hole });
    assert_eq!(gap("begun u1\n", None), None);
    let hole = "hole-stdout u1 10 20\n";
    assert_eq!(gap(hole, None), some(10, Some(970), true));
    assert_eq!(gap(hole, Some(5)), some(10, Some(5), true));
    let large = "hole-stdout u1 900 200\n";
    assert_eq!(gap(large, None), some(900, Some(0), true));
    // Of the other stream, of another unit, half a line.
    for record in [
        "hole-stderr u1 10 20\n",
        "hole-stdout u2 10 20\n",
        "hole-stdout u1 10",
    ] {
        assert_eq!(gap(record, None), None, "{record}");
        let earlier = some(400, Some(200), true);
        assert_eq!(gap(record, Some(200)), earlier, "{record}");
    }
    let both = "hole-stdout u1 10 20\ncut-stdout u1 10\n";
    assert_eq!(gap(both, None), some(10, None, false));
    assert_eq!(gap(both, Some(7)), some(10, Some(7), false));
}

#[test]
fn a_file_that_was_cut_just_below_its_limit_stays_below_it() {
    let mut run = Run::new(257_008);
    run.write(256_937);
    run.output.cut_stdout(&mut run.dir);
    run.write(72);
    let ended = run.end();
    let (read, missing, end) = follow(&mut run.reader(0), ended);
    assert_eq!((end, read + missing), (Chunk::End, 257_009));
    assert!(read <= 257_008, "{read}");
}

/// A step of a run or of its reader.
#[derive(Debug, Clone)]
enum Step {
    /// The command writes this many bytes.
    Write(usize),
    /// The file system has no more space, or knows no holes.
    Cut,
    /// The reader takes what there is.
    Read,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..300_000usize).prop_map(Step::Write),
        4 => (0..100usize).prop_map(Step::Write),
        1 => Just(Step::Cut),
        4 => Just(Step::Read),
    ];
    proptest::collection::vec(step, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn bytes_and_gaps_together_are_what_was_written(
        limit in prop_oneof![Just(0u64), 1..300_000u64],
        from in 0..500_000u64,
        steps in steps(),
        killed in any::<bool>(),
    ) {
        let mut run = Run::new(limit);
        let mut reader = run.reader(0);
        let (mut read, mut missing) = (0, 0);
        for step in steps {
            match step {
                Step::Write(bytes) => run.write(bytes),
                Step::Cut => run.output.cut_stdout(&mut run.dir),
                Step::Read => {
                    let (more, gaps, end) = follow(&mut reader, Ended::No);
                    prop_assert_eq!(end, Chunk::Pending);
                    read += more;
                    missing += gaps;
                }
            }
        }
        let length = run.written.len() as u64;
        let ended = if killed { Ended::Yes(None) } else { run.end() };
        let (more, gaps, end) = follow(&mut reader, ended);
        (read, missing) = (read + more, missing + gaps);
        if end == Chunk::Gap(None) {
            prop_assert!(killed && read + missing <= length);
            prop_assert_eq!(reader.next(ended).expect("read"), Chunk::End);
            return Ok(());
        }
        prop_assert_eq!(end, Chunk::End);
        prop_assert_eq!(read + missing, length);
        // A later reader sees no more bytes, from any offset.
        let (late, gaps, _) = follow(&mut run.reader(0), ended);
        prop_assert!(late <= read && late + gaps == length);
        let (late, gaps, _) = follow(&mut run.reader(from), ended);
        prop_assert_eq!(late + gaps, length.saturating_sub(from));
        if !killed {
            let kept = if limit == 0 { u64::MAX } else { limit };
            prop_assert!(late <= kept);
            let last = tail(run.dir.dir(), Stream::Stdout, 100, ended);
            prop_assert!(run.written.ends_with(&last));
        }
    }

    #[test]
    fn a_file_that_anybody_truncates_is_read_to_an_end(
        limit in prop_oneof![Just(0u64), 1..300_000u64],
        pieces in proptest::collection::vec((0..300_000usize, 0..300_000u64), 1..4),
    ) {
        let mut run = Run::new(limit);
        let mut reader = run.reader(0);
        for (bytes, size) in pieces {
            run.write(bytes);
            let all = read_all(&mut reader, Ended::No);
            prop_assert_eq!(all, Chunk::Pending);
            if let Ok(file) = File::options().write(true).open(run.file()) {
                let shorter = file.metadata().expect("meta").len().min(size);
                file.set_len(shorter).expect("truncate");
            }
            let all = read_all(&mut reader, Ended::No);
            prop_assert_eq!(all, Chunk::Pending);
        }
        let ended = run.end();
        let all = read_all(&mut reader, ended);
        prop_assert_eq!(all, Chunk::End);
    }
}

/// Reads until there is nothing more, and truncated once at most.
fn read_all(reader: &mut OutputReader, ended: Ended) -> Chunk {
    let mut truncated = 0;
    loop {
        match reader.next(ended).expect("read") {
            Chunk::Bytes(_) | Chunk::Gap(_) => {}
            Chunk::Truncated if truncated < 2 => truncated += 1,
            other => return other,
        }
    }
}

#[test]
fn a_reader_beside_the_runner_sees_every_byte_or_a_gap() {
    const LENGTH: usize = 6_000_000;
    for limit in [0, 400_000] {
        let mut run = Run::new(limit);
        let over = AtomicBool::new(false);
        let path = run.dir.dir().path().to_owned();
        let live = |path: &Path| {
            let mut reader = output(&UnitDir::at(path.to_owned()), Stream::Stdout, 0);
            loop {
                let last = over.load(Ordering::SeqCst);
                let (_, _, end) = follow(&mut reader, Ended::No);
                assert_eq!(end, Chunk::Pending);
                if last {
                    return reader.offset();
                }
            }
        };
        let offset = std::thread::scope(|scope| {
            let reader = scope.spawn(|| live(&path));
            while run.written.len() < LENGTH {
                run.write(70_000);
            }
            over.store(true, Ordering::SeqCst);
            reader.join().expect("reader")
        });
        assert_eq!(offset, run.written.len() as u64);
    }
}
