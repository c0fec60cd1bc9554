//! What the client does for a request of another node.

use crate::engine::commit::receipt::Receipt;
use crate::engine::intake::source::Source;
use crate::model::message::Message;

/// What the client does for a request.
#[derive(Debug)]
pub enum Action {
    /// Publish this answer.
    Answer(Message),
    /// Acknowledge the message of the request.
    Settle(Receipt),
    /// Note that a requester has all output of this unit, which has ended.
    Fetched(String),
    /// Take in submitted work.
    Submit(Box<Source>),
    /// End a unit that has not ended.
    Cancel {
        /// The unit.
        unit: String,
        /// Its lane.
        lane: String,
    },
    /// Delete a unit when it has ended. The answer goes out, and the message of the request is
    /// acknowledged, when that is on disk.
    Release {
        /// The unit.
        unit: String,
        /// Its lane.
        lane: String,
        /// Whether it has ended.
        ended: bool,
        /// The answer.
        answer: Box<Message>,
        /// The message of the request.
        receipt: Receipt,
    },
}

/// Actions in the order in which they are done.
pub type Actions = Vec<Action>;
