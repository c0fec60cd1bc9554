//! Requests to a running client, and its answers.

use serde_json::{Map, Value, json};

use crate::error::Kind;
use crate::model::event::{self, Attributes};
use crate::model::json;
use crate::model::unit::State;

/// Action of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Run the command now, with these attributes.
    Raise {
        /// Name of the trigger, if the client has several.
        trigger: Option<String>,
        /// The attributes of the event.
        attributes: Attributes,
    },
    /// Run the event of an ended unit again; by default the last failed one.
    Retry {
        /// Id of the unit, or the beginning or end of it.
        unit: Option<String>,
        /// Whether to run it also if it has succeeded, or was retried already.
        again: bool,
    },
    /// End a unit; by default the only one that runs.
    Cancel {
        /// Id of the unit, or the beginning or end of it.
        unit: Option<String>,
    },
    /// Start nothing until `resume`; events are accepted and wait.
    Pause,
    /// Allow starts again.
    Resume,
    /// Report what runs and waits.
    Status,
}

/// Key of the data that a request repeats inside its payload, for bridges that speak MQTT 3.1.1 and
/// drop its MQTT 5 properties. An answer names its request under the same key.
pub const ENVELOPE: &str = "tael-request";

/// Names that no attribute of a raised event may have: they are parts of the request.
pub const RESERVED: [&str; 3] = ["action", "trigger", ENVELOPE];

/// Name of the refusal of an expired request.
pub const EXPIRED: &str = "expired";

/// Data of a request itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Envelope {
    /// Id of the request; the answer repeats it.
    pub id: Option<String>,
    /// Topic of the answer.
    pub reply_to: Option<String>,
    /// When the request expires, seconds since 1970.
    pub expires: Option<i64>,
    /// Number of events between the request and its first cause.
    pub hops: u32,
    /// Whether the payload has this data.
    pub present: bool,
}

impl Envelope {
    /// Removes the data from the attributes of a request. A value that is not an object stays an
    /// attribute.
    fn take(attributes: &mut Attributes) -> Self {
        let Some(Value::Object(map)) = attributes.get(ENVELOPE) else {
            return Self::default();
        };
        let text = |key: &str, limit: usize| {
            let text = map.get(key).and_then(Value::as_str);
            let sane = |text: &&str| {
                !text.is_empty() && text.len() <= limit && !text.contains(char::is_control)
            };
            text.filter(sane).map(str::to_owned)
        };
        let envelope = Self {
            id: text("id", event::MAX_ID_BYTES),
            reply_to: text("reply_to", usize::from(u16::MAX)),
            expires: map.get("expires").and_then(Value::as_i64),
            hops: map
                .get("hops")
                .and_then(Value::as_u64)
                .map_or(0, |hops| u32::try_from(hops).unwrap_or(u32::MAX)),
            present: true,
        };
        attributes.shift_remove(ENVELOPE);
        envelope
    }

    fn value(&self) -> Value {
        let mut map = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            map.extend(value.map(|value| (key.to_owned(), value)));
        };
        put("id", self.id.as_ref().map(|id| json!(id)));
        put("reply_to", self.reply_to.as_ref().map(|topic| json!(topic)));
        put("expires", self.expires.map(|at| json!(at)));
        put("hops", (self.hops > 0).then(|| json!(self.hops)));
        Value::Object(map)
    }
}

/// Reads the payload of a request: its own data, and the action.
///
/// An action that cannot be understood is an error, a text for the sender.
pub fn parse(payload: &[u8], max_payload: usize) -> (Envelope, Result<Action, String>) {
    let mut attributes = match event::attributes(payload, max_payload) {
        Ok(attributes) => attributes,
        Err(refusal) => {
            let cause = format!("the request is refused: {refusal}");
            return (Envelope::default(), Err(cause));
        }
    };
    let envelope = Envelope::take(&mut attributes);
    (envelope, Action::take(attributes))
}

/// Names of all actions, for messages.
pub const ACTIONS: &str = "raise, retry, cancel, pause, resume or status";

impl Action {
    fn take(mut attributes: Attributes) -> Result<Self, String> {
        let mut take = |key: &str| match attributes.shift_remove(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(format!("'{key}' is not a string")),
        };
        match take("action")?.as_deref() {
            Some("raise") => Ok(Self::Raise {
                trigger: take("trigger")?,
                attributes,
            }),
            Some("retry") => Ok(Self::Retry {
                unit: take("unit")?,
                again: match attributes.get("again") {
                    None => false,
                    Some(Value::Bool(again)) => *again,
                    Some(_) => return Err("'again' is neither true nor false".into()),
                },
            }),
            Some("cancel") => Ok(Self::Cancel {
                unit: take("unit")?,
            }),
            Some("pause") => Ok(Self::Pause),
            Some("resume") => Ok(Self::Resume),
            Some("status") => Ok(Self::Status),
            Some(other) => Err(format!(
                "there is no action '{}': {ACTIONS}",
                super::text::printable(other, 80)
            )),
            None => Err("the request names no action".into()),
        }
    }

