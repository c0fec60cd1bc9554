//! Last acknowledgements: a node hears that all output of a unit is on our disk, and its end.
//!
//! A node that hears of it forgets the unit before others when it needs room. One that does not hear of it
//! keeps the unit longer, so that nothing is sent twice.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use tracing::debug;

use crate::engine::work::delegates::offer;
use crate::model::remote::wire::Request;

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
        let Some((node, at)) = self.fetched.remove(unit) else {
            return;
        };
        if self.waiting.len() >= MAX_ACKS {
            self.waiting.pop_front();
            debug!("more than {MAX_ACKS} ends wait to be acknowledged: the oldest is not");
        }
        let unit = unit.to_owned();
        let ack = (Request::Ack { unit, at }, Bytes::new());
        self.waiting.push_back((node, ack));
    }

    /// Sends them. `publish` returns whether one went out, or cannot. Returns whether none is left.
    pub fn send(&mut self, mut publish: impl FnMut(&str, &offer::Message) -> bool) -> bool {
        while let Some((node, ack)) = self.waiting.front() {
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
        let unit = "u".to_owned();
        assert_eq!(sent, [("n".to_owned(), Request::Ack { unit, at: [5, 3] })]);
        for n in 0..=MAX_ACKS {
            acks.fetched(&n.to_string(), "n", [0, 0]);
            acks.settled(&n.to_string());
        }
        assert_eq!(acks.waiting.len(), MAX_ACKS);
    }
}
