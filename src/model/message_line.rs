//! A message as people watch it: its state, its sender, its topic, and what it is about.

use serde_json::Value;

use crate::model::check::beat_time;
use crate::model::event::{Attributes, attribute_text, attributes};
use crate::model::message::{Delivery, property};
use crate::model::table::Colour;
use crate::model::text::{printable, printable_bytes};
use crate::model::topic::PipelineTopic;
use crate::model::{duration, json};

/// Maximum length of one value on a line, characters.
const MAX_VALUE: usize = 120;

/// Maximum length of a payload that is no JSON object, characters.
const MAX_PAYLOAD: usize = 400;

/// The columns of a message, each printable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageLine {
    /// Its status, state or action, with a `!` before announced ones; `-` if it has none.
    pub state: String,
    /// The colour of the state.
    pub colour: Option<Colour>,
    /// Its sender as `NAME@HOST`, `-` if unknown.
    pub who: String,
    /// Its topic.
    pub topic: String,
    /// The attributes, or the payload that is no JSON object.
    pub about: String,
}

impl MessageLine {
    /// Returns the line of a message; `None` for one that repeats another, or is only for who asked.
    /// `all` shows such a message too, and whole topics and all attributes of each.
    #[must_use]
    pub fn of(delivery: &Delivery, all: bool) -> Option<Self> {
        let text = String::from_utf8_lossy(&delivery.topic);
        let own = PipelineTopic::parse(&text);
        let topic = match &own {
            // The status says the same at the same time.
            Some(own) if own.name == "last" && !all => return None,
            // The answer to a request. Its topic would widen the column for all lines that follow.
            Some(own) if own.is_reply() && !all => return None,
            Some(own) if !all => own.short(),
            _ => printable_bytes(&delivery.topic, 200),
        };
        // A retained message may be old.
        let mut about: Vec<String> = Vec::new();
        about.extend(delivery.retained.then(|| "(retained)".to_owned()));
        let Ok(mut attributes) = attributes(&delivery.payload, usize::MAX) else {
            about.push(printable_bytes(&delivery.payload, MAX_PAYLOAD));
            let (state, who) = ("-".to_owned(), sender(delivery, None, None));
            let about = about.join(" ").trim_end().to_owned();
            return Some(Self {
                state,
                colour: None,
                who,
                topic,
                about,
            });
        };
        let mut announce = attributes.shift_remove("announce") == Some(Value::Bool(true));
        let presence = own.as_ref().filter(|own| own.name == "presence" && !all);
        let mut state = ["status", "state", "action"]
            .into_iter()
            .find_map(|key| attributes.shift_remove(key))
            .map_or_else(|| "-".to_owned(), |v| printable(&attribute_text(&v), 40));
        let end = delivery.properties.user(property::END);
        if own.is_some() && !all && end == Some(property::CANCELED) {
            // A person has ended the run, and knows it.
            (state, announce) = (property::CANCELED.to_owned(), false);
        }
        let who = match presence {
            Some(own) => {
                if attributes.get("paused") == Some(&Value::Bool(true)) && state == "online" {
                    state = "paused".to_owned();
                }
                let host = attributes.get("host").map(attribute_text);
                attributes.clear();
                sender(delivery, Some(own.who.to_owned()), host)
            }
            None => {
                let user = attributes.shift_remove("user").map(|v| attribute_text(&v));
                sender(delivery, user, None)
            }
        };
        if !all {
            // A beacon has the broker retain each beat a second time.
            if is_beat(&attributes) && text.ends_with("/last") {
                return None;
            }
            hide(&mut attributes);
        }
        about.extend(attributes.iter().map(|(key, value)| {
            let key = printable(&json::lossy(key), 60);
            format!("{key}={}", shown(&key, value, all))
        }));
        let colour = match announce {
            true => Some(Colour::Red),
            false => Colour::of_state(&state),
        };
        Some(Self {
            state: if announce {
                format!("! {state}")
            } else {
                state
            },
            colour,
            who,
            topic,
            about: about.join(" "),
        })
    }
}

/// Returns whether it is the beat of a beacon.
fn is_beat(attributes: &Attributes) -> bool {
    attributes.contains_key("date") && beat_time(attributes).is_some()
}

/// Removes what repeats other columns or says nothing, and puts last what a narrow terminal may cut.
fn hide(attributes: &mut Attributes) {
    if is_beat(attributes) {
        attributes.shift_remove("date");
        attributes.shift_remove("time");
    }
    attributes.shift_remove("ts");
    if attributes.get("return_code").and_then(Value::as_i64) == Some(0) {
        attributes.shift_remove("return_code");
    }
    for last in ["time_elapsed", "reason"] {
        if let Some(value) = attributes.shift_remove(last) {
            attributes.insert(last.to_owned(), value);
        }
    }
}

/// Returns a value as people read it: a span of a status is written like every other span.
fn shown(key: &str, value: &Value, all: bool) -> String {
    let span = (key == "time_elapsed" && !all)
        .then(|| value.as_str().and_then(duration::from_python))
        .flatten();
    match span {
        Some(span) => duration::brief(span),
        None => printable(&attribute_text(value), MAX_VALUE),
    }
}

