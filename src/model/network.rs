//! The pipelines of a root, from their retained messages, and which starts which.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::model::event::{Attributes, attributes};
use crate::model::json as json_text;
use crate::model::message::Delivery;
use crate::model::message::property;
use crate::model::sources::{Sources, sources};
use crate::model::text::printable;
use crate::model::topic::{Filter, PipelineTopics};

/// Maximum number of triggers of a pipeline, and of topics and of required attributes of a trigger, that are read.
pub(super) const MAX_TRIGGERS: usize = 256;
pub(super) const MAX_TOPICS: usize = 64;
pub(super) const MAX_REQUIRED: usize = 64;

/// Maximum memory of the triggers and last ends of all pipelines, bytes. Their trees may take seventy times the
/// memory of the messages.
const MAX_MEMORY: usize = 128 * 1024 * 1024;

/// Maximum number of lines in a graph.
pub(super) const MAX_EDGES: usize = 100_000;

/// Events that a pipeline waits for.
#[derive(Debug, Clone, PartialEq)]
pub struct Waits {
    /// Name of the trigger.
    pub name: String,
    /// Topic filters.
    pub topics: Vec<String>,
    /// Seconds of silence that start it; `None` if events do.
    pub absent: Option<f64>,
    /// Attributes without which it starts nothing, as far as its client says so.
    pub requires: Vec<String>,
}

/// A pipeline as others see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Its name.
    pub who: String,
    /// Its host.
    pub host: String,
    /// `online`, `paused`, `offline` or `lost`.
    pub state: String,
    /// Version of its client.
    pub version: String,
    /// When its client was started, seconds since 1970.
    pub since: Option<i64>,
    /// When its client was stopped, seconds since 1970; `None` if it is not stopped, or an earlier
    /// version, which does not say when.
    pub until: Option<i64>,
    /// Its triggers, as far as its presence lists them.
    pub triggers: Vec<Waits>,
    /// Number of its triggers.
    pub trigger_count: u64,
    /// Status of its last end.
    pub last: Option<Attributes>,
    /// Whether a person has ended that run.
    pub last_canceled: bool,
    /// Why that run was started, if its client says so.
    pub last_reason: Option<String>,
    /// When its last run ended that succeeded, seconds since 1970, if its client says so.
    pub success: Success,
}

/// The last success of a pipeline, as its client publishes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Success {
    /// The client does not say: no run has ended, or it has an earlier version.
    #[default]
    Untold,
    /// No run has succeeded.
    Never,
    /// The time of the last success, seconds since 1970.
    At(i64),
}

/// The retained messages of a root, by pipeline. A clone shares them.
#[derive(Debug, Clone, Default)]
pub struct Network {
    seen: BTreeMap<Arc<str>, Arc<Seen>>,
    /// About how much memory triggers and last ends take, bytes.
    memory: usize,
    /// Whether some of them are missing.
    is_cut: bool,
}

