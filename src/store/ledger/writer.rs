//! The thread that writes: everything that waits becomes one transaction.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::mpsc as tokio_mpsc;
use tracing::{error, info};

use crate::error::{Error, Kind, Result};
use crate::os::logging::STACK;
use crate::store::ledger::place::{Found, Place};
use crate::store::ledger::schema::Depth;
use crate::store::ledger::state::WriterState;
use crate::store::ledger::write::{Done, Op, apply};
use crate::store::ledger::{Reader, file, schema};

/// Number of operations in one transaction before no more are added to it. With more, a sync is
/// shared by more of them, and the first ones wait longer for their acknowledgement.
const BATCH: usize = 128;

/// Wait before a commit that failed for want of space is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Free pages that stay in the file for what comes next, and the most that one step gives back to
/// the file system: nobody waits for more than one.
const SPARE_PAGES: i64 = 256;
const SHRINK_PAGES: i64 = 256;

/// Maximum time for the last commits and for the log to be copied into the ledger.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

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
    /// Opens or creates the ledger in folder `pipeline`, starts its thread, and opens the ledger for
    /// reading as well.
    ///
    /// # Errors
    /// When it is damaged or cannot be created (73) or is newer (78); it is then untouched.
    pub fn open(pipeline: &Path) -> Result<(Self, Reader)> {
        let path = file(pipeline);
        if path.exists() {
            schema::check(&path, Depth::Pages)?;
        }
        let connection = schema::connect(&path, true)?;
        let mut writer = Writer {
            state: WriterState::of(&connection).map_err(|e| schema::failed(&path, &e))?,
            connection,
            place: Place::of(&path),
            path: path.clone(),
            refills: true,
            shrinks: false,
        };
        let (ops, op_rx) = mpsc::channel();
        let (committed_tx, committed) = tokio_mpsc::unbounded_channel();
        let attempts = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&attempts);
        thread::Builder::new()
            .name("ledger".into())
            .stack_size(STACK)
            .spawn(move || {
                writer.fill_log();
                if writer.write(&op_rx, &committed_tx, &counter) {
                    writer.close();
                }
                // Only now: its end tells that all is done.
                drop(committed_tx);
            })
            .map_err(|e| Error::state(&e, format!("start the ledger's thread: {e}")))?;
        let ledger = Self {
            submitted: Vec::new(),
            ops,
            attempts,
            committed,
        };
        Ok((ledger, Reader::of_writer(&path)?))
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

impl<T> Ledger<T> {
    /// The next committed operation, if there is one already.
    ///
    /// # Errors
    /// When the ledger cannot be written any more.
    pub fn try_committed(&mut self) -> Option<Result<Committed<T>, Fault>> {
        self.committed.try_recv().ok()
    }

    /// Commits what was handed over and copies the log into the ledger, whose file then holds all
    /// by itself. Nobody learns of these commits. Returns whether that was done in time.
    pub async fn close(self) -> bool {
        let Self {
            submitted,
            ops,
            mut committed,
            ..
        } = self;
        let _ = ops.send(submitted);
        drop(ops);
        let done = async { while committed.recv().await.is_some() {} };
        tokio::time::timeout(CLOSE_TIMEOUT, done).await.is_ok()
    }
}

/// What the thread works with.
struct Writer {
    connection: Connection,
    state: WriterState,
    path: PathBuf,
    place: Place,
    /// Whether the log is given its size again when somebody has cut it off.
    refills: bool,
    /// Whether there may be free pages to give back.
    shrinks: bool,
}

impl Writer {
    /// Writes until nobody hands anything over; `false` after a fault.
    fn write<T: OnDisk>(
        &mut self,
        ops: &mpsc::Receiver<Vec<(Op, T)>>,
        committed: &tokio_mpsc::UnboundedSender<Result<Committed<T>, Fault>>,
        attempts: &AtomicU64,
    ) -> bool {
        while let Some(mut batch) = self.next(ops) {
            while batch.len() < BATCH
                && let Ok(next) = ops.try_recv()
            {
                batch.extend(next);
            }
            let forgets = |op: &Op| matches!(op, Op::Prune(_) | Op::Release { .. });
            self.shrinks |= batch.iter().any(|(op, _)| forgets(op));
            // A log that was cut off must not be written to; and what nobody would find is not
            // to be told of.
            let done = self.still_there().and_then(|()| {
                let done = self.commit_until_done(&batch, attempts)?;
                self.still_there().map(|()| done)
            });
            match done {
                Ok(done) => {
                    for (done, (_, then)) in done.iter().zip(&batch) {
                        then.on_disk(done);
                        if let Done::Illegal { unit, change } = done {
                            error!(TAEL_UNIT = unit, "{change}; it stays as it is");
                        }
                    }
                    for (done, (_, then)) in done.into_iter().zip(batch) {
                        // Nobody listens any more when the client is on its way out.
                        let _ = committed.send(Ok(Committed { done, then }));
                    }
                }
                Err(fault) => {
                    let _ = committed.send(Err(fault));
                    return false;
                }
            }
        }
        true
    }

