//! What connections of the control socket ask of the client.

use serde_json::Value;
use tokio::sync::{oneshot, watch};

use crate::engine::commit::receipt::Submitter;
use crate::engine::intake::submission::{Away, Submission};
use crate::engine::report::followers::Stage;
use crate::engine::work::delegates::asks::Asker;
use crate::engine::work::delegates::offers::Offered;
use crate::model::receptor::Submit;
use crate::model::remote::wire;
use crate::model::unit::{Outcome, State};
use crate::model::work::Params;
use crate::store::unit_dir::UnitDir;

/// An answer: what was asked for, or an error for the requester.
pub type Answer<T> = Result<T, String>;

/// A unit, for a reader of its output.
#[derive(Debug)]
pub struct Output {
    /// Its folder.
    pub dir: UnitDir,
    /// Its state.
    pub state: State,
    /// How it ended, if it has.
    pub outcome: Option<Outcome>,
    /// Whether its runner says when it has written something. That of an earlier client does not.
    pub is_told: bool,
    /// Wakes the reader.
    pub stage: watch::Receiver<Stage>,
}

/// Work that may be submitted.
#[derive(Debug, Clone)]
pub struct Ticket {
    /// Id of the unit.
    pub id: String,
    /// Whether no earlier unit can have the id.
    pub is_new: bool,
    /// Whether its unit is there, or was.
    pub is_known: bool,
    /// Its type.
    pub kind: String,
    /// Its parameters.
    pub params: Params,
    /// Maximum size of its payload, bytes.
    pub max_stdin: u64,
    /// The other node that runs it, if one does.
    pub node: Option<Away>,
    /// Whether requests to that node are signed.
    pub signed: bool,
}

/// A part of the list of units.
#[derive(Debug, Default)]
pub struct Page {
    /// Ids and states, oldest first.
    pub units: Vec<(String, Value)>,
    /// Number after which the next page begins; `None` if this is the last.
    pub next: Option<i64>,
}

/// What becomes of a unit that is to end, or to be released.
#[derive(Debug)]
pub enum Ending {
    /// Nothing: it has ended, or is gone, as it was to.
    Already,
    /// It is on its way.
    Waits(watch::Receiver<Stage>),
}

/// A request of a connection, and the way of its answer.
#[derive(Debug)]
pub enum Call {
    /// The state of the node.
    Status(oneshot::Sender<Answer<Value>>),
    /// The configuration is read again.
    Reload(oneshot::Sender<Answer<()>>),
    /// Whether work may be submitted.
    Offer(Box<Submit>, oneshot::Sender<Answer<Ticket>>),
    /// Work with its whole payload.
    Submit(Box<Submission>, Submitter),
    /// What becomes of the offer of a unit to another node; nothing if that is known already.
    Offered(
        String,
        oneshot::Sender<Answer<Option<watch::Receiver<Offered>>>>,
    ),
    /// Units after this number.
    List(i64, oneshot::Sender<Answer<Page>>),
    /// The state of a unit.
    Unit(String, oneshot::Sender<Answer<Value>>),
    /// A unit whose output is read.
    Output(String, oneshot::Sender<Answer<Output>>),
    /// All output of a unit that has ended was sent.
    Fetched(String),
    /// A question to another node.
    Ask {
        /// The node.
        node: String,
        /// What it is asked.
        request: wire::Request,
        /// Whether it is signed, if the client has a key.
        signed: bool,
        /// The way of the answer.
        answer: Asker,
    },
    /// There was no room for a payload.
    NoRoom,
    /// A unit is to end.
    Cancel(String, oneshot::Sender<Answer<Ending>>),
    /// A unit is to end, and to be forgotten.
    Release {
        /// The unit.
        unit: String,
        /// Whether to forget it at once.
        force: bool,
        /// The way of the answer.
        answer: oneshot::Sender<Answer<Ending>>,
    },
}