impl Network {
    /// Adds a retained message; ignores those that are not about a pipeline.
    pub fn add(&mut self, root: &str, topic: &str, payload: &Attributes) {
        let prefix = format!("{root}/infrastructure/pipelines/");
        let Some((who, name)) = topic
            .strip_prefix(&prefix)
            .and_then(|rest| rest.split_once('/'))
        else {
            return;
        };
        let seen = self.seen.entry(who.into());
        let seen = Arc::make_mut(seen.or_insert_with(|| Arc::new(Seen::new(who))));
        let before = seen.memory();
        let text = |key: &str| {
            let text = payload.get(key).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        match name {
            "presence" => {
                seen.host = text("host");
                let paused = payload.get("paused") == Some(&Value::Bool(true));
                seen.state = match text("state") {
                    state if paused && state == "online" => "paused".to_owned(),
                    state => state,
                };
                seen.version = text("version");
                seen.since = payload.get("since").and_then(Value::as_i64);
                seen.until = payload.get("until").and_then(Value::as_i64);
                let triggers = payload.get("triggers").and_then(Value::as_array);
                let triggers = triggers.into_iter().flatten().take(MAX_TRIGGERS);
                seen.triggers = triggers.map(waits).collect();
                let count = payload.get("trigger_count").and_then(Value::as_u64);
                let listed = seen.triggers.len() as u64;
                seen.trigger_count = count.unwrap_or(listed).max(listed);
            }
            "last" => {
                seen.last = payload.get("last").and_then(Value::as_object).cloned();
                seen.last_canceled = text("end") == property::CANCELED;
                seen.last_reason = payload
                    .get("reason")
                    .and_then(Value::as_str)
                    .map(str::to_owned);
                seen.success = match payload.get("last_success") {
                    Some(Value::Null) => Success::Never,
                    other => other
                        .and_then(Value::as_i64)
                        .map_or(Success::Untold, Success::At),
                };
            }
            _ => {}
        }
        self.memory = self.memory.saturating_sub(before);
        if self.memory + seen.memory() > MAX_MEMORY {
            seen.triggers.clear();
            seen.triggers.shrink_to_fit();
            seen.last = None;
            self.is_cut = true;
        }
        self.memory += seen.memory();
    }

    /// Returns what is missing because it would take too much memory, if something is.
    #[must_use]
    pub fn cut(&self) -> Option<String> {
        self.is_cut.then(|| {
            let limit = MAX_MEMORY >> 20;
            format!(
                "triggers and last runs of pipelines need more than {limit} MiB: some are left out"
            )
        })
    }

    /// Adds a retained message as the broker delivers it. An unreadable payload of at most `limit`
    /// bytes counts as an empty object.
    pub fn add_message(&mut self, root: &str, delivery: &Delivery, limit: usize) {
        let topic = String::from_utf8_lossy(&delivery.topic);
        let payload = attributes(&delivery.payload, limit).unwrap_or_default();
        self.add(root, &topic, &payload);
    }

    /// Returns all pipelines, by name.
    pub fn pipelines(&self) -> impl Iterator<Item = &Seen> {
        self.seen.values().map(|seen| &**seen)
    }

    /// Returns the pipelines whose clients were stopped before `time`, seconds since 1970, and those
    /// that are lost or offline since an unknown time. The broker publishes a loss with a message
    /// that is older than it.
    #[must_use]
    pub fn gone(&self, time: i64) -> (Vec<&Seen>, Vec<&Seen>) {
        let (mut stopped, mut unknown) = (Vec::new(), Vec::new());
        for seen in self.pipelines() {
            match (seen.state.as_str(), seen.until) {
                ("offline", Some(until)) if until < time => stopped.push(seen),
                ("offline", Some(_)) | ("online" | "paused", _) => {}
                _ => unknown.push(seen),
            }
        }
        (stopped, unknown)
    }

    /// Removes a pipeline.
    pub fn remove(&mut self, who: &str) {
        if let Some(seen) = self.seen.remove(who) {
            self.memory = self.memory.saturating_sub(seen.memory());
        }
    }

    /// Returns one pipeline.
    #[must_use]
    pub fn pipeline(&self, who: &str) -> Option<&Seen> {
        self.seen.get(who).map(|seen| &**seen)
    }

    /// Returns which pipeline starts which, and which topics from outside start them.
    #[must_use]
    pub fn graph(&self, root: &str) -> Graph {
        let mut graph = Graph::default();
        let mut drawn = Drawn::default();
        for seen in self.pipelines() {
            graph.pipelines.push((seen.who.clone(), seen.state.clone()));
        }
        let places: HashMap<&str, usize> = self.seen.keys().map(|who| &**who).zip(0..).collect();
        for (to, seen) in self.pipelines().enumerate() {
            for waits in &seen.triggers {
                let silent = waits.absent.is_some();
                for topic in &waits.topics {
                    let Ok(filter) = Filter::new(topic.as_str()) else {
                        continue;
                    };
                    match sources(root, &filter, &places) {
                        Sources::All if drawn.all.insert((to, silent)) => {
                            for from in (0..places.len()).filter(|from| *from != to) {
                                graph.add(&mut drawn, Node::Pipeline(from), to, silent);
                            }
                        }
                        Sources::All => {}
                        // A pipeline does not start itself.
                        Sources::One(from) if from != to => {
                            graph.add(&mut drawn, Node::Pipeline(from), to, silent);
                        }
                        Sources::One(_) | Sources::Outside => {
                            let next = graph.topics.len();
                            let place = *drawn.topics.entry(topic).or_insert(next);
                            if place == next {
                                graph.topics.push(topic.clone());
                            }
                            graph.add(&mut drawn, Node::Topic(place), to, silent);
                        }
                    }
                }
            }
        }
        graph
    }
}

/// The edges of a graph so far, to find one without a search.
#[derive(Default)]
struct Drawn<'a> {
    edges: HashSet<(Node, usize, bool)>,
    topics: HashMap<&'a str, usize>,
    /// Pipelines that all others start, and whether by silence.
    all: HashSet<(usize, bool)>,
}

