//! What a message means to a pipeline. The client, the list of events and the dry run all ask here,
//! so that they cannot disagree.

use std::fmt;

use crate::model::event::{self, Event, Refusal};
use crate::model::marker;
use crate::model::message::Delivery;
use crate::model::topic::PipelineTopics;
use crate::model::trigger::{Decision, Trigger};
use crate::model::triggers::Triggers;

/// A pipeline, as far as decisions need it.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// Its name.
    pub who: &'a str,
    /// Its own topics.
    pub topics: &'a PipelineTopics,
    /// Its triggers.
    pub triggers: &'a Triggers,
    /// Maximum size of a payload, bytes.
    pub max_payload: usize,
}

/// What a message is, before its triggers are asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Meaning {
    /// It is not an event.
    Ignored(Ignored),
    /// A trigger waits for it, and it cannot be read. `retained` is whether one of these triggers
    /// accepts retained messages.
    Unreadable {
        /// Why.
        refusal: Refusal,
        /// Whether the ledger remembers the content.
        retained: bool,
    },
    /// An event: [`Rules::decisions`] has what each trigger makes of it.
    Event(Event),
}

/// Why a message is not an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ignored {
    /// Its topic is one of the pipeline itself.
    OwnTopic,
    /// It marks the end of retained messages.
    Marker,
    /// It clears a retained message (MQTT 5.0, section 3.3.1.3).
    Empty,
    /// It is retained and cannot be read, and no trigger accepts retained messages.
    Retained,
    /// No trigger waits for its topic, and it cannot be read.
    Topic,
}

impl Ignored {
    /// Returns whether the message says nothing to any trigger: it does not end a silence either.
    #[must_use]
    pub const fn is_ours(&self) -> bool {
        matches!(self, Self::OwnTopic | Self::Marker)
    }
}

/// Explanation of a message that no trigger waits for.
pub const NO_TRIGGER: &str = "no trigger waits for its topic";

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnTopic => "its topic is one of the pipeline itself",
            Self::Marker => "it marks the end of retained messages",
            Self::Empty => "its payload is empty",
            Self::Retained => "it is retained, and --retained is 'ignore'",
            Self::Topic => NO_TRIGGER,
        })
    }
}

impl<'a> Rules<'a> {
    /// Reads a message on a topic.
    #[must_use]
    pub fn read(&self, delivery: &Delivery) -> Meaning {
        let topic = std::str::from_utf8(&delivery.topic);
        if topic.is_ok_and(|topic| self.topics.own(topic)) {
            // A pipeline does not start itself.
            return Meaning::Ignored(Ignored::OwnTopic);
        }
        if marker::is_marker(&delivery.topic) {
            return Meaning::Ignored(Ignored::Marker);
        }
        if delivery.payload.is_empty() && !delivery.is_question() {
            return Meaning::Ignored(Ignored::Empty);
        }
        match event::parse(delivery, self.max_payload) {
            Ok(event) => Meaning::Event(event),
            Err(refusal) => self.unreadable(topic.ok(), delivery.retained, refusal),
        }
    }

    /// An unreadable message is refused, for the record, if a trigger waits for its topic.
    fn unreadable(&self, topic: Option<&str>, is_retained: bool, refusal: Refusal) -> Meaning {
        let (mut waiting, mut meant, mut retained) = (false, false, false);
        let look = |trigger: &Trigger| {
            waiting = true;
            meant |= trigger.accept_retained || !is_retained;
            retained |= trigger.accept_retained;
        };
        match topic {
            Some(topic) => self.triggers.waiting_for(topic).for_each(look),
            None => {
                let waiting = self.triggers.iter().filter(|t| t.absent.is_none());
                waiting.for_each(look);
            }
        }
        match (meant, waiting) {
            (true, _) => Meaning::Unreadable { refusal, retained },
            (false, true) => Meaning::Ignored(Ignored::Retained),
            (false, false) => Meaning::Ignored(Ignored::Topic),
        }
    }

    /// Returns what each trigger with a matching filter makes of `event`. Triggers that wait for
    /// silence are not among them.
    pub fn decisions(&self, event: &Event) -> impl Iterator<Item = (&'a Trigger, Decision<'a>)> {
        let waiting = self.triggers.waiting_for(&event.topic);
        waiting.map(|trigger| (trigger, trigger.decide_on_topic(event, self.who)))
    }

