//! `tael work results`: the output of a unit.

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;

use crate::error::{Error, Kind, Result};
use crate::model::text::printable;
use crate::os::logging::say;
use crate::store::ledger::Record;
use crate::store::unit_dir::reader::{Chunk, Ended, OutputReader, output, tail};
use crate::store::unit_dir::stream::Stream;
use crate::tools::work::{Found, LOOK, effective};

/// Prints the output of a unit, and returns the exit code of its command.
pub(super) fn results(found: &Found, stream: Stream, follow: bool, from: u64) -> Result<ExitCode> {
    let unit = &found.record.unit.id;
    let cannot = |e: io::Error| Error::cannot_create(format!("read output of unit {unit}: {e}"));
    let mut reader = output(&found.dir(), stream, from);
    loop {
        // First the state, then the output: what was written before the end is read.
        let record = refreshed(found)?;
        let (state, outcome) = effective(&found.pipeline, &record)?;
        let ended = |stream| match state.is_end() {
            true => Ended::with(outcome.as_ref(), stream),
            false => Ended::No,
        };
        copy(&mut reader, ended(stream)).map_err(cannot)?;
        if state.is_end() {
            let code = outcome.as_ref().and_then(|o| o.reported().return_code());
            let silent = stream == Stream::Stdout && reader.offset() == 0;
            let stderr = || tail(&found.dir(), Stream::Stderr, 1, ended(Stream::Stderr));
            if silent && code != Some(0) && !stderr().is_empty() {
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
                format!("unit {unit} has not ended: it is {state}; --follow waits"),
            ));
        }
        thread::sleep(LOOK);
    }
}

/// Copies the output so far to stdout. Missing bytes become a note on stderr.
fn copy(reader: &mut OutputReader, ended: Ended) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut copied = || {
        loop {
            let note = match reader.next(ended)? {
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
    };
    copied().inspect_err(crate::tools::ended_by_reader)
}

fn refreshed(found: &Found) -> Result<Record> {
    let unit = &found.record.unit.id;
    let released = || Error::data(format!("find unit '{unit}': it has been released"));
    found.reader.unit(unit)?.ok_or_else(released)
}