    /// Returns the name on the wire.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Raise { .. } => "raise",
            Self::Retry { .. } => "retry",
            Self::Cancel { .. } => "cancel",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Status => "status",
        }
    }

    /// Returns the payload of the request with its `envelope`.
    #[must_use]
    pub fn payload(&self, envelope: &Envelope) -> String {
        let mut map = Map::new();
        map.insert("action".into(), json!(self.name()));
        match self {
            Self::Raise {
                trigger,
                attributes,
            } => {
                if let Some(trigger) = trigger {
                    map.insert("trigger".into(), json!(trigger));
                }
                map.extend(attributes.clone());
            }
            Self::Cancel { unit } => {
                map.extend(unit.iter().map(|unit| ("unit".to_owned(), json!(unit))));
            }
            Self::Retry { unit, again } => {
                map.extend(unit.iter().map(|unit| ("unit".to_owned(), json!(unit))));
                if *again {
                    map.insert("again".into(), json!(true));
                }
            }
            Self::Pause | Self::Resume | Self::Status => {}
        }
        if envelope.present {
            map.insert(ENVELOPE.into(), envelope.value());
        }
        json::to_text(&Value::Object(map))
    }
}

/// Returns why a unit that has ended in `state` needs no retry, for the end of a sentence about it.
/// `retried` is the id of its retry, if it has one.
#[must_use]
pub fn needs_no_retry(state: State, retried: Option<&str>) -> Option<String> {
    match (state, retried) {
        (State::Succeeded, _) => Some("has succeeded: --again runs it once more".to_owned()),
        (_, Some(retry)) => Some(was_retried(retry)),
        (_, None) => None,
    }
}

/// Returns why a unit that was retried as `retry` needs no other retry, as the end of a sentence.
#[must_use]
pub fn was_retried(retry: &str) -> String {
    format!("was retried as unit {retry}: --again runs it once more")
}

/// Returns an answer that accepts, with `fields`.
#[must_use]
pub fn accepted(fields: Map<String, Value>) -> Value {
    let mut map = Map::new();
    map.insert("ok".into(), json!(true));
    map.extend(fields);
    Value::Object(map)
}

/// Returns an answer that refuses, with a cause and the exit code for the requester.
#[must_use]
pub fn refused(kind: Kind, cause: &str) -> Value {
    json!({"ok": false, "error": cause, "code": kind.exit_code()})
}

/// Returns the kind of a refusal. Without a code that a refusal can have (0 is none), the request
/// is at fault.
#[must_use]
pub fn refusal(answer: &Value) -> Kind {
    let code = answer.get("code").and_then(Value::as_u64);
    let code = code.and_then(|code| u8::try_from(code).ok());
    code.and_then(Kind::from_exit_code).unwrap_or(Kind::Data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_read_as_they_are_written() {
        let raise = Action::Raise {
            trigger: Some("t".into()),
            attributes: json!({"sample": "S1"})
                .as_object()
                .cloned()
                .expect("object"),
        };
        let all = [
            raise,
            Action::Retry {
                unit: None,
                again: false,
            },
            Action::Retry {
                unit: Some("u".into()),
                again: true,
            },
            Action::Cancel { unit: None },
            Action::Cancel {
                unit: Some("u".into()),
            },
            Action::Pause,
            Action::Resume,
            Action::Status,
        ];
        let full = Envelope {
            id: Some("I".into()),
            reply_to: Some("lab/infrastructure/reply".into()),
            expires: Some(1_700_000_000),
            hops: 3,
            present: true,
        };
        for action in all {
            for envelope in [Envelope::default(), full.clone()] {
                let payload = action.payload(&envelope);
                let read = parse(payload.as_bytes(), 1000);
                assert_eq!(read, (envelope, Ok(action.clone())), "{payload}");
            }
        }
    }

    #[test]
    fn an_envelope_is_believed_only_where_it_is_sane() {
        let long = "x".repeat(event::MAX_ID_BYTES + 1);
        let payload = json!({"action": "raise", ENVELOPE: {
            "id": long, "reply_to": "a\nb", "expires": "soon", "hops": -1,
        }});
        let (envelope, action) = parse(payload.to_string().as_bytes(), 1000);
        let nothing = Envelope {
            present: true,
            ..Envelope::default()
        };
        assert_eq!(envelope, nothing);
        assert!(action.is_ok());
        // A key of that name that holds something else is an attribute.
        let payload = json!({"action": "raise", ENVELOPE: "mine"}).to_string();
        let (envelope, action) = parse(payload.as_bytes(), 1000);
        assert_eq!(envelope, Envelope::default());
        let Ok(Action::Raise { attributes, .. }) = action else {
            panic!("{action:?}");
        };
        assert_eq!(attributes[ENVELOPE], "mine");
    }

    #[test]
    fn no_refusal_ends_with_success() {
        for kind in [Kind::Usage, Kind::Data, Kind::TryAgain, Kind::CannotCreate] {
            assert_eq!(refusal(&refused(kind, "x")), kind);
        }
        for odd in [
            json!({"ok": false}),
            json!({"ok": false, "code": 0}),
            json!({"ok": false, "code": 256}),
            json!({"ok": false, "code": -1}),
            json!({"ok": false, "code": 1}),
            json!({"ok": false, "code": "75"}),
            json!([]),
        ] {
            assert_eq!(refusal(&odd), Kind::Data, "{odd}");
        }
    }

    #[test]
    fn wrong_requests_are_answered() {
        for bad in [
            "",
            "[]",
            "{}",
            r#"{"action":1}"#,
            r#"{"action":"dance"}"#,
            r#"{"action":"raise","trigger":1}"#,
            r#"{"action":"retry","again":"true"}"#,
        ] {
            assert!(parse(bad.as_bytes(), 1000).1.is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_request_makes_it_panic(payload in any::<Vec<u8>>()) {
            let _ = parse(&payload, 1000);
        }
    }
}
