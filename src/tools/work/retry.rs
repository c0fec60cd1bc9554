//! `tael work retry`: runs the event of an ended unit again.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::json;

use crate::engine::control::retry_socket::{SOCKET, TAKEN};
use crate::error::{Error, Kind, Result};
use crate::model::control::needs_no_retry;
use crate::model::unit::State;
use crate::os::hooks;
use crate::os::host::new_id;
use crate::os::lock::Lock;
use crate::os::logging::say;
use crate::os::socket;
use crate::os::terminal::Terminal;
use crate::store::ledger::{Done, Op};
use crate::tools::work::find::{Which, find};
use crate::tools::work::walk::{Filter, LeaveOut, Walk};
use crate::tools::work::{Found, LOOK, Scope, elsewhere};

/// Maximum time for a running client to take up a run, and for its answer.
const TAKING: Duration = Duration::from_secs(10);

/// Maximum number of runs that one command retries. It names the rest.
const MAX_AT_ONCE: usize = 10_000;

/// The runs to retry.
#[derive(Debug, Clone)]
pub enum Runs {
    /// These.
    Named(Vec<Which>),
    /// The newest one that has failed and has no retry.
    Failed,
    /// All that have failed and have no retry, and that the filter lets through.
    AllFailed(Filter),
}

impl Runs {
    /// Returns the runs called `units`; by default the newest one.
    #[must_use]
    pub fn named(units: Vec<String>, failed: bool) -> Self {
        let which = |unit| Which { unit, failed };
        Self::Named(match units.is_empty() {
            true => vec![which(None)],
            false => units.into_iter().map(|unit| which(Some(unit))).collect(),
        })
    }
}

/// Retries `runs`, oldest first. One that cannot be retried does not keep the others back.
///
/// # Errors
/// As [`retry`], for one run. Of several, the first error gives the exit code.
pub(super) fn run(scope: &Scope, runs: &Runs, again: bool, json: bool) -> Result<ExitCode> {
    crate::tools::check_stdout()?;
    let (filter, all) = match runs {
        Runs::Named(list) => {
            let retries = list.iter().map(|which| retry(scope, which, again, json));
            return each(retries);
        }
        Runs::Failed => (Filter::default(), false),
        Runs::AllFailed(filter) => (filter.clone(), true),
    };
    let filter = Filter {
        states: vec![State::Failed],
        leave_out: LeaveOut::Retried,
        newest: (!all).then_some(1),
        ..filter
    };
    let mut walk = Walk::new(scope, &filter)?;
    let (mut list, mut more) = (Vec::new(), 0_u64);
    while let Some(row) = walk.next()? {
        match walk.sources.get(row.source) {
            Some(source) if list.len() < MAX_AT_ONCE => {
                list.push((source.who.clone(), row.listed.record.unit.id));
            }
            _ => more += 1,
        }
    }
    let unreadable = walk.unreadable.take();
    if list.is_empty() {
        return Err(unreadable.unwrap_or_else(|| {
            let (state, elsewhere) = (scope.state.display(), elsewhere(scope));
            Error::data(format!(
                "retry: no run has failed that was not retried already, in {state}{elsewhere}; \
                 'tael work retry UNIT --again' runs one once more"
            ))
        }));
    }
    let count = list.len();
    let retries = list.into_iter().map(|(who, unit)| {
        let scope = Scope {
            who: Some(who),
            ..scope.clone()
        };
        retry(&scope, &Which::named(&unit), again, json)
    });
    let code = each(retries.chain(unreadable.map(Err)));
    if more > 0 {
        say(&format!(
            "retried the oldest {count} runs; {more} more wait for another 'tael work retry'"
        ));
    }
    code
}

/// Does all of `retries`. Prints their errors, except the last one if it is the only result.
fn each(retries: impl Iterator<Item = Result<()>>) -> Result<ExitCode> {
    let mut code = None;
    let mut retries = retries.peekable();
    let mut first = true;
    while let Some(done) = retries.next() {
        let only = std::mem::take(&mut first) && retries.peek().is_none();
        match done {
            Err(e) if only => return Err(e),
            Err(e) => {
                say(&e.to_string());
                code.get_or_insert(ExitCode::from(e.exit_code()));
            }
            Ok(()) => {}
        }
    }
    Ok(code.unwrap_or(ExitCode::SUCCESS))
}

