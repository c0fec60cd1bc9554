//! Last acknowledgements: a node hears that all output of a unit is on our disk, and its end.
//!
//! A node that hears of it forgets the unit before others when it needs room. One that does not hear of it
//! keeps the unit longer, so that nothing is sent twice.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use tracing::debug;

use crate::engine::work::delegates::offer;
use crate::model::remote::wire::Request;
use crate::os::hooks;

/// Maximum number of acknowledgements that wait for a connection.
const MAX_ACKS: usize = 1024;

/// Last acknowledgements.
#[derive(Debug, Default)]
pub struct Acks {
    /// Units whose output is here, and whose end is not on disk yet: their nodes, and up to which
    /// offsets.
    fetched: HashMap<String, (String, [u64; 2])>,
    /// Acknowledgements, and their nodes.
    waiting: VecDeque<(String, offer::Message)>,
}

impl Acks {
    /// Notes that all output of `unit` is here, up to these offsets.
    pub fn fetched(&mut self, unit: &str, node: &str, at: [u64; 2]) {
        self.fetched.insert(unit.to_owned(), (node.to_owned(), at));
    }

    /// Notes that the end of `unit` is on disk.
    pub fn settled(&mut self, unit: &str) {
        if let Some((node, at)) = self.fetched.remove(unit) {
            self.add(unit, node, at);
        }
    }

    /// Notes that the node reports the end of `unit` again, which has these lengths.
    pub fn again(&mut self, unit: &str, node: &str, at: [u64; 2]) {
        if !self.fetched.contains_key(unit) {
            self.add(unit, node.to_owned(), at);
        }
    }

    fn add(&mut self, unit: &str, node: String, at: [u64; 2]) {
        if self.waiting.len() >= MAX_ACKS {
            self.waiting.pop_front();
            debug!("more than {MAX_ACKS} ends wait to be acknowledged: the oldest is not");
        }
        let unit = unit.to_owned();
        let end = true;
        let ack = (Request::Ack { unit, at, end }, Bytes::new());
        self.waiting.push_back((node, ack));
    }

    /// Sends them. `publish` returns whether one went out, or cannot. Returns whether none is left.
    pub fn send(&mut self, mut publish: impl FnMut(&str, &offer::Message) -> bool) -> bool {
        while let Some((node, ack)) = self.waiting.front() {
            hooks::failpoint("thanks.before");
            if !publish(node, ack) {
                return false;
            }
            self.waiting.pop_front();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_acknowledged_once_when_its_end_is_on_disk() {
        let mut acks = Acks::default();
        acks.fetched("u", "n", [5, 3]);
        assert!(acks.send(|_, _| panic!("too early")));
        acks.settled("other");
        acks.settled("u");
        acks.settled("u");
        assert!(!acks.send(|_, _| false), "it waits for a connection");
        let mut sent = Vec::new();
        assert!(acks.send(|node, (ack, _)| {
            sent.push((node.to_owned(), ack.clone()));
            true
        }));
        let ack = |at| Request::Ack {
            unit: "u".to_owned(),
            at,
            end: true,
        };
        assert_eq!(sent, [("n".to_owned(), ack([5, 3]))]);
        // Its node has not heard of it.
        acks.again("u", "n", [6, 3]);
        assert!(acks.send(|node, (sent, _)| node == "n" && *sent == ack([6, 3])));
        acks.fetched("v", "n", [5, 3]);
        acks.again("v", "n", [5, 3]);
        assert!(acks.send(|_, _| panic!("it is not on disk")));
        for n in 0..=MAX_ACKS {
            acks.fetched(&n.to_string(), "n", [0, 0]);
            acks.settled(&n.to_string());
        }
        assert_eq!(acks.waiting.len(), MAX_ACKS);
    }
}
