//! The thread that writes: everything that waits becomes one transaction.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tokio::sync::mpsc as tokio_mpsc;
use tracing::{error, info};

use crate::error::{Error, Result};
use crate::store::ledger::place::Place;
use crate::store::ledger::write::{Done, Op, apply};
use crate::store::ledger::{file, schema};

/// Operations in one transaction before no more are added to it.
const BATCH: usize = 512;

/// Wait before a commit that failed for want of space is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The ledger cannot be written any more, and that will not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault(pub Error);

/// What is to happen once an operation is on disk, and can in the ledger's thread.
pub trait OnDisk {
    /// Called as soon as that is so, before anybody is told. It must not wait.
    fn on_disk(&self, done: &Done);
}

/// A committed operation, with what its sender wanted to remember.
#[derive(Debug)]
pub struct Committed<T> {
    /// What came of it.
    pub done: Done,
    /// What was given along.
    pub then: T,
}

/// The ledger's writing side.
#[derive(Debug)]
pub struct Ledger<T> {
    /// What was handed over since somebody last waited.
    submitted: Vec<(Op, T)>,
    ops: mpsc::Sender<Vec<(Op, T)>>,
    /// Counts the attempts to commit.
    attempts: Arc<AtomicU64>,
    committed: tokio_mpsc::UnboundedReceiver<Result<Committed<T>, Fault>>,
}

impl<T: OnDisk + Send + 'static> Ledger<T> {
    /// Opens or creates the ledger in folder `pipeline` and starts its thread.
    ///
    /// # Errors
    /// When it is damaged or cannot be created (73) or is newer (78); it is then untouched.
    pub fn open(pipeline: &Path) -> Result<Self> {
        let path = file(pipeline);
        if path.exists() {
            schema::check(&path)?;
        }
        let mut writer = Writer {
            connection: schema::connect(&path, true)?,
            place: Place::of(&path),
        };
        let (ops, op_rx) = mpsc::channel();
        let (committed_tx, committed) = tokio_mpsc::unbounded_channel();
        let attempts = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&attempts);
        thread::Builder::new()
            .name("ledger".into())
            .stack_size(256 * 1024)
            .spawn(move || writer.write(&op_rx, &committed_tx, &counter))
            .map_err(|e| Error::cannot_create(format!("start the ledger's thread: {e}")))?;
        Ok(Self {
            submitted: Vec::new(),
            ops,
            attempts,
            committed,
        })
    }

    /// Hands over an operation; [`Ledger::committed`] brings `then` back once it is on disk.
    /// It is taken to the disk when that or [`Ledger::send`] is next called, with all others
    /// handed over by then.
    pub fn submit(&mut self, op: Op, then: T) {
        self.submitted.push((op, then));
    }

    /// How often the thread has begun or ended an attempt to commit: it moves while that works,
    /// and while it waits for space on the disk.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// Has the thread take up what was handed over.
    pub fn send(&mut self) {
        if !self.submitted.is_empty() {
            // The thread ends only after a fault, which its holder learns from `committed`.
            let _ = self.ops.send(std::mem::take(&mut self.submitted));
        }
    }

    /// The next committed operation, in the order of submission; cancel safe.
    ///
    /// # Errors
    /// When the ledger cannot be written any more.
    pub async fn committed(&mut self) -> Result<Committed<T>, Fault> {
        self.send();
        self.committed
            .recv()
            .await
            .unwrap_or_else(|| Err(Fault(Error::bug("write to the ledger: its thread is gone"))))
    }
}

/// What the thread works with.
struct Writer {
    connection: Connection,
    place: Place,
}

impl Writer {
    fn write<T: OnDisk>(
        &mut self,
        ops: &mpsc::Receiver<Vec<(Op, T)>>,
        committed: &tokio_mpsc::UnboundedSender<Result<Committed<T>, Fault>>,
        attempts: &AtomicU64,
    ) {
        while let Ok(mut batch) = ops.recv() {
            while batch.len() < BATCH
                && let Ok(next) = ops.try_recv()
            {
                batch.extend(next);
            }
            // A log that was cut off must not be written to; and what nobody would find is not
            // to be told of.
            let done = self.still_there().and_then(|()| {
                let done = commit_until_done(&mut self.connection, &batch, attempts)?;
                self.still_there().map(|()| done)
            });
            match done {
                Ok(done) => {
                    for (done, (_, then)) in done.iter().zip(&batch) {
                        then.on_disk(done);
                    }
                    for (done, (_, then)) in done.into_iter().zip(batch) {
                        // Nobody listens any more when the client is on its way out.
                        let _ = committed.send(Ok(Committed { done, then }));
                    }
                }
                Err(fault) => {
                    let _ = committed.send(Err(fault));
                    return;
                }
            }
        }
    }

    /// Whether what was committed can be found by whoever comes next.
    fn still_there(&self) -> Result<(), Fault> {
        let Some(path) = self.place.lost() else {
            return Ok(());
        };
        // If that fails, so does all that follows.
        let _ = schema::leave_log(&self.connection);
        Err(Fault(Error::cannot_create(format!(
            "write to the ledger: {} was removed, replaced or cut off while the client ran; start \
             it again",
            path.display()
        ))))
    }
}

/// Commits `batch`, as often as it takes while the disk is full or failing: whatever is not
/// committed is not acknowledged either, so nothing is lost by waiting.
fn commit_until_done<T>(
    connection: &mut Connection,
    batch: &[(Op, T)],
    attempts: &AtomicU64,
) -> Result<Vec<Done>, Fault> {
    let mut failing = false;
    loop {
        attempts.fetch_add(1, Ordering::Relaxed);
        let done = commit(connection, batch);
        attempts.fetch_add(1, Ordering::Relaxed);
        match done {
            Ok(done) => {
                if failing {
                    info!("the ledger can be written again");
                }
                return Ok(done);
            }
            Err(e) if passes(&e) => {
                if !failing {
                    failing = true;
                    error!("cannot write to the ledger: {e}; events wait until it can be written");
                }
                thread::sleep(RETRY);
            }
            Err(e) => {
                let e = Error::cannot_create(format!("write to the ledger: {e}"));
                return Err(Fault(e));
            }
        }
    }
}

fn commit<T>(connection: &mut Connection, batch: &[(Op, T)]) -> rusqlite::Result<Vec<Done>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done = batch
        .iter()
        .map(|(op, _)| apply(&transaction, op))
        .collect::<rusqlite::Result<Vec<_>>>()?;
    transaction.commit()?;
    Ok(done)
}

/// Whether it may be different in a moment.
pub(super) fn passes(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::ReadOnly
                | ErrorCode::CannotOpen
        )
    )
}
