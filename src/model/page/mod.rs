//! What a page shows of a network, from the messages that come: a fold, without I/O.
//!
//! Senders are strangers here. Names and numbers are bounded, texts are cut, and everything that is kept
//! counts against one limit.

mod heard;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::model::check::beat_time;
use crate::model::event::{Attributes, attributes};
use crate::model::facts::kind;
use crate::model::facts::presence::Presence;
use crate::model::message::{Delivery, property};
use crate::model::network::{Network, Seen};
use crate::model::page::heard::Heard;
use crate::model::text::{printable, printable_bytes};
use crate::model::topic::{PipelineTopics, check_who};

pub use heard::Run;

/// Maximum number of pipelines, beacons, and nodes.
pub const MAX_PIPELINES: usize = 10_000;
const MAX_BEACONS: usize = 1_000;
const MAX_NODES: usize = 10_000;

/// Maximum number of refused requests that are kept.
const MAX_REFUSED: usize = 100;

/// Maximum number of edges in a list.
const MAX_EDGES: usize = 10_000;

/// Maximum memory of the messages that are kept, bytes, and of one that is read.
const MAX_BYTES: usize = 64 * 1024 * 1024;
const MAX_READ: usize = 64 * 1024;

/// Maximum number of characters of a payload and of a topic that are shown.
const MAX_PAYLOAD: usize = 2 * 1024;
const MAX_TOPIC: usize = 512;

/// Maximum number of triggers, of topics of each, and of characters of a text of a pipeline.
const MAX_TRIGGERS: usize = 32;
const MAX_TOPICS: usize = 16;
const MAX_TEXT: usize = 300;

/// Age from which a beacon is silent, seconds: three times its usual interval.
const MAX_BEAT: i64 = 900;

/// Something that has changed: the name of its event and its data.
pub type Change = (&'static str, Value);

/// A request that was refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// When, seconds since 1970.
    pub ts: i64,
    /// Path of the request.
    pub path: String,
    /// Status of the answer.
    pub status: u16,
    /// One line.
    pub cause: String,
    /// Address of the caller, or `unix`.
    pub peer: String,
}

impl Refused {
    fn json(&self) -> Value {
        json!({
            "ts": self.ts,
            "path": printable(&self.path, MAX_TEXT),
            "status": self.status,
            "cause": printable(&self.cause, MAX_TEXT),
            "peer": self.peer,
        })
    }
}

#[derive(Debug)]
struct Node {
    presence: Presence,
    verdict: &'static str,
}

#[derive(Debug)]
struct Beacon {
    ts: i64,
    is_fresh: bool,
}

/// A network as a page shows it.
#[derive(Debug)]
pub struct Page {
    root: String,
    network: Network,
    heard: BTreeMap<String, Heard>,
    beacons: BTreeMap<String, Beacon>,
    nodes: BTreeMap<String, Node>,
    refused: VecDeque<Refused>,
    /// Memory of all that is heard, bytes.
    bytes: usize,
    truncated: bool,
    /// Grows with each change of the graph.
    version: u64,
}

impl Page {
    /// Returns an empty one for `root`.
    #[must_use]
    pub fn new(root: &str) -> Self {
        Self {
            root: root.to_owned(),
            network: Network::default(),
            heard: BTreeMap::new(),
            beacons: BTreeMap::new(),
            nodes: BTreeMap::new(),
            refused: VecDeque::new(),
            bytes: 0,
            truncated: false,
            version: 0,
        }
    }

    /// Returns the root.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Returns a number that differs when the graph does.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Returns the pipelines, for a drawing.
    #[must_use]
    pub const fn network(&self) -> &Network {
        &self.network
    }

    /// Takes a message that came at `now`, seconds since 1970, and returns what it changes. The message
    /// itself is not in it: see [`message`].
    pub fn take(&mut self, delivery: &Delivery, now: f64) -> Vec<Change> {
        let Ok(topic) = std::str::from_utf8(&delivery.topic) else {
            return Vec::new();
        };
        if let Some((node, "presence")) = kind::split(&self.root, topic) {
            return self.node(node, &delivery.payload, now);
        }
        let prefix = format!("{}/infrastructure/pipelines/", self.root);
        if let Some(rest) = topic.strip_prefix(&prefix) {
            let changed = match rest.split_once('/') {
                Some((who, name)) => self.pipeline(who, name, topic, delivery, now),
                None => None,
            };
            return changed.into_iter().collect();
        }
        self.beacon(topic, delivery, now).into_iter().collect()
    }