fn waits(value: &Value) -> Waits {
    let texts = |key: &str, limit: usize| {
        let list = value.get(key).and_then(Value::as_array);
        let texts = list.into_iter().flatten().filter_map(Value::as_str);
        texts.take(limit).map(str::to_owned).collect()
    };
    Waits {
        name: value
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned(),
        topics: texts("topics", MAX_TOPICS),
        absent: value.get("absent").and_then(Value::as_f64),
        requires: texts("requires", MAX_REQUIRED),
    }
}

impl Seen {
    /// Returns one of which nothing is known.
    fn new(who: &str) -> Self {
        Self {
            who: who.to_owned(),
            host: String::new(),
            state: "unknown".to_owned(),
            version: String::new(),
            since: None,
            until: None,
            triggers: Vec::new(),
            trigger_count: 0,
            last: None,
            last_canceled: false,
            last_reason: None,
            success: Success::Untold,
        }
    }

    /// Returns about how much memory its triggers and its last end take, bytes.
    fn memory(&self) -> usize {
        let text = |text: &String| size_of::<String>() + text.len();
        let waits = self.triggers.iter().map(|waits| {
            let texts = waits.topics.iter().chain(&waits.requires);
            size_of::<Waits>() + waits.name.len() + texts.map(text).sum::<usize>()
        });
        let last = self.last.iter().flatten();
        let last = last.map(|(key, value)| text(key) + json_text::memory(value));
        waits.sum::<usize>() + last.sum::<usize>()
    }

    /// Returns its triggers, for programs.
    #[must_use]
    pub fn triggers_json(&self) -> Value {
        let triggers = self.triggers.iter();
        triggers
            .map(|t| json!({"name": t.name, "topics": t.topics, "absent": t.absent, "requires": t.requires}))
            .collect()
    }

    /// Returns everything known about it, for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "who": self.who,
            "host": self.host,
            "state": self.state,
            "version": self.version,
            "since": self.since,
            "until": self.until,
            "trigger_count": self.trigger_count,
            "triggers": self.triggers_json(),
            "last": self.last,
            "last_canceled": self.last_canceled,
            "last_success": match self.success {
                Success::At(at) => Some(at),
                Success::Never | Success::Untold => None,
            },
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Node {
    Pipeline(usize),
    Topic(usize),
}

/// Pipelines, topics from outside, and the edges between them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Graph {
    /// Names and states.
    pub(super) pipelines: Vec<(String, String)>,
    pub(super) topics: Vec<String>,
    /// From, to, and whether by silence.
    pub(super) edges: Vec<(Node, usize, bool)>,
    /// Whether edges are missing because there are too many.
    cut: bool,
}

impl Node {
    fn name(self) -> String {
        match self {
            Self::Pipeline(n) => format!("p{n}"),
            Self::Topic(n) => format!("t{n}"),
        }
    }
}

/// Maximum length of a label in a graph, characters.
const MAX_LABEL: usize = 500;

impl Graph {
    fn add(&mut self, drawn: &mut Drawn<'_>, from: Node, to: usize, silent: bool) {
        if self.edges.len() >= MAX_EDGES {
            self.cut = true;
        } else if drawn.edges.insert((from, to, silent)) {
            self.edges.push((from, to, silent));
        }
    }

    /// Returns why a part is missing, if one is.
    #[must_use]
    pub fn cut(&self) -> Option<String> {
        let cause = || format!("more than {MAX_EDGES} lines start pipelines: the rest is left out");
        self.cut.then(cause)
    }

    /// Returns its edges for programs, at most `limit`: from which pipeline, or none for topics from
    /// outside, to which, and by which topic.
    #[must_use]
    pub fn edges_between(&self, root: &str, limit: usize) -> Vec<Value> {
        let pipeline = |n: usize| self.pipelines.get(n).map_or("", |(who, _)| who.as_str());
        let edges = self.edges.iter().take(limit).map(|(from, to, _)| {
            let (from, topic) = match from {
                Node::Pipeline(n) => {
                    let who = pipeline(*n);
                    (who, PipelineTopics::new(root, who).status())
                }
                Node::Topic(n) => ("", self.topics.get(*n).cloned().unwrap_or_default()),
            };
            json!({ "from": from, "to": pipeline(*to), "topic": topic })
        });
        edges.collect()
    }

