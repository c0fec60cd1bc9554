//! `tael work`: the units of this host's pipelines, with their clients running or not.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};
use crate::model::duration;
use crate::model::text::printable;
use crate::model::unit::{Outcome, State, Trace};
use crate::os::lock::Lock;
use crate::store::ledger::{self, Op, Reader, Record};
use crate::store::streams::{Stream, UnitDir};

/// How often a unit that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Bytes copied at a time.
const CHUNK: usize = 64 * 1024;

/// How long a client may take to book an end.
const BOOKING: Duration = Duration::from_secs(10);

/// Which pipelines are meant.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The state folder.
    pub state: PathBuf,
    /// One pipeline only.
    pub who: Option<String>,
}

/// What is wanted of the units.
#[derive(Debug, Clone)]
pub enum Verb {
    /// All of them, a line each.
    List {
        /// As one JSON array.
        json: bool,
    },
    /// All that is known of one.
    Status {
        /// Its id.
        unit: String,
        /// As a JSON object.
        json: bool,
    },
    /// What it wrote.
    Results {
        /// Its id.
        unit: String,
        /// Which stream.
        stream: Stream,
        /// Go on until the unit ends.
        follow: bool,
        /// Where to begin, bytes.
        from: u64,
    },
    /// End it.
    Cancel {
        /// Its id.
        unit: String,
        /// How long to wait for that.
        timeout: Duration,
    },
    /// End it if need be, and forget it.
    Release {
        /// Its id.
        unit: String,
        /// Whatever goes wrong.
        force: bool,
        /// How long to wait for its end.
        timeout: Duration,
    },
}

/// A unit where it lives.
struct Found {
    who: String,
    pipeline: PathBuf,
    reader: Reader,
    record: Record,
}