    fn pipeline(
        &mut self,
        who: &str,
        name: &str,
        topic: &str,
        delivery: &Delivery,
        now: f64,
    ) -> Option<Change> {
        if !["presence", "last", "status"].contains(&name) || check_who(who).is_err() {
            return None;
        }
        let payload = &delivery.payload;
        if payload.is_empty() && name == "presence" {
            return self.remove(who);
        }
        let attributes = attributes(payload, MAX_READ).ok()?;
        if !self.heard.contains_key(who) {
            if self.heard.len() >= MAX_PIPELINES {
                self.truncated = true;
                return None;
            }
            self.heard.insert(who.to_owned(), Heard::default());
            self.network.add(
                &self.root,
                &PipelineTopics::new(&self.root, who).status(),
                &Attributes::new(),
            );
            self.version += 1;
        }
        let heard = self.heard.get_mut(who)?;
        let before = heard.bytes();
        match name {
            "status" if delivery.retained => return None,
            "status" => {
                let room = MAX_BYTES.saturating_sub(self.bytes);
                let cause = delivery.properties.user(property::CAUSE);
                let is_canceled =
                    delivery.properties.user(property::END) == Some(property::CANCELED);
                heard.status(&attributes, payload, (cause, is_canceled), now, room);
            }
            _ => {
                let others = self.bytes - before;
                if others + payload.len() > MAX_BYTES {
                    self.truncated = true;
                    return None;
                }
                let place = if name == "presence" {
                    &mut heard.presence
                } else {
                    &mut heard.last
                };
                *place = payload.len();
                let triggers =
                    |network: &Network| network.pipeline(who).map(|seen| seen.triggers.clone());
                let old = triggers(&self.network);
                self.network.add(&self.root, topic, &attributes);
                if triggers(&self.network) != old {
                    self.version += 1;
                }
            }
        }
        let after = self.heard.get(who).map_or(0, Heard::bytes);
        self.bytes = (self.bytes + after).saturating_sub(before);
        Some(("pipeline", self.pipeline_json(who)?))
    }

    fn remove(&mut self, who: &str) -> Option<Change> {
        let heard = self.heard.remove(who)?;
        self.bytes = self.bytes.saturating_sub(heard.bytes());
        self.network.remove(who);
        self.version += 1;
        Some(("gone", json!({ "who": who })))
    }

    fn node(&mut self, name: &str, payload: &Bytes, now: f64) -> Vec<Change> {
        if payload.is_empty() {
            self.nodes.remove(name);
            return vec![("node", json!({ "node": name, "state": "gone" }))];
        }
        let presence = (payload.len() <= MAX_READ)
            .then(|| Presence::parse(payload))
            .flatten();
        let Some(presence) = presence.filter(|presence| presence.node == name) else {
            return Vec::new();
        };
        if self.nodes.len() >= MAX_NODES && !self.nodes.contains_key(name) {
            self.truncated = true;
            return Vec::new();
        }
        let verdict = presence.verdict(seconds(now)).name();
        let node = Node { presence, verdict };
        let change = ("node", node_json(name, &node, now));
        self.nodes.insert(name.to_owned(), node);
        vec![change]
    }

    fn beacon(&mut self, topic: &str, delivery: &Delivery, now: f64) -> Option<Change> {
        // The broker retains each beat a second time.
        let place = match topic.strip_suffix("/last") {
            Some(place) => format!("{place}/status"),
            None => topic.to_owned(),
        };
        if delivery.payload.len() > MAX_PAYLOAD || place.len() > MAX_TOPIC {
            return None;
        }
        let attributes = attributes(&delivery.payload, MAX_PAYLOAD).ok()?;
        let is_beat = attributes.contains_key("date") && attributes.contains_key("time");
        let ts = beat_time(&attributes).filter(|_| is_beat)?;
        if self.beacons.len() >= MAX_BEACONS && !self.beacons.contains_key(&place) {
            self.truncated = true;
            return None;
        }
        let is_fresh = is_fresh(ts, now);
        let change = json!({ "topic": printable(&place, MAX_TOPIC), "ts": ts, "fresh": is_fresh });
        self.beacons.insert(place, Beacon { ts, is_fresh });
        Some(("beacon", change))
    }