    /// Commits `batch`, as often as it takes while the disk is full or failing: whatever is not
    /// committed is not acknowledged either, so nothing is lost by waiting.
    fn commit_until_done<T>(
        &mut self,
        batch: &[(Op, T)],
        attempts: &AtomicU64,
    ) -> Result<Vec<Done>, Fault> {
        let mut failing = false;
        loop {
            attempts.fetch_add(1, Ordering::Relaxed);
            let done = commit(&self.connection, &mut self.state, batch);
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
                        error!(
                            "cannot write to the ledger: {e}; events wait until it can be written"
                        );
                    }
                    thread::sleep(RETRY);
                }
                Err(e) => {
                    let cause = format!("write to the ledger: {e}");
                    return Err(Fault(Error::new(lasting(&e), cause)));
                }
            }
        }
    }

    /// Gives the log its size, if it is not that large. Without it commits take longer, and that is
    /// all.
    fn fill_log(&mut self) {
        if self.place.look() == Found::CopiedLog {
            self.refills = schema::fill_wal(&mut self.connection, &self.path).is_ok();
        }
    }

    /// The next operations; while there are none, free pages go back to the file system.
    fn next<T>(&mut self, ops: &mpsc::Receiver<Vec<(Op, T)>>) -> Option<Vec<(Op, T)>> {
        while self.shrinks {
            match ops.try_recv() {
                Ok(batch) => return Some(batch),
                Err(mpsc::TryRecvError::Disconnected) => return None,
                // If it fails, it is tried again after the next pruning.
                Err(mpsc::TryRecvError::Empty) => {
                    self.shrinks = self.still_there().is_ok() && self.shrink().unwrap_or(false);
                }
            }
        }
        ops.recv().ok()
    }

    /// Gives some free pages back; whether there are more.
    fn shrink(&self) -> rusqlite::Result<bool> {
        let free = || -> rusqlite::Result<i64> {
            let count = |row: &rusqlite::Row<'_>| row.get(0);
            self.connection
                .pragma_query_value(None, "freelist_count", count)
        };
        let before = free()?;
        let surplus = before - SPARE_PAGES;
        if surplus <= 0 {
            return Ok(false);
        }
        let sql = format!("PRAGMA incremental_vacuum({})", surplus.min(SHRINK_PAGES));
        let mut vacuum = self.connection.prepare(&sql)?;
        let mut pages = vacuum.query([])?;
        // It moves one for each row that is asked for.
        while pages.next()?.is_some() {}
        // A ledger of an earlier version may not be able to.
        Ok(free()? < before)
    }

    /// Copies the log into the ledger. SQLite removes the log when the last one leaves.
    fn close(mut self) {
        if self.still_there().is_ok() {
            let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
            let copied = self.connection.query_row(sql, [], |_| Ok(()));
            if let Err(e) = copied {
                info!("the ledger's log stays: {e}");
            }
        }
    }

    /// Whether what was committed can be found by whoever comes next.
    fn still_there(&mut self) -> Result<(), Fault> {
        let path = match self.place.look() {
            Found::Intact => return Ok(()),
            Found::CopiedLog => {
                if self.refills {
                    self.fill_log();
                }
                return Ok(());
            }
            Found::Lost(path) => path,
        };
        let cause = "was removed, replaced or cut off while the client ran; start it again";
        let cause = format!("write to the ledger: {} {cause}", path.display());
        // If that fails, so does all that follows.
        let _ = schema::copy_log_on_close(&self.connection, false);
        Err(Fault(Error::new(Kind::TryAgain, cause)))
    }
}

/// Carries out `batch` in one transaction. Its statements stay prepared: to parse BEGIN and COMMIT
/// costs as much as to insert a row.
pub(super) fn commit<T>(
    connection: &Connection,
    state: &mut WriterState,
    batch: &[(Op, T)],
) -> rusqlite::Result<Vec<Done>> {
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    let done = batch.iter().map(|(op, _)| apply(connection, state, op));
    let done = done.collect::<rusqlite::Result<Vec<_>>>().and_then(|done| {
        connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(done)
    });
    // Some errors have rolled it back already (sqlite.org/lang_transaction.html, section 3).
    if done.is_err() {
        state.rolled_back();
        if !connection.is_autocommit() {
            connection.execute_batch("ROLLBACK")?;
        }
    }
    done
}

/// What an error that does not pass is: only damage outlives a restart.
pub(super) fn lasting(error: &rusqlite::Error) -> Kind {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Kind::CannotCreate,
        _ => Kind::TryAgain,
    }
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
                | ErrorCode::OutOfMemory
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_stay_prepared() {
        let dir = tempfile::tempdir().expect("tempdir");
        let connection = schema::connect(&dir.path().join("ledger.db"), true).expect("connect");
        let prepared = || {
            let mut count = 0;
            // SAFETY: the connection is open, and each statement that it returns is its own.
            unsafe {
                let handle = connection.handle();
                let mut next = rusqlite::ffi::sqlite3_next_stmt(handle, std::ptr::null_mut());
                while !next.is_null() {
                    count += 1;
                    next = rusqlite::ffi::sqlite3_next_stmt(handle, next);
                }
            }
            count
        };
        for n in 0..schema::STATEMENTS {
            let sql = format!("SELECT {n}");
            drop(connection.prepare_cached(&sql).expect("prepare"));
        }
        assert_eq!(prepared(), schema::STATEMENTS);
    }
}
