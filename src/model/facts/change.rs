//! Events about facts that have changed.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::model::facts::kind::Kind;
use crate::model::facts::tree::{Facts, leaves};

/// Maximum number of changes that a round tells one by one.
pub const MAX_CHANGES: usize = 64;

/// The changes of a round.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    events: Vec<Value>,
    more: usize,
}

impl Changes {
    /// Adds what has changed between `was` and `is`, of `kind` of `node`, at second `now`.
    pub fn add(&mut self, node: &str, kind: Kind, (was, is): (&Facts, &Facts), now: i64) {
        let was: BTreeMap<String, &Value> = leaves(was).into_iter().collect();
        let is: BTreeMap<String, &Value> = leaves(is).into_iter().collect();
        let gone = was.keys().filter(|name| !is.contains_key(*name));
        for name in is.keys().chain(gone) {
            let (was, is) = (was.get(name), is.get(name));
            if was == is {
                continue;
            }
            if self.events.len() >= MAX_CHANGES {
                self.more += 1;
                continue;
            }
            self.events.push(json!({
                "status": "changed",
                "node": node,
                "kind": kind.name(),
                "name": name,
                "was": was,
                "is": is,
                "ts": now,
            }));
        }
    }

    /// Returns the payloads of the events: one for each leaf, and one for those that are too many.
    #[must_use]
    pub fn events(mut self, node: &str, now: i64) -> Vec<Value> {
        if self.more > 0 {
            let more = json!({"status": "changed", "node": node, "more": self.more, "ts": now});
            self.events.push(more);
        }
        self.events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::facts::tree::tests::facts;

    #[test]
    fn each_leaf_says_what_it_was_and_is() {
        let was = facts(json!({"a": 1, "b": {"c": [1], "d": 2}, "same": 0}));
        let is = facts(json!({"b": {"c": [2], "d": 2}, "new": "x", "same": 0}));
        let mut changes = Changes::default();
        changes.add("seq1", Kind::State, (&was, &is), 7);
        let events = changes.events("seq1", 7);
        let shown: Vec<String> = events
            .iter()
            .map(|e| format!("{} {} {}", e["name"], e["was"], e["is"]))
            .collect();
        assert_eq!(
            shown,
            ["\"b.c\" [1] [2]", "\"new\" null \"x\"", "\"a\" 1 null"]
        );
        let text = r#"{"status":"changed","node":"seq1","kind":"state","name":"b.c","was":[1],"is":[2],"ts":7}"#;
        assert_eq!(events[0].to_string(), text);
    }

    #[test]
    fn many_changes_are_counted() {
        let is: Facts = (0..MAX_CHANGES + 5)
            .map(|n| (n.to_string(), json!(n)))
            .collect();
        let mut changes = Changes::default();
        changes.add("n", Kind::State, (&Facts::new(), &is), 7);
        let events = changes.events("n", 7);
        assert_eq!(events.len(), MAX_CHANGES + 1);
        assert_eq!(events[MAX_CHANGES]["more"], 5);
    }
}
