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
use crate::os::hooks;
use crate::os::host::new_id;
use crate::os::lock::Lock;
use crate::os::logging::say;
use crate::os::socket;
use crate::os::terminal::Terminal;
use crate::store::ledger::{Done, Op};
use crate::tools::work::find::{Which, find};
use crate::tools::work::{Found, LOOK, Scope};

/// Maximum time for a running client to take up a run, and for its answer.
const TAKING: Duration = Duration::from_secs(10);

/// Writes a new run of the unit's event into the ledger. The client, if one runs, starts it by the
/// policy of its trigger; otherwise the next client does.
///
/// # Errors
/// When the unit has not ended, has succeeded, or was retried already, unless `again` (65); when its
/// client has not booked its end (75).
pub(super) fn retry(scope: &Scope, which: &Which, again: bool, json: bool) -> Result<ExitCode> {
    let mut found = find(scope, which)?;
    refuse(&found, which, again)?;
    let old = found.record.unit.id.clone();
    let retry = found.record.unit.again(new_id(), 0);
    let id = retry.id.clone();
    let client = tell(&found.pipeline, &id);
    let done = found.reader.apply(&Op::Retry {
        retry: Box::new(retry),
        at: Timestamp::now().as_millisecond(),
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
    Ok(ExitCode::SUCCESS)
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
