//! Output of `tael work`: lists, status and results of units.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};
use crate::model::text::{escaped_json, printable};
use crate::model::unit::State;
use crate::model::{duration, json, moment};
use crate::os::logging::say;
use crate::store::ledger::{Reader, Record};
use crate::store::unit_dir::UnitDir;
use crate::store::unit_dir::reader::{Chunk, Ended, OutputReader, output, tail};
use crate::store::unit_dir::stream::Stream;
use crate::tools::work::{Found, LOOK, Scope, effective, pipelines};

fn report(who: &str, pipeline: &Path, record: &Record) -> Result<Value> {
    let (state, outcome) = effective(pipeline, record)?;
    let now = Timestamp::now().as_millisecond();
    let seconds = |ms: i64| ms as f64 / 1000.0;
    let started = record
        .started
        .or_else(|| outcome.as_ref().map(|o| o.started).filter(|at| *at > 0));
    let elapsed = match (&outcome, started) {
        (Some(outcome), _) => Some(Duration::from_micros(outcome.elapsed).as_secs_f64()),
        (None, Some(at)) if state == State::Running => Some(seconds(now - at)),
        _ => None,
    };
    let unit = &record.unit;
    Ok(json!({
        "unit": unit.id,
        "state": state.name(),
        "pipeline": who,
        "trigger": unit.lane(),
        "event": unit.event,
        "topic": unit.topic,
        "reason": unit.reason,
        "attempt": unit.attempt,
        "retry_of": unit.retry_of,
        "command": unit.spec.command.text(),
        "age": seconds((now - record.accepted).max(0)),
        "accepted": seconds(record.accepted),
        "started": started.map(seconds),
        "ended": record.ended.map(seconds),
        "elapsed": elapsed,
        "return_code": outcome.as_ref().and_then(|o| o.reported().return_code()),
        "max_rss_kib": outcome.as_ref().map(|o| o.max_rss),
        "cpu": outcome.as_ref().map(|o| Duration::from_micros(o.cpu).as_secs_f64()),
        "dropped_stdout": outcome.as_ref().map(|o| o.dropped[0]),
        "dropped_stderr": outcome.as_ref().map(|o| o.dropped[1]),
        "note": record.note,
        "reply_to": unit.reply.as_ref().map(|reply| &reply.topic),
        "folder": UnitDir::new(pipeline, &unit.id).path().to_string_lossy(),
    }))
}

/// Returns seconds as people read them.
fn span(value: &Value) -> String {
    let seconds = value.as_f64().map(Duration::try_from_secs_f64);
    match seconds {
        Some(Ok(span)) => duration::rough(span),
        _ => "-".into(),
    }
}

/// Output of a list, one report at a time: memory may not hold all of them.
struct Table {
    json: bool,
    rows: usize,
}

impl Table {
    fn add(&mut self, report: &Value) -> Result<()> {
        let first = self.rows == 0;
        self.rows += 1;
        if self.json {
            let start = if first { "[" } else { "," };
            let report = escaped_json(&json::to_text(report));
            return crate::tools::print_part(&format!("{start}{report}"));
        }
        if first {
            crate::tools::print(&row(
                "UNIT", "STATE", "PIPELINE", "AGE", "ELAPSED", "EXIT", "COMMAND",
            ))?;
        }
        let text = |key| printable(crate::tools::text(report, key).unwrap_or("-"), 120);
        let exit = match report["return_code"].as_i64() {
            Some(code) => code.to_string(),
            None => "-".into(),
        };
        crate::tools::print(&row(
            &text("unit"),
            &text("state"),
            &text("pipeline"),
            &span(&report["age"]),
            &span(&report["elapsed"]),
            &exit,
            &text("command"),
        ))
    }

    fn end(&self) -> Result<()> {
        match (self.json, self.rows) {
            (true, 0) => crate::tools::print("[]"),
            (true, _) => crate::tools::print("]"),
            (false, _) => Ok(()),
        }
    }
}

pub(super) fn list(scope: &Scope, json: bool) -> Result<ExitCode> {
    let mut table = Table { json, rows: 0 };
    let mut code = ExitCode::SUCCESS;
    for (who, pipeline) in pipelines(scope)? {
        // A pipeline that cannot be read does not hide the others.
        let mut unreadable = |e: Error| {
            say(&e.to_string());
            code = ExitCode::from(e.exit_code());
        };
        let reader = match Reader::open(&pipeline) {
            Ok(reader) => reader,
            Err(e) => {
                unreadable(e);
                continue;
            }
        };
        let mut seq = 0;
        loop {
            let reports = reader.page(seq).and_then(|page| {
                seq = page.last().map_or(seq, |last| last.seq);
                let reports = page.iter().map(|record| report(&who, &pipeline, record));
                reports.collect::<Result<Vec<_>>>()
            });
            match reports {
                Ok(reports) if reports.is_empty() => break,
                Ok(reports) => reports.iter().try_for_each(|report| table.add(report))?,
                Err(e) => {
                    unreadable(e);
                    break;
                }
            }
        }
    }
    table.end()?;
    Ok(code)
}

fn row(
    unit: &str,
    state: &str,
    who: &str,
    age: &str,
    elapsed: &str,
    exit: &str,
    cmd: &str,
) -> String {
    format!("{unit:<26}  {state:<9}  {who:<16}  {age:>14}  {elapsed:>14}  {exit:>4}  {cmd}")
}

pub(super) fn status(found: &Found, json: bool) -> Result<ExitCode> {
    let report = report(&found.who, &found.pipeline, &found.record)?;
    if json {
        crate::tools::print_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    for (key, value) in report.as_object().into_iter().flatten() {
        let text = match value {
            Value::Null => continue,
            Value::String(text) => printable(text, 500),
            _ if ["age", "elapsed", "cpu"].contains(&key.as_str()) => span(value),
            _ if ["accepted", "started", "ended"].contains(&key.as_str()) => {
                at(value.as_f64().unwrap_or(0.0))
            }
            other => printable(&json::to_text(other), 500),
        };
        crate::tools::print(&format!("{key:<14} {text}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns seconds since 1970 as people read them, in the time zone of this host.
fn at(seconds: f64) -> String {
    #[allow(clippy::cast_possible_truncation)] // milliseconds since 1970
    let at = Timestamp::from_millisecond((seconds * 1000.0) as i64);
    at.map(|at| moment::text(&at.to_zoned(TimeZone::system())))
        .unwrap_or_default()
}

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