/// Writes a new run of the unit's event into the ledger. The client, if one runs, starts it by the
/// policy of its trigger; otherwise the next client does.
///
/// # Errors
/// When the unit has not ended, has succeeded, or was retried already, unless `again` (65); when its
/// client has not booked its end (75).
fn retry(scope: &Scope, which: &Which, again: bool, json: bool) -> Result<()> {
    let mut found = find(scope, which)?;
    refuse(&found, which, again)?;
    let old = found.record.unit.id.clone();
    let (accepted, now) = (found.record.accepted, Timestamp::now().as_millisecond());
    let retry = found.record.unit.retried(new_id(), accepted, now);
    let id = retry.id.clone();
    let client = tell(&found.pipeline, &id);
    let done = found.reader.apply(&Op::Retry {
        retry: Box::new(retry),
        at: now,
        again,
    })?;
    if !matches!(done, Done::Changed { applied: true, .. }) {
        let cause = "it was retried or released meanwhile";
        return Err(Error::data(format!("retry unit {old}: {cause}")));
    }
    hooks::failpoint("retry.after");
    let who = &found.who;
    let taken = client.is_ok_and(|client| is_taken(client).unwrap_or(false));
    if !taken && !is_taken_up(&found.pipeline, &id)? {
        say(&format!(
            "unit {id} waits in the ledger of {who}: its client starts it when it is started"
        ));
    }
    match json {
        true => crate::tools::print_json(&json!({"unit": id, "retries": old, "pipeline": who}))?,
        false => {
            let id = Terminal::of_stdout().id(&id);
            crate::tools::print(&format!("{who}: tried again as unit {id}"))?;
        }
    }
    Ok(())
}

/// Refuses a unit that has no need of a retry.
fn refuse(found: &Found, which: &Which, again: bool) -> Result<()> {
    let unit = &found.record.unit.id;
    let state = found.state()?;
    let refused =
        |kind, cause: String| Err(Error::new(kind, format!("retry unit {unit}: {cause}")));
    if !state.is_end() {
        return refused(Kind::Data, format!("it has not ended: it is {state}"));
    }
    if !found.record.state.is_end() {
        let cause = "its client has not booked its end: start it first, or try again";
        return refused(Kind::TryAgain, cause.to_owned());
    }
    let retried = found.reader.retry_of(unit)?;
    match needs_no_retry(state, retried.as_deref()) {
        Some(cause) if !again => {
            let failed = match which.is_newest() && !which.failed {
                true => ", --failed takes the newest one that has failed",
                false => "",
            };
            Err(Error::data(format!("retry: unit {unit} {cause}{failed}")))
        }
        _ => Ok(()),
    }
}

/// Tells the client of the pipeline, if one runs, of a unit that was written before, and returns
/// whether it has taken it up.
///
/// # Errors
/// When the lock of the client cannot be looked at.
fn is_taken_up(pipeline: &Path, unit: &str) -> Result<bool> {
    let deadline = Instant::now() + TAKING;
    loop {
        if tell(pipeline, unit).and_then(is_taken).unwrap_or(false) {
            return Ok(true);
        }
        // A client that is starting holds the lock before it has the socket. One of an earlier version
        // has none.
        let runs = Lock::try_acquire(&pipeline.join("lock"))?.is_none();
        if !runs || Instant::now() >= deadline {
            return Ok(false);
        }
        thread::sleep(LOOK);
    }
}

/// Names `unit` to the client of the pipeline. It looks for it when the connection is closed, or half
/// of it.
fn tell(pipeline: &Path, unit: &str) -> io::Result<UnixStream> {
    let mut stream = socket::connect(pipeline, SOCKET)?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TAKING))?;
    stream.write_all(format!("{unit}\n").as_bytes())?;
    Ok(stream)
}

/// Returns whether the client has found the unit that was named to it, and has taken it up.
fn is_taken(client: UnixStream) -> io::Result<bool> {
    client.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    client
        .take(TAKEN.len() as u64)
        .read_to_string(&mut answer)?;
    Ok(answer == TAKEN)
}
