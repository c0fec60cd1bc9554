//! An offered event, from any source.

use std::sync::Arc;

use crate::engine::commit::receipt::Receipt;
use crate::engine::intake::queued::Queued;
use crate::engine::report::reply::ReplyTo;
use crate::model::event::Event;
use crate::model::message::Delivery;
use crate::model::unit::Unit;
use crate::store::ledger::{EventKey, Refused};

/// An offered event.
#[derive(Debug)]
pub struct Offer {
    /// The event.
    pub subject: Subject,
    /// Address of the answer, if the source wants one.
    pub reply: Option<ReplyTo>,
    /// Receipt of its source.
    pub receipt: Receipt,
}

/// Subject of an offer.
#[derive(Debug)]
pub enum Subject {
    /// A message, with the evidence of its source about redelivery. Triggers may wait for it.
    Message(Delivery),
    /// An event for one trigger, without a check of filters and conditions.
    Event {
        /// Identity of the event.
        key: EventKey,
        /// Name of the trigger.
        trigger: String,
        /// The event.
        event: Event,
        /// Reason of the run, for people.
        reason: String,
    },
    /// Another run for the event of a unit.
    Again {
        /// Identity of the request.
        key: EventKey,
        /// The new unit.
        unit: Arc<Unit>,
        /// Whether only the first retry of its unit may run.
        first: bool,
    },
    /// Submitted work.
    Submitted {
        /// Identity of the submission.
        key: EventKey,
        /// The new unit.
        unit: Arc<Unit>,
    },
    /// A message of a queue.
    Queued(Box<Queued>),
    /// A refused request, for the record.
    Refused {
        /// Identity of the request.
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
            Subject::Submitted { unit, .. } => unit.payload.as_ref().map_or(0, |p| p.len()),
            Subject::Queued(message) => message.delivery.body.len(),
            Subject::Again { .. } | Subject::Refused { .. } => 0,
        }
    }

    /// Returns whether it is a message of a broker.
    pub const fn is_message(&self) -> bool {
        matches!(self.subject, Subject::Message(_))
    }

    /// Returns whether a broker sends it again on the next connection, unless the receipt was
    /// settled.
    pub fn comes_again(&self) -> bool {
        matches!(&self.subject, Subject::Message(delivery) if delivery.packet != 0)
    }
}
