//! `tael work`: shows and ends the units of this host, with or without a running client.

pub mod complete;
mod connection;
mod find;
mod list;
pub mod node;
mod parameters;
mod results;
mod retry;
mod show;
pub mod submit;
pub mod unit;
mod walk;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::error::{Error, Kind, Result};
use crate::model::duration;
use crate::model::letter::{self, Writer};
use crate::model::unit::{Outcome, State, Trace};
use crate::model::work::{Work, node_of_lane};
use crate::os::host::hostname;
use crate::os::lock::Lock;
use crate::os::logging::say;
use crate::os::paths;
use crate::os::terminal::Terminal;
use crate::store::ledger::submitted::is_file_released;
use crate::store::ledger::{self, Done, Op, Reader, Record};
use crate::store::payload_file;
use crate::store::unit_dir::UnitDir;
use crate::store::unit_dir::stream::Stream;
use connection::Connection;
use find::{find, find_begun};

pub use find::Which;
pub use retry::Runs;
pub use walk::{Filter, LeaveOut};

/// Interval between two looks at a unit that is waited for.
const LOOK: Duration = Duration::from_millis(50);

/// Maximum time for a client to book an end.
const BOOKING: Duration = Duration::from_secs(10);

/// The pipelines to look at.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The state folder.
    pub state: PathBuf,
    /// One pipeline; by default all.
    pub who: Option<String>,
}

/// Action of the command.
#[derive(Debug, Clone)]
pub enum Verb {
    /// List units, a line each.
    List(Filter),
    /// Show everything known about a unit.
    Status {
        /// The unit.
        which: Which,
        /// As a JSON object.
        json: bool,
        /// Print the payload of its message instead.
        payload: bool,
    },
    /// Print the output of a unit.
    Results {
        /// The unit.
        which: Which,
        /// Which stream; `None` for both, in the order of writing.
        stream: Option<Stream>,
        /// Whether to follow until the unit ends.
        follow: bool,
        /// First byte to print.
        from: u64,
    },
    /// Submit work to a running client.
    Submit(submit::Submission),
    /// Run the events of units again.
    Retry {
        /// The units.
        runs: Runs,
        /// Whether to do so also if one has succeeded, or was retried already.
        again: bool,
        /// As a JSON object.
        json: bool,
    },
    /// End a unit.
    Cancel {
        /// The unit; by default the only one that runs.
        unit: Option<String>,
        /// Maximum time to wait for its end.
        timeout: Duration,
    },
    /// End a unit if it still runs, and delete it.
    Release {
        /// The unit.
        unit: String,
        /// Whether to go on after errors.
        force: bool,
        /// Maximum time to wait for its end.
        timeout: Duration,
    },
}

/// A unit, and the pipeline it belongs to.
struct Found {
    who: String,
    pipeline: PathBuf,
    reader: Reader,
    record: Record,
}

