//! `tael work results`: the output of a unit.

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;

use crate::error::{Error, Kind, Result};
use crate::model::text::printable;
use crate::model::unit::Outcome;
use crate::os::logging::say;
use crate::os::stdout::stdout;
use crate::store::ledger::Record;
use crate::store::unit_dir::both::{BothReader, Piece, both};
use crate::store::unit_dir::reader::{Chunk, Ended, OutputReader, output, tail};
use crate::store::unit_dir::stream::Stream;
use crate::tools::work::{Found, LOOK, effective, state_name};

/// The output to print.
enum Reader {
    One(Stream, OutputReader),
    Both(BothReader),
}

/// Prints the output of a unit, of both streams without a `stream`, and returns the exit code of its
/// command.
pub(super) fn results(
    found: &Found,
    stream: Option<Stream>,
    follow: bool,
    from: u64,
) -> Result<ExitCode> {
    let unit = &found.record.unit.id;
    let cannot = |e: io::Error| Error::cannot_create(format!("read output of unit {unit}: {e}"));
    let dir = found.dir();
    let mut reader = match stream {
        Some(stream) => Reader::One(stream, output(&dir, stream, from)),
        None => Reader::Both(both(&dir)),
    };
    loop {
        // First the state, then the output: what was written before the end is read.
        let record = refreshed(found)?;
        let (state, outcome) = effective(&found.pipeline, &record)?;
        let ended = state.is_end().then_some(outcome.as_ref());
        let copied = reader.copy(ended);
        copied
            .inspect_err(crate::tools::ended_by_reader)
            .map_err(cannot)?;
        if state.is_end() {
            let code = outcome.as_ref().and_then(|o| o.reported().return_code());
            let whole = Ended::with(outcome.as_ref(), Stream::Stderr);
            let stderr = || tail(&dir, Stream::Stderr, 1, whole);
            if reader.had_no_stdout() && code != Some(0) && !stderr().is_empty() {
                say(&format!(
                    "unit {unit}: nothing on stdout; --stderr has what it said"
                ));
            }
            return Ok(match code {
                Some(code) => crate::tools::exit_code(code.into()),
                None => {
                    let why = record.note.as_deref().unwrap_or("it did not run");
                    say(&format!("unit {unit}: {}", printable(why, 500)));
                    ExitCode::from(Kind::NoCode.exit_code())
                }
            });
        }
        if !follow {
            return Err(Error::new(
                Kind::NoCode,
                format!(
                    "unit {unit} has not ended: it is {}; --follow waits",
                    state_name(&record, state)
                ),
            ));
        }
        thread::sleep(LOOK);
    }
}

impl Reader {
    /// Returns whether it is a reader of stdout, which has no bytes.
    const fn had_no_stdout(&self) -> bool {
        matches!(self, Self::One(Stream::Stdout, reader) if reader.offset() == 0)
    }

    /// Copies the output so far to stdout; `ended` has the outcome of a run that has ended. Missing
    /// bytes become a note on stderr.
    fn copy(&mut self, ended: Option<Option<&Outcome>>) -> io::Result<()> {
        let mut out = stdout()?.lock();
        loop {
            let chunk = match self {
                Self::One(stream, reader) => {
                    let of = |outcome| Ended::with(outcome, *stream);
                    reader.next(ended.map_or(Ended::No, of))?
                }
                Self::Both(reader) => match reader.next(ended)? {
                    Piece::Of(_, chunk) => chunk,
                    Piece::Unordered => {
                        out.flush()?;
                        say(
                            "the order of both streams is not known from here on: stdout comes first",
                        );
                        continue;
                    }
                    Piece::Pending => Chunk::Pending,
                    Piece::End => Chunk::End,
                },
            };
            let note = match chunk {
                Chunk::Bytes(bytes) => {
                    out.write_all(&bytes)?;
                    continue;
                }
                Chunk::Gap(Some(bytes)) => format!("{bytes} bytes were dropped here"),
                Chunk::Gap(None) => "the rest was dropped here".into(),
                Chunk::Truncated => {
                    "the output has become shorter: another program has cut it off; from its start"
                        .into()
                }
                Chunk::Pending | Chunk::End => return out.flush(),
            };
            out.flush()?;
            say(&note);
        }
    }
}

fn refreshed(found: &Found) -> Result<Record> {
    let unit = &found.record.unit.id;
    let released = || Error::data(format!("find unit '{unit}': it has been released"));
    found.reader.unit(unit)?.ok_or_else(released)
}