/// Does what is wanted.
///
/// # Errors
/// 65 when there is no such unit, 73 when the state cannot be used, 75 when a unit has not
/// ended in time.
pub fn run(scope: &Scope, verb: &Verb) -> Result<ExitCode> {
    match verb {
        Verb::List { json } => list(scope, *json),
        Verb::Status { unit, json } => status(&find(scope, unit)?, *json),
        Verb::Results {
            unit,
            stream,
            follow,
            from,
        } => results(&find(scope, unit)?, *stream, *follow, *from),
        Verb::Cancel { unit, timeout } => {
            let mut found = find(scope, unit)?;
            if found.state()?.is_end() {
                let state = found.state()?;
                return Err(Error::data(format!(
                    "cancel unit {unit}: it has ended: {state}"
                )));
            }
            found.cancel(*timeout)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Release {
            unit,
            force,
            timeout,
        } => {
            let mut found = find(scope, unit)?;
            match found.release(*force, *timeout) {
                Err(e) if *force => eprintln!("tael: {e}"),
                other => other?,
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The folders of all pipelines that are meant, by name.
fn pipelines(scope: &Scope) -> Result<Vec<(String, PathBuf)>> {
    if let Some(who) = &scope.who {
        let path = scope.state.join(who);
        if !ledger::file(&path).exists() {
            return Err(Error::data(format!(
                "find pipeline '{who}': it has no ledger in {}",
                scope.state.display()
            )));
        }
        return Ok(vec![(who.clone(), path)]);
    }
    let unreadable =
        |e: io::Error| Error::cannot_create(format!("read {}: {e}", scope.state.display()));
    let entries = match fs::read_dir(&scope.state) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(unreadable(e)),
    };
    let mut list = Vec::new();
    for entry in entries {
        let entry = entry.map_err(unreadable)?;
        if ledger::file(&entry.path()).exists() {
            list.push((
                entry.file_name().to_string_lossy().into_owned(),
                entry.path(),
            ));
        }
    }
    list.sort();
    Ok(list)
}

fn find(scope: &Scope, unit: &str) -> Result<Found> {
    for (who, pipeline) in pipelines(scope)? {
        let reader = Reader::open(&pipeline)?;
        if let Some(record) = reader.unit(unit)? {
            return Ok(Found {
                who,
                pipeline,
                reader,
                record,
            });
        }
    }
    Err(Error::data(format!(
        "find unit '{}': there is none; see 'tael work list'",
        printable(unit, 80)
    )))
}

/// The state and the outcome of a unit as far as anybody can know them now: the ledger's, or
/// what its folder says while no client has booked that.
fn effective(pipeline: &Path, record: &Record) -> Result<(State, Option<Outcome>)> {
    if record.state.is_end() {
        return Ok((record.state, record.outcome.clone()));
    }
    Ok(match UnitDir::new(pipeline, &record.unit.id).trace()? {
        Trace::Ended(outcome) => (outcome.state(), Some(outcome)),
        Trace::Alive => (State::Running, None),
        Trace::Gone => {
            let outcome = Outcome::interrupted(record.started.unwrap_or(0));
            (outcome.state(), Some(outcome))
        }
        Trace::Fresh => (record.state, None),
    })
}

impl Found {
    fn dir(&self) -> UnitDir {
        UnitDir::new(&self.pipeline, &self.record.unit.id)
    }

    /// Reads the unit's record again; it may have been released meanwhile.
    fn refresh(&mut self) -> Result<()> {
        let id = &self.record.unit.id;
        self.record = self
            .reader
            .unit(id)?
            .ok_or_else(|| Error::data(format!("find unit '{id}': it has been released")))?;
        Ok(())
    }

    fn state(&self) -> Result<State> {
        effective(&self.pipeline, &self.record).map(|(state, _)| state)
    }

    fn wait(
        &mut self,
        limit: Duration,
        what: &str,
        mut done: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !done(self)? {
            if Instant::now() >= deadline {
                let unit = &self.record.unit.id;
                let seconds = limit.as_secs_f32();
                let cause = format!("unit {unit}: {what} within {seconds} s");
                return Err(Error::new(Kind::TryAgain, cause));
            }
            thread::sleep(LOOK);
            self.refresh()?;
        }
        Ok(())
    }

    /// Ends the unit and waits until it has ended.
    fn cancel(&mut self, limit: Duration) -> Result<()> {
        let unit = self.record.unit.id.clone();
        let drop = Op::Settle {
            unit: unit.clone(),
            state: State::Canceled,
            outcome: None,
            at: Timestamp::now().as_millisecond(),
            note: Some("cancelled by tael work".into()),
            statuses: Vec::new(),
            retry: None,
        };
        self.refresh()?;
        if self.record.state == State::Pending && self.state()? == State::Pending {
            // Its client, if one runs, asks the ledger before it starts the unit.
            self.reader.apply(&drop)?;
            return Ok(());
        }
        let cannot = |e| Error::cannot_create(format!("cancel unit {unit}: {e}"));
        self.dir().cancel().map_err(cannot)?;
        self.wait(limit, "it has not ended", |found| {
            Ok(found.state()?.is_end())
        })
    }

    fn release(&mut self, force: bool, limit: Duration) -> Result<()> {
        let unit = self.record.unit.id.clone();
        let cancelled = if self.state()?.is_end() {
            Ok(())
        } else {
            self.cancel(limit)
        };
        if !force {
            cancelled?;
            // Its end is to be told first, and only its client can do that.
            let client = Lock::try_acquire(&self.pipeline.join("lock"))?.is_none();
            let limit = if client { BOOKING } else { Duration::ZERO };
            self.refresh()?;
            let untold = "its client has not booked its end (force-release does without)";
            self.wait(limit, untold, |found| Ok(found.record.state.is_end()))?;
        }
        self.reader.apply(&Op::Release {
            unit: unit.clone(),
            force,
        })?;
        let removed = self.dir().remove();
        removed.map_err(|e| Error::cannot_create(format!("remove folder of unit {unit}: {e}")))
    }

    fn report(&self) -> Result<Value> {
        report(&self.who, &self.pipeline, &self.record)
    }
}

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
        "trigger": unit.trigger,
        "event": unit.event,
        "topic": unit.topic,
        "reason": unit.reason,
        "attempt": unit.attempt,
        "retry_of": unit.retry_of,
        "command": unit.command,
        "age": seconds(now - record.accepted),
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
        "folder": UnitDir::new(pipeline, &unit.id).path(),
    }))
}

/// Seconds as people read them: to the second, or finer below a minute.
fn span(value: &Value) -> String {
    match value.as_f64() {
        None => "-".into(),
        Some(s) if s < 60.0 => format!("{s:.1}s"),
        Some(s) => duration::python(Duration::from_secs_f64(s.floor())),
    }
}