    /// Returns what `event`, for which no trigger waits, means to those that wait for silence, for
    /// people.
    pub fn to_silences(&self, event: &Event) -> impl Iterator<Item = (&'a Trigger, String)> {
        let listening = self.triggers.listening_to(&event.topic);
        listening.map(|trigger| {
            let why = match trigger.objection_on_topic(event, self.who) {
                Some(objection) => objection.explain(event),
                None => "it ends the silence for which the trigger waits".to_owned(),
            };
            (trigger, why)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::command::Command;
    use crate::model::condition::Condition;
    use crate::model::env::Export;
    use crate::model::message::Properties;
    use crate::model::policy::Policy;
    use crate::model::spec::Spec;
    use crate::model::topic::Filter;
    use crate::model::trigger::Objection;
    use std::sync::Arc;
    use std::time::Duration;

    fn trigger(name: &str, filter: &str) -> Trigger {
        Trigger {
            name: name.into(),
            filters: vec![Filter::new(filter).expect("filter")],
            conditions: vec![Condition::parse("status=finished").expect("condition")],
            export: Export::new(None, Vec::new()).expect("export"),
            passthrough: Vec::new(),
            queue: None,
            accept_retained: false,
            reply: None,
            absent: None,
            policy: Policy::default(),
            spec: Arc::new(Spec::new(name, Command::Direct(vec!["true".into()]))),
        }
    }

    fn delivery(topic: &[u8], payload: &str) -> Delivery {
        Delivery {
            topic: topic.to_vec().into(),
            payload: payload.to_owned().into(),
            retained: false,
            duplicate: false,
            packet: 0,
            properties: Properties::default(),
        }
    }

    #[test]
    fn a_message_means_one_thing() {
        let guard = Trigger {
            absent: Some(Duration::from_secs(1)),
            ..trigger("guard", "lab/beat")
        };
        let triggers = Triggers::new(vec![trigger("a", "lab/+/status"), guard]);
        let topics = PipelineTopics::new("lab", "me");
        let rules = Rules {
            who: "me",
            topics: &topics,
            triggers: &triggers,
            max_payload: 100,
        };
        let ignored = |topic: &[u8], payload: &str| match rules.read(&delivery(topic, payload)) {
            Meaning::Ignored(why) => Some(why),
            _ => None,
        };
        let own = topics.status();
        assert_eq!(ignored(own.as_bytes(), "{}"), Some(Ignored::OwnTopic));
        let marker = marker::topic("lab", "x");
        assert_eq!(ignored(marker.as_bytes(), ""), Some(Ignored::Marker));
        assert_eq!(ignored(b"lab/seq/status", ""), Some(Ignored::Empty));
        let mut question = delivery(b"lab/seq/status", "");
        question.properties.response_topic = Some("lab/r".into());
        let Meaning::Event(asked) = rules.read(&question) else {
            panic!("it is an event");
        };
        assert!(asked.is_question && asked.attributes.is_empty());
        question.retained = true;
        let cleared = Meaning::Ignored(Ignored::Empty);
        assert_eq!(rules.read(&question), cleared);
        assert_eq!(ignored(b"other", "x"), Some(Ignored::Topic));
        assert_eq!(ignored(b"lab/beat", "x"), Some(Ignored::Topic));
        assert_eq!(ignored(b"lab/seq/status", "x"), None);
        let unread = rules.read(&delivery(b"lab/\xff/status", "{}"));
        let not_utf8 = Meaning::Unreadable {
            refusal: Refusal::TopicNotUtf8,
            retained: false,
        };
        assert_eq!(unread, not_utf8);
        let retained = Delivery {
            retained: true,
            ..delivery(b"lab/seq/status", "x")
        };
        assert_eq!(rules.read(&retained), Meaning::Ignored(Ignored::Retained));

        let read = |topic: &[u8], payload| match rules.read(&delivery(topic, payload)) {
            Meaning::Event(event) => event,
            other => panic!("{other:?}"),
        };
        let finished = read(b"lab/seq/status", r#"{"status":"finished"}"#);
        let made: Vec<_> = rules.decisions(&finished).map(|(_, made)| made).collect();
        assert_eq!(made, [Decision::Run]);
        let started = read(b"lab/seq/status", r#"{"status":"started"}"#);
        let made: Vec<_> = rules.decisions(&started).map(|(_, made)| made).collect();
        assert!(matches!(
            made[..],
            [Decision::Ignore(Objection::Condition(_))]
        ));
        let beat = read(b"lab/beat", r#"{"status":"finished"}"#);
        assert_eq!(rules.decisions(&beat).count(), 0);
        let heard: Vec<String> = rules.to_silences(&beat).map(|(_, why)| why).collect();
        assert_eq!(heard, ["it ends the silence for which the trigger waits"]);
    }
}
