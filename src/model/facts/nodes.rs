//! The nodes of a root, from their retained messages.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::model::facts::kind::{Kind, NodeTopics, split};
use crate::model::facts::presence::{self, Presence, Verdict};
use crate::model::facts::told::Told;
use crate::model::facts::tree::{Facts, merge};
use crate::model::text::printable;

/// Maximum number of topics whose messages are asked for again.
pub const MAX_MISSING: usize = 1_000;

/// A node as others see it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// Its presence, if there is one.
    pub presence: Option<Presence>,
    /// Its facts.
    pub kinds: BTreeMap<Kind, Told>,
}

impl Seen {
    /// Returns what to think of it at second `now`; without a presence it has not looked at its
    /// facts for too long.
    #[must_use]
    pub fn verdict(&self, now: i64) -> Verdict {
        self.presence
            .as_ref()
            .map_or(Verdict::Stale, |p| p.verdict(now))
    }

    /// Returns for how many seconds it has not looked at its facts; `None` if that is unknown.
    #[must_use]
    pub fn age(&self, now: i64) -> Option<i64> {
        let presence = self.presence.as_ref()?;
        presence::age(presence.ts, now)
    }

    /// Returns its facts of all kinds in one tree.
    #[must_use]
    pub fn merged(&self) -> Facts {
        let mut all = Facts::new();
        for told in self.kinds.values() {
            merge(&mut all, told.facts());
        }
        all
    }

    /// Returns what is known about it for programs, at second `now`: a JSON object as text.
    #[must_use]
    pub fn json(&self, name: &str, now: i64) -> String {
        let verdict = self.verdict(now);
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
        put("node", json!(name));
        put("state", json!(verdict.name()));
        put("fresh", json!(verdict == Verdict::Fresh));
        put("age", json!(self.age(now)));
        if let Some(presence) = &self.presence {
            put("host", json!(presence.host));
            put("version", json!(presence.version));
            put("ts", json!(presence.ts));
            put("interval", json!(presence.interval));
            put("failed", json!(presence.failed));
            if let Some(skew) = presence.skew(now) {
                put("skew", json!(skew));
            }
        }
        let mut text = Value::Object(map).to_string();
        // The brace at its end.
        text.pop();
        text.push_str(",\"facts\":{");
        for (n, (kind, told)) in self.kinds.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            let _ = write!(text, "{comma}\"{}\":{}", kind.name(), told.text());
        }
        text.push_str("}}");
        text
    }
}

/// The nodes of a root.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Nodes {
    /// The nodes by name.
    pub seen: BTreeMap<String, Seen>,
    /// Topics with messages that are not about their node, or cannot be read.
    pub ignored: Vec<String>,
}

impl Nodes {
    /// Adds a retained message. One that names another node than its topic, or that cannot be read, is
    /// noted.
    pub fn add(&mut self, root: &str, topic: &str, payload: &[u8]) {
        let Some((node, last)) = split(root, topic) else {
            return;
        };
        let taken = match Kind::parse(last) {
            Ok(kind) => Told::parse(node, kind, payload).map(|told| {
                let seen = self.seen.entry(node.to_owned()).or_default();
                seen.kinds.insert(kind, told);
            }),
            Err(_) if last == "presence" => Presence::parse(payload)
                .filter(|presence| presence.node == node)
                .map(|presence| {
                    let seen = self.seen.entry(node.to_owned()).or_default();
                    seen.presence = Some(presence);
                }),
            Err(_) => return,
        };
        if taken.is_none() {
            self.ignored.push(topic.to_owned());
        }
    }

    /// Returns the topics whose messages are missing or not those that the presences name, as many
    /// as may be asked for; and how many there are.
    #[must_use]
    pub fn missing(&self, root: &str) -> (Vec<String>, usize) {
        let (mut topics, mut count) = (Vec::new(), 0);
        for (node, seen) in &self.seen {
            let promised = seen.presence.iter().flat_map(|presence| &presence.kinds);
            for (kind, wanted) in promised {
                let held = seen.kinds.get(kind);
                if held.is_some_and(|held| held.has_digest(wanted)) {
                    continue;
                }
                count += 1;
                if topics.len() < MAX_MISSING {
                    topics.push(NodeTopics::new(root, node).kind(*kind));
                }
            }
        }
        (topics, count)
    }

