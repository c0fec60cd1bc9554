//! What follows a change when it is on disk.

use std::sync::Arc;

use crate::engine::commit::permit::StartPermit;
use crate::engine::commit::receipt::Receipt;
use crate::engine::intake::judge::Admission;
use crate::engine::report::last::End;
use crate::engine::report::reply::ReplyTo;
use crate::model::message::Message;
use crate::model::unit::Unit;
use crate::os::hooks;
use crate::store::ledger::{Acceptance, Done, OnDisk};

/// What follows a change.
#[derive(Debug, Default)]
pub enum After {
    /// The receipt is settled, the answer goes out, and the units wait or begin.
    Accepted {
        admission: Box<Admission>,
        /// For the parts that start at once, by their place.
        permits: Vec<(usize, StartPermit)>,
        receipt: Receipt,
        reply: Option<ReplyTo>,
        /// Size of the messages that waited for the ledger.
        bytes: usize,
    },
    /// The unit begins.
    Start(Arc<Unit>, Option<StartPermit>),
    /// The status goes out, and the retry waits.
    Settled {
        unit: String,
        retry: Option<Box<Unit>>,
        /// The end, as it is published.
        last: Box<End>,
    },
    /// The unit does not run, and its receipts are settled.
    Dropped(String),
    /// Readers of its output hear that it is gone, and its folder goes.
    Released(String),
    /// The answer goes out, and the message of its request is acknowledged.
    Answered(Box<Message>, Receipt),
    /// The answer to a question that came again goes out; its size, bytes.
    AnsweredAgain(usize),
    /// Nothing follows.
    #[default]
    Nothing,
}

impl OnDisk for After {
    /// Releases reserved runners from the ledger's thread, one turn of the loop earlier.
    fn on_disk(&self, done: &Done) {
        let give = |permit: &StartPermit, begin| {
            hooks::failpoint("spawn.before");
            permit.give(begin);
            hooks::failpoint("spawn.after");
        };
        match (self, done) {
            (Self::Accepted { permits, .. }, Done::Accepted { parts, .. }) => {
                for (place, permit) in permits {
                    give(permit, parts.get(*place) == Some(&Acceptance::Fresh));
                }
            }
            (Self::Start(_, Some(permit)), done) => {
                give(permit, matches!(done, Done::Changed { applied: true, .. }));
            }
            _ => {}
        }
    }
}
