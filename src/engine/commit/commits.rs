//! Changes that wait for the ledger.

use tokio::time::Instant;

use crate::engine::commit::batch::Batch;
use crate::engine::config::RECEIVE_MAXIMUM;
use crate::error::Result;
use crate::store::ledger::{Committed, Ledger, OnDisk, Op, Openable, Reader};

/// Maximum number of operations that wait for the ledger, and maximum size of their messages,
/// bytes. Beyond either, no more messages are taken.
const MAX_WAITING: usize = RECEIVE_MAXIMUM as usize;
const MAX_WAITING_BYTES: usize = 16 * 1024 * 1024;

/// The writer of the ledger, and changes that wait for it. `T` is what follows each change; by
/// default nothing.
#[derive(Debug)]
pub struct Commits<T> {
    ledger: Ledger<T>,
    batch: Batch,
    waiting: usize,
    bytes: usize,
}

impl<T: OnDisk + Default + Send + 'static> Commits<T> {
    /// Opens the ledger that was found, for reading as well.
    ///
    /// # Errors
    /// When it cannot be opened or created; it is then untouched.
    pub fn open(found: Openable) -> Result<(Self, Reader)> {
        let (ledger, reader) = Ledger::open(found)?;
        let commits = Self {
            ledger,
            batch: Batch::default(),
            waiting: 0,
            bytes: 0,
        };
        Ok((commits, reader))
    }

    /// Submits a change together with those that wait for one: a single transaction takes all.
    pub fn submit(&mut self, op: Op, after: T) {
        self.flush();
        self.waiting += 1;
        self.ledger.submit(op, after);
    }

    /// Counts `bytes` of messages as waiting, until [`Commits::took`].
    pub const fn hold(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// Counts `bytes` of messages as committed.
    pub const fn took(&mut self, bytes: usize) {
        self.bytes -= bytes;
    }

    /// Lets the start of a command wait for other changes.
    pub fn started(&mut self, op: Op) {
        self.batch.started(op);
    }

    /// Delays the note that the broker has acknowledged the message `seq` of the ledger, and knows
    /// our acknowledgements of what came before `answered` (milliseconds since 1970), until other
    /// changes come.
    pub fn sent(&mut self, seq: u64, answered: i64) {
        self.batch.sent(seq, answered);
    }

    /// Delays the note that the output of `unit` was fetched until other changes come.
    pub fn fetched(&mut self, unit: String) {
        self.batch.fetched(unit);
    }

    /// Submits changes that wait to share a commit.
    pub fn flush(&mut self) {
        for op in self.batch.take() {
            self.waiting += 1;
            self.ledger.submit(op, T::default());
        }
    }

    /// Submits changes that have waited long enough.
    pub fn flush_due(&mut self) {
        if self.batch.due().is_some_and(|due| Instant::now() >= due) {
            self.flush();
        }
    }

    /// Returns when [`Commits::flush_due`] has work.
    pub const fn wake(&self) -> Option<Instant> {
        self.batch.due()
    }

    /// Sends the submitted changes to the ledger thread now, instead of in [`Commits::next`].
    pub fn send(&mut self) {
        self.ledger.send();
    }

    /// Returns the next change that is on disk; cancel safe.
    ///
    /// # Errors
    /// When the ledger cannot be written any more.
    pub async fn next(&mut self) -> Result<Committed<T>> {
        let committed = self.ledger.committed().await.map_err(|fault| fault.0)?;
        self.waiting -= 1;
        Ok(committed)
    }

    /// Returns the next change that is on disk, if there is one already.
    ///
    /// # Errors
    /// When the ledger cannot be written any more.
    pub fn try_next(&mut self) -> Result<Option<Committed<T>>> {
        let committed = self.ledger.try_committed().transpose();
        let committed = committed.map_err(|fault| fault.0)?;
        self.waiting -= usize::from(committed.is_some());
        Ok(committed)
    }

    /// Returns whether the ledger keeps up with the messages.
    pub const fn keeps_up(&self) -> bool {
        self.waiting < MAX_WAITING && self.bytes < MAX_WAITING_BYTES
    }

    /// Returns how many changes wait for the ledger.
    pub const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Returns how often the ledger thread has begun or ended a commit. If the number stands still
    /// while changes wait, the thread hangs.
    pub fn attempts(&self) -> u64 {
        self.ledger.attempts()
    }

    /// Closes the ledger within a bounded time; `false` if that was too short.
    pub async fn close(self) -> bool {
        self.ledger.close().await
    }
}
