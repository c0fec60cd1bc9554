//! A unit of work: one durable run of a command.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::model::event::Attributes;
use crate::model::message::Route;
use crate::model::queue_delivery::QueueOrigin;
use crate::model::spec::Spec;
use crate::model::variables::{Value, Variables};
use crate::model::work::{Delegation, Work};

pub use crate::model::outcome::{End, Outcome, Stopped};
pub use crate::model::state::State;

/// Everything that a unit needs to start, and that its statuses repeat.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// Its id, a ULID.
    pub id: String,
    /// Its spec: what it runs, and the lane that it waits in.
    pub spec: Arc<Spec>,
    /// Id of its event.
    pub event: String,
    /// Topic of the event.
    pub topic: String,
    /// Reason for people: `<topic> finished`.
    pub reason: String,
    /// Number of pipelines that the event has passed.
    pub hops: u32,
    /// W3C trace context to pass on.
    pub traceparent: Option<String>,
    /// Number of this attempt for its event, from 1.
    pub attempt: u32,
    /// Unit of which this one is a retry.
    pub retry_of: Option<String>,
    /// Earliest start, milliseconds since 1970.
    pub due: i64,
    /// Variables for the command.
    pub variables: Variables,
    /// Attributes for the statuses.
    pub passthrough: Attributes,
    /// Standard input of the command; `None` while only the ledger has it.
    pub payload: Option<Bytes>,
    /// Address for answers, if a request made the unit and names one.
    pub reply: Option<ReplyAddress>,
    /// The message that made it, if it came from a queue.
    pub origin: Option<Arc<QueueOrigin>>,
    /// What it is, if a person has submitted it.
    pub work: Option<Arc<Work>>,
}

/// Address for the answer to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyAddress {
    /// Way of the answer.
    pub route: Route,
    /// The topic of the answer.
    pub topic: String,
    /// Bytes that the answer repeats, to identify the request (MQTT 5.0, section 3.3.2.3.6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<Value>,
    /// Id of the request inside its payload, if it has one; the answer repeats it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Present if the requester waits for the output of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_end: Option<AtEnd>,
}

/// What a requester who waits for the output of a run wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtEnd {
    /// Maximum size of the answer, bytes.
    pub max: usize,
    /// When the requester waits no longer, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
}

/// Number of characters at the end of an id that people type and read. They are random, other than
/// those at its beginning, which are its time.
const SHORT: usize = 6;

/// Returns the end of an id: short, and different from those of other units as a rule.
#[must_use]
pub fn short_id(id: &str) -> &str {
    let start = id.len().saturating_sub(SHORT);
    id.get(start..).unwrap_or(id)
}

/// Number of characters of a ULID (github.com/ulid/spec).
const ULID: usize = 26;

/// Returns whether `word` has the form of the ids that we make.
#[must_use]
pub fn is_ulid(word: &str) -> bool {
    let digits = |c: u8| c.is_ascii_digit() || (c.is_ascii_uppercase() && !b"ILOU".contains(&c));
    word.len() == ULID && word.starts_with(|c| ('0'..='7').contains(&c)) && word.bytes().all(digits)
}

/// Returns a text for a person, with the ids in it short. They stay whole if two of them have the same
/// end, and where they are a part of a path or of another word.
#[must_use]
pub fn short_ids(text: &str) -> String {
    let of_word = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let (mut short, mut ids) = (String::with_capacity(text.len()), Vec::<&str>::new());
    let mut rest = text;
    while !rest.is_empty() {
        let start = rest.find(of_word).unwrap_or(rest.len());
        let (between, after) = rest.split_at(start);
        let (word, after) = after.split_at(after.find(|c| !of_word(c)).unwrap_or(after.len()));
        short += between;
        let bare = word.trim_end_matches('.');
        if is_ulid(bare) {
            if ids
                .iter()
                .any(|id| *id != bare && short_id(id) == short_id(bare))
            {
                return text.to_owned();
            }
            ids.push(bare);
            short += short_id(bare);
            short += word.get(bare.len()..).unwrap_or_default();
        } else {
            short += word;
        }
        rest = after;
    }
    short
}

