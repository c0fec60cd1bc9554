//! What a run is about: the attributes by which people tell the runs of a pipeline apart.

use crate::model::env::{DEFAULT_PREFIX, sanitize};
use crate::model::event::{Attributes, attribute_text};
use crate::model::status::RESERVED;
use crate::model::variables::Variables;

/// Maximum number of attributes to name.
const MAX_PAIRS: usize = 16;

/// Maximum length of a value, characters; one more character shows that it was longer.
const MAX_VALUE: usize = 200;

/// Names and values, in order.
pub type About = Vec<(String, String)>;

/// Returns the `required` variables of a run, and the attributes that its statuses repeat. A trigger
/// that has neither exports all attributes: these then, except those that every status has.
#[must_use]
pub fn about(required: &[String], variables: &Variables, passthrough: &Attributes) -> About {
    let mut pairs = About::new();
    let mut add = |name: &str, value: String| {
        if pairs.len() < MAX_PAIRS && pairs.iter().all(|(known, _)| known != name) {
            let value = value.chars().take(MAX_VALUE + 1).collect();
            pairs.push((name.to_owned(), value));
        }
    };
    for name in required {
        if let Some((_, value)) = variables.iter().find(|(known, _)| known == name) {
            add(name, value.to_text());
        }
    }
    for (key, value) in passthrough {
        add(key, attribute_text(value));
    }
    if required.is_empty() && passthrough.is_empty() {
        for (name, value) in variables {
            let prefix = name.strip_prefix(DEFAULT_PREFIX);
            let name = prefix
                .and_then(|rest| rest.strip_prefix('_'))
                .unwrap_or(name);
            let common = RESERVED.iter().chain(&["user"]);
            if !common.into_iter().any(|key| sanitize(key) == name) {
                add(name, value.to_text());
            }
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(
        required: &[&str],
        variables: &[(&str, &str)],
        passthrough: serde_json::Value,
    ) -> String {
        let required: Vec<String> = required.iter().map(|name| (*name).to_owned()).collect();
        let variable = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).into());
        let variables: Variables = variables.iter().map(variable).collect();
        let passthrough = passthrough.as_object().cloned().expect("object");
        let pairs = about(&required, &variables, &passthrough);
        let pairs: Vec<String> = pairs.iter().map(|(k, v)| format!("{k}={v}")).collect();
        pairs.join(" ")
    }

    #[test]
    fn required_and_passed_attributes_say_what_a_run_is_about() {
        let variables = [("SAMPLE", "S12"), ("seq_SAMPLE", "S12"), ("seq_LANE", "3")];
        assert_eq!(shown(&["SAMPLE"], &variables, json!({})), "SAMPLE=S12");
        let passed = json!({"LANE": "3", "SAMPLE": "S12"});
        assert_eq!(
            shown(&["SAMPLE"], &variables, passed.clone()),
            "SAMPLE=S12 LANE=3"
        );
        assert_eq!(shown(&[], &variables, passed), "LANE=3 SAMPLE=S12");
    }

    #[test]
    fn without_them_all_attributes_do() {
        let variables = [
            ("ATTR_USER", "ann"),
            ("ATTR_STATUS", "finished"),
            ("ATTR_SAMPLE", "S12"),
            ("ATTR_TS", "1"),
        ];
        assert_eq!(shown(&[], &variables, json!({})), "SAMPLE=S12");
        assert_eq!(shown(&[], &[], json!({})), "");
    }

    #[test]
    fn what_is_long_is_bounded() {
        let long = "x".repeat(1000);
        assert_eq!(
            shown(&["A"], &[("A", &long)], json!({})).len(),
            2 + MAX_VALUE + 1
        );
        let names: Vec<String> = (0..100).map(|n| format!("ATTR_N{n}")).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "1")).collect();
        assert_eq!(shown(&[], &many, json!({})).split(' ').count(), MAX_PAIRS);
    }
}
