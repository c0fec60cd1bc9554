//! Statuses of units, as messages.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::engine::config::Config;
use crate::model::cause::Cause;
use crate::model::json;
use crate::model::message::{Message, Properties, Qos, property};
use crate::model::status;
use crate::model::topic::PipelineTopics;
use crate::model::unit::{Outcome, State, Unit};
use crate::os::host::new_id;

/// Returns a status of `unit` as a message, with an id of its own and the event as its cause.
fn message(config: &Config, unit: &Unit, payload: Map<String, Value>) -> Message {
    Message {
        topic: PipelineTopics::new(&config.root, &config.who).status(),
        payload: Bytes::from(json::to_text(&Value::Object(payload))),
        qos: Qos::AtLeastOnce,
        retain: false,
        properties: Properties {
            user: Cause::of(unit).properties(new_id(), (&config.who, &config.host)),
            ..Properties::default()
        },
    }
}

/// Returns the status without its passthrough attributes, for a broker that refuses the whole;
/// `None` if it has none.
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

/// Returns the status of an event that lacks what its trigger requires, so that it makes no unit.
pub fn falsestart(config: &Config, unit: &Unit) -> Message {
    let payload = status::falsestart(&unit.passthrough, Timestamp::now());
    message(config, unit, payload)
}

/// Returns the status of a command that has started at `at`, milliseconds since 1970.
pub fn started(config: &Config, unit: &Unit, at: i64) -> Message {
    message(config, unit, start(unit, at))
}

/// Returns the content of the status of the start of `unit`, at `at` (milliseconds since 1970).
pub fn start(unit: &Unit, at: i64) -> Map<String, Value> {
    status::started(&unit.reason, &unit.passthrough, timestamp(at))
}

/// Returns the content of the status of the end of `unit`, at `at` (milliseconds since 1970).
pub fn end(unit: &Unit, outcome: &Outcome, at: i64) -> Map<String, Value> {
    let elapsed = Duration::from_micros(outcome.elapsed);
    status::ended(
        &outcome.reported(),
        elapsed,
        &unit.passthrough,
        timestamp(at),
    )
}

/// Returns the statuses of a unit that has ended at `at` (milliseconds since 1970). The first one
/// is that of its start, unless that was published (`said`).
pub fn ended(config: &Config, unit: &Unit, outcome: &Outcome, said: bool, at: i64) -> Vec<Message> {
    let mut statuses = Vec::with_capacity(2);
    if !said && outcome.end.return_code().is_some() && outcome.started > 0 {
        statuses.push(started(config, unit, outcome.started));
    }
    // The start of such a unit was never published, so its end is not either.
    if !outcome.was_canceled_before_it_began() {
        let mut status = message(config, unit, end(unit, outcome, at));
        if outcome.state() == State::Canceled {
            let end = (property::END.to_owned(), property::CANCELED.to_owned());
            status.properties.user.push(end);
        }
        statuses.push(status);
    }
    statuses
}

fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH)
}
