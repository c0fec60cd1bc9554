//! SUBSCRIBE and UNSUBSCRIBE packets that wait for their answers.
//!
//! The library picks a packet identifier when it sends a packet. Packets go out in the order
//! in which the library was given them, and an answer carries the identifier of its packet.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::message::Qos;
use crate::model::topic::Filter;

/// Names one SUBSCRIBE or UNSUBSCRIBE among those of a connection.
pub type Number = u32;

/// A SUBSCRIBE.
#[derive(Debug, Clone)]
pub struct Subscribe {
    /// Names its answer.
    pub number: Number,
    /// At least one.
    pub filters: Vec<Filter>,
    /// Highest QoS of deliveries.
    pub qos: Qos,
    /// What messages are to carry that come for these filters, from 1.
    pub identifier: Option<Number>,
    /// Whether retained messages come even if the broker has the subscription already.
    pub retained: bool,
}

#[derive(Debug, Default)]
struct Waiting {
    handed_over: VecDeque<Number>,
    sent: HashMap<u16, Number>,
}

/// The requests of one connection that wait for their answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked(Arc<Mutex<Waiting>>);

impl Asked {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the library is about to get request `number`.
    pub fn hand_over(&self, number: Number) {
        self.lock().handed_over.push_back(number);
    }

    /// Notes that the library has sent its next request as `packet`.
    pub fn sent(&self, packet: u16) {
        let mut waiting = self.lock();
        if let Some(number) = waiting.handed_over.pop_front() {
            waiting.sent.insert(packet, number);
        }
    }

    /// Returns the request that the answer to `packet` belongs to.
    pub fn answered(&self, packet: u16) -> Option<Number> {
        self.lock().sent.remove(&packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_finds_its_request_in_any_order() {
        let asked = Asked::default();
        asked.hand_over(7);
        asked.hand_over(8);
        asked.sent(1);
        asked.sent(2);
        assert_eq!((asked.answered(2), asked.answered(1)), (Some(8), Some(7)));
        assert_eq!(asked.answered(1), None, "it was answered");
    }
}
