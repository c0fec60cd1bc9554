//! The ledger: accepted events, their units, and messages that are not published yet.
//!
//! One SQLite file for each pipeline. All writes go through one thread, which commits everything
//! that waits as one transaction. Readers open the file themselves.

mod accept;
mod identity;
mod migrate;
mod network;
mod packets;
mod place;
mod prune;
mod read;
mod rows;
mod schema;
mod state;
mod write;
mod writer;

pub use accept::{Acceptance, Part, Refused};
pub use identity::{Again, EventKey, Known, Naming};
pub use prune::{Pruned, Retention};
pub use read::{Record, Totals};
pub use write::{Done, Heard, Op};
pub use writer::{Committed, Fault, Ledger, OnDisk};

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use crate::error::{Error, Result};
use crate::store::ledger::schema::Depth;

/// A message that waits to be published, and its place in the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    /// Its place; also its token while it is in flight.
    pub seq: u64,
    /// The message.
    pub message: crate::model::message::Message,
}

/// Returns the file of the ledger in the folder of a pipeline.
#[must_use]
pub fn file(pipeline: &Path) -> PathBuf {
    pipeline.join("ledger.db")
}

/// The ledger, opened beside its writer.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
}

impl Reader {
    /// Opens the ledger in folder `pipeline`.
    ///
    /// # Errors
    /// When there is none, or it cannot be read or is newer than this program.
    pub fn open(pipeline: &Path) -> Result<Self> {
        let path = file(pipeline);
        if !schema::check(&path, Depth::Head)? {
            return Err(Error::config(format!(
                "open ledger {}: it has an older version; its client upgrades it when it starts",
                path.display()
            )));
        }
        Self::of_writer(&path)
    }

    /// Opens the ledger `path`, which its writer has just checked.
    fn of_writer(path: &Path) -> Result<Self> {
        let connection = schema::connect(path, false)?;
        Ok(Self { connection })
    }

    /// Applies `op` from outside the client, as one transaction.
    ///
    /// # Errors
    /// When it cannot be committed.
    pub fn apply(&mut self, op: &Op) -> Result<Done> {
        let wrong = |e: rusqlite::Error| Error::cannot_create(format!("write to the ledger: {e}"));
        let transaction = self
            .connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .map_err(wrong)?;
        let mut state = state::WriterState::default();
        let done = write::apply(&transaction, &mut state, op).map_err(wrong)?;
        transaction.commit().map_err(wrong)?;
        // Without a client, the file alone must contain the change.
        schema::copy_log_on_close(&self.connection, true).map_err(wrong)?;
        Ok(done)
    }
}

#[cfg(test)]
mod tests;