/// Does what `verb` says.
///
/// # Errors
/// 65 when there is no such unit, 73 when the state cannot be used, 75 when a unit has not ended in
/// time, 77 when a process of it could not be ended; for results always 125.
pub fn run(scope: &Scope, verb: &Verb) -> Result<ExitCode> {
    match verb {
        Verb::List(filter) => list::list(scope, filter),
        Verb::Status {
            which,
            json,
            payload,
        } => {
            let found = find(scope, which)?;
            match payload {
                true => show::payload(&found),
                false => show::status(&found, *json),
            }
        }
        Verb::Results {
            which,
            stream,
            follow,
            from,
        } => find_begun(scope, which)
            .and_then(|found| {
                if which.is_newest() && Terminal::of_stderr().is_terminal() {
                    say(&format!("unit {} of {}", found.record.unit.id, found.who));
                }
                results::results(&found, *stream, *follow, *from)
            })
            // Every other code may be that of the command.
            .map_err(|e| e.into_kind(Kind::NoCode)),
        Verb::Submit(work) => submit::submit(scope, work),
        Verb::Retry { runs, again, json } => retry::run(scope, runs, *again, *json),
        Verb::Cancel { unit, timeout } => cancel(scope, unit.as_deref(), *timeout),
        Verb::Release {
            unit,
            force,
            timeout,
        } => {
            let mut found = find(scope, &Which::named(unit))?;
            found.can_tell(Some(unit))?;
            match found.release(*force, *timeout) {
                Err(e) if *force => say(&e.to_string()),
                other => {
                    other?;
                    found.tell("released", Some(unit))?;
                }
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn cancel(scope: &Scope, unit: Option<&str>, timeout: Duration) -> Result<ExitCode> {
    let mut found = match unit {
        Some(unit) => find(scope, &Which::named(unit))?,
        None => find::only_running(scope)?,
    };
    let id = found.record.unit.id.clone();
    let state = found.state()?;
    if state.is_end() {
        return Err(Error::data(format!(
            "cancel unit {id}: it has ended: {state}"
        )));
    }
    found.can_tell(unit)?;
    found.cancel(timeout)?;
    found.ended_whole()?;
    found.tell("canceled", unit)?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the folders of the pipelines to look at, by name.
pub fn pipelines(scope: &Scope) -> Result<Vec<(String, PathBuf)>> {
    if let Some(who) = &scope.who {
        let path = scope.state.join(who);
        if !ledger::file(&path).exists() {
            return Err(Error::data(format!(
                "find pipeline '{who}': it has no ledger in {}{}",
                scope.state.display(),
                elsewhere(scope)
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

/// Returns where else state may lie, as the end of a message.
fn elsewhere(scope: &Scope) -> String {
    let mut others = Vec::new();
    let own = paths::own_state_dir();
    for folder in [Some(PathBuf::from(paths::SERVICE_STATE)), own]
        .into_iter()
        .flatten()
    {
        if folder == scope.state || others.iter().any(|(other, _)| *other == folder) {
            continue;
        }
        match fs::read_dir(&folder) {
            Ok(entries) => {
                let mut entries = entries.flatten();
                if entries.any(|entry| ledger::file(&entry.path()).exists()) {
                    others.push((folder, ""));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                others.push((folder, " (of another user: use sudo)"));
            }
            Err(_) => {}
        }
    }
    let other = |(folder, note): &(PathBuf, &str)| format!("--state {}{note}", folder.display());
    let others: Vec<String> = others.iter().map(other).collect();
    match others.is_empty() {
        true => String::new(),
        false => format!("; there is more in {}", others.join(" and ")),
    }
}

/// Returns the node that runs a unit, if another one does.
fn away(record: &Record) -> Option<&str> {
    node_of_lane(record.unit.lane())
}

/// Name of the state of a unit whose node is away for too long.
const LOST: &str = "lost";

/// Returns the name of the present `state` of a unit.
pub(super) fn state_name(record: &Record, state: State) -> &'static str {
    let note = record.note.as_deref().unwrap_or_default();
    match away(record).is_some() && note.starts_with(LOST) && !state.is_end() {
        true => LOST,
        false => state.name(),
    }
}

/// Returns the present state and outcome of a unit: from the ledger, or from its folder while no
/// client has booked its end.
pub(super) fn effective(pipeline: &Path, record: &Record) -> Result<(State, Option<Outcome>)> {
    if record.state.is_end() {
        return Ok((record.state, record.outcome.clone()));
    }
    // Its folder has output only.
    if away(record).is_some() {
        return Ok((record.shown_state(), None));
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

    /// Reads the record of the unit again; it may have been released meanwhile.
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

    /// Checks that [`Self::tell`] can print.
    fn can_tell(&self, named: Option<&str>) -> Result<()> {
        match named == Some(&self.record.unit.id) {
            true => Ok(()),
            false => crate::tools::check_stdout(),
        }
    }

    /// Prints what was done to the unit, unless it was named by its whole id.
    fn tell(&self, done: &str, named: Option<&str>) -> Result<()> {
        let id = &self.record.unit.id;
        if named == Some(id) {
            return Ok(());
        }
        let id = Terminal::of_stdout().id(id);
        crate::tools::print(&format!("{done} unit {id} of {}", self.who))
    }

    fn wait(
        &mut self,
        limit: Duration,
        what: &str,
        mut done: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !done(self)? {
            if Instant::now() >= deadline {
                let unit = &self.record.unit.id;
                let limit = duration::text(limit);
                let cause = format!("unit {unit}: {what} within {limit}");
                return Err(Error::new(Kind::TryAgain, cause));
            }
            thread::sleep(LOOK);
            self.refresh()?;
        }
        Ok(())
    }

    /// Ends the unit, and waits until it has ended.
    fn cancel(&mut self, limit: Duration) -> Result<()> {
        let mut asked = false;
        self.refresh()?;
        let what = match away(&self.record) {
            Some(node) => format!("node {node} has not ended it"),
            None => "it has not ended".to_owned(),
        };
        self.wait(limit, &what, |found| {
            if found.record.state == State::Pending {
                // Its client, if one runs, asks the ledger before it starts the unit. The unit may
                // have been about to begin, and wait again.
                asked = false;
                return found.drop_waiting();
            }
            let ended = found.state()?.is_end();
            if !ended && !std::mem::replace(&mut asked, true) {
                found.end()?;
            }
            Ok(ended)
        })
    }

    /// Makes the runner of the unit end it, or the node that runs it.
    fn end(&self) -> Result<()> {
        let unit = &self.record.unit.id;
        let marked = self.dir().cancel();
        marked.map_err(|e| Error::cannot_create(format!("cancel unit {unit}: {e}")))?;
        let Some(node) = away(&self.record) else {
            return Ok(());
        };
        // The mark is for the next client. One that runs is asked after it.
        match self.ask(&format!("work cancel {unit}")) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == Kind::Unavailable => {
                let who = &self.who;
                let cause = format!(
                    "cancel unit {unit}: it is noted, and node {node} is told when the client {who} \
                     runs: start it"
                );
                Err(Error::new(Kind::TryAgain, cause))
            }
            Err(e) => Err(e),
        }
    }

    /// Asks the client, if it runs.
    fn ask(&self, request: &str) -> Result<String> {
        Ok(Connection::open(&self.pipeline)?.ask(request)?)
    }

    /// Reports what of an ended run could not be ended with it.
    fn ended_whole(&mut self) -> Result<()> {
        self.refresh()?;
        let (_, outcome) = effective(&self.pipeline, &self.record)?;
        let remains = outcome.and_then(|outcome| outcome.remains);
        remains.map_or(Ok(()), |remains| {
            let unit = &self.record.unit.id;
            let cause = format!("cancel unit {unit}: {remains}; end it as its user");
            Err(Error::new(Kind::NotAuthorised, cause))
        })
    }

    /// Drops the unit if it still waits. Returns whether it did.
    fn drop_waiting(&mut self) -> Result<bool> {
        let unit = &self.record.unit;
        if unit.work.is_some() || unit.origin.is_some() || unit.reply.is_some() {
            // Its client counts the units that wait. Without one, the ledger alone does.
            if self.ask(&format!("work cancel {}", unit.id)).is_ok() {
                self.refresh()?;
                return Ok(self.record.state.is_end());
            }
        }
        let now = Timestamp::now();
        let note = "canceled by tael work";
        let writer = Writer {
            who: &self.who,
            host: &hostname(),
            at: now.as_second(),
        };
        let letter = letter::dropped(&self.record.unit, note, writer);
        let dropped = self.reader.apply(&Op::Drop {
            unit: self.record.unit.id.clone(),
            at: now.as_millisecond(),
            note: note.into(),
            // Its client answers; without one, the requester asks again.
            answer: None,
            letters: letter.into_iter().collect(),
        })?;
        Ok(matches!(dropped, Done::Changed { applied: true, .. }))
    }

    /// Removes the file of the payload, unless another unit has it too.
    fn remove_payload(&self) -> io::Result<()> {
        match self.record.unit.work.as_deref().and_then(Work::file_name) {
            // One that stays is removed by the client.
            Some(file) if matches!(is_file_released(&self.reader, file), Ok(true)) => {
                payload_file::remove(&self.pipeline, file)
            }
            _ => Ok(()),
        }
    }

    /// Makes the client, if it runs, release a unit of another node, which it tells. Returns whether it
    /// does.
    fn release_by_client(&self, force: bool, limit: Duration) -> Result<bool> {
        let (unit, deadline) = (&self.record.unit.id, Instant::now() + limit);
        let verb = if force { "force-release" } else { "release" };
        match self.ask(&format!("work {verb} {unit}")) {
            Ok(_) => {}
            // The next client pays what this one leaves.
            Err(e) if e.kind() == Kind::Unavailable => return Ok(false),
            Err(e) => return Err(e),
        }
        while self.reader.holds(unit)? {
            if Instant::now() >= deadline {
                let node = away(&self.record).unwrap_or_default();
                let limit = duration::text(limit);
                let cause = format!(
                    "release unit {unit}: node {node} has not ended it within {limit}; it is released \
                     when it has"
                );
                return Err(Error::new(Kind::TryAgain, cause));
            }
            thread::sleep(LOOK);
        }
        Ok(true)
    }

    fn release(&mut self, force: bool, limit: Duration) -> Result<()> {
        if away(&self.record).is_some() && self.release_by_client(force, limit)? {
            return Ok(());
        }
        let unit = self.record.unit.id.clone();
        let canceled = if self.state()?.is_end() {
            Ok(())
        } else {
            self.cancel(limit)
        };
        if !force {
            canceled?;
            // Its end must be published first, and only its client can do that.
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
        let removed = self.dir().remove().and_then(|()| self.remove_payload());
        removed.map_err(|e| Error::cannot_create(format!("remove folder of unit {unit}: {e}")))
    }
}