    /// Returns what has changed by `now` because nothing came.
    pub fn tick(&mut self, now: f64) -> Vec<Change> {
        let mut changes = Vec::new();
        for (topic, beacon) in &mut self.beacons {
            let is_fresh = is_fresh(beacon.ts, now);
            if is_fresh != beacon.is_fresh {
                beacon.is_fresh = is_fresh;
                let topic = printable(topic, MAX_TOPIC);
                changes.push((
                    "beacon",
                    json!({ "topic": topic, "ts": beacon.ts, "fresh": is_fresh }),
                ));
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

    /// Takes a request that was refused.
    pub fn refuse(&mut self, refused: Refused) -> Change {
        let change = ("refused", refused.json());
        if self.refused.len() >= MAX_REFUSED {
            self.refused.pop_front();
        }
        self.refused.push_back(refused);
        change
    }

    /// Takes what the ledger of pipeline `who` says: what runs, and how many units wait. Returns what
    /// that changes.
    pub fn local(&mut self, who: &str, running: Vec<Run>, waiting: u64) -> Option<Change> {
        let heard = self.heard.get_mut(who)?;
        let before = heard.bytes();
        let has_changed = heard.ledger(running, waiting);
        let after = heard.bytes();
        self.bytes = (self.bytes + after).saturating_sub(before);
        match has_changed {
            true => Some(("pipeline", self.pipeline_json(who)?)),
            false => None,
        }
    }

    /// Returns the host of a pipeline.
    #[must_use]
    pub fn host(&self, who: &str) -> Option<&str> {
        self.network.pipeline(who).map(|seen| seen.host.as_str())
    }

    /// Returns the runs of a pipeline that were heard, newest first.
    #[must_use]
    pub fn runs(&self, who: &str, limit: usize) -> Option<Vec<Value>> {
        self.heard.get(who).map(|heard| heard.runs(limit))
    }

    /// Returns the statuses of a pipeline that were heard, newest first.
    #[must_use]
    pub fn statuses(&self, who: &str, limit: usize) -> Option<Vec<Value>> {
        self.heard.get(who).map(|heard| heard.statuses(limit))
    }

    fn pipeline_json(&self, who: &str) -> Option<Value> {
        let heard = self.heard.get(who)?;
        self.network
            .pipeline(who)
            .map(|seen| pipeline_json(seen, heard))
    }

    /// Returns everything.
    #[must_use]
    pub fn json(&self, now: f64) -> Value {
        let pipelines: Vec<Value> = self
            .network
            .pipelines()
            .filter_map(|seen| Some(pipeline_json(seen, self.heard.get(&seen.who)?)))
            .collect();
        let beacons = self.beacons.iter().map(|(topic, beacon)| {
            json!({ "topic": printable(topic, MAX_TOPIC), "ts": beacon.ts, "fresh": beacon.is_fresh })
        });
        let nodes = self
            .nodes
            .iter()
            .map(|(name, node)| node_json(name, node, now));
        let edges = self
            .network
            .graph(&self.root)
            .edges_between(&self.root, MAX_EDGES);
        json!({
            "root": self.root,
            "pipelines": pipelines,
            "beacons": beacons.collect::<Vec<_>>(),
            "nodes": nodes.collect::<Vec<_>>(),
            "refused": self.refused.iter().map(Refused::json).collect::<Vec<_>>(),
            "edges": edges,
            "truncated": self.truncated,
        })
    }
}

/// Returns a message for a page; its payload is text, and cut.
#[must_use]
pub fn message(delivery: &Delivery, now: f64) -> Change {
    let user = |name| delivery.properties.user(name).unwrap_or_default();
    let most = delivery.payload.len().min(4 * MAX_PAYLOAD);
    let beginning = delivery.payload.get(..most).unwrap_or_default();
    (
        "message",
        json!({
            "ts": now,
            "topic": printable_bytes(&delivery.topic, MAX_TOPIC),
            "id": printable(user(property::ID), MAX_TEXT),
            "from": printable(user(property::WHO), MAX_TEXT),
            "retained": delivery.retained,
            "size": delivery.payload.len(),
            "payload": printable_bytes(beginning, MAX_PAYLOAD),
        }),
    )
}

#[allow(clippy::cast_possible_truncation)] // a time
const fn seconds(now: f64) -> i64 {
    now as i64
}

fn is_fresh(ts: i64, now: f64) -> bool {
    seconds(now).saturating_sub(ts) < MAX_BEAT
}

fn node_json(name: &str, node: &Node, now: f64) -> Value {
    let age = seconds(now).saturating_sub(node.presence.ts).max(0);
    json!({
        "node": printable(name, MAX_TEXT),
        "state": node.verdict,
        "age": age,
        "host": printable(&node.presence.host, MAX_TEXT),
    })
}

fn pipeline_json(seen: &Seen, heard: &Heard) -> Value {
    let text = |text: &str| printable(text, MAX_TEXT);
    let known = ["online", "paused", "offline", "lost"];
    let state = known.iter().find(|known| **known == seen.state);
    let triggers = seen.triggers.iter().take(MAX_TRIGGERS).map(|trigger| {
        let topics = trigger
            .topics
            .iter()
            .take(MAX_TOPICS)
            .map(|topic| text(topic));
        json!({ "name": text(&trigger.name), "topics": topics.collect::<Vec<_>>() })
    });
    let last = seen.last.as_ref().map(|last| {
        let field = |key: &str| last.get(key).and_then(Value::as_str).map(text);
        let status = match seen.last_canceled {
            true => Some(property::CANCELED.to_owned()),
            false => field("status"),
        };
        json!({
            "status": status,
            "return_code": last.get("return_code").and_then(Value::as_i64),
            "ts": last.get("ts").and_then(Value::as_i64),
            "time_elapsed": field("time_elapsed"),
            "reason": field("reason"),
        })
    });
    json!({
        "who": seen.who,
        "host": text(&seen.host),
        "state": state.unwrap_or(&"unknown"),
        "version": text(&seen.version),
        "since": seen.since,
        "until": seen.until,
        "running": heard.running(),
        "waiting": heard.waiting(),
        "last": last.or_else(|| heard.last_json()),
        "triggers": triggers.collect::<Vec<_>>(),
        "local": heard.is_local(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::message::Properties;
    use proptest::prelude::*;

    fn delivery(topic: &str, payload: &str, cause: &str) -> Delivery {
        Delivery {
            topic: Bytes::from(topic.to_owned()),
            payload: Bytes::from(payload.to_owned()),
            retained: false,
            duplicate: false,
            packet: 0,
            properties: Properties {
                user: vec![(property::CAUSE.into(), cause.into())],
                ..Properties::default()
            },
        }
    }

    const PLACE: &str = "lab/infrastructure/pipelines";

    fn status(page: &mut Page, payload: &str, cause: &str, now: f64) -> Value {
        let message = delivery(&format!("{PLACE}/seq/status"), payload, cause);
        let changes = page.take(&message, now);
        let [("pipeline", pipeline)] = &changes[..] else {
            panic!("{changes:?}");
        };
        pipeline.clone()
    }

    #[test]
    fn a_run_starts_and_ends() {
        let mut page = Page::new("lab");
        let start = r#"{"status":"started","reason":"a finished","ts":5}"#;
        let end = r#"{"status":"failed","return_code":3,"time_elapsed":"0:00:02","ts":7}"#;
        let pipeline = status(&mut page, start, "E1", 5.5);
        assert_eq!(pipeline["running"][0]["reason"], "a finished");
        assert_eq!(pipeline["state"], "unknown");
        let pipeline = status(&mut page, start, "E2", 6.0);
        assert_eq!(pipeline["running"].as_array().map(Vec::len), Some(2));
        // Out of order: the end of the second comes first.
        let pipeline = status(&mut page, end, "E2", 7.0);
        assert_eq!(pipeline["running"][0]["started"], 5.5);
        assert_eq!(pipeline["last"]["return_code"], 3);
        let pipeline = status(&mut page, end, "E1", 8.0);
        assert_eq!(pipeline["running"], json!([]));
        let runs = page.runs("seq", 10).expect("runs");
        let states: Vec<_> = runs.iter().map(|run| run["state"].clone()).collect();
        assert_eq!(states, ["failed", "failed"]);
        assert_eq!(page.statuses("seq", 10).expect("statuses").len(), 4);
        assert_eq!(page.statuses("other", 10), None);
    }

    #[test]
    fn what_is_forgotten_is_gone() {
        let mut page = Page::new("lab");
        let topic = format!("{PLACE}/seq/presence");
        let online =
            r#"{"state":"online","host":"h","triggers":[{"name":"t","topics":["lab/x"]}]}"#;
        let before = page.version();
        let changes = page.take(&delivery(&topic, online, ""), 1.0);
        assert_eq!(changes[0].1["state"], "online");
        assert_ne!(page.version(), before);
        let all = page.json(1.0);
        assert_eq!(
            all["edges"],
            json!([{"from": "", "to": "seq", "topic": "lab/x"}])
        );
        let changes = page.take(&delivery(&topic, "", ""), 1.0);
        assert_eq!(changes, [("gone", json!({"who": "seq"}))]);
        assert_eq!(page.json(1.0)["pipelines"], json!([]));
        assert_eq!(page.bytes, 0);
    }

    #[test]
    fn silence_is_a_change() {
        let mut page = Page::new("lab");
        let beat = r#"{"date":"19700101","status":"finished","time":"000010"}"#;
        let changes = page.take(&delivery("lab/test/beacon/last", beat, ""), 11.0);
        assert_eq!(
            changes[0].1,
            json!({"topic": "lab/test/beacon/status", "ts": 10, "fresh": true})
        );
        assert_eq!(page.tick(900.0), []);
        assert_eq!(page.tick(910.0)[0].1["fresh"], false);
        assert_eq!(page.tick(920.0), []);
    }

    #[test]
    fn what_is_kept_has_bounds() {
        let mut page = Page::new("lab");
        let big = format!(r#"{{"status":"started","x":"{}"}}"#, "y".repeat(60_000));
        for n in 0..1_500 {
            let topic = format!("{PLACE}/p{n}/status");
            for _ in 0..2 {
                page.take(&delivery(&topic, &big, ""), 1.0);
            }
        }
        assert!(page.bytes <= MAX_BYTES, "{}", page.bytes);
        let sum: usize = page.heard.values().map(Heard::bytes).sum();
        assert_eq!(sum, page.bytes);
        for n in 0..MAX_PIPELINES + 10 {
            page.take(&delivery(&format!("{PLACE}/q{n}/last"), "{}", ""), 1.0);
        }
        assert_eq!(page.heard.len(), MAX_PIPELINES);
        assert_eq!(page.json(1.0)["truncated"], true);
        for n in 0..200 {
            let (path, cause) = ("/t/x".to_owned(), "no".to_owned());
            page.refuse(Refused {
                ts: n,
                path,
                status: 403,
                cause,
                peer: "unix".into(),
            });
        }
        assert_eq!(
            page.json(1.0)["refused"].as_array().map(Vec::len),
            Some(MAX_REFUSED)
        );
    }

    proptest! {
        #[test]
        fn any_message_is_taken(
            name in prop_oneof![Just("presence"), Just("last"), Just("status"), Just("x")],
            who in ".{0,12}",
            payload in prop_oneof![
                any::<String>(),
                r#"\{"(status|state|ts|triggers|last)":("[a-z]{0,9}"|-?[0-9]{1,20}|null|\[\]|\{\})\}"#,
            ],
            now in any::<f64>(),
        ) {
            let mut page = Page::new("lab");
            let message = delivery(&format!("{PLACE}/{who}/{name}"), &payload, &who);
            page.take(&message, now);
            page.take(&message, now);
            page.tick(now);
            let _ = page.json(now);
            let (_, shown) = super::message(&message, now);
            let shown = shown["payload"].as_str().expect("text").to_owned();
            prop_assert!(!shown.contains(char::is_control));
            let sum: usize = page.heard.values().map(Heard::bytes).sum();
            prop_assert_eq!(sum, page.bytes);
        }
    }
}
