//! Triggers: which events start which command.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::model::condition::Condition;
use crate::model::env::Export;
use crate::model::event::{Event, MAX_HOPS, Refusal};
use crate::model::policy::Policy;
use crate::model::spec::Spec;
use crate::model::topic::Filter;

/// Topic filters, conditions, a command and a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    /// Name for people; unique in its client. Its lane has the same name.
    pub name: String,
    /// Filters for its events; at least one.
    pub filters: Vec<Filter>,
    /// Conditions, all of which must hold.
    pub conditions: Vec<Condition>,
    /// Attributes that the command finds in its environment.
    pub export: Export,
    /// Names of variables that the statuses repeat.
    pub passthrough: Vec<String>,
    /// Whether retained messages count as events.
    pub accept_retained: bool,
    /// Silence after which it runs, instead of running for each event.
    pub absent: Option<Duration>,
    /// Policy of its lane.
    pub policy: Policy,
    /// Spec of its units, which carry it.
    pub spec: Arc<Spec>,
}

/// Decision about an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Run the command.
    Run,
    /// It is not for this trigger.
    Ignore,
    /// It should run and cannot.
    Refuse(Refusal),
}

/// Why an event does not fit a trigger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objection<'a> {
    /// No filter matches its topic.
    Topic,
    /// It is a retained message.
    Retained,
    /// The pipeline itself has published it.
    Own,
    /// This condition does not hold.
    Condition(&'a Condition),
}

impl fmt::Display for Objection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic => f.write_str("its topic is another one"),
            Self::Retained => f.write_str("it is retained, and --retained is 'ignore'"),
            Self::Own => f.write_str("it is the pipeline's own"),
            Self::Condition(condition) => write!(f, "{condition} does not hold"),
        }
    }
}

impl Trigger {
    /// Decides what pipeline `who` does with `event`.
    #[must_use]
    pub fn decide(&self, event: &Event, who: &str) -> Decision {
        if self.absent.is_none() && self.means(event, who) {
            self.admit(event)
        } else {
            Decision::Ignore
        }
    }

    /// Decides the same for an event whose topic matches.
    #[must_use]
    pub fn decide_on_topic(&self, event: &Event, who: &str) -> Decision {
        if self.absent.is_none() && self.means_on_topic(event, who) {
            self.admit(event)
        } else {
            Decision::Ignore
        }
    }

    /// Returns whether conditions and origin of `event`, whose topic matches, fit the trigger of
    /// pipeline `who`.
    #[must_use]
    pub fn means_on_topic(&self, event: &Event, who: &str) -> bool {
        self.objection_on_topic(event, who).is_none()
    }

    /// Returns whether topic, conditions and origin of `event` fit the trigger.
    #[must_use]
    pub fn means(&self, event: &Event, who: &str) -> bool {
        self.objection(event, who).is_none()
    }

    /// Returns why `event` does not fit the trigger of pipeline `who`, if it does not.
    #[must_use]
    pub fn objection(&self, event: &Event, who: &str) -> Option<Objection<'_>> {
        let meant = |filter: &Filter| filter.matches(&event.topic);
        if self.filters.iter().any(meant) {
            self.objection_on_topic(event, who)
        } else {
            Some(Objection::Topic)
        }
    }

    fn objection_on_topic(&self, event: &Event, who: &str) -> Option<Objection<'_>> {
        let fails = |condition: &&Condition| !condition.holds(event);
        if event.retained && !self.accept_retained {
            Some(Objection::Retained)
        } else if event.who.as_deref() == Some(who) {
            Some(Objection::Own)
        } else {
            let failing = self.conditions.iter().find(fails);
            failing.map(Objection::Condition)
        }
    }

    /// Decides about an event whose topic and conditions need no check, such as one that an
    /// operator has raised.
    #[must_use]
    pub fn admit(&self, event: &Event) -> Decision {
        if event.hops > MAX_HOPS {
            return Decision::Refuse(Refusal::Loop(event.hops));
        }
        let missing = self.export.missing(&event.attributes);
        if missing.is_empty() {
            Decision::Run
        } else {
            Decision::Refuse(Refusal::Missing(missing))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::command::Command;
    use bytes::Bytes;
    use serde_json::{Value, json};

    fn event(topic: &str, payload: Value) -> Event {
        Event {
            topic: topic.into(),
            payload: Bytes::from(payload.to_string()),
            attributes: payload.as_object().cloned().expect("object"),
            id: None,
            who: None,
            hops: 0,
            traceparent: None,
            retained: false,
        }
    }

    fn trigger() -> Trigger {
        Trigger {
            name: "t".into(),
            filters: vec![Filter::new("lab/+/status").expect("filter")],
            conditions: vec![Condition::parse("status=finished").expect("condition")],
            export: Export::new(None, vec!["sample".into()]).expect("export"),
            passthrough: vec![],
            accept_retained: false,
            absent: None,
            policy: Policy::default(),
            spec: Arc::new(Spec::new("t", Command::Direct(vec!["true".into()]))),
        }
    }

    #[test]
    fn an_event_runs_when_topic_and_conditions_hold() {
        let good = event("lab/seq/status", json!({"status": "finished", "sample": 1}));
        assert_eq!(trigger().decide(&good, "me"), Decision::Run);
        for other in [
            event("lab/status", json!({"status": "finished", "sample": 1})),
            event("lab/seq/status", json!({"status": "started", "sample": 1})),
            event("lab/seq/status", json!({"sample": 1})),
            Event {
                retained: true,
                ..good.clone()
            },
            Event {
                who: Some("me".into()),
                ..good.clone()
            },
        ] {
            assert_eq!(
                trigger().decide(&other, "me"),
                Decision::Ignore,
                "{other:?}"
            );
        }
        let retained = Event {
            retained: true,
            ..good
        };
        let accepting = Trigger {
            accept_retained: true,
            ..trigger()
        };
        assert_eq!(accepting.decide(&retained, "me"), Decision::Run);
        let started = event("lab/seq/status", json!({"status": "started"}));
        let why = trigger().objection(&started, "me").map(|o| o.to_string());
        assert_eq!(why.as_deref(), Some("status=finished does not hold"));
    }

    #[test]
    fn a_meant_event_that_cannot_run_is_refused() {
        let lacking = event("lab/seq/status", json!({"status": "finished"}));
        assert_eq!(
            trigger().decide(&lacking, "me"),
            Decision::Refuse(Refusal::Missing(vec!["sample".into()]))
        );
        let mut looping = event("lab/seq/status", json!({"status": "finished", "sample": 1}));
        looping.hops = MAX_HOPS;
        assert_eq!(trigger().decide(&looping, "me"), Decision::Run);
        looping.hops += 1;
        assert_eq!(
            trigger().decide(&looping, "me"),
            Decision::Refuse(Refusal::Loop(33))
        );
    }
}
