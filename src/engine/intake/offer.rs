//! An event that somebody offers, whatever the source.

use std::sync::Arc;

use crate::engine::commit::receipt::Receipt;
use crate::engine::report::reply::ReplyTo;
use crate::model::event::Event;
use crate::model::message::Delivery;
use crate::model::unit::Unit;
use crate::store::ledger::{EventKey, Refused};

/// An event that somebody offers.
#[derive(Debug)]
pub struct Offer {
    /// The event.
    pub subject: Subject,
    /// Where the answer goes, if one is wanted.
    pub reply: Option<ReplyTo>,
    /// What its source wants back.
    pub receipt: Receipt,
}

/// What is offered.
#[derive(Debug)]
pub enum Subject {
    /// A message, with what its source says about its redelivery. Triggers wait for it, or not.
    Message(Delivery),
    /// An event for one trigger, whose filters and conditions are not in question.
    Event {
        /// Tells the event from others.
        key: EventKey,
        /// Name of the trigger.
        trigger: String,
        /// The event.
        event: Event,
        /// Why the command runs, for people.
        reason: String,
    },
    /// Another run for the event of a unit.
    Again {
        /// Tells the request from others.
        key: EventKey,
        /// The new unit.
        unit: Arc<Unit>,
    },
    /// A request that is not carried out, for the record.
    Refused {
        /// Tells the request from others.
        key: EventKey,
        /// Why.
        refused: Refused,
    },
}

impl Offer {
    /// Returns an upper estimate of the memory that it holds, bytes.
    pub fn memory(&self) -> usize {
        match &self.subject {
            Subject::Message(delivery) => delivery.memory(),
            Subject::Event { event, .. } => event.payload.len(),
            Subject::Again { .. } | Subject::Refused { .. } => 0,
        }
    }

    /// Returns whether it is a message, and comes from a broker.
    pub const fn is_message(&self) -> bool {
        matches!(self.subject, Subject::Message(_))
    }

    /// Returns whether a broker sends it again over the next connection, as long as the receipt was
    /// not given back.
    pub fn comes_again(&self) -> bool {
        matches!(&self.subject, Subject::Message(delivery) if delivery.packet != 0)
    }
}
