//! Beacons and nodes: fresh or silent.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::model::check::beat_time;
use crate::model::event::attributes;
use crate::model::facts::presence::Presence;
use crate::model::page::Change;
use crate::model::text::printable;

/// Maximum number of beacons and of nodes.
const MAX_BEACONS: usize = 1_000;
const MAX_NODES: usize = 10_000;

/// Maximum size of a beat and of a presence, bytes, and number of characters of a topic and of a name.
const MAX_BEAT: usize = 2 * 1024;
const MAX_PRESENCE: usize = 64 * 1024;
const MAX_TOPIC: usize = 512;
const MAX_TEXT: usize = 300;

/// Maximum memory of the presences of all nodes, and of what is shown of them, bytes.
const MAX_BYTES: usize = 64 * 1024 * 1024;
const MAX_SHOWN: usize = 4 * 1024 * 1024;

/// Age from which a beacon is silent, seconds: three times its usual interval.
const MAX_AGE: i64 = 900;

#[derive(Debug)]
struct Node {
    presence: Presence,
    /// Members of its JSON object that stay the same.
    shown: Arc<str>,
    verdict: &'static str,
    round: u64,
    /// About how much memory it takes, bytes.
    bytes: usize,
}

/// A node at some time.
#[derive(Debug)]
pub(super) struct NodeNow {
    shown: Arc<str>,
    state: &'static str,
    age: i64,
}

impl NodeNow {
    /// Returns it as a JSON object.
    pub fn json(&self) -> String {
        let Self { shown, state, age } = self;
        format!("{{{shown},\"state\":\"{state}\",\"age\":{age}}}")
    }
}

#[derive(Debug)]
struct Beacon {
    ts: i64,
    is_fresh: bool,
    /// Number of the connection on which the broker told its retained beat last, if it ever did.
    round: Option<u64>,
}

/// What was heard of beacons and nodes.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    beacons: BTreeMap<String, Beacon>,
    nodes: BTreeMap<String, Node>,
    /// About how much memory the nodes take, bytes.
    node_bytes: usize,
    /// Length of what is shown of them, bytes.
    shown_bytes: usize,
    /// Whether there are more than are kept.
    pub truncated: bool,
}

impl Hosts {
    /// Takes the presence of a node on connection `round`.
    pub fn node(&mut self, name: &str, payload: &Bytes, now: f64, round: u64) -> Option<Change> {
        if payload.is_empty() {
            if let Some(node) = self.nodes.remove(name) {
                self.node_bytes = self.node_bytes.saturating_sub(node.bytes);
                self.shown_bytes = self.shown_bytes.saturating_sub(node.shown.len());
            }
            return Some(node_gone(name));
        }
        let presence = (payload.len() <= MAX_PRESENCE)
            .then(|| Presence::parse(payload))
            .flatten();
        let presence = presence.filter(|presence| presence.node == name)?;
        let known = self.nodes.get(name);
        let before = known.map_or((0, 0), |node| (node.bytes, node.shown.len()));
        let others = self.node_bytes.saturating_sub(before.0);
        let others_shown = self.shown_bytes.saturating_sub(before.1);
        let shown = node_shown(name, &presence);
        let bytes = size_of::<Node>() + name.len() + payload.len() + shown.len();
        let is_full = self.nodes.len() >= MAX_NODES && known.is_none();
        if is_full || others + bytes > MAX_BYTES || others_shown + shown.len() > MAX_SHOWN {
            self.truncated = true;
            return None;
        }
        self.node_bytes = others + bytes;
        self.shown_bytes = others_shown + shown.len();
        let verdict = presence.verdict(seconds(now)).name();
        let node = Node {
            presence,
            shown: shown.into(),
            verdict,
            round,
            bytes,
        };
        let change = ("node", node_json(name, &node, now));
        self.nodes.insert(name.to_owned(), node);
        Some(change)
    }

    /// Takes a message that may be the beat of a beacon, on connection `round`.
    pub fn beacon(&mut self, topic: &str, payload: &Bytes, now: f64, round: u64) -> Option<Change> {
        // The broker retains each beat a second time.
        let (place, is_kept) = match topic.strip_suffix("/last") {
            Some(place) => (format!("{place}/status"), true),
            None => (topic.to_owned(), false),
        };
        if payload.is_empty() && is_kept {
            return self.beacons.remove(&place).map(|_| beacon_gone(&place));
        }
        if payload.len() > MAX_BEAT || place.len() > MAX_TOPIC {
            return None;
        }
        let attributes = attributes(payload, MAX_BEAT).ok()?;
        let is_beat = attributes.contains_key("date") && attributes.contains_key("time");
        let ts = beat_time(&attributes).filter(|_| is_beat)?;
        let known = self.beacons.get(&place);
        if self.beacons.len() >= MAX_BEACONS && known.is_none() {
            self.truncated = true;
            return None;
        }
        let beacon = Beacon {
            ts,
            is_fresh: is_fresh(ts, now),
            round: match is_kept {
                true => Some(round),
                false => known.and_then(|known| known.round).map(|_| round),
            },
        };
        let change = ("beacon", beacon_json(&place, &beacon));
        self.beacons.insert(place, beacon);
        Some(change)
    }