/// Returns the sender of a message as its properties name it, otherwise as its payload does.
fn sender(delivery: &Delivery, user: Option<String>, host: Option<String>) -> String {
    let who = delivery.properties.user(property::WHO).map(str::to_owned);
    let told = delivery.properties.user(property::HOST).map(str::to_owned);
    match (who.or(user), told.or(host)) {
        (Some(who), Some(host)) => printable(&format!("{who}@{host}"), 100),
        (Some(who), None) => printable(&who, 100),
        (None, Some(host)) => printable(&format!("@{host}"), 100),
        (None, None) => "-".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn delivery(topic: &str, payload: &str) -> Delivery {
        Delivery {
            topic: Bytes::from(topic.to_owned()),
            payload: Bytes::from(payload.to_owned()),
            retained: false,
            duplicate: false,
            packet: 0,
            properties: crate::model::message::Properties {
                user: vec![
                    (property::WHO.into(), "seq".into()),
                    (property::HOST.into(), "h1".into()),
                ],
                ..Default::default()
            },
        }
    }

    fn shown(topic: &str, payload: &str, all: bool) -> Option<[String; 4]> {
        let line = MessageLine::of(&delivery(topic, payload), all)?;
        Some([line.state, line.who, line.topic, line.about])
    }

    #[test]
    fn lines_are_readable_and_without_noise() {
        let pipeline = "lab/infrastructure/pipelines/seq";
        let status = format!("{pipeline}/status");
        let end = r#"{"status":"failed","return_code":3,"announce":true,
                      "time_elapsed":"0:00:01.234567","S":"S 1","ts":7}"#;
        let want = ["! failed", "seq@h1", "lab/…/seq/status"];
        let about = "return_code=3 S=S 1 time_elapsed=1.2s";
        assert_eq!(
            shown(&status, end, false).expect("line"),
            [want[0], want[1], want[2], about]
        );
        let about = "return_code=3 time_elapsed=0:00:01.234567 S=S 1 ts=7";
        assert_eq!(
            shown(&status, end, true).expect("line"),
            [want[0], want[1], &status, about]
        );
        let start = r#"{"status":"started","announce":false,"reason":"a finished","S":"1","ts":7}"#;
        assert_eq!(
            shown(&status, start, false).expect("line")[3],
            "S=1 reason=a finished"
        );
        let good = r#"{"status":"finished","return_code":0,"ts":7}"#;
        assert_eq!(
            shown("lab/a", good, false).expect("line"),
            ["finished", "seq@h1", "lab/a", ""]
        );
        let beat = r#"{"date":"20260301","status":"finished","time":"120000"}"#;
        assert_eq!(shown("lab/beat", beat, false).expect("line")[3], "");
        assert_eq!(shown("lab/beacon/last", beat, false), None);
        assert!(shown("lab/last", good, false).is_some(), "not ours");
        assert_eq!(
            shown("lab/x", "\x1b[2J", false).expect("line"),
            ["-", "seq@h1", "lab/x", "\\u{1b}[2J"]
        );
        let last = format!("{pipeline}/last");
        assert_eq!(shown(&last, r#"{"last":{}}"#, false), None);
        assert!(shown(&last, r#"{"last":{}}"#, true).is_some());
        let reply = format!("{pipeline}/reply/01JBV7Y3ZK8Q5W2N4T6R9M1XCD");
        assert_eq!(shown(&reply, r#"{"ok":true}"#, false), None);
        assert!(shown(&reply, r#"{"ok":true}"#, true).is_some());
    }

    #[test]
    fn what_a_person_has_ended_is_canceled() {
        let end = r#"{"status":"failed","return_code":143,"announce":true}"#;
        let line = |topic: &str, all| {
            let mut message = delivery(topic, end);
            let user = &mut message.properties.user;
            user.push((property::END.into(), property::CANCELED.into()));
            let line = MessageLine::of(&message, all).expect("line");
            (line.state, line.colour)
        };
        let status = "lab/infrastructure/pipelines/seq/status";
        let canceled = ("canceled".to_owned(), Colour::of_state("canceled"));
        let failed = ("! failed".to_owned(), Some(Colour::Red));
        assert_eq!(line(status, false), canceled);
        assert_eq!(line(status, true), failed);
        assert_eq!(
            line("lab/seq/status", false),
            failed,
            "not a status of a pipeline"
        );
    }

    #[test]
    fn a_presence_is_a_state() {
        let topic = "lab/infrastructure/pipelines/align/presence";
        let online = r#"{"state":"online","who":"align","host":"n7","triggers":[],"paused":true}"#;
        let mut message = delivery(topic, online);
        message.properties.user.clear();
        message.retained = true;
        let line = MessageLine::of(&message, false).expect("line");
        assert_eq!(
            [line.state, line.who, line.topic, line.about],
            ["paused", "align@n7", "lab/…/align/presence", "(retained)"]
        );
        assert_eq!(line.colour, Some(Colour::Yellow));
        let line = MessageLine::of(&message, true).expect("line");
        assert!(line.about.contains("triggers=[]"), "{line:?}");
    }
}
