//! Memory of the writer between two transactions, to save queries.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use crate::model::spec::Spec;

/// Number of specs that the ledger keeps without checking whether a unit carries them.
const SPARE_SPECS: i64 = 64;

/// Memory of the writer.
#[derive(Debug, Default)]
pub struct WriterState {
    /// Spec of the last unit, and its number.
    spec: Option<(Arc<Spec>, i64)>,
    /// Largest number of a message of the outbox so far. It is not used again while the client
    /// runs, which tells from it what it has read.
    message: i64,
}

impl WriterState {
    /// Returns the state for a ledger that was just opened. The client reads the messages of an
    /// earlier one, so their numbers are not used again either.
    ///
    /// # Errors
    /// As SQLite.
    pub fn of(connection: &Connection) -> rusqlite::Result<Self> {
        let sql = "SELECT coalesce(max(seq), 0) FROM outbox";
        let message = connection.query_row(sql, [], |row| row.get(0))?;
        Ok(Self {
            spec: None,
            message,
        })
    }

    /// Forgets what a transaction that was rolled back has written.
    pub fn rolled_back(&mut self) {
        self.spec = None;
    }

    /// Returns the number of `spec`, which is stored once for all units that carry it.
    ///
    /// # Errors
    /// As SQLite.
    pub(super) fn spec(&mut self, tx: &Connection, spec: &Arc<Spec>) -> rusqlite::Result<i64> {
        if let Some((last, number)) = &self.spec
            && Arc::ptr_eq(last, spec)
        {
            return Ok(*number);
        }
        let content = serde_json::to_string(&**spec)
            .map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
        let mut query = tx.prepare_cached("SELECT id FROM spec WHERE content = ?1")?;
        let known = query.query_row(params![content], |row| row.get(0));
        let number = match known.optional()? {
            Some(number) => number,
            None => tx
                .prepare_cached("INSERT INTO spec (content) VALUES (?1)")?
                .insert(params![content])?,
        };
        self.spec = Some((Arc::clone(spec), number));
        Ok(number)
    }

    /// Deletes specs that no unit carries, if there are many.
    ///
    /// # Errors
    /// As SQLite.
    pub(super) fn forget_specs(&mut self, tx: &Connection) -> rusqlite::Result<()> {
        let count = "SELECT count(*) FROM spec";
        let count: i64 = tx.prepare_cached(count)?.query_row([], |row| row.get(0))?;
        if count > SPARE_SPECS {
            self.spec = None;
            let sql = "DELETE FROM spec WHERE id NOT IN (SELECT spec FROM unit)";
            tx.prepare_cached(sql)?.execute([])?;
        }
        Ok(())
    }

    /// Returns the number of the next message of the outbox, if the table has no larger one.
    pub(super) const fn next_message(&self) -> i64 {
        self.message + 1
    }

    /// Notes the number of a message of the outbox.
    pub(super) fn message(&mut self, number: i64) {
        self.message = self.message.max(number);
    }
}
