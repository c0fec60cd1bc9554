//! Steps that parts of the client request.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::engine::commit::permit::StartPermit;
use crate::engine::commit::receipt::Receipt;
use crate::model::message::Message;
use crate::model::unit::Unit;
use crate::store::ledger::Op;

/// One step. The parts decide, and only the client performs.
#[derive(Debug)]
pub enum Step {
    /// Commit a change that nothing follows.
    Commit(Op),
    /// Commit that a waiting unit runs. Its runner prepares it meanwhile, and begins with the
    /// permit.
    Start {
        /// The unit.
        unit: Arc<Unit>,
        /// Whether its environment is other than in the ledger.
        anew: bool,
        /// The permit of its runner.
        permit: Option<StartPermit>,
    },
    /// Commit that a waiting unit will not run, with the reason for people.
    Drop(String, &'static str),
    /// Remove the message of this number from the ledger, together with other changes.
    Sent(u64),
    /// Commit that a unit is forgotten, also (`true`) if it has not ended.
    Release(String, bool),
    /// Publish a message that no ledger holds, if there is a connection.
    Publish(Message),
    /// Settle a receipt: this unit, the last one of its event, has ended.
    Settle(Receipt, String),
    /// Settle a receipt: nothing runs for its event.
    Refuse(Receipt),
    /// Ask the runner of this unit, or its node, to end it.
    Signal(String),
    /// Let another node run a unit.
    Delegate(Box<Unit>),
    /// Go on with a unit that another node runs, and whose command may have started (milliseconds
    /// since 1970).
    Resume(Box<Unit>, Option<i64>),
}

/// Steps in the order in which they are performed. The client keeps the buffer, so that an event
/// costs no allocation for it.
pub type Steps = VecDeque<Step>;
