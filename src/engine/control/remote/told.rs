//! Ends that requesters were told, until they acknowledge that they have all of the output.

use std::collections::VecDeque;

use bytes::Bytes;
use tracing::debug;

use crate::engine::report::reply::ReplyTo;
use crate::model::remote::wire::{self, Answer};

/// Maximum number of ends that wait for an acknowledgement. The units of others are kept longer.
const MAX_TOLD: usize = 1024;

/// Ends that requesters were told, oldest first.
#[derive(Debug, Default)]
pub struct Told(VecDeque<End>);

/// An end.
#[derive(Debug)]
struct End {
    unit: String,
    /// Who was told.
    reply: ReplyTo,
    lengths: [u64; 2],
}

impl Told {
    /// Adds that the requester with the address `reply` was told of an end by the message `end`.
    pub fn add(&mut self, reply: ReplyTo, end: &Bytes) {
        let Ok((Answer::End(end), _)) = wire::read_answer(end) else {
            return;
        };
        if self.0.len() >= MAX_TOLD {
            self.0.pop_front();
            debug!(
                "more than {MAX_TOLD} ends wait to be acknowledged: the oldest is not waited for"
            );
        }
        self.0.push_back(End {
            unit: end.state.unit,
            reply,
            lengths: end.lengths,
        });
    }

    /// Takes an acknowledgement of output up to the offsets `at`. Returns whether it is the last one.
    pub fn acked(&mut self, unit: &str, reply: &ReplyTo, at: [u64; 2]) -> bool {
        let is_last =
            |told: &End| told.unit == unit && told.reply == *reply && covers(at, told.lengths);
        let place = self.0.iter().position(is_last);
        place.is_some_and(|place| self.0.remove(place).is_some())
    }
}

/// Returns whether output up to the offsets `at` is all of a unit with this last message.
#[must_use]
pub fn is_all(end: &Bytes, at: [u64; 2]) -> bool {
    match wire::read_answer(end) {
        Ok((Answer::End(end), _)) => covers(at, end.lengths),
        _ => false,
    }
}

fn covers(at: [u64; 2], lengths: [u64; 2]) -> bool {
    at.iter().zip(lengths).all(|(at, length)| *at >= length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::remote::wire::State;

    const UNIT: &str = "01JBV7Y3ZK8Q5W2N4T6R9M1XCD";

    fn end(unit: &str) -> Bytes {
        let state = State {
            unit: unit.to_owned(),
            kind: "cat".into(),
            state: "succeeded".into(),
            detail: String::new(),
            code: Some(0),
            submitter: "ann@host".into(),
            started: None,
            elapsed: None,
        };
        let end = wire::End {
            state,
            lengths: [5, 3],
            sha256: [String::new(), String::new()],
            dropped: [None, None],
            signature: None,
        };
        wire::write(&Answer::End(end), b"")
    }

    #[test]
    fn only_a_requester_that_has_all_of_it_acknowledges_an_end() {
        let mut told = Told::default();
        let [ann, bob] = ["lab/ann", "lab/bob"].map(ReplyTo::at);
        told.add(ann.clone(), &end(UNIT));
        assert!(!told.acked(UNIT, &bob, [5, 3]), "it was not told");
        assert!(!told.acked(UNIT, &ann, [5, 2]), "an earlier one is late");
        assert!(!told.acked("other", &ann, [5, 3]));
        assert!(told.acked(UNIT, &ann, [5, u64::MAX]));
        assert!(!told.acked(UNIT, &ann, [5, 3]), "once");
        assert!(is_all(&end(UNIT), [5, 3]) && !is_all(&end(UNIT), [4, 3]));
        assert!(!is_all(&Bytes::from_static(b"no answer"), [5, 3]));
    }

    #[test]
    fn ends_that_are_not_acknowledged_are_bounded() {
        let mut told = Told::default();
        let reply = ReplyTo::at("lab/ann");
        for n in 0..=MAX_TOLD {
            told.add(reply.clone(), &end(&format!("{n:026}")));
        }
        assert_eq!(told.0.len(), MAX_TOLD);
        assert!(!told.acked(&format!("{:026}", 0), &reply, [5, 3]));
        assert!(told.acked(&format!("{MAX_TOLD:026}"), &reply, [5, 3]));
    }
}
