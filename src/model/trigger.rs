//! Triggers: which events start which command.

use std::sync::Arc;
use std::time::Duration;

use crate::model::condition::Condition;
use crate::model::env::{Export, Exported};
use crate::model::event::{Attributes, Event, MAX_HOPS, Refusal};
use crate::model::json;
use crate::model::passthrough;
use crate::model::policy::Policy;
use crate::model::queue::QueueSource;
use crate::model::spec::Spec;
use crate::model::text::printable;
use crate::model::topic::Filter;
use crate::model::variables::Variables;
use crate::model::work::WorkType;

/// Name of the trigger of a command line, which is the only one.
pub const ONLY_TRIGGER: &str = "default";

/// Topic filters, conditions, a command and a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    /// Name for people; unique in its client. Its lane has the same name.
    pub name: String,
    /// Filters for its events; at least one, or it has a queue.
    pub filters: Vec<Filter>,
    /// Queue that it takes work from.
    pub queue: Option<Arc<QueueSource>>,
    /// Conditions, all of which must hold.
    pub conditions: Vec<Condition>,
    /// Attributes that the command finds in its environment.
    pub export: Export,
    /// Names of variables that the statuses repeat.
    pub passthrough: Vec<String>,
    /// Whether retained messages count as events.
    pub accept_retained: bool,
    /// Maximum size of the answers that it gives to those who ask, bytes; `None` if it gives none.
    pub reply: Option<usize>,
    /// Silence after which it runs, instead of running for each event.
    pub absent: Option<Duration>,
    /// Policy of its lane.
    pub policy: Policy,
    /// Spec of its units, which carry it.
    pub spec: Arc<Spec>,
}

/// What a run takes from the attributes of its event.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Taken {
    /// Variables for the command.
    pub variables: Variables,
    /// Attributes for the statuses.
    pub passthrough: Attributes,
    /// Attributes that were left out, and why.
    pub warnings: Vec<String>,
}

/// Decision about an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Run the command.
    Run,
    /// It is not for this trigger.
    Ignore(Objection<'a>),
    /// It should run and cannot.
    Refuse(Refusal),
}

/// Why an event does not fit a trigger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objection<'a> {
    /// None of these filters matches its topic.
    Topic(&'a [Filter]),
    /// The trigger waits for silence.
    Silence,
    /// It is a retained message.
    Retained,
    /// The pipeline itself has published it.
    Own,
    /// This condition does not hold.
    Condition(&'a Condition),
}

impl Objection<'_> {
    /// Explains the objection to `event`, for people. Only this costs something: the decision does
    /// not.
    #[must_use]
    pub fn explain(&self, event: &Event) -> String {
        match self {
            Self::Topic(filters) => other_topic(filters, &event.topic),
            Self::Silence => "the trigger waits for silence".to_owned(),
            Self::Retained => "it is retained, and --retained is 'ignore'".to_owned(),
            Self::Own => "the pipeline itself has published it".to_owned(),
            Self::Condition(condition) => condition.objection(event),
        }
    }
}

/// Maximum number of filters, and of work types, to name.
const MAX_FILTERS: usize = 3;

/// Maximum length of a topic or filter to show, characters.
const MAX_SHOWN: usize = 200;

/// Explains that none of `filters` matches `topic`.
fn other_topic(filters: &[Filter], topic: &str) -> String {
    let shown = |text: &str| printable(text, MAX_SHOWN);
    let near = filters.iter().find(|filter| filter.nearly_matches(topic));
    if let Some(near) = near {
        return format!(
            "its topic is {}, not {}",
            shown(topic),
            shown(near.as_str())
        );
    }
    let names = listed(filters.iter().map(Filter::as_str));
    format!("its topic does not match {names}")
}

/// Returns some of `names`, printable, and how many more there are.
fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = match names.len().saturating_sub(MAX_FILTERS) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let first = names.take(MAX_FILTERS);
    let first: Vec<String> = first.map(|name| printable(name, MAX_SHOWN)).collect();
    first.join(", ") + &more
}

