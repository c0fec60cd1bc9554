//! Runs of a client on this host, as a workflow manager of OODT reports them.

use std::path::PathBuf;

use jiff::Timestamp;

use crate::error::Result;
use crate::model::gateway::rate::Caller;
use crate::model::gateway::xmlrpc::Value;
use crate::model::unit::State;
use crate::store::ledger::{Reader, Record};
use crate::tools::gateway::blocking::Threads;

/// Maximum number of runs in a list.
pub const MAX_LISTED: usize = 1000;

/// Maximum number of threads that read the ledger.
const MAX_READERS: usize = 4;

/// The ledger of a client.
#[derive(Debug)]
pub struct Workflows {
    folder: PathBuf,
    readers: Threads,
}

/// Returns whether a run in `state` counts for a status of OODT, or a state of Tael. A run that waits for
/// its place counts as executed: OODT asks for that number before it hands over more.
#[must_use]
pub fn counts(status: &str, state: State) -> bool {
    match status.to_ascii_uppercase().as_str() {
        "PGE EXEC" | "STARTED" => matches!(state, State::Pending | State::Running),
        "CREATED" | "QUEUED" => state == State::Pending,
        "FINISHED" => state == State::Succeeded,
        "FAILURE" => state == State::Failed,
        other => other.eq_ignore_ascii_case(state.name()),
    }
}

/// Returns the status of OODT for a run in `state`.
const fn status(state: State) -> &'static str {
    match state {
        State::Pending => "QUEUED",
        State::Running => "PGE EXEC",
        State::Succeeded => "FINISHED",
        State::Failed => "FAILURE",
        State::Canceled => "CANCELED",
    }
}

impl Workflows {
    /// Takes the folder of a client, which needs not be there yet.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            readers: Threads::new(MAX_READERS),
        }
    }

    /// Reads the ledger for `caller` on a thread of its own.
    async fn read<T: Send + 'static>(
        &self,
        caller: Caller,
        read: impl FnOnce(&Reader) -> Result<T> + Send + 'static,
    ) -> Result<T, String> {
        let folder = self.folder.clone();
        let read = move || Reader::open(&folder).and_then(|reader| read(&reader));
        self.readers
            .result(Some(caller), read)
            .await
            .map_err(|e| e.to_string())
    }

    /// Returns the number of runs with a status.
    ///
    /// # Errors
    /// A text for the caller.
    pub async fn count(&self, caller: Caller, status: String) -> Result<i64, String> {
        let totals = self.read(caller, |reader| reader.totals()).await?;
        let states = [
            (State::Pending, totals.pending),
            (State::Running, totals.running),
            (State::Succeeded, totals.succeeded),
            (State::Failed, totals.failed),
            (State::Canceled, totals.canceled),
        ];
        let counted = states.iter().filter(|(state, _)| counts(&status, *state));
        let sum: u64 = counted.map(|(_, count)| count).sum();
        Ok(i64::try_from(sum).unwrap_or(i64::MAX))
    }

    /// Returns the runs that have not ended, oldest first, [`MAX_LISTED`] at most.
    ///
    /// # Errors
    /// A text for the caller.
    pub async fn list(&self, caller: Caller) -> Result<Value, String> {
        let list = self.read(caller, |reader| {
            let mut list = Vec::new();
            for state in [State::Running, State::Pending] {
                let mut seq = 0;
                while list.len() < MAX_LISTED {
                    let page = reader.live_page(state, seq)?;
                    let Some(last) = page.last() else { break };
                    seq = last.seq;
                    list.extend(page.iter().map(instance));
                }
            }
            list.truncate(MAX_LISTED);
            Ok(list)
        });
        Ok(Value::Array(list.await?))
    }
}

/// Returns a run as OODT describes an instance of a workflow.
fn instance(record: &Record) -> Value {
    let time = |at: Option<i64>| {
        let at = at.and_then(|at| Timestamp::from_millisecond(at).ok());
        Value::Text(at.map(|at| at.to_string()).unwrap_or_default())
    };
    let text = |text: &str| Value::Text(text.to_owned());
    let member = |name: &str, value| (name.to_owned(), value);
    let (unit, none) = (&record.unit, || Value::Struct(Vec::new()));
    Value::Struct(vec![
        member("id", text(&unit.id)),
        member("status", text(status(record.state))),
        member("current_task_id", text(&unit.event)),
        member("start_date_time", time(Some(record.accepted))),
        member("end_date_time", time(record.ended)),
        member("current_task_start_date_time", time(record.started)),
        member("current_task_end_date_time", time(record.ended)),
        member("priority", text("5.0")),
        member(
            "workflow",
            Value::Struct(vec![
                member("id", text(&unit.topic)),
                member("name", text(&unit.topic)),
                member("tasks", Value::Array(Vec::new())),
                member("conditions", Value::Array(Vec::new())),
            ]),
        ),
        member("shared_context", none()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_counts_for_its_statuses() {
        for (name, states) in [
            ("PGE EXEC", &[State::Pending, State::Running][..]),
            ("QUEUED", &[State::Pending]),
            ("FINISHED", &[State::Succeeded]),
            ("failure", &[State::Failed]),
            ("Canceled", &[State::Canceled]),
            ("CRAWLING", &[]),
            ("", &[]),
        ] {
            let all = [
                State::Pending,
                State::Running,
                State::Succeeded,
                State::Failed,
                State::Canceled,
            ];
            let counted: Vec<State> = all.into_iter().filter(|s| counts(name, *s)).collect();
            assert_eq!(counted, states, "{name}");
        }
        let running = [State::Pending, State::Running].map(status);
        assert!(
            running
                .iter()
                .all(|name| counts("PGE EXEC", State::Running) && !name.is_empty())
        );
    }
}
