//! Changes that wait a little, to share a commit with others.

use std::time::Duration;

use tokio::time::Instant;

use crate::store::ledger::Op;

/// Maximum delay before the row of an acknowledged message is removed from the outbox, and before the
/// ledger knows that output was fetched. If the client is killed before that, the next one publishes
/// the message again, under the same id.
const SENT_DELAY: Duration = Duration::from_millis(200);

/// Maximum delay before the start of a command is committed and published: a command that ends
/// sooner costs one commit less. If the client is killed before that, the next one publishes the
/// start.
const STARTED_DELAY: Duration = Duration::from_millis(10);

/// Changes that wait for others.
#[derive(Debug, Default)]
pub struct Batch {
    starts: Vec<Op>,
    sent: Vec<u64>,
    answered: i64,
    fetched: Vec<String>,
    due: Option<Instant>,
}

impl Batch {
    /// Adds that the broker has acknowledged the message `seq` of the ledger, and knows our
    /// acknowledgements of what came before `answered` (milliseconds since 1970).
    pub fn sent(&mut self, seq: u64, answered: i64) {
        self.sent.push(seq);
        self.answered = answered;
        self.by(SENT_DELAY);
    }

    /// Adds that the output of `unit` was fetched. If the client is killed before that is on disk, the
    /// unit stays a little longer.
    pub fn fetched(&mut self, unit: String) {
        self.fetched.push(unit);
        self.by(SENT_DELAY);
    }

    /// Adds the start of a command.
    pub fn started(&mut self, op: Op) {
        self.starts.push(op);
        self.by(STARTED_DELAY);
    }

    fn by(&mut self, delay: Duration) {
        let at = Instant::now() + delay;
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Returns when the first of them has waited long enough.
    #[must_use]
    pub const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Takes all, in the order in which they must be committed.
    pub fn take(&mut self) -> Vec<Op> {
        self.due = None;
        let mut ops = std::mem::take(&mut self.starts);
        if !self.sent.is_empty() {
            ops.push(Op::Sent {
                list: std::mem::take(&mut self.sent),
                answered: self.answered,
            });
        }
        if !self.fetched.is_empty() {
            ops.push(Op::Fetched(std::mem::take(&mut self.fetched)));
        }
        ops
    }
}
