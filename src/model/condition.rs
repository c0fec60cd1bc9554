//! Conditions on the attributes of an event.

use std::fmt;

use serde_json::Value;

use crate::model::event::{Event, attribute_text};
use crate::model::json;
use crate::model::near::nearest;
use crate::model::text::printable;

/// Maximum length of a name or value in an explanation, characters.
const MAX_SHOWN: usize = 80;

/// `KEY=VALUE`: the attribute KEY, as text, equals VALUE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Name of the attribute.
    pub key: String,
    /// Required text.
    pub value: String,
}

impl Condition {
    /// Parses `KEY=VALUE`.
    ///
    /// # Errors
    /// A text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            // `==` is a habit from shells and programs; no value starts with `=`.
            Some((key, value)) if value.starts_with('=') => Err(format!(
                "condition '{text}' compares with '{value}': write {key}{value}"
            )),
            Some((key, value)) if !key.is_empty() => Ok(Self {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err(format!("condition '{text}' is not KEY=VALUE")),
        }
    }

    /// Returns whether it holds for `event`.
    #[must_use]
    pub fn holds(&self, event: &Event) -> bool {
        event
            .attributes
            .get(&self.key)
            .is_some_and(|value| attribute_text(value) == self.value)
    }

    /// Returns why it does not hold for `event`, for people: what the event has instead.
    #[must_use]
    pub fn objection(&self, event: &Event) -> String {
        let key = printable(&self.key, MAX_SHOWN);
        let wanted = printable(&self.value, MAX_SHOWN);
        let Some(value) = event.attributes.get(&self.key) else {
            let names = event.attributes.keys().map(String::as_str);
            return match nearest(&self.key, names) {
                Some(near) => format!("it has '{}', not '{key}'", shown(near)),
                None => format!("it has no '{key}'"),
            };
        };
        let is = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Number(number) => format!("the number {}", shown(&number.to_string())),
            Value::String(text) => format!("'{}'", shown(text)),
            Value::Array(_) => "a list".to_owned(),
            Value::Object(_) => "an object".to_owned(),
        };
        let hint = match value {
            Value::String(text) if text.trim() == self.value.trim() => ": blanks count",
            Value::String(text) if text.eq_ignore_ascii_case(&self.value) => ": case counts",
            _ => "",
        };
        format!("'{key}' is {is}, not '{wanted}'{hint}")
    }
}

/// Returns a sender's text for people.
fn shown(text: &str) -> String {
    if text.is_ascii() {
        return printable(text, MAX_SHOWN);
    }
    printable(&json::lossy(text), MAX_SHOWN)
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conditions_compare_text() {
        let attributes = json!({"n": 3, "on": true, "e": "a=b"});
        let number = Event {
            attributes: attributes.as_object().cloned().expect("object"),
            ..Event::default()
        };
        for (text, want) in [
            ("n=3", true),
            ("on=true", true),
            ("e=a=b", true),
            ("n=3.0", false),
        ] {
            assert_eq!(
                Condition::parse(text).expect(text).holds(&number),
                want,
                "{text}"
            );
        }
        assert!(Condition::parse("status").is_err() && Condition::parse("=x").is_err());
        assert!(Condition::parse("status==x").is_err());
    }

    #[test]
    fn an_objection_names_what_there_is_instead() {
        let condition = Condition::parse("status=finished").expect("condition");
        for (attributes, want) in [
            (
                json!({"status": "started"}),
                "'status' is 'started', not 'finished'",
            ),
            (
                json!({"status": "Finished"}),
                "'status' is 'Finished', not 'finished': case counts",
            ),
            (
                json!({"status": "finished "}),
                "'status' is 'finished ', not 'finished': blanks count",
            ),
            (
                json!({"status": 1}),
                "'status' is the number 1, not 'finished'",
            ),
            (json!({"status": true}), "'status' is true, not 'finished'"),
            (json!({"status": null}), "'status' is null, not 'finished'"),
            (json!({"status": []}), "'status' is a list, not 'finished'"),
            (
                json!({"status": {}}),
                "'status' is an object, not 'finished'",
            ),
            (json!({"sample": "S1"}), "it has no 'status'"),
            (
                json!({"Status": "finished"}),
                "it has 'Status', not 'status'",
            ),
            (
                json!({"stat\u{1b}us": ""}),
                "it has 'stat\\u{1b}us', not 'status'",
            ),
        ] {
            let event = Event {
                attributes: attributes.as_object().cloned().expect("object"),
                ..Event::default()
            };
            assert!(!condition.holds(&event));
            assert_eq!(condition.objection(&event), want);
        }
    }
}
