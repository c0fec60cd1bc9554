//! What a page shows of a network, from the messages that come: a fold, without I/O.
//!
//! Senders are strangers here. Names and numbers are bounded, texts are cut, and everything that is kept
//! counts against one limit.

mod heard;
mod hosts;
mod kept;
mod pieces;
mod shown;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::model::event::{Attributes, attributes};
use crate::model::facts::kind;
use crate::model::message::{Delivery, property};
use crate::model::network::Network;
use crate::model::page::heard::Heard;
use crate::model::page::hosts::Hosts;
use crate::model::page::shown::{MAX_TEXT, last_json, pipeline_json};
use crate::model::text::{escaped_json, printable};
use crate::model::topic::{Filter, PipelineTopic, PipelineTopics, check_who};

pub use heard::Run;
pub use pieces::Pieces;
pub use shown::{Change, message};

/// Maximum number of pipelines.
pub const MAX_PIPELINES: usize = 10_000;

/// Maximum number of refused requests that are kept.
const MAX_REFUSED: usize = 100;

/// Maximum memory of what is kept of messages, bytes.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// Size of all that is kept from which triggers are left out, bytes.
const MAX_WHOLE: usize = 48 * 1024 * 1024;

/// Maximum size of a message that is read, bytes.
const MAX_READ: usize = 64 * 1024;

/// Maximum size of all pipelines with their triggers and runs, and of those without them too, bytes. With
/// the rest it is less than the page takes as one event, 32 MiB.
const MAX_FULL: usize = 8 * 1024 * 1024;
const MAX_SHOWN: usize = 20 * 1024 * 1024;

/// Time until what the broker has not told again after a reconnect is gone, seconds. Clients of a broker
/// that has lost its memory connect again within this time.
const GRACE: f64 = 10.0;

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

/// A network as a page shows it.
#[derive(Debug)]
pub struct Page {
    root: String,
    network: Network,
    heard: BTreeMap<String, Heard>,
    /// Pipelines whose ledgers can be read, and the filters of their triggers.
    local: BTreeMap<String, Vec<Filter>>,
    hosts: Hosts,
    /// Refused requests, as JSON.
    refused: VecDeque<Bytes>,
    /// Memory of all that is heard, bytes.
    bytes: usize,
    /// Size of all pipelines as they are shown, bytes.
    shown: usize,
    truncated: bool,
    /// Grows with each change of the graph.
    version: u64,
    /// Number of the connection to the broker.
    round: u64,
    /// Whether the broker has ever sent a retained message. Some never do so for wildcards.
    has_retained: bool,
    /// When what was not told on this connection is gone, seconds since 1970.
    forgotten: Option<f64>,
}