    /// Returns a line about the messages that were ignored, if there are some.
    #[must_use]
    pub fn complaint(&self) -> Option<String> {
        let first = self.ignored.first()?;
        let more = match self.ignored.len() - 1 {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        Some(format!(
            "ignored {}{more}: such a message names another node than its topic, or cannot be read",
            printable(first, 200)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::facts::presence::State;
    use crate::model::facts::round::{Node, payload};
    use crate::model::facts::tree::digest;
    use crate::model::facts::tree::tests::facts;

    fn nodes(list: &[(&str, String)]) -> Nodes {
        let mut nodes = Nodes::default();
        for (topic, payload) in list {
            nodes.add(
                "lab",
                &format!("lab/infrastructure/nodes/{topic}"),
                payload.as_bytes(),
            );
        }
        nodes
    }

    fn presence(node: &str, kinds: &[(Kind, &Facts)]) -> String {
        let own = Node {
            name: node.into(),
            host: "h".into(),
            version: "1".into(),
            machine: String::new(),
            interval: 60,
            keep: 1,
            share: Vec::new(),
        };
        let mut presence = own.presence(State::Online, 990);
        presence.kinds = kinds
            .iter()
            .map(|(kind, facts)| (*kind, digest(facts)))
            .collect();
        presence.payload().to_string()
    }

    #[test]
    fn a_node_is_what_its_own_messages_say() {
        let disk = facts(json!({"disk": {"root": {"size_gb": 9}}}));
        let free = facts(json!({"disk": {"root": {"free_percent": 3}}}));
        let nodes = nodes(&[
            ("a/static", payload("a", Kind::Static, 5, &disk).to_string()),
            (
                "a/dynamic",
                payload("a", Kind::Dynamic, 5, &free).to_string(),
            ),
            ("a/presence", presence("a", &[])),
            // They name another node, or nothing.
            ("b/static", payload("a", Kind::Static, 5, &disk).to_string()),
            ("b/presence", presence("a", &[])),
            ("c/static", "no JSON".into()),
            ("a/changed", "{}".into()),
        ]);
        let names: Vec<&String> = nodes.seen.keys().collect();
        assert_eq!(names, ["a"]);
        let want = json!({"disk": {"root": {"size_gb": 9, "free_percent": 3}}});
        assert_eq!(Value::Object(nodes.seen["a"].merged()), want);
        assert_eq!(nodes.ignored.len(), 3);
        assert!(
            nodes
                .complaint()
                .is_some_and(|line| line.contains("and 2 more"))
        );
        let json = nodes.seen["a"].json("a", 1000);
        let json: Value = serde_json::from_str(&json).expect("JSON");
        let facts = json!({"static": disk, "dynamic": free});
        assert_eq!(json["facts"], facts);
        assert_eq!((&json["fresh"], &json["age"]), (&json!(true), &json!(10)));
    }

    #[test]
    fn missing_and_old_facts_are_named() {
        let (old, new) = (facts(json!({"a": 1})), facts(json!({"a": 2})));
        let nodes = nodes(&[
            (
                "a/presence",
                presence("a", &[(Kind::State, &new), (Kind::Common, &old)]),
            ),
            ("a/state", payload("a", Kind::State, 5, &old).to_string()),
            ("a/common", payload("a", Kind::Common, 5, &old).to_string()),
            ("b/presence", presence("b", &[(Kind::Static, &old)])),
        ]);
        let (topics, count) = nodes.missing("lab");
        let want = [
            "lab/infrastructure/nodes/a/state",
            "lab/infrastructure/nodes/b/static",
        ];
        assert_eq!((topics, count), (want.map(str::to_owned).to_vec(), 2));
    }
}
