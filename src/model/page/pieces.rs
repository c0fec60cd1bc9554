//! Everything that a page shows at one time, in pieces: they take little time to gather, and are joined
//! elsewhere.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::model::network::Network;
use crate::model::page::hosts::NodeNow;
use crate::model::text::escaped_json;

/// Maximum number of edges in a list, and of their bytes.
const MAX_EDGES: usize = 10_000;
const MAX_EDGE_BYTES: usize = 2 * 1024 * 1024;

/// Everything at one time.
#[derive(Debug)]
pub struct Pieces {
    pub(super) root: String,
    /// The pipelines, as JSON.
    pub(super) pipelines: Vec<Bytes>,
    pub(super) beacons: Vec<Value>,
    pub(super) nodes: Vec<NodeNow>,
    /// The refused requests, as JSON.
    pub(super) refused: Vec<Bytes>,
    pub(super) truncated: bool,
    /// Version of the graph.
    pub(super) version: u64,
    /// The pipelines for the graph, unless that version of it was known.
    pub(super) network: Option<Network>,
}

impl Pieces {
    /// Returns the version of the graph, and who starts whom, as JSON, if that version was not known.
    #[must_use]
    pub fn edges(&self) -> (u64, Option<Bytes>) {
        let network = self.network.as_ref();
        (
            self.version,
            network.map(|network| edges(network, &self.root)),
        )
    }

    /// Writes a JSON object with `more` members and these `edges`. It has no line break.
    pub fn write(&self, more: &Map<String, Value>, edges: &[u8], out: &mut impl FnMut(&[u8])) {
        out(b"{");
        let root = json!(self.root);
        let truncated = json!(self.truncated);
        let beacons = Value::Array(self.beacons.clone());
        let members = more.iter().map(|(key, value)| (key.as_str(), value));
        let members = members.chain([
            ("root", &root),
            ("truncated", &truncated),
            ("beacons", &beacons),
        ]);
        for (key, value) in members {
            out(escaped_json(&format!("{}:{value},", json!(key))).as_bytes());
        }
        for (key, list) in [("pipelines", &self.pipelines), ("refused", &self.refused)] {
            out(format!("\"{key}\":[").as_bytes());
            for (n, item) in list.iter().enumerate() {
                if n > 0 {
                    out(b",");
                }
                out(item);
            }
            out(b"],");
        }
        out(b"\"nodes\":[");
        for (n, node) in self.nodes.iter().enumerate() {
            if n > 0 {
                out(b",");
            }
            out(node.json().as_bytes());
        }
        out(b"],\"edges\":");
        out(edges);
        out(b"}");
    }
}

/// Returns who starts whom, as JSON: as much as there is room for.
fn edges(network: &Network, root: &str) -> Bytes {
    let mut text = "[".to_owned();
    for edge in network.graph(root).edges_between(root, MAX_EDGES) {
        let edge = escaped_json(&edge.to_string());
        if text.len() + edge.len() > MAX_EDGE_BYTES {
            break;
        }
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&edge);
    }
    text.push(']');
    text.into()
}