impl Page {
    /// Returns an empty one for `root`.
    #[must_use]
    pub fn new(root: &str) -> Self {
        Self {
            root: root.to_owned(),
            network: Network::default(),
            heard: BTreeMap::new(),
            local: BTreeMap::new(),
            hosts: Hosts::default(),
            refused: VecDeque::new(),
            bytes: 0,
            shown: 0,
            truncated: false,
            version: 0,
            round: 0,
            has_retained: false,
            forgotten: None,
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
        self.has_retained |= delivery.retained;
        if let Some((node, "presence")) = kind::split(&self.root, topic) {
            let change = self.hosts.node(node, &delivery.payload, now, self.round);
            return change.into_iter().collect();
        }
        let prefix = format!("{}/infrastructure/pipelines/", self.root);
        if let Some(rest) = topic.strip_prefix(&prefix) {
            let changed = match rest.split_once('/') {
                Some((who, name)) => self.pipeline(who, name, topic, delivery, now),
                None => None,
            };
            return changed.into_iter().collect();
        }
        let change = self.hosts.beacon(topic, &delivery.payload, now, self.round);
        change.into_iter().collect()
    }

    /// Notes that there is another connection to the broker, which tells everything that it retains.
    pub const fn connected(&mut self) {
        self.round += 1;
        self.forgotten = None;
    }

    /// Notes that the connection is gone.
    pub const fn disconnected(&mut self) {
        self.forgotten = None;
    }

    /// Notes that the broker has told everything that it retains. Returns in how many seconds
    /// [`Page::tick`] will drop what was not among it, if it may.
    pub fn settled(&mut self, now: f64) -> Option<f64> {
        let may = self.has_retained && self.round > 1;
        self.forgotten = may.then_some(now + GRACE);
        may.then_some(GRACE)
    }

    /// Drops what the broker retained once, and has not told on this connection.
    fn forget(&mut self) -> Vec<Change> {
        let round = self.round;
        let old = |heard: &Heard| heard.presence + heard.last > 0 && heard.round < round;
        let gone = self.heard.iter().filter(|(_, heard)| old(heard));
        let gone: Vec<String> = gone.map(|(who, _)| who.clone()).collect();
        let mut changes: Vec<Change> = gone.iter().filter_map(|who| self.remove(who)).collect();
        changes.extend(self.hosts.forget(round));
        changes
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
            let _ = self.show(who);
        }
        let round = self.round;
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
                let old = if name == "presence" {
                    heard.presence
                } else {
                    heard.last
                };
                let others = self.bytes.saturating_sub(old);
                let (attributes, memory) = if name == "presence" {
                    let room = MAX_WHOLE.saturating_sub(others);
                    self.truncated |= room < kept::MAX_MEMORY;
                    let attributes = kept::with_triggers(attributes, self.network.pipeline(who));
                    kept::presence(&attributes, room)
                } else {
                    kept::last(&attributes)
                };
                if others + memory > MAX_BYTES {
                    self.truncated = true;
                    return None;
                }
                if name == "presence" {
                    heard.presence = memory;
                    heard.round = round;
                } else {
                    heard.last = memory;
                    heard.told(attributes.get("last"));
                    if heard.presence == 0 {
                        heard.round = round;
                    }
                }
                let triggers =
                    |network: &Network| network.pipeline(who).map(|seen| seen.triggers.clone());
                let old = triggers(&self.network);
                self.network.add(&self.root, topic, &attributes);
                if self.local.contains_key(who) {
                    self.local.insert(who.to_owned(), self.filters(who));
                }
                if triggers(&self.network) != old {
                    self.version += 1;
                }
            }
        }
        let after = self.heard.get(who).map_or(0, Heard::bytes);
        self.bytes = (self.bytes + after).saturating_sub(before);
        self.show(who)
    }

    /// Renders a pipeline again. Returns the change, unless there is no room for it: it is not shown then.
    fn show(&mut self, who: &str) -> Option<Change> {
        let heard = self.heard.get_mut(who)?;
        let seen = self.network.pipeline(who)?;
        self.shown = self.shown.saturating_sub(heard.shown.len());
        heard.shown = Bytes::new();
        for (is_bare, most) in [(false, MAX_FULL), (true, MAX_SHOWN)] {
            self.truncated |= is_bare;
            let value = pipeline_json(seen, heard, is_bare);
            let text = escaped_json(&value.to_string());
            if self.shown + text.len() <= most {
                self.shown += text.len();
                heard.shown = text.into();
                return Some(("pipeline", value));
            }
        }
        None
    }

    fn remove(&mut self, who: &str) -> Option<Change> {
        let heard = self.heard.remove(who)?;
        self.bytes = self.bytes.saturating_sub(heard.bytes());
        self.shown = self.shown.saturating_sub(heard.shown.len());
        self.network.remove(who);
        self.local.remove(who);
        self.version += 1;
        Some(("gone", json!({ "who": who })))
    }

    /// Returns what has changed by `now` because nothing came.
    pub fn tick(&mut self, now: f64) -> Vec<Change> {
        let mut changes = self.hosts.tick(now);
        if self.forgotten.is_some_and(|at| at <= now) {
            self.forgotten = None;
            changes.extend(self.forget());
        }
        changes
    }

    /// Takes a request that was refused.
    pub fn refuse(&mut self, refused: &Refused) -> Change {
        let json = refused.json();
        if self.refused.len() >= MAX_REFUSED {
            self.refused.pop_front();
        }
        let text = escaped_json(&json.to_string());
        self.refused.push_back(text.into());
        ("refused", json)
    }

    /// Takes what the ledger of pipeline `who` says: what runs, and how many units wait. Returns what
    /// that changes.
    pub fn local(&mut self, who: &str, running: Vec<Run>, waiting: u64) -> Option<Change> {
        let heard = self.heard.get_mut(who)?;
        let before = heard.bytes();
        let has_changed = heard.ledger(running, waiting);
        let after = heard.bytes();
        if !self.local.contains_key(who) {
            self.local.insert(who.to_owned(), self.filters(who));
        }
        self.bytes = (self.bytes + after).saturating_sub(before);
        match has_changed {
            true => self.show(who),
            false => None,
        }
    }

    fn filters(&self, who: &str) -> Vec<Filter> {
        let triggers = self.network.pipeline(who).map(|seen| &seen.triggers[..]);
        let topics = triggers.unwrap_or_default().iter().flat_map(|t| &t.topics);
        topics
            .filter_map(|topic| Filter::new(topic.as_str()).ok())
            .collect()
    }

    /// Returns the pipelines whose ledgers can be read: those that a message on `topic` may have
    /// changed, or all.
    pub fn local_pipelines(&self, topic: Option<&str>) -> impl Iterator<Item = &str> {
        let asked = topic.and_then(PipelineTopic::parse).map(|topic| topic.who);
        let concerns = move |who: &str, filters: &[Filter]| match topic {
            Some(topic) => asked == Some(who) || filters.iter().any(|f| f.matches(topic)),
            None => true,
        };
        let local = self.local.iter();
        local.filter_map(move |(who, filters)| concerns(who, filters).then_some(who.as_str()))
    }

    /// Returns the host of a pipeline.
    #[must_use]
    pub fn host(&self, who: &str) -> Option<&str> {
        self.network.pipeline(who).map(|seen| seen.host.as_str())
    }

    /// Returns the runs of a pipeline that were heard, newest first.
    #[must_use]
    pub fn runs(&self, who: &str, limit: usize) -> Option<Vec<Value>> {
        let last = self.retained_last(who);
        self.heard.get(who).map(|heard| heard.runs(last, limit))
    }

    /// Returns the statuses of a pipeline that were heard, newest first.
    #[must_use]
    pub fn statuses(&self, who: &str, limit: usize) -> Option<Vec<Value>> {
        let last = self.retained_last(who);
        self.heard.get(who).map(|heard| heard.statuses(last, limit))
    }

    /// Returns the last end of a pipeline as the broker retains it.
    fn retained_last(&self, who: &str) -> Option<Value> {
        self.network.pipeline(who).and_then(last_json)
    }

    /// Returns everything; the pipelines for the graph unless its version is `known`.
    #[must_use]
    pub fn pieces(&self, known: Option<u64>, now: f64) -> Pieces {
        let pipelines = self.heard.values().map(|heard| heard.shown.clone());
        let is_known = known == Some(self.version);
        Pieces {
            root: self.root.clone(),
            pipelines: pipelines.filter(|shown| !shown.is_empty()).collect(),
            beacons: self.hosts.beacons(),
            nodes: self.hosts.nodes(now),
            refused: self.refused.iter().cloned().collect(),
            truncated: self.truncated || self.hosts.truncated,
            version: self.version,
            network: (!is_known).then(|| self.network.clone()),
        }
    }

    /// Returns everything.
    #[cfg(test)]
    fn json(&self, now: f64) -> Value {
        let pieces = self.pieces(None, now);
        let edges = pieces.edges().1.expect("a graph");
        let mut text = Vec::new();
        let mut write = |part: &[u8]| text.extend_from_slice(part);
        pieces.write(&serde_json::Map::new(), &edges, &mut write);
        serde_json::from_slice(&text).expect("JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::message::Properties;
    use bytes::Bytes;
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
        let events: Vec<_> = runs.iter().map(|run| run["event"].clone()).collect();
        assert_eq!(events, ["E1", "E2"]);
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
    fn a_pipeline_that_is_lost_keeps_its_triggers_until_it_is_gone() {
        let mut page = Page::new("lab");
        let topic = format!("{PLACE}/seq/presence");
        let trigger = json!({ "name": "t", "topics": ["lab/x"], "absent": 2.0 });
        let online = json!({ "state": "online", "trigger_count": 3, "triggers": [trigger] });
        let tell = |page: &mut Page, payload: &Value| {
            let changes = page.take(&delivery(&topic, &payload.to_string(), ""), 1.0);
            changes.into_iter().next().expect("change").1
        };
        let told = tell(&mut page, &online);
        let (version, bytes) = (page.version(), page.bytes);
        let edges = json!([{ "from": "", "to": "seq", "topic": "lab/x" }]);
        // The will of a client names no triggers, as does an early version that is stopped.
        for state in ["lost", "lost", "offline"] {
            let changed = tell(&mut page, &json!({ "state": state, "since": 1 }));
            assert_eq!(changed["state"], state);
            for key in ["triggers", "trigger_count"] {
                assert_eq!(changed[key], told[key], "{state}: {key}");
            }
            assert_eq!(page.json(1.0)["edges"], edges, "{state}");
            assert_eq!(page.version(), version, "the graph is the same");
            let seen = page.network().pipeline("seq").expect("seq");
            assert_eq!(seen.triggers[0].absent, Some(2.0), "{state}");
            let name = |presence: &str| presence.len();
            assert_eq!(page.bytes + name("online"), bytes + name(state), "{state}");
        }
        // Triggers that it tells itself count, also none, and so does an online one without them.
        tell(&mut page, &json!({ "state": "offline", "triggers": [] }));
        assert_eq!(page.json(1.0)["edges"], json!([]));
        tell(&mut page, &online);
        tell(&mut page, &json!({ "state": "online" }));
        assert_eq!(page.json(1.0)["edges"], json!([]));
        tell(&mut page, &online);
        tell(&mut page, &json!({ "state": "lost" }));
        assert_eq!(
            page.take(&delivery(&topic, "", ""), 1.0),
            [("gone", json!({"who": "seq"}))]
        );
        assert_eq!(
            (page.json(1.0)["edges"].clone(), page.bytes),
            (json!([]), 0)
        );
        // What was forgotten does not come back.
        tell(&mut page, &json!({ "state": "lost" }));
        assert_eq!(page.json(1.0)["edges"], json!([]));
    }

    #[test]
    fn the_last_end_says_why_it_was_started() {
        let mut page = Page::new("lab");
        let topic = format!("{PLACE}/seq/last");
        let last = |page: &mut Page, payload: &str| {
            let changes = page.take(&delivery(&topic, payload, ""), 9.0);
            changes[0].1["last"].clone()
        };
        let end = r#"{"status":"failed","return_code":3,"time_elapsed":"0:00:02","ts":7}"#;
        let told = last(
            &mut page,
            &format!(r#"{{"last":{end},"reason":"a finished"}}"#),
        );
        assert_eq!(told["reason"], "a finished");
        // Before anything is heard, it is all that is known.
        let runs = page.runs("seq", 10).expect("runs");
        assert_eq!(
            (&runs[0]["state"], &runs[0]["code"]),
            (&json!("failed"), &json!(3))
        );
        assert_eq!(
            (&runs[0]["started"], &runs[0]["ended"]),
            (&json!(5.0), &json!(7.0))
        );
        assert_eq!(page.statuses("seq", 10).expect("statuses"), [told]);
        // A later status is newer than what is retained, until that comes.
        status(
            &mut page,
            r#"{"status":"started","reason":"b finished","ts":8}"#,
            "E1",
            8.0,
        );
        let end = r#"{"status":"finished","return_code":0,"time_elapsed":"0:00:01","ts":9}"#;
        let pipeline = status(&mut page, end, "E1", 9.0);
        let want = json!({
            "status": "finished", "return_code": 0, "ts": 9, "time_elapsed": "0:00:01",
            "reason": "b finished",
        });
        assert_eq!(pipeline["last"], want);
        // An earlier client does not say why: that was heard.
        assert_eq!(last(&mut page, &format!(r#"{{"last":{end}}}"#)), want);
        let runs = page.runs("seq", 10).expect("runs");
        assert_eq!(runs.len(), 1, "the retained end was heard: {runs:?}");
        let later = r#"{"last":{"status":"finished","return_code":0,"ts":99}}"#;
        assert_eq!(last(&mut page, later)["reason"], Value::Null);
        assert_eq!(page.runs("seq", 10).expect("runs").len(), 2);
    }

    #[test]
    fn short_runs_of_a_local_pipeline_are_seen() {
        let mut page = Page::new("lab");
        let start = r#"{"status":"started","reason":"a finished","ts":5}"#;
        let end = r#"{"status":"finished","return_code":0,"time_elapsed":"0:00:00","ts":5}"#;
        status(&mut page, start, "E0", 4.0);
        let known = |event: &str| Run {
            unit: format!("U{event}"),
            event: event.to_owned(),
            ..Run::default()
        };
        let running = |pipeline: &Value| -> Vec<String> {
            let runs = pipeline["running"].as_array().expect("runs").iter();
            runs.map(|run| run["unit"].as_str().expect("unit").to_owned())
                .collect()
        };
        let pipeline = page.local("seq", vec![known("E0")], 0).expect("change").1;
        assert_eq!(running(&pipeline), ["UE0"]);
        // The ledger is read some time after the status, or before it.
        assert_eq!(running(&status(&mut page, start, "E1", 5.0)), ["UE0", ""]);
        assert_eq!(running(&status(&mut page, start, "E0", 5.0)), ["UE0", ""]);
        let pipeline = status(&mut page, end, "E1", 5.0);
        assert_eq!(running(&pipeline), ["UE0"]);
        assert_eq!(pipeline["last"]["reason"], "a finished");
        // An event that waits has no status.
        let presence =
            r#"{"state":"online","triggers":[{"name":"t","topics":["$share/g/lab/+/in"]}]}"#;
        page.take(
            &delivery(&format!("{PLACE}/seq/presence"), presence, ""),
            5.0,
        );
        let control = format!("{PLACE}/seq/control");
        for (topic, want) in [
            (Some("lab/a/in"), 1),
            (Some("lab/a/out"), 0),
            (Some(control.as_str()), 1),
            (None, 1),
        ] {
            assert_eq!(page.local_pipelines(topic).count(), want, "{topic:?}");
        }
        // The ledger knew that this one had ended.
        assert_eq!(running(&status(&mut page, end, "E2", 5.0)), ["UE0"]);
    }

    #[test]
    fn what_the_broker_does_not_tell_again_is_gone() {
        let mut page = Page::new("lab");
        let retained = |topic: &str, payload: &str| Delivery {
            retained: true,
            ..delivery(topic, payload, "")
        };
        let online = r#"{"state":"online","host":"h"}"#;
        let place = |who: &str| format!("{PLACE}/{who}/presence");
        let node =
            |name: &str| format!(r#"{{"node":"{name}","state":"online","ts":1,"host":"h"}}"#);
        let beat = r#"{"date":"19700101","status":"finished","time":"000010"}"#;
        page.connected();
        for who in ["a", "b"] {
            page.take(&retained(&place(who), online), 1.0);
            let topic = format!("lab/infrastructure/nodes/{who}/presence");
            page.take(&retained(&topic, &node(who)), 1.0);
            page.take(&retained(&format!("lab/{who}/beacon/last"), beat), 1.0);
        }
        // These were never retained.
        status(&mut page, r#"{"status":"started"}"#, "E", 1.0);
        page.take(&delivery("lab/live/beacon/status", beat, ""), 1.0);
        assert_eq!(page.settled(1.0), None, "nothing was told before");
        let names = |page: &Page| -> Vec<String> {
            let all = page.json(1.0);
            let list = |key: &str, name: &str| -> Vec<String> {
                let each = all[key].as_array().expect("list").iter();
                each.map(|each| each[name].as_str().expect("text").to_owned())
                    .collect()
            };
            [
                list("pipelines", "who"),
                list("nodes", "node"),
                list("beacons", "topic"),
            ]
            .concat()
        };
        let before = names(&page);
        assert_eq!(before.len(), 3 + 2 + 3, "{before:?}");
        page.disconnected();
        page.connected();
        page.take(&retained(&place("a"), online), 2.0);
        page.take(
            &retained("lab/infrastructure/nodes/a/presence", &node("a")),
            2.0,
        );
        page.take(&retained("lab/a/beacon/last", beat), 2.0);
        assert_eq!(page.settled(2.0), Some(GRACE));
        assert_eq!(page.tick(2.0 + GRACE - 1.0), []);
        let version = page.version();
        let gone = page.tick(2.0 + GRACE);
        let want = [
            ("gone", json!({"who": "b"})),
            ("node", json!({"node": "b", "state": "gone"})),
            (
                "beacon",
                json!({"topic": "lab/b/beacon/status", "state": "gone"}),
            ),
        ];
        assert_eq!(gone, want);
        assert_ne!(page.version(), version, "the graph has changed");
        let left = [
            "a",
            "seq",
            "a",
            "lab/a/beacon/status",
            "lab/live/beacon/status",
        ];
        assert_eq!(names(&page), left);
        // A connection that ends tells nothing.
        page.connected();
        assert_eq!(page.settled(20.0), Some(GRACE));
        page.disconnected();
        assert_eq!(page.tick(99.0), []);
        // What comes again in time stays.
        page.connected();
        assert_eq!(page.settled(100.0), Some(GRACE));
        page.take(&delivery(&place("a"), online, ""), 101.0);
        page.tick(100.0 + GRACE);
        assert!(names(&page).contains(&"a".to_owned()));
    }

    #[test]
    fn a_broker_that_tells_nothing_retained_forgets_nothing() {
        let mut page = Page::new("lab");
        page.connected();
        let topic = format!("{PLACE}/a/presence");
        page.take(&delivery(&topic, r#"{"state":"online"}"#, ""), 1.0);
        page.connected();
        assert_eq!(page.settled(2.0), None);
        assert_eq!(page.tick(99.0), []);
        assert_eq!(page.json(99.0)["pipelines"][0]["who"], "a");
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
        let changes = page.take(&delivery("lab/test/beacon/last", "", ""), 921.0);
        assert_eq!(changes[0].1["state"], "gone");
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
            page.refuse(&Refused {
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

    #[test]
    fn what_is_shown_has_a_bound() {
        let mut page = Page::new("lab");
        let topics: Vec<String> = (0..200).map(|n| format!("\"\u{202e}{n}")).collect();
        let presence = json!({
            "state": "online", "host": "\u{202e}".repeat(1_000), "version": "\"".repeat(1_000),
            "triggers": vec![json!({ "name": "\u{1}".repeat(400), "topics": topics }); 3],
        });
        let presence = presence.to_string();
        for n in 0..MAX_PIPELINES {
            page.take(
                &delivery(&format!("{PLACE}/p{n}/presence"), &presence, ""),
                1.0,
            );
        }
        let long = "\u{202e}".repeat(300);
        let last = json!({ "last": { "status": long, "time_elapsed": long }, "reason": long });
        for n in 0..MAX_PIPELINES {
            page.take(
                &delivery(&format!("{PLACE}/p{n}/last"), &last.to_string(), ""),
                1.0,
            );
        }
        assert_eq!(page.heard.len(), MAX_PIPELINES);
        assert!(page.bytes <= MAX_BYTES, "{}", page.bytes);
        let sum: usize = page.heard.values().map(|heard| heard.shown.len()).sum();
        assert_eq!(sum, page.shown);
        let mut size = 0;
        let pieces = page.pieces(None, 1.0);
        let edges = pieces.edges().1.expect("edges");
        pieces.write(&serde_json::Map::new(), &edges, &mut |part| {
            size += part.len()
        });
        assert!(size < 32 * 1024 * 1024, "{size}");
        let all = page.json(1.0);
        let shown = all["pipelines"].as_array().expect("list");
        assert_eq!(all["truncated"], true);
        assert_eq!(shown[0]["trigger_count"], 3);
        // The rest is without triggers.
        assert_eq!(shown.len(), MAX_PIPELINES);
        assert_eq!(shown[MAX_PIPELINES - 1]["triggers"], json!([]));
        // Those that leave make room.
        for n in 0..MAX_PIPELINES {
            page.take(&delivery(&format!("{PLACE}/p{n}/presence"), "", ""), 1.0);
        }
        assert_eq!((page.bytes, page.shown), (0, 0));
    }

    #[test]
    fn names_are_escaped_and_stay_names() {
        let mut page = Page::new("lab");
        let who = "a\u{202e}\u{200b}\"b";
        let topics = json!(["lab/\u{202e}x\u{2028}", format!("{PLACE}/{who}/status")]);
        let presence = json!({ "triggers": [{ "name": "t", "topics": topics }] }).to_string();
        for name in [who, "c\u{2066}"] {
            page.take(
                &delivery(&format!("{PLACE}/{name}/presence"), &presence, ""),
                1.0,
            );
        }
        let mut text = Vec::new();
        let pieces = page.pieces(None, 1.0);
        let edges = pieces.edges().1.expect("edges");
        pieces.write(&serde_json::Map::new(), &edges, &mut |part| {
            text.extend_from_slice(part)
        });
        let text = String::from_utf8(text).expect("text");
        assert_eq!(text, escaped_json(&text));
        let all: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(all["pipelines"][0]["who"], who);
        let edges = all["edges"].as_array().expect("edges");
        assert!(
            edges
                .iter()
                .any(|edge| edge["from"] == who && edge["to"] == "c\u{2066}"),
            "{text}"
        );
        assert!(
            edges
                .iter()
                .any(|edge| edge["topic"] == "lab/\u{202e}x\u{2028}"),
            "{text}"
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
            let (_, shown) = super::shown::message(&message, now);
            let shown = shown["payload"].as_str().expect("text").to_owned();
            prop_assert!(!shown.contains(char::is_control));
            let sum: usize = page.heard.values().map(Heard::bytes).sum();
            prop_assert_eq!(sum, page.bytes);
            let sum: usize = page.heard.values().map(|heard| heard.shown.len()).sum();
            prop_assert_eq!(sum, page.shown);
        }
    }
}
