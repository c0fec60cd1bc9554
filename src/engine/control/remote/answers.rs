//! Answers to requests of other nodes.

use tracing::info;

use super::action::Action;
use crate::engine::report::reply::ReplyTo;
use crate::error::Error;
use crate::model::message::Message;
use crate::model::remote::wire::{self, Answer, State};
use crate::model::work::UNKNOWN_UNIT;
use crate::os::logging::SENDERS;
use crate::store::ledger::Record;

/// Returns the state of a unit for its requester.
pub fn state(record: &Record) -> State {
    let work = record.unit.work.as_deref();
    let outcome = record.outcome.as_ref();
    let code = outcome.and_then(|outcome| outcome.reported().return_code());
    let detail = match (outcome, &record.note) {
        (Some(outcome), _) => outcome.reported().to_string(),
        (None, Some(note)) => note.clone(),
        (None, None) => record.state.to_string(),
    };
    State {
        unit: record.unit.id.clone(),
        kind: work.map(|work| work.kind.clone()).unwrap_or_default(),
        state: record.shown_state().to_string(),
        detail,
        code: code.and_then(|code| u8::try_from(code).ok()),
        submitter: work.map(|work| work.submitter.clone()).unwrap_or_default(),
        started: record.started,
        elapsed: outcome.map(|outcome| outcome.elapsed),
    }
}

/// Returns the message with an answer.
pub fn message(reply: &ReplyTo, answer: &Answer) -> Message {
    reply.clone().carrying(wire::write(answer, b""))
}

/// Returns the action that publishes an answer.
pub fn answer(reply: &ReplyTo, answer: &Answer) -> Action {
    Action::Answer(message(reply, answer))
}

/// Returns the action that refuses a request about `unit`, and logs it.
pub fn refuse(reply: &ReplyTo, unit: &str, error: &Error) -> Action {
    info!(target: SENDERS, TAEL_UNIT = unit, "request for work refused: {error}");
    answer(reply, &refused(unit, error))
}

/// Returns the refusal of a request about `unit`.
pub fn refused(unit: &str, error: &Error) -> Answer {
    Answer::Refused {
        unit: unit.to_owned(),
        code: error.kind().exit_code(),
        error: error.to_string(),
    }
}

/// Returns the refusal of a unit that is not here.
pub fn unknown(unit: &str) -> Error {
    Error::data(format!("{UNKNOWN_UNIT} {unit}"))
}
