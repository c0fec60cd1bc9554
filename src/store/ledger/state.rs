//! What the writer remembers between two transactions, so that it asks the tables less.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use crate::model::spec::Spec;

/// Number of specs that the ledger keeps without asking whether a unit carries them.
const SPARE_SPECS: i64 = 64;

/// What the writer remembers.
#[derive(Debug, Default)]
pub struct WriterState {
    /// The spec of the unit that came last, and its number.
    spec: Option<(Arc<Spec>, i64)>,
    /// The largest number that a message of the outbox has had. It is not given again while the
    /// client runs, which tells by it what it has read.
    message: i64,
}

impl WriterState {
    /// What the writer of a ledger that was just opened knows. A client reads the messages that an
    /// earlier one has left, and so their numbers are not given again either.
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

    /// Forgets what a transaction that was not committed has written.
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

    /// Deletes the specs that no unit carries, if there are many.
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

    /// The number of the next message of the outbox, if the table has none that is larger.
    pub(super) const fn next_message(&self) -> i64 {
        self.message + 1
    }

    /// Notes the number that a message of the outbox got.
    pub(super) fn message(&mut self, number: i64) {
        self.message = self.message.max(number);
    }
}
