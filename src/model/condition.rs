//! Conditions on the attributes of an event.

use std::fmt;

use crate::model::event::{Event, attribute_text};

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
}