impl Unit {
    /// Returns what another node is told of it, if one runs it.
    #[must_use]
    pub fn delegation(&self) -> Option<&Delegation> {
        self.work.as_deref()?.delegation.as_deref()
    }

    /// Returns the lane that it waits in.
    #[must_use]
    pub fn lane(&self) -> &str {
        &self.spec.lane
    }

    /// Returns a new unit `id` for the same event. It is due at `due`, milliseconds since 1970; 0 is at
    /// once.
    #[must_use]
    pub fn again(&self, id: String, due: i64) -> Self {
        Self {
            id,
            attempt: self.attempt.saturating_add(1),
            due,
            retry_of: Some(self.id.clone()),
            ..self.clone()
        }
    }

    /// Returns a new unit `id` for a person who retries this one `now`, which was `accepted` earlier;
    /// both are milliseconds since 1970. Another node that runs it has as much time to accept it as it
    /// had then.
    #[must_use]
    pub fn retried(&self, id: String, accepted: i64, now: i64) -> Self {
        let mut unit = self.again(id, 0);
        if let Some(work) = &mut unit.work
            && let Some(delegation) = &mut Arc::make_mut(work).delegation
            && let Some(expires) = &mut delegation.expires
        {
            *expires = expires.saturating_add(now.saturating_sub(accepted) / 1000);
        }
        unit
    }

    /// Returns the size of the variables for the command, bytes.
    #[must_use]
    pub fn exported_bytes(&self) -> usize {
        let variables = self.variables.iter();
        variables
            .map(|(name, value)| name.len() + value.len())
            .sum()
    }
}

/// State of a run that another client may have begun, from the folder of the unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trace {
    /// Nothing was begun.
    Fresh,
    /// A runner holds its lock.
    Alive,
    /// It has ended.
    Ended(Outcome),
    /// It was begun, and there is neither a runner nor an outcome.
    Gone,
}

/// Decision of a restarted client about a unit that has not ended in the ledger.
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

/// Decides about a unit in `state` with `trace`. `same_boot` is whether the host has been up since
/// a runner got it, `told` whether its start was booked.
///
/// After a power failure the folder may lack the last seconds. So a unit that went to a runner
/// under another boot counts as begun.
#[must_use]
pub fn recover(state: State, trace: Trace, same_boot: bool, told: bool) -> Recovery {
    match (trace, state) {
        (Trace::Alive, _) => Recovery::Adopt,
        (Trace::Ended(outcome), _) => Recovery::Settle(outcome),
        (Trace::Gone, _) => Recovery::Interrupted,
        // A missing folder was removed if the start is known.
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
            at_end: None,
        };
        let text = serde_json::to_string(&address).expect("write");
        let known = r#"{"route":"broker","topic":"lab/infrastructure/reply","correlation":{"bytes":"ff00"}}"#;
        assert_eq!(text, known);
        assert_eq!(
            serde_json::from_str::<ReplyAddress>(&text).expect("read"),
            address
        );
    }

    #[test]
    fn ids_in_a_text_are_short_unless_that_is_ambiguous() {
        let (a, b) = ("01JBV7Y3ZK8Q5W2N4T6R9M1XCD", "01JBV7Y3ZK8Q5W2N4T6RAAAAAA");
        for (text, short) in [
            (
                format!("cancel unit {a}: it has ended"),
                "cancel unit 9M1XCD: it has ended",
            ),
            (
                format!("'tael work cancel {a}', {b}."),
                "'tael work cancel 9M1XCD', AAAAAA.",
            ),
            (a.to_owned(), "9M1XCD"),
            (format!("{a} {a}"), "9M1XCD 9M1XCD"),
            ("日本 and nothing".to_owned(), "日本 and nothing"),
        ] {
            assert_eq!(short_ids(&text), short);
        }
        for text in [
            format!("read /state/p/units/{a}/outcome"),
            format!("/state/p/units/{a}"),
            format!("x{a}"),
            format!("{a}-x"),
            a.to_lowercase(),
            format!("{a} or {}", a.replace("01J", "01K")),
        ] {
            assert_eq!(short_ids(&text), text);
        }
    }
}