fn list(scope: &Scope, json: bool) -> Result<ExitCode> {
    let mut reports = Vec::new();
    for (who, pipeline) in pipelines(scope)? {
        for record in Reader::open(&pipeline)?.units(false)? {
            reports.push(report(&who, &pipeline, &record)?);
        }
    }
    if json {
        super::print(&Value::Array(reports).to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    if !reports.is_empty() {
        super::print(&row(
            "UNIT", "STATE", "PIPELINE", "AGE", "ELAPSED", "EXIT", "COMMAND",
        ))?;
    }
    for r in reports {
        let text = |key| printable(super::text(&r, key).unwrap_or("-"), 120);
        let exit = match r["return_code"].as_i64() {
            Some(code) => code.to_string(),
            None => "-".into(),
        };
        super::print(&row(
            &text("unit"),
            &text("state"),
            &text("pipeline"),
            &span(&r["age"]),
            &span(&r["elapsed"]),
            &exit,
            &text("command"),
        ))?;
    }
    Ok(ExitCode::SUCCESS)
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
    format!("{unit:<26}  {state:<9}  {who:<16}  {age:>9}  {elapsed:>9}  {exit:>4}  {cmd}")
}

fn status(found: &Found, json: bool) -> Result<ExitCode> {
    let report = found.report()?;
    if json {
        super::print(&report.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    for (key, value) in report.as_object().into_iter().flatten() {
        let text = match value {
            Value::Null => continue,
            Value::String(text) => printable(text, 500),
            _ if ["age", "elapsed", "cpu"].contains(&key.as_str()) => span(value),
            _ if ["accepted", "started", "ended"].contains(&key.as_str()) => {
                moment(value.as_f64().unwrap_or(0.0))
            }
            other => other.to_string(),
        };
        super::print(&format!("{key:<14} {text}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn moment(seconds: f64) -> String {
    #[allow(clippy::cast_possible_truncation)] // milliseconds since the epoch
    let at = Timestamp::from_millisecond((seconds * 1000.0) as i64);
    at.map(|at| at.to_string()).unwrap_or_default()
}

/// Prints what the unit wrote and returns its own exit code.
fn results(found: &Found, stream: Stream, follow: bool, from: u64) -> Result<ExitCode> {
    let unit = &found.record.unit.id;
    let cannot = |e: io::Error| Error::cannot_create(format!("read output of unit {unit}: {e}"));
    let mut file = None;
    let mut at = from;
    loop {
        // Before the output is read: what is written after it is there is still read.
        let (state, outcome) = effective(&found.pipeline, &refreshed(found)?)?;
        if file.is_none() {
            file = match found.dir().read_stream(stream) {
                Ok(file) => Some(file),
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => return Err(cannot(e)),
            };
        }
        if let Some(file) = &mut file {
            at = copy(
                file,
                at,
                outcome.as_ref().map_or(0, |o| o.dropped[stream as usize]),
            )
            .map_err(cannot)?;
        }
        if state.is_end() {
            let code = outcome.and_then(|o| o.reported().return_code());
            return Ok(match code {
                Some(code) => super::exit_code(code.into()),
                // It never ran.
                None => ExitCode::from(Kind::TryAgain.exit_code()),
            });
        }
        if !follow {
            return Err(Error::new(
                Kind::TryAgain,
                format!("unit {unit} has not ended: it is {state}; --follow waits"),
            ));
        }
        thread::sleep(LOOK);
    }
}

fn refreshed(found: &Found) -> Result<Record> {
    let unit = &found.record.unit.id;
    let released = || Error::data(format!("find unit '{unit}': it has been released"));
    found.reader.unit(unit)?.ok_or_else(released)
}

/// Copies a stream from offset `at` to stdout and returns where it ended. Of `dropped` bytes
/// in the middle only a note on stderr is left.
fn copy(file: &mut fs::File, mut at: u64, dropped: u64) -> io::Result<u64> {
    let size = file.metadata()?.len();
    let gap = (size - dropped.min(size)) / 2;
    let gap = if dropped > 0 {
        gap..gap + dropped
    } else {
        size..size
    };
    let mut out = io::stdout().lock();
    let mut buffer = vec![0; CHUNK];
    loop {
        if gap.contains(&at) {
            out.flush()?;
            eprintln!("tael: {} bytes were dropped here", gap.end - at);
            at = gap.end;
        }
        let until = if at < gap.start { gap.start } else { u64::MAX };
        let want = usize::try_from((until - at).min(CHUNK as u64)).unwrap_or(CHUNK);
        file.seek(SeekFrom::Start(at))?;
        let n = file.read(&mut buffer[..want])?;
        if n == 0 {
            break;
        }
        if let Err(e) = out.write_all(&buffer[..n]) {
            super::ended_by_reader(&e);
            return Err(e);
        }
        at += n as u64;
    }
    if let Err(e) = out.flush() {
        super::ended_by_reader(&e);
        return Err(e);
    }
    Ok(at)
}
