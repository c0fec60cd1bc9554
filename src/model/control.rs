//! Requests to a running pipeline, and its replies.

use serde_json::{Map, Value, json};

use crate::error::Kind;
use crate::model::event::{self, Attributes};
use crate::model::json;

/// What a control message asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Run the command now, with these attributes.
    Raise {
        /// Which trigger, when the client has several.
        trigger: Option<String>,
        /// The attributes of the event.
        attributes: Attributes,
    },
    /// Run a unit's event once more; the last failed one if none is named.
    Retry {
        /// Id of the unit.
        unit: Option<String>,
    },
    /// End a unit.
    Cancel {
        /// Id of the unit.
        unit: String,
    },
    /// Start nothing until told to resume; events are accepted and wait.
    Pause,
    /// Start what waits.
    Resume,
    /// Say what is running and waiting.
    Status,
}

/// The names of all actions, for messages.
pub const ACTIONS: &str = "raise, retry, cancel, pause, resume or status";

impl Action {
    /// Reads a control message's payload.
    ///
    /// # Errors
    /// A text for the sender.
    pub fn parse(payload: &[u8], max_payload: usize) -> Result<Self, String> {
        let mut attributes = event::attributes(payload, max_payload)
            .map_err(|refusal| format!("the request is refused: {refusal}"))?;
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
            }),
            Some("cancel") => Ok(Self::Cancel {
                unit: take("unit")?.ok_or("cancel needs a unit")?,
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

    /// Its name on the wire.
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

    /// The payload that asks for it.
    #[must_use]
    pub fn payload(&self) -> String {
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
            Self::Cancel { unit } | Self::Retry { unit: Some(unit) } => {
                map.insert("unit".into(), json!(unit));
            }
            Self::Retry { unit: None } | Self::Pause | Self::Resume | Self::Status => {}
        }
        json::to_text(&Value::Object(map))
    }
}

/// A reply that says yes, with `fields` to go with it.
#[must_use]
pub fn accepted(fields: Map<String, Value>) -> Value {
    let mut map = Map::new();
    map.insert("ok".into(), json!(true));
    map.extend(fields);
    Value::Object(map)
}

/// A reply that says no, why, and with which exit code the requester should end.
#[must_use]
pub fn refused(kind: Kind, cause: &str) -> Value {
    json!({"ok": false, "error": cause, "code": kind.exit_code()})
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
            Action::Retry { unit: None },
            Action::Retry {
                unit: Some("u".into()),
            },
            Action::Cancel { unit: "u".into() },
            Action::Pause,
            Action::Resume,
            Action::Status,
        ];
        for action in all {
            assert_eq!(Action::parse(action.payload().as_bytes(), 1000), Ok(action));
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
        ] {
            assert!(Action::parse(bad.as_bytes(), 1000).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_request_makes_it_panic(payload in any::<Vec<u8>>()) {
            let _ = Action::parse(&payload, 1000);
        }
    }
}
