//! A unit of work: one durable run of a command.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::model::event::Attributes;
use crate::model::message::Route;
use crate::model::spec::Spec;
use crate::model::variables::{Value, Variables};

pub use crate::model::outcome::{End, Outcome, Stopped};
pub use crate::model::state::State;

/// What a unit needs to start, and what its statuses repeat.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// Its id, a ULID.
    pub id: String,
    /// What it runs, and the lane that it waits in.
    pub spec: Arc<Spec>,
    /// Id of the event that it answers.
    pub event: String,
    /// Topic of the event.
    pub topic: String,
    /// Why it runs, for people: `<topic> finished`.
    pub reason: String,
    /// Pipelines passed by the event so far.
    pub hops: u32,
    /// W3C trace context to pass on.
    pub traceparent: Option<String>,
    /// Which try this is for its event, from 1.
    pub attempt: u32,
    /// The unit that this one tries again.
    pub retry_of: Option<String>,
    /// Not to be started before this time, milliseconds since the epoch.
    pub due: i64,
    /// What is exported to the command.
    pub variables: Variables,
    /// What is copied into the statuses.
    pub passthrough: Attributes,
    /// The command's standard input; `None` while only the ledger holds it.
    pub payload: Option<Bytes>,
    /// Where the requester waits for answers, if a request made the unit and says so.
    pub reply: Option<ReplyAddress>,
}

/// Where the answer to a request goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyAddress {
    /// What carries the answer.
    pub route: Route,
    /// The topic of the answer.
    pub topic: String,
    /// Bytes that the answer repeats, so that the requester knows its request (MQTT 5.0, section
    /// 3.3.2.3.6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<Value>,
    /// The request's own id, if it carries one inside the payload; the answer repeats it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
}

impl Unit {
    /// The queue that it waits in.
    #[must_use]
    pub fn lane(&self) -> &str {
        &self.spec.lane
    }

    /// Bytes of what is exported to the command.
    #[must_use]
    pub fn exported_bytes(&self) -> usize {
        let variables = self.variables.iter();
        variables
            .map(|(name, value)| name.len() + value.len())
            .sum()
    }
}

/// What the unit's folder says about a run that another client may have begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trace {
    /// Nothing was begun.
    Fresh,
    /// A runner holds its lock.
    Alive,
    /// It has ended.
    Ended(Outcome),
    /// It was begun, and neither runner nor outcome is left.
    Gone,
}

/// What a restarted client does with a unit that has not ended in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// Queue it.
    Queue,
    /// Wait for its runner.
    Adopt,
    /// Book its end.
    Settle(Outcome),
    /// Book it as interrupted.
    Interrupted,
}

/// Decides what becomes of a unit found in `state` with `trace`; `same_boot` says whether the
/// host has been up since it was handed to a runner, `told` whether its start was booked.
///
/// After a power failure the folder may have forgotten the last seconds, so a unit that was
/// handed over under another boot counts as begun.
#[must_use]
pub fn recover(state: State, trace: Trace, same_boot: bool, told: bool) -> Recovery {
    match (trace, state) {
        (Trace::Alive, _) => Recovery::Adopt,
        (Trace::Ended(outcome), _) => Recovery::Settle(outcome),
        (Trace::Gone, _) => Recovery::Interrupted,
        // Its folder has been removed if its start is known.
        (Trace::Fresh, State::Running) if !same_boot || told => Recovery::Interrupted,
        (Trace::Fresh, _) => Recovery::Queue,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restarted_client_runs_nothing_twice() {
        let outcome = Outcome {
            end: End::Exited(0),
            ..Outcome::interrupted(1)
        };
        for state in [State::Pending, State::Running] {
            for boot in [true, false] {
                assert_eq!(recover(state, Trace::Alive, boot, false), Recovery::Adopt);
                assert_eq!(
                    recover(state, Trace::Gone, boot, false),
                    Recovery::Interrupted
                );
                let ended = Trace::Ended(outcome.clone());
                let settle = Recovery::Settle(outcome.clone());
                assert_eq!(recover(state, ended, boot, false), settle);
            }
        }
        let fresh = |state, boot| recover(state, Trace::Fresh, boot, false);
        assert_eq!(fresh(State::Pending, true), Recovery::Queue);
        assert_eq!(fresh(State::Pending, false), Recovery::Queue);
        assert_eq!(fresh(State::Running, true), Recovery::Queue);
        assert_eq!(fresh(State::Running, false), Recovery::Interrupted);
        let removed = recover(State::Running, Trace::Fresh, true, true);
        assert_eq!(removed, Recovery::Interrupted);
    }

    #[test]
    fn the_ledger_reads_the_address_of_an_answer() {
        let address = ReplyAddress {
            route: Route::Broker,
            topic: "lab/infrastructure/reply".into(),
            correlation: Some(vec![0xff, 0].into()),
            request: None,
        };
        let text = serde_json::to_string(&address).expect("write");
        let known = r#"{"route":"broker","topic":"lab/infrastructure/reply","correlation":{"bytes":"ff00"}}"#;
        assert_eq!(text, known);
        assert_eq!(
            serde_json::from_str::<ReplyAddress>(&text).expect("read"),
            address
        );
    }
}