/// Returns what a client with these triggers and work types waits for, on one line.
#[must_use]
pub fn waits_for(triggers: &[Trigger], work: &[WorkType]) -> String {
    let mut filters: Vec<&str> = Vec::new();
    for filter in triggers.iter().flat_map(|trigger| &trigger.filters) {
        if !filters.contains(&filter.as_str()) {
            filters.push(filter.as_str());
        }
    }
    let messages =
        (!filters.is_empty()).then(|| format!("messages on {}", listed(filters.into_iter())));
    let mut queues: Vec<&str> = Vec::new();
    for source in triggers.iter().filter_map(|trigger| trigger.queue.as_ref()) {
        if !queues.contains(&source.url.queue.as_str()) {
            queues.push(&source.url.queue);
        }
    }
    let queues =
        (!queues.is_empty()).then(|| format!("work from queue {}", listed(queues.into_iter())));
    let types = work.iter().map(|kind| kind.name.as_str());
    let work = (!work.is_empty()).then(|| format!("work of type {}", listed(types)));
    let all: Vec<String> = messages.into_iter().chain(queues).chain(work).collect();
    match all.is_empty() {
        true => "waiting for work to submit to other nodes".to_owned(),
        false => format!("waiting for {}", all.join(", and for ")),
    }
}

impl Trigger {
    /// Decides what pipeline `who` does with `event`.
    #[must_use]
    pub fn decide(&self, event: &Event, who: &str) -> Decision<'_> {
        let meant = |filter: &Filter| filter.matches(&event.topic);
        if self.filters.iter().any(meant) {
            self.decide_on_topic(event, who)
        } else {
            Decision::Ignore(Objection::Topic(&self.filters))
        }
    }

    /// Decides the same for an event whose topic matches.
    #[must_use]
    pub fn decide_on_topic(&self, event: &Event, who: &str) -> Decision<'_> {
        if self.absent.is_some() {
            return Decision::Ignore(Objection::Silence);
        }
        match self.objection_on_topic(event, who) {
            Some(objection) => Decision::Ignore(objection),
            None => self.admit(event),
        }
    }

    /// Returns whether conditions and origin of `event`, whose topic matches, fit the trigger of
    /// pipeline `who`.
    #[must_use]
    pub fn means_on_topic(&self, event: &Event, who: &str) -> bool {
        self.objection_on_topic(event, who).is_none()
    }

    /// Returns why conditions and origin of `event`, whose topic matches, do not fit the trigger of
    /// pipeline `who`, if they do not.
    #[must_use]
    pub fn objection_on_topic(&self, event: &Event, who: &str) -> Option<Objection<'_>> {
        let fails = |condition: &&Condition| !condition.holds(event);
        if event.retained && !self.accept_retained {
            Some(Objection::Retained)
        } else if event.who.as_deref() == Some(who) && !self.is_for_any(event) {
            Some(Objection::Own)
        } else {
            let failing = self.conditions.iter().find(fails);
            failing.map(Objection::Condition)
        }
    }

    /// Returns whether `event`, whose topic matches, is meant for any pipeline, also the one that has
    /// published it: a question, or a task of workers, which the broker gives to no other. The number of
    /// hops ends their loops.
    fn is_for_any(&self, event: &Event) -> bool {
        let shares = |filter: &Filter| filter.is_shared() && filter.matches(&event.topic);
        event.is_question || self.filters.iter().any(shares)
    }

    /// Decides about an event whose topic and conditions need no check, such as one that an
    /// operator has raised.
    #[must_use]
    pub fn admit(&self, event: &Event) -> Decision<'static> {
        if event.hops > MAX_HOPS {
            return Decision::Refuse(Refusal::Loop(event.hops));
        }
        match self.lacking(&event.attributes) {
            None => Decision::Run,
            Some(refusal) => Decision::Refuse(refusal),
        }
    }

    /// Returns the refusal of an event that lacks required attributes, if it does.
    #[must_use]
    pub fn lacking(&self, attributes: &Attributes) -> Option<Refusal> {
        let missing = self.export.missing(attributes);
        (!missing.is_empty()).then_some(Refusal::Missing(missing))
    }

    /// Returns what a run takes from `attributes`.
    #[must_use]
    pub fn take(&self, attributes: &Attributes) -> Taken {
        let Exported {
            variables,
            warnings,
        } = self.export.apply(attributes);
        let passed = passthrough::select(&self.passthrough, self.export.prefix(), &variables);
        let passthrough = passed
            .into_iter()
            .map(|(key, value)| (key, json::string_of(value.as_bytes()).into()))
            .collect();
        Taken {
            variables,
            passthrough,
            warnings,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::command::Command;
    use crate::model::event::Lacking;
    use crate::model::queue::{QueueUrl, Settle};
    use crate::model::work::Signed;
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
            is_question: false,
        }
    }

    fn trigger() -> Trigger {
        Trigger {
            name: "t".into(),
            filters: vec![Filter::new("lab/+/status").expect("filter")],
            conditions: vec![Condition::parse("status=finished").expect("condition")],
            export: Export::new(None, vec!["sample".into()]).expect("export"),
            passthrough: vec![],
            queue: None,
            accept_retained: false,
            reply: None,
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
            assert!(
                matches!(trigger().decide(&other, "me"), Decision::Ignore(_)),
                "{other:?}"
            );
        }
        // Such messages of its own it takes.
        let own = Event {
            who: Some("me".into()),
            ..good.clone()
        };
        let question = Event {
            is_question: true,
            ..own.clone()
        };
        assert_eq!(trigger().decide(&question, "me"), Decision::Run);
        let worker = |filter: &str| Trigger {
            filters: vec![Filter::new(filter).expect("filter")],
            ..trigger()
        };
        let shared = worker("$share/pool/lab/+/status");
        assert_eq!(shared.decide_on_topic(&own, "me"), Decision::Run);
        let other = worker("$share/pool/lab/other");
        assert!(matches!(
            other.decide_on_topic(&own, "me"),
            Decision::Ignore(_)
        ));
        let retained = Event {
            retained: true,
            ..good.clone()
        };
        let accepting = Trigger {
            accept_retained: true,
            ..trigger()
        };
        assert_eq!(accepting.decide(&retained, "me"), Decision::Run);
        let started = event("lab/seq/status", json!({"status": "started"}));
        let waiting = trigger();
        let Decision::Ignore(why) = waiting.decide(&started, "me") else {
            panic!("it ran");
        };
        assert_eq!(
            why.explain(&started),
            "'status' is 'started', not 'finished'"
        );
        for (topic, want) in [
            (
                "lab/seq/Status",
                "its topic is lab/seq/Status, not lab/+/status",
            ),
            ("lab/seq/last", "its topic does not match lab/+/status"),
            ("lab/status", "its topic does not match lab/+/status"),
        ] {
            let elsewhere = event(topic, json!({}));
            let Decision::Ignore(why) = waiting.decide(&elsewhere, "me") else {
                panic!("it ran");
            };
            assert_eq!(why.explain(&elsewhere), want);
        }
        let guard = Trigger {
            absent: Some(Duration::from_secs(1)),
            ..trigger()
        };
        assert_eq!(
            guard.decide(&good, "me"),
            Decision::Ignore(Objection::Silence)
        );
    }

    #[test]
    fn a_meant_event_that_cannot_run_is_refused() {
        let lacking = event("lab/seq/status", json!({"status": "finished"}));
        assert_eq!(
            trigger().decide(&lacking, "me"),
            Decision::Refuse(Refusal::Missing(vec![Lacking {
                key: "sample".into(),
                near: None
            }]))
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

    #[test]
    fn what_a_client_waits_for_is_one_line() {
        let with = |filters: &[&str]| Trigger {
            filters: filters
                .iter()
                .map(|filter| Filter::new(*filter).expect("filter"))
                .collect(),
            ..trigger()
        };
        let text = |triggers: &[Trigger]| waits_for(triggers, &[]);
        assert_eq!(
            text(&[with(&["lab/a", "lab/+/b"]), with(&["lab/a"])]),
            "waiting for messages on lab/a, lab/+/b"
        );
        assert_eq!(
            text(&[with(&["a", "b", "c", "d", "e\u{202e}"])]),
            "waiting for messages on a, b, c and 2 more"
        );
        assert_eq!(
            text(&[with(&["e\u{202e}"])]),
            "waiting for messages on e\\u{202e}"
        );
        let kind = WorkType {
            name: "echo".into(),
            params: false,
            signed: Signed::Never,
            policy: Policy::default(),
            queue: 1,
            max_stdin: 1,
            spec: trigger().spec,
        };
        let kinds = std::slice::from_ref(&kind);
        assert_eq!(waits_for(&[], kinds), "waiting for work of type echo");
        assert_eq!(
            waits_for(&[with(&["a"])], kinds),
            "waiting for messages on a, and for work of type echo"
        );
        let url = QueueUrl::parse("amqp://h/v/jobs").expect("URL");
        let queue = Trigger {
            filters: Vec::new(),
            queue: Some(Arc::new(QueueSource {
                url,
                settle: Settle::Accept,
                prefetch: None,
                dead_letter: None,
                declare: None,
            })),
            ..trigger()
        };
        assert_eq!(
            text(std::slice::from_ref(&queue)),
            "waiting for work from queue jobs"
        );
        assert_eq!(
            waits_for(&[queue, with(&["a"])], kinds),
            "waiting for messages on a, and for work from queue jobs, and for work of type echo"
        );
        let long = "x".repeat(60_000);
        assert!(text(&[with(&[&long, "b", "c"])]).len() < 2 * MAX_SHOWN);
    }
}