    /// Returns what has changed by `now` because nothing came.
    pub fn tick(&mut self, now: f64) -> Vec<Change> {
        let mut changes = Vec::new();
        for (topic, beacon) in &mut self.beacons {
            let is_fresh = is_fresh(beacon.ts, now);
            if is_fresh != beacon.is_fresh {
                beacon.is_fresh = is_fresh;
                changes.push(("beacon", beacon_json(topic, beacon)));
            }
        }
        for (name, node) in &mut self.nodes {
            let verdict = node.presence.verdict(seconds(now)).name();
            if verdict != node.verdict {
                node.verdict = verdict;
                changes.push(("node", node_json(name, node, now)));
            }
        }
        changes
    }

    /// Drops what the broker has not told on connection `round`.
    pub fn forget(&mut self, round: u64) -> Vec<Change> {
        let mut changes = Vec::new();
        self.nodes.retain(|name, node| {
            let stays = node.round >= round;
            if !stays {
                self.node_bytes = self.node_bytes.saturating_sub(node.bytes);
                self.shown_bytes = self.shown_bytes.saturating_sub(node.shown.len());
                changes.push(node_gone(name));
            }
            stays
        });
        self.beacons.retain(|topic, beacon| {
            let stays = beacon.round.is_none_or(|told| told >= round);
            if !stays {
                changes.push(beacon_gone(topic));
            }
            stays
        });
        changes
    }

    /// Returns all beacons.
    pub fn beacons(&self) -> Vec<Value> {
        let beacons = self.beacons.iter();
        beacons.map(|(topic, b)| beacon_json(topic, b)).collect()
    }

    /// Returns all nodes.
    pub fn nodes(&self, now: f64) -> Vec<NodeNow> {
        let nodes = self.nodes.values().map(|node| NodeNow {
            shown: Arc::clone(&node.shown),
            state: node.verdict,
            age: age(node, now),
        });
        nodes.collect()
    }
}

#[allow(clippy::cast_possible_truncation)] // a time
const fn seconds(now: f64) -> i64 {
    now as i64
}

fn is_fresh(ts: i64, now: f64) -> bool {
    seconds(now).saturating_sub(ts) < MAX_AGE
}

fn beacon_json(topic: &str, beacon: &Beacon) -> Value {
    let topic = printable(topic, MAX_TOPIC);
    json!({ "topic": topic, "ts": beacon.ts, "fresh": beacon.is_fresh })
}

fn beacon_gone(topic: &str) -> Change {
    let topic = printable(topic, MAX_TOPIC);
    ("beacon", json!({ "topic": topic, "state": "gone" }))
}

fn age(node: &Node, now: f64) -> i64 {
    seconds(now).saturating_sub(node.presence.ts).max(0)
}

/// Returns the members of the JSON object of a node that stay the same.
fn node_shown(name: &str, presence: &Presence) -> String {
    let text = |text: &str| json!(printable(text, MAX_TEXT));
    format!("\"node\":{},\"host\":{}", text(name), text(&presence.host))
}

fn node_json(name: &str, node: &Node, now: f64) -> Value {
    json!({
        "node": printable(name, MAX_TEXT),
        "state": node.verdict,
        "age": age(node, now),
        "host": printable(&node.presence.host, MAX_TEXT),
    })
}

fn node_gone(name: &str) -> Change {
    let name = printable(name, MAX_TEXT);
    ("node", json!({ "node": name, "state": "gone" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_bounded_in_bytes() {
        let mut hosts = Hosts::default();
        let tell = |hosts: &mut Hosts, n: usize, round| {
            let name = format!("n{n}");
            let presence =
                json!({"state": "online", "node": name, "ts": 1, "host": "h".repeat(60_000)});
            hosts.node(&name, &presence.to_string().into(), 1.0, round)
        };
        for n in (0..1_500).chain(0..1_500) {
            tell(&mut hosts, n, u64::from(n < 10));
        }
        assert!(hosts.truncated && hosts.node_bytes <= MAX_BYTES);
        let sum = |hosts: &Hosts| hosts.nodes.values().map(|node| node.bytes).sum::<usize>();
        assert_eq!(sum(&hosts), hosts.node_bytes);
        assert!((1_000..1_200).contains(&hosts.nodes.len()));
        hosts.forget(1);
        assert_eq!((hosts.nodes.len(), sum(&hosts)), (10, hosts.node_bytes));
        for n in 0..10 {
            assert!(
                hosts
                    .node(&format!("n{n}"), &Bytes::new(), 1.0, 1)
                    .is_some()
            );
        }
        assert_eq!((hosts.nodes.len(), hosts.node_bytes), (0, 0));
        assert_eq!(hosts.shown_bytes, 0);
    }

    #[test]
    fn what_is_shown_of_nodes_is_bounded() {
        let mut hosts = Hosts::default();
        let host = "\u{202e}".repeat(MAX_TEXT);
        for n in 0..MAX_NODES {
            let name = format!("n{n}");
            let presence = json!({"state": "online", "node": name, "ts": 1, "host": host});
            hosts.node(&name, &presence.to_string().into(), 1.0, 1);
        }
        assert!(hosts.truncated && hosts.nodes.len() > 1_000);
        let sum: usize = hosts.nodes(1.0).iter().map(|node| node.json().len()).sum();
        assert!(sum < MAX_SHOWN + 100 * hosts.nodes.len(), "{sum}");
        let sum: usize = hosts.nodes.values().map(|node| node.shown.len()).sum();
        assert_eq!(sum, hosts.shown_bytes);
    }
}