    /// Returns it as a Mermaid flowchart (mermaid.js.org/syntax/flowchart.html).
    #[must_use]
    pub fn mermaid(&self) -> String {
        let quoted = |text: &str| {
            let mut out = String::new();
            for c in printable(text, MAX_LABEL).chars() {
                match c {
                    // Entities of Mermaid. It looks for `%%{init: …}%%` in the whole text, quoted
                    // or not.
                    '"' | '#' | '&' | '<' | '>' | '`' | '%' | '{' | '}' | '\\' => {
                        let _ = write!(out, "#{};", u32::from(c));
                    }
                    c => out.push(c),
                }
            }
            out
        };
        let mut out = "flowchart LR\n".to_owned();
        for (n, (who, state)) in self.pipelines.iter().enumerate() {
            let state = match state.as_str() {
                "online" => String::new(),
                other => format!("<br>{}", quoted(other)),
            };
            let _ = writeln!(out, "    p{n}[\"{}{state}\"]", quoted(who));
        }
        for (n, topic) in self.topics.iter().enumerate() {
            let _ = writeln!(out, "    t{n}([\"{}\"])", quoted(topic));
        }
        for (from, to, silent) in &self.edges {
            let arrow = if *silent { "-. silent .->" } else { "-->" };
            let _ = writeln!(out, "    {} {arrow} p{to}", from.name());
        }
        out
    }

    /// Returns it in the language of Graphviz (graphviz.org/doc/info/lang.html).
    #[must_use]
    pub fn dot(&self) -> String {
        let quoted = |text: &str| {
            let text = printable(text, MAX_LABEL);
            text.replace('\\', r"\\").replace('"', "\\\"")
        };
        let mut out = "digraph tael {\n    rankdir=LR;\n".to_owned();
        for (n, (who, state)) in self.pipelines.iter().enumerate() {
            let style = match state.as_str() {
                "online" => "",
                _ => ", style=dashed",
            };
            let _ = writeln!(
                out,
                "    p{n} [label=\"{}\", shape=box{style}];",
                quoted(who)
            );
        }
        for (n, topic) in self.topics.iter().enumerate() {
            let _ = writeln!(out, "    t{n} [label=\"{}\", shape=oval];", quoted(topic));
        }
        for (from, to, silent) in &self.edges {
            let style = if *silent {
                " [style=dotted, label=silent]"
            } else {
                ""
            };
            let _ = writeln!(out, "    {} -> p{to}{style};", from.name());
        }
        out + "}\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        let mut network = Network::default();
        let mut add = |who: &str, state: &str, topic: &str, absent: Value| {
            let payload = json!({
                "state": state, "who": who, "host": "h", "version": "1", "since": 5,
                "triggers": [{"name": "default", "topics": [topic], "absent": absent}],
            });
            let topic = format!("lab/infrastructure/pipelines/{who}/presence");
            network.add("lab", &topic, payload.as_object().expect("object"));
        };
        add("align", "online", "lab/seq/status", Value::Null);
        let align = "lab/infrastructure/pipelines/align/status";
        add("call", "lost", align, Value::Null);
        add("alarm", "online", "lab/\"seq\"/#", json!(60.0));
        add(
            "all",
            "online",
            "lab/infrastructure/pipelines/+/status",
            Value::Null,
        );
        let last = json!({"last": {"status": "failed", "return_code": 3, "ts": 7}});
        network.add(
            "lab",
            "lab/infrastructure/pipelines/align/last",
            last.as_object().expect("object"),
        );
        network.add("lab", "lab/other", &Attributes::new());
        network
    }

    #[test]
    fn trees_of_short_values_do_not_fill_the_memory() {
        let mut network = Network::default();
        let last = json!({"last": {"status": "failed", "x": vec![json!([0]); 100_000]}});
        let mut add = |who: &str, payload: &Value| {
            let topic = format!("lab/infrastructure/pipelines/{who}/last");
            network.add("lab", &topic, payload.as_object().expect("object"));
            network.cut()
        };
        // One in the place of another takes no more.
        for _ in 0..5 {
            assert_eq!(add("a", &last), None);
        }
        for who in ["b", "c"] {
            assert_eq!(add(who, &last), None, "{who}");
        }
        let cut = add("d", &last).expect("too much");
        assert!(cut.contains("more than 128 MiB"), "{cut}");
        assert!(
            network
                .pipeline("d")
                .is_some_and(|seen| seen.last.is_none())
        );
        assert!(
            network
                .pipeline("c")
                .is_some_and(|seen| seen.last.is_some())
        );
        network.remove("c");
        let topic = "lab/infrastructure/pipelines/d/last";
        network.add("lab", topic, last.as_object().expect("object"));
        assert!(
            network
                .pipeline("d")
                .is_some_and(|seen| seen.last.is_some())
        );
    }

