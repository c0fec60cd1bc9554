//! The thread that writes: everything that waits becomes one transaction.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::mpsc as tokio_mpsc;
use tracing::{error, info};

use crate::error::{Error, Kind, Result};
use crate::os::logging::STACK;
use crate::store::ledger::failure::{lasting, passes};
use crate::store::ledger::place::{Found, Place};
use crate::store::ledger::reader::Reader;
use crate::store::ledger::schema::{self, Looked};
use crate::store::ledger::state::WriterState;
use crate::store::ledger::write::{Done, Op, apply};

/// Number of operations in one transaction before no more are added to it. With more, a sync is
/// shared by more of them, and the first ones wait longer for their acknowledgement.
const BATCH: usize = 128;

/// Time that a client has to connect before the ledger is opened for writing, if it has nothing to
/// write.
const HEAD_START: Duration = Duration::from_millis(20);

/// Delay before a commit that found no space is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Number of free pages that stay in the file, and the maximum number that one step gives back to
/// the file system. A commit waits for one step at most.
const SPARE_PAGES: i64 = 256;
const SHRINK_PAGES: i64 = 256;

/// Maximum time for the last commits, and for copying the log into the ledger.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The ledger cannot be written any more, and waiting does not help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault(pub Error);

/// What follows when an operation is on disk, and can be done in the thread of the ledger.
pub trait OnDisk {
    /// Called when the operation is on disk, before it is reported. It must not wait.
    fn on_disk(&self, done: &Done);
}

/// A committed operation, with a value of its sender.
#[derive(Debug)]
pub struct Committed<T> {
    /// Its result.
    pub done: Done,
    /// The value of the sender.
    pub then: T,
}

/// The writing side of the ledger.
#[derive(Debug)]
pub struct Ledger<T> {
    /// Operations that were submitted since the last send.
    submitted: Vec<(Op, T)>,
    ops: mpsc::Sender<Vec<(Op, T)>>,
    /// Counts the attempts to commit.
    attempts: Arc<AtomicU64>,
    committed: tokio_mpsc::UnboundedReceiver<Result<Committed<T>, Fault>>,
}

/// The place of a ledger that can be opened: there is none yet, or one of no newer version.
#[derive(Debug)]
pub struct Openable {
    path: PathBuf,
    looked: Option<Looked>,
}

impl Openable {
    /// Looks for the ledger in folder `pipeline`, and changes nothing.
    ///
    /// # Errors
    /// When it is no ledger or cannot be read (73), or is newer than this program (78).
    pub fn find(pipeline: &Path) -> Result<Self> {
        let path = schema::file(pipeline);
        let looked = path.exists().then(|| schema::check(&path)).transpose()?;
        Ok(Self { path, looked })
    }

    /// Returns whether it need not be created or upgraded first.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.looked.as_ref().is_some_and(|looked| looked.current)
    }
}

impl<T: OnDisk + Send + 'static> Ledger<T> {
    /// Opens or creates the ledger that was found, for reading and, in a thread of its own, for
    /// writing. The thread reads all pages before, so that a client can connect meanwhile: a ledger
    /// that is damaged inside is a fault, and unchanged too.
    ///
    /// # Errors
    /// When it cannot be opened or created (73); it is unchanged then.
    pub fn open(found: Openable) -> Result<(Self, Reader)> {
        let Openable { path, looked } = found;
        // An upgrade writes, so its ledger is read before.
        let opened = match &looked {
            None => Some(Writer::open(&path)?),
            Some(looked) if !looked.current => Some(Writer::open_sound(&path)?),
            Some(_) => None,
        };
        let reader = Reader::of_writer(&path)?;
        let (ops, op_rx) = mpsc::channel();
        let (committed_tx, committed) = tokio_mpsc::unbounded_channel();
        let attempts = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&attempts);
        thread::Builder::new()
            .name("ledger".into())
            .stack_size(STACK)
            .spawn(move || {
                let first = op_rx.recv_timeout(HEAD_START).ok();
                let writer = opened.map_or_else(|| Writer::open_sound(&path), Ok);
                match writer {
                    Ok(mut writer) => {
                        writer.fill_log();
                        if writer.write(first, &op_rx, &committed_tx, &counter) {
                            writer.close();
                        }
                    }
                    Err(e) => {
                        let _ = committed_tx.send(Err(Fault(e)));
                    }
                }
                // Only now, because its end means that everything is done.
                drop(committed_tx);
            })
            .map_err(|e| Error::state(&e, format!("start the ledger's thread: {e}")))?;
        let ledger = Self {
            submitted: Vec::new(),
            ops,
            attempts,
            committed,
        };
        Ok((ledger, reader))
    }

    /// Submits an operation; [`Ledger::committed`] returns `then` when it is on disk. The operation
    /// is sent together with all others at the next call of that or of [`Ledger::send`].
    pub fn submit(&mut self, op: Op, then: T) {
        self.submitted.push((op, then));
    }

    /// Returns how often the thread has begun or ended an attempt to commit. The number changes
    /// while that works, and while it waits for disk space.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// Sends the submitted operations to the thread.
    pub fn send(&mut self) {
        if !self.submitted.is_empty() {
            // The thread ends only after a fault, which its holder gets from `committed`.
            let _ = self.ops.send(std::mem::take(&mut self.submitted));
        }
    }

    /// Returns the next committed operation, in the order of submission. Cancel safe.
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

    /// Commits the submitted operations, and copies the log into the ledger, whose file then
    /// contains everything. These commits are not reported. Returns whether that was done in time.
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

