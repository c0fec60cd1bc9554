//! What is told and booked when a unit starts and when it ends.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::engine::config::Config;
use crate::model::json;
use crate::model::message::{Message, Properties, Qos, property};
use crate::model::policy::Retries;
use crate::model::status;
use crate::model::topic::PipelineTopics;
use crate::model::unit::{End, Outcome, Stopped, Unit};
use crate::os::host::new_id;
use crate::store::ledger::Op;

/// A status of `unit` as a message, with an id of its own and the event as its cause.
pub fn message(config: &Config, unit: &Unit, payload: Map<String, Value>) -> Message {
    let mut user = vec![
        (property::ID.to_owned(), new_id()),
        (property::CAUSE.to_owned(), unit.event.clone()),
        (property::WHO.to_owned(), config.who.clone()),
        (property::HOST.to_owned(), config.host.clone()),
        (property::HOPS.to_owned(), (unit.hops + 1).to_string()),
    ];
    if let Some(traceparent) = &unit.traceparent {
        user.push((property::TRACEPARENT.to_owned(), traceparent.clone()));
    }
    Message {
        topic: PipelineTopics::new(&config.root, &config.who).status(),
        payload: Bytes::from(json::to_text(&Value::Object(payload))),
        qos: Qos::AtLeastOnce,
        retain: false,
        properties: Properties {
            user,
            ..Properties::default()
        },
    }
}

/// The status without what was passed through, for a broker that does not take it whole; `None`
/// if nothing was.
pub fn without_passthrough(message: &Message) -> Option<Message> {
    let Ok(Value::Object(mut payload)) = json::parse(&message.payload) else {
        return None;
    };
    let keys = payload.len();
    payload.retain(|key, _| status::RESERVED.contains(&key.as_str()));
    (payload.len() < keys).then(|| Message {
        payload: Bytes::from(json::to_text(&Value::Object(payload))),
        ..message.clone()
    })
}

/// Books the start of a unit's command at `at` (milliseconds since the epoch).
pub fn started(config: &Config, unit: &Unit, at: i64) -> Op {
    let payload = status::started(&unit.reason, &unit.passthrough, timestamp(at));
    Op::Started {
        unit: unit.id.clone(),
        at,
        status: message(config, unit, payload),
    }
}

/// The status of the end of `unit` at `at` (milliseconds since the epoch).
pub fn end_status(unit: &Unit, outcome: &Outcome, at: i64) -> Map<String, Value> {
    let elapsed = Duration::from_micros(outcome.elapsed);
    status::ended(
        &outcome.reported(),
        elapsed,
        &unit.passthrough,
        timestamp(at),
    )
}

/// Books the end of a unit. `unsaid` says that its start has not been told yet.
pub fn ended(
    config: &Config,
    retries: &Retries,
    unit: &Unit,
    outcome: &Outcome,
    unsaid: bool,
) -> (Op, Option<Unit>) {
    let now = Timestamp::now();
    let mut statuses = Vec::with_capacity(2);
    if unsaid && outcome.end.return_code().is_some() && outcome.started > 0 {
        let payload = status::started(&unit.reason, &unit.passthrough, timestamp(outcome.started));
        statuses.push(message(config, unit, payload));
    }
    // Of such a unit nobody has heard, nor needs to.
    if !outcome.was_canceled_before_it_began() {
        statuses.push(message(
            config,
            unit,
            end_status(unit, outcome, now.as_millisecond()),
        ));
    }
    let retry = retries.after(unit.attempt, outcome).map(|delay| {
        let delay = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
        let due = now.as_millisecond().saturating_add(delay);
        again(unit, unit.attempt + 1, due)
    });
    let note = match (&outcome.end, outcome.stopped) {
        (End::NotStarted(cause), _) => Some(format!("not started: {cause}")),
        (End::Interrupted, _) => Some("interrupted".to_owned()),
        (_, Some(Stopped::TimedOut)) => Some("timed out".to_owned()),
        _ => None,
    };
    let notes = [note, outcome.remains.clone()].into_iter().flatten();
    let note = notes.reduce(|note, remains| format!("{note}; {remains}"));
    let op = Op::Settle {
        unit: unit.id.clone(),
        state: outcome.state(),
        outcome: Some(outcome.clone()),
        at: now.as_millisecond(),
        note,
        statuses,
        retry: retry.clone().map(Box::new),
    };
    (op, retry)
}

/// Books that a unit, which still waits, will not run.
pub fn dropped(unit: &str, note: &str) -> Op {
    Op::Drop {
        unit: unit.to_owned(),
        at: Timestamp::now().as_millisecond(),
        note: note.to_owned(),
    }
}

/// A new unit for the same event.
pub fn again(unit: &Unit, attempt: u32, due: i64) -> Unit {
    Unit {
        id: new_id(),
        attempt,
        due,
        retry_of: Some(unit.id.clone()),
        ..unit.clone()
    }
}

fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH)
}