    #[test]
    fn only_a_client_that_was_stopped_says_since_when() {
        let mut network = network();
        for (who, until) in [("old", None), ("gone", Some(10)), ("new", Some(20))] {
            let mut payload = json!({"state": "offline", "who": who, "host": "h", "until": until});
            let topic = format!("lab/infrastructure/pipelines/{who}/presence");
            let payload = payload.as_object_mut().expect("object");
            payload.retain(|_, value| !value.is_null());
            network.add("lab", &topic, payload);
        }
        let names = |list: Vec<&Seen>| -> Vec<String> {
            list.into_iter().map(|seen| seen.who.clone()).collect()
        };
        let (stopped, unknown) = network.gone(20);
        assert_eq!(names(stopped), ["gone"]);
        assert_eq!(names(unknown), ["call", "old"]);
        for (text, want) in [
            (r#"{"last":{},"last_success":5}"#, Success::At(5)),
            (r#"{"last":{},"last_success":null}"#, Success::Never),
            (r#"{"last":{}}"#, Success::Untold),
            (r#"{"last_success":"5"}"#, Success::Untold),
        ] {
            let payload = serde_json::from_str(text).expect("object");
            network.add("lab", "lab/infrastructure/pipelines/gone/last", &payload);
            assert_eq!(network.pipeline("gone").expect("gone").success, want);
        }
    }

    #[test]
    fn retained_messages_become_pipelines() {
        let network = network();
        let names: Vec<&str> = network.pipelines().map(|p| p.who.as_str()).collect();
        assert_eq!(names, ["alarm", "align", "all", "call"]);
        let align = network.pipeline("align").expect("align");
        assert_eq!((align.host.as_str(), align.state.as_str()), ("h", "online"));
        assert_eq!(align.last.as_ref().expect("last")["return_code"], 3);
        assert_eq!(align.json()["triggers"][0]["topics"][0], "lab/seq/status");
    }

    #[test]
    fn graphs_show_who_starts_whom() {
        let graph = network().graph("lab");
        let mermaid = graph.mermaid();
        for line in [
            "p1[\"align\"]",
            "p3[\"call<br>lost\"]",
            "t0([\"lab/#34;seq#34;/#35;\"])",
            "t0 -. silent .-> p0",
            "t1 --> p1",
            "p1 --> p3",
            "p1 --> p2",
            "p3 --> p2",
        ] {
            assert!(
                mermaid.lines().any(|l| l.trim() == line),
                "{line} in\n{mermaid}"
            );
        }
        let mut hostile = network();
        let topics = json!({"state": "%%{init: {\"theme\":\"dark\"}}%%", "who": "x", "triggers": [
            {"name": "t", "topics": ["%%{init: {}}%%\u{2028}click p0 href"], "absent": null}]});
        let topic = "lab/infrastructure/pipelines/x/presence";
        hostile.add("lab", topic, topics.as_object().expect("object"));
        let hostile = hostile.graph("lab");
        for text in [hostile.mermaid(), hostile.dot()] {
            assert!(!text.contains('\u{2028}'), "{text}");
        }
        assert!(
            !hostile.mermaid().contains(['%', '{']),
            "{}",
            hostile.mermaid()
        );
        assert!(hostile.mermaid().contains("#37;#37;#123;init"));
        assert!(!mermaid.contains("p2 --> p2"), "no pipeline starts itself");
        assert_eq!(graph.cut(), None);
        let dot = graph.dot();
        for line in [
            "t0 [label=\"lab/\\\"seq\\\"/#\", shape=oval];",
            "p3 [label=\"call\", shape=box, style=dashed];",
            "t0 -> p0 [style=dotted, label=silent];",
            "p1 -> p3;",
        ] {
            assert!(dot.lines().any(|l| l.trim() == line), "{line} in\n{dot}");
        }
    }
}