/// State of the thread.
struct Writer {
    connection: Connection,
    state: WriterState,
    path: PathBuf,
    place: Place,
    /// Whether a truncated log gets its size again.
    refills: bool,
    /// Whether there may be free pages to give back.
    shrinks: bool,
}

impl Writer {
    /// Opens or creates the ledger at `path`.
    fn open(path: &Path) -> Result<Self> {
        let connection = schema::connect(path, true)?;
        Ok(Self {
            state: WriterState::of(&connection).map_err(|e| schema::failed(path, &e))?,
            connection,
            place: Place::of(path),
            path: path.to_owned(),
            refills: true,
            // An upgrade may have left some.
            shrinks: true,
        })
    }

    /// Reads all pages of the ledger at `path`, and opens it.
    fn open_sound(path: &Path) -> Result<Self> {
        schema::check_pages(path)?;
        Self::open(path)
    }

    /// Writes `first`, and what comes until its sender is gone; `false` after a fault.
    fn write<T: OnDisk>(
        &mut self,
        mut first: Option<Vec<(Op, T)>>,
        ops: &mpsc::Receiver<Vec<(Op, T)>>,
        committed: &tokio_mpsc::UnboundedSender<Result<Committed<T>, Fault>>,
        attempts: &AtomicU64,
    ) -> bool {
        while let Some(mut batch) = first.take().or_else(|| self.next(ops)) {
            while batch.len() < BATCH
                && let Ok(next) = ops.try_recv()
            {
                batch.extend(next);
            }
            let forgets = |op: &Op| matches!(op, Op::Prune(_) | Op::Release { .. });
            self.shrinks |= batch.iter().any(|(op, _)| forgets(op));
            // A truncated log must not be written to, and a commit that no reader would find must
            // not be reported.
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
                        // The client may be ending, and not listen any more.
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

    /// Commits `batch`, and tries again while the disk is full or fails. What is not committed is
    /// not acknowledged either, so waiting loses nothing.
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

    /// Gives the log its size, if it is smaller. Without it commits only take longer.
    fn fill_log(&mut self) {
        if self.place.look() == Found::CopiedLog {
            self.refills = schema::fill_wal(&mut self.connection, &self.path).is_ok();
        }
    }

    /// Returns the next operations. While there are none, gives free pages back to the file system.
    fn next<T>(&mut self, ops: &mpsc::Receiver<Vec<(Op, T)>>) -> Option<Vec<(Op, T)>> {
        while self.shrinks {
            match ops.try_recv() {
                Ok(batch) => return Some(batch),
                Err(mpsc::TryRecvError::Disconnected) => return None,
                // After a failure, the next pruning tries again.
                Err(mpsc::TryRecvError::Empty) => {
                    self.shrinks = self.still_there().is_ok() && self.shrink().unwrap_or(false);
                }
            }
        }
        ops.recv().ok()
    }

    /// Gives some free pages back. Returns whether there are more.
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
        // Each row moves one page.
        while pages.next()?.is_some() {}
        // A ledger of an earlier version may not be able to.
        Ok(free()? < before)
    }

    /// Copies the log into the ledger. SQLite removes the log when the last connection closes.
    fn close(mut self) {
        if self.still_there().is_ok() {
            let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
            let copied = self.connection.query_row(sql, [], |_| Ok(()));
            let copied = copied.and_then(|()| schema::copy_log_on_close(&self.connection, true));
            if let Err(e) = copied {
                info!("the ledger's log stays: {e}");
            }
        }
    }

    /// Checks that later readers will find what was committed.
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
