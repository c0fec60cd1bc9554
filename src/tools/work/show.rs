//! `tael work status`: everything known about a unit.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::model::about::about;
use crate::model::event::attributes;
use crate::model::table::Colour;
use crate::model::text::printable;
use crate::model::topic;
use crate::model::unit::{Outcome, State, Unit};
use crate::model::work::Work;
use crate::model::{duration, json, moment};
use crate::os::stdout::stdout;
use crate::os::terminal::Terminal;
use crate::store::ledger::Record;
use crate::store::ledger::listing::attempts;
use crate::store::payload_file;
use crate::store::unit_dir::UnitDir;
use crate::tools::work::{Found, away, effective, state_name};

/// Maximum size of a payload in which a sender is looked for, bytes.
const MAX_READ: usize = 1024 * 1024;

/// Maximum length of a value, characters.
const MAX_VALUE: usize = 500;

/// Times of a run.
pub(super) struct Times {
    /// When its command was started, milliseconds since 1970.
    pub started: Option<i64>,
    /// How long it has run.
    pub elapsed: Option<Duration>,
}

impl Times {
    /// Returns the times of the run of `record`, with its present state and outcome.
    pub fn of(record: &Record, state: State, outcome: Option<&Outcome>) -> Self {
        let from_runner = outcome.map(|o| o.started).filter(|at| *at > 0);
        let started = record.started.or(from_runner);
        let so_far = |at: i64| {
            let now = Timestamp::now().as_millisecond();
            Duration::from_millis(u64::try_from(now - at).unwrap_or(0))
        };
        let elapsed = match (outcome, started) {
            (Some(outcome), _) => Some(Duration::from_micros(outcome.elapsed)),
            (None, Some(at)) if state == State::Running => Some(so_far(at)),
            _ => None,
        };
        Self { started, elapsed }
    }
}

/// Returns what is known about a unit, with its present state and outcome, for programs.
#[allow(clippy::cast_precision_loss)] // a time in milliseconds is far below 2^53
pub(super) fn report(
    who: &str,
    pipeline: &Path,
    record: &Record,
    (state, outcome): (State, Option<&Outcome>),
) -> Value {
    let now = Timestamp::now().as_millisecond();
    let seconds = |ms: i64| ms as f64 / 1000.0;
    let times = Times::of(record, state, outcome);
    let unit = &record.unit;
    json!({
        "unit": unit.id,
        "state": state_name(record, state),
        "pipeline": who,
        "kind": if unit.work.is_some() { "work" } else { "event" },
        "trigger": unit.lane(),
        "work_type": unit.work.as_ref().map(|work| &work.kind),
        "params": unit.work.as_ref().map(|work| &work.params),
        "submitter": unit.work.as_ref().map(|work| &work.submitter),
        "node": away(record),
        "event": unit.event,
        "topic": unit.topic,
        "reason": unit.reason,
        "attempt": unit.attempt,
        "retry_of": unit.retry_of,
        "command": unit.spec.command.text(),
        "age": seconds((now - record.accepted).max(0)),
        "accepted": seconds(record.accepted),
        "started": times.started.map(seconds),
        "ended": record.ended.map(seconds),
        "elapsed": times.elapsed.map(|elapsed| elapsed.as_secs_f64()),
        "return_code": outcome.and_then(|o| o.reported().return_code()),
        "max_rss_kib": outcome.map(|o| o.max_rss),
        "cpu": outcome.map(|o| Duration::from_micros(o.cpu).as_secs_f64()),
        "dropped_stdout": outcome.map(|o| o.dropped[0]),
        "dropped_stderr": outcome.map(|o| o.dropped[1]),
        "note": record.note,
        "reply_to": unit.reply.as_ref().map(|reply| &reply.topic),
        "folder": UnitDir::new(pipeline, &unit.id).path().to_string_lossy(),
    })
}

/// Returns who has sent the event of a unit, as far as that is known: the pipeline that a status is
/// from, otherwise the `user` of the payload.
fn sender(unit: &Unit, payload: Option<&[u8]>) -> Option<String> {
    if let Some(work) = &unit.work {
        return Some(work.submitter.clone());
    }
    if let Some(who) = topic::pipeline_of_status(&unit.topic) {
        return Some(who.to_owned());
    }
    let attributes = attributes(payload?, MAX_READ).ok()?;
    attributes.get("user")?.as_str().map(str::to_owned)
}

/// Returns the attempts for the event of the unit, for programs.
fn all_attempts(found: &Found) -> Result<Vec<Value>> {
    let mut list = Vec::new();
    for record in attempts(&found.reader, &found.record)? {
        let (state, outcome) = effective(&found.pipeline, &record)?;
        list.push(json!({
            "unit": record.unit.id,
            "attempt": record.unit.attempt,
            "state": state_name(&record, state),
            "return_code": outcome.and_then(|o| o.reported().return_code()),
        }));
    }
    Ok(list)
}

