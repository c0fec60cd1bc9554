//! What follows an answer of a node.

use crate::model::remote::wire;
use crate::model::unit::Outcome;
use crate::store::unit_dir::incoming::Incoming;

/// What follows an answer.
#[derive(Debug)]
pub enum Effect {
    /// The node has accepted the work.
    Accepted,
    /// Its command has started, at this time (milliseconds since 1970).
    Started(i64),
    /// There is more output.
    Wrote,
    /// It has ended.
    Ended(Outcome),
    /// People read this of it now; `None` is nothing.
    Note(Option<String>),
    /// What came must be checked against what the node says of its end.
    Check(Box<Incoming>, Box<wire::End>),
    /// All of its output is on disk, up to these offsets.
    Fetched([u64; 2]),
    /// The node knows that the unit was released.
    Paid,
}
