//! Answers to those who ask triggers with a Response Topic.

use bytes::Bytes;
use tracing::warn;

use crate::engine::config::Config;
use crate::engine::pipeline::Pipeline;
use crate::engine::report::reply;
use crate::model::answer::{self, Answer, DROPPED};
use crate::model::cause::Cause;
use crate::model::message::{Delivery, Message, Route};
use crate::model::text::printable;
use crate::model::unit::{AtEnd, Outcome, ReplyAddress, State, Unit};
use crate::os::host::new_id;
use crate::os::logging::SENDERS;
use crate::store::ledger::{Reader, Record};
use crate::store::unit_dir::UnitDir;
use crate::store::unit_dir::reader::{Chunk, Ended, output};
use crate::store::unit_dir::stream::Stream;

/// Maximum number of attempts to follow.
const MAX_ATTEMPTS: usize = 1000;

/// Returns where the answer to a message goes, if its sender wants one and may have it there. `max` is
/// the maximum size of the answer, bytes.
pub fn address(config: &Config, delivery: &Delivery, max: usize, now: i64) -> Option<ReplyAddress> {
    let properties = &delivery.properties;
    let topic = properties.response_topic.as_ref()?;
    if let Err(cause) = reply::may_go(config, &config.answers_to, topic) {
        let topic = printable(topic, 200);
        warn!(target: SENDERS, "no answer goes to '{topic}': {cause}");
        return None;
    }
    let correlation = properties.correlation_data.as_ref();
    let expiry = properties.message_expiry.map(i64::from);
    Some(ReplyAddress {
        route: Route::Broker,
        topic: topic.clone(),
        correlation: correlation.map(|bytes| bytes.to_vec().into()),
        request: None,
        at_end: Some(AtEnd {
            max,
            expires: expiry.map(|left| now / 1000 + left),
        }),
    })
}

/// Returns the answer about `unit`, which has ended and is not tried again. `last_lines` returns the
/// last lines of the standard error of its command.
pub fn at_end(
    pipeline: &Pipeline,
    unit: &Unit,
    outcome: &Outcome,
    last_lines: impl FnOnce() -> Vec<String>,
) -> Option<Message> {
    let address = answer::requester(unit)?;
    let max = address.at_end.as_ref().map_or(0, |at_end| at_end.max);
    let (body, whole) = stdout(&pipeline.dir(&unit.id), outcome, max);
    let last = || last_lines().pop();
    let last = (answer::code(outcome) != 0).then(last).flatten();
    let answer = Answer {
        code: answer::code(outcome),
        error: answer::error(outcome, last),
        body,
        whole,
        unit: Some(unit.id.clone()),
    };
    Some(message(pipeline, address, Cause::of(unit), answer))
}

/// Returns the answer about a unit that will not run, with the reason for people.
pub fn dropped(pipeline: &Pipeline, unit: &str, why: &str) -> Option<Message> {
    // Without its record, the requester is not known.
    let record = pipeline.reader.unit(unit).ok().flatten()?;
    let address = answer::requester(&record.unit)?;
    let answer = refusal(DROPPED, why, &record.unit);
    Some(message(pipeline, address, Cause::of(&record.unit), answer))
}

/// Returns the answer about a unit that has not run.
fn refusal(code: i32, why: &str, unit: &Unit) -> Answer {
    Answer {
        unit: Some(unit.id.clone()),
        ..Answer::refusal(code, why)
    }
}

/// Returns the last attempt for the event of `unit`; `None` if it cannot be read.
fn last_attempt(reader: &Reader, unit: &str) -> Option<Record> {
    let mut unit = unit.to_owned();
    for _ in 0..MAX_ATTEMPTS {
        match reader.retry_of(&unit) {
            Ok(Some(next)) => unit = next,
            Ok(None) => return reader.unit(&unit).ok().flatten(),
            Err(_) => return None,
        }
    }
    None
}

/// Returns the answer to a request that comes again, at `address`, if the last attempt after `known`, its
/// unit, has ended.
pub fn again(pipeline: &Pipeline, known: &str, address: &ReplyAddress) -> Option<Message> {
    let record = last_attempt(&pipeline.reader, known)?;
    if !record.state.is_end() {
        return None;
    }
    let unit = Unit {
        reply: Some(address.clone()),
        ..record.unit.clone()
    };
    match &record.outcome {
        Some(outcome) => at_end(pipeline, &unit, outcome, Vec::new),
        None => {
            let why = record.note.as_deref().unwrap_or("it did not run");
            let code = match record.state {
                State::Succeeded => 0,
                _ => DROPPED,
            };
            let answer = refusal(code, why, &unit);
            Some(message(pipeline, address, Cause::of(&unit), answer))
        }
    }
}

/// Returns `answer` about the event of `cause` as a message of this pipeline.
pub fn message(
    pipeline: &Pipeline,
    address: &ReplyAddress,
    cause: Cause<'_>,
    answer: Answer,
) -> Message {
    let config = &pipeline.config;
    answer.message(address, (new_id(), cause), (&config.who, &config.host))
}

/// Returns at most `max` bytes from the beginning of the standard output of a run that has ended, and the
/// size of all of it if that is more.
fn stdout(dir: &UnitDir, outcome: &Outcome, max: usize) -> (Bytes, Option<u64>) {
    let ended = Ended::with(Some(outcome), Stream::Stdout);
    let mut reader = output(dir, Stream::Stdout, 0);
    let mut body = Vec::new();
    while body.len() <= max {
        match reader.next(ended) {
            Ok(Chunk::Bytes(chunk)) => body.extend_from_slice(&chunk),
            // What follows is not the beginning.
            Ok(Chunk::Gap(_)) => break,
            Ok(Chunk::Truncated) => body.clear(),
            Ok(Chunk::Pending | Chunk::End) => return (Bytes::from(body), None),
            Err(e) => {
                warn!("cannot read the output of a run for its answer: {e}");
                break;
            }
        }
    }
    body.truncate(max);
    let whole = reader.length(ended).unwrap_or(body.len() as u64);
    (Bytes::from(body), Some(whole))
}