/// Returns everything known about the unit.
///
/// # Errors
/// When its state cannot be read.
pub(super) fn whole_report(found: &Found) -> Result<Value> {
    let (state, outcome) = effective(&found.pipeline, &found.record)?;
    let unit = &found.record.unit;
    let mut report = report(
        &found.who,
        &found.pipeline,
        &found.record,
        (state, outcome.as_ref()),
    );
    let payload = found.reader.payload(&unit.id)?;
    let payload_file = unit.work.as_ref().and_then(|work| work.file.as_ref());
    if let Value::Object(report) = &mut report {
        if let Some(origin) = &unit.origin {
            let queue = json!({
                "queue": origin.queue,
                "message_id": origin.message_id,
                "redelivered": origin.redelivered,
                "fence": origin.fence,
            });
            report.insert("message".to_owned(), queue);
        }
        let text = |(name, value): &(String, _)| (name.clone(), json!(value));
        let about = about(&unit.spec.required, &unit.variables, &unit.passthrough);
        let all = unit
            .variables
            .iter()
            .map(|(name, value)| (name.clone(), json!(value)));
        report.extend([
            ("sender".to_owned(), json!(sender(unit, payload.as_deref()))),
            (
                "about".to_owned(),
                Value::Object(about.iter().map(text).collect()),
            ),
            (
                "attributes".to_owned(),
                Value::Object(all.collect::<Map<_, _>>()),
            ),
            ("attempts".to_owned(), all_attempts(found)?.into()),
            (
                "payload_bytes".to_owned(),
                json!(match &payload_file {
                    Some(file) => file.bytes,
                    None => payload.map_or(0, |p| p.len()) as u64,
                }),
            ),
        ]);
    }
    Ok(report)
}

/// Prints everything known about the unit.
///
/// # Errors
/// When its state cannot be read, or stdout cannot be written.
pub(super) fn status(found: &Found, json: bool) -> Result<ExitCode> {
    let report = whole_report(found)?;
    if json {
        crate::tools::print_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    let terminal = Terminal::of_stdout();
    for (key, value) in report.as_object().into_iter().flatten() {
        for text in texts(key, value) {
            let text = match Colour::of_state(&text) {
                Some(colour) if key == "state" && terminal.colour => colour.paint(&text),
                _ => text,
            };
            crate::tools::print(&format!("{key:<14} {text}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the lines of one field, for people.
fn texts(key: &str, value: &Value) -> Vec<String> {
    let span = |value: &Value| {
        let span = value.as_f64().map(Duration::try_from_secs_f64);
        span.and_then(Result::ok)
            .map_or_else(|| "-".into(), duration::rough)
    };
    let pair = |(name, value): (&String, &Value)| {
        let text = value
            .as_str()
            .map_or_else(|| json::to_text(value), str::to_owned);
        printable(&format!("{name}={text}"), MAX_VALUE)
    };
    match (key, value) {
        // Attributes say more.
        (_, Value::Null) | ("about", _) => Vec::new(),
        ("age" | "elapsed" | "cpu", value) => vec![span(value)],
        ("accepted" | "started" | "ended", value) => vec![at(value.as_f64().unwrap_or(0.0))],
        ("attempts", Value::Array(list)) if list.len() < 2 => Vec::new(),
        ("attempts", Value::Array(list)) => list.iter().map(attempt).collect(),
        ("attributes" | "message", Value::Object(map)) => map.iter().map(pair).collect(),
        (_, Value::String(text)) => vec![printable(text, MAX_VALUE)],
        (_, other) => vec![printable(&json::to_text(other), MAX_VALUE)],
    }
}

/// Returns one attempt on a line: `2 failed (7) 01JBV7Y3ZK8Q5W2N4T6R9M1XCD`.
fn attempt(attempt: &Value) -> String {
    let text = |key| printable(crate::tools::text(attempt, key).unwrap_or("?"), 80);
    let code = attempt.get("return_code").and_then(Value::as_i64);
    let code = code
        .filter(|_| text("state") == "failed")
        .map(|code| format!(" ({code})"));
    let number = attempt.get("attempt").and_then(Value::as_u64).unwrap_or(0);
    format!(
        "{number} {}{} {}",
        text("state"),
        code.unwrap_or_default(),
        text("unit")
    )
}

/// Returns seconds since 1970 as people read them, in the time zone of this host.
fn at(seconds: f64) -> String {
    #[allow(clippy::cast_possible_truncation)] // milliseconds since 1970
    let at = Timestamp::from_millisecond((seconds * 1000.0) as i64);
    at.map(|at| moment::text(&at.to_zoned(TimeZone::system())))
        .unwrap_or_default()
}

/// Prints the payload of the message, byte for byte.
///
/// # Errors
/// When the ledger cannot be read, or stdout cannot be written.
pub(super) fn payload(found: &Found) -> Result<ExitCode> {
    let unit = &found.record.unit;
    let mut out = stdout().map_err(not_written)?.lock();
    if let Some(name) = unit.work.as_deref().and_then(Work::file_name) {
        let path = payload_file::path(&found.pipeline, name);
        let mut file = File::open(&path)
            .map_err(|e| Error::cannot_create(format!("read {}: {e}", path.display())))?;
        let copied = io::copy(&mut file, &mut out).and_then(|_| out.flush());
        copied.map_err(not_written)?;
        return Ok(ExitCode::SUCCESS);
    }
    let payload = found.reader.payload(&unit.id)?.unwrap_or_default();
    let written = out.write_all(&payload).and_then(|()| out.flush());
    written.map_err(not_written)?;
    Ok(ExitCode::SUCCESS)
}

fn not_written(e: io::Error) -> Error {
    crate::tools::ended_by_reader(&e);
    Error::cannot_create(format!("write to stdout: {e}"))
}
