//! Reads the ledger.

use std::path::Path;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};

use crate::error::{Error, Result};
use crate::model::message::Route;
use crate::model::unit::State;
use crate::store::ledger::failure::wrong;
use crate::store::ledger::identity::{self, EventKey, Known, Naming};
use crate::store::ledger::records::{LastSpec, NARROW, RETRY_OF, Record, WHOLE, record, whole};
use crate::store::ledger::rows::{Queued, read_message, read_payload, read_state};
use crate::store::ledger::schema::{self, file};
use crate::store::ledger::state::WriterState;
use crate::store::ledger::write::{Done, Heard, Op, apply};

/// Maximum number of units to read at once.
const PAGE: usize = 256;

/// Number of units among which those of an event are looked for, as no index has them.
const RECENT: i64 = 256;

/// Numbers of events and units in the ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Units that wait.
    pub pending: u64,
    /// Units that run.
    pub running: u64,
    /// Units that ended with 0.
    pub succeeded: u64,
    /// Units that ended otherwise.
    pub failed: u64,
    /// Units that were canceled.
    pub canceled: u64,
    /// Events that were refused.
    pub refused: u64,
    /// Messages that wait to be published.
    pub outbox: u64,
}

/// Returns the question for a unit, by its id, with its payload.
pub(super) fn with_payload() -> String {
    format!(
        "SELECT {WHOLE}, body, bytes FROM unit LEFT JOIN payload ON payload.id = unit.payload
         WHERE unit.id = ?1"
    )
}

/// The ledger, opened beside its writer.
#[derive(Debug)]
pub struct Reader {
    pub(super) connection: Connection,
    pub(super) specs: LastSpec,
}

impl Reader {
    /// Opens the ledger in folder `pipeline`.
    ///
    /// # Errors
    /// When there is none, or it cannot be read or is newer than this program.
    pub fn open(pipeline: &Path) -> Result<Self> {
        let path = file(pipeline);
        let looked = schema::check(&path)?;
        if !looked.current {
            return Err(Error::config(format!(
                "open ledger {}: it has an older version; its client upgrades it when it starts",
                path.display()
            )));
        }
        Self::of_writer(&path)
    }

    /// Opens the ledger `path`, which its writer has just checked.
    pub(super) fn of_writer(path: &Path) -> Result<Self> {
        Ok(Self {
            connection: schema::connect(path, false)?,
            specs: LastSpec::default(),
        })
    }

    /// Applies `op` from outside the client, as one transaction. It looks for damage first: without a
    /// client, no process has done so.
    ///
    /// # Errors
    /// When the ledger is damaged, or it cannot be committed; it is unchanged then.
    pub fn apply(&mut self, op: &Op) -> Result<Done> {
        if let Some(path) = self.connection.path() {
            schema::check_pages(Path::new(path))?;
        }
        let wrong = |e: rusqlite::Error| Error::cannot_create(format!("write to the ledger: {e}"));
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(wrong)?;
        let mut state = WriterState::default();
        let done = apply(&transaction, &mut state, op).map_err(wrong)?;
        transaction.commit().map_err(wrong)?;
        // Without a client, the file alone must contain the change.
        schema::copy_log_on_close(&self.connection, true).map_err(wrong)?;
        Ok(done)
    }

    fn one(&self, which: &str, params: impl rusqlite::Params) -> Result<Option<Record>> {
        let sql = format!("SELECT {WHOLE} FROM unit WHERE {which}");
        let record = |row: &Row<'_>| whole(&self.connection, &self.specs, row);
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut query| query.query_row(params, record).optional())
            .map_err(wrong)
    }

    /// Returns the unit `id`, without its payload.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn unit(&self, id: &str) -> Result<Option<Record>> {
        self.one("id = ?1", params![id])
    }

    /// Returns the id of the last retry of unit `id`, if it has one.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn retry_of(&self, id: &str) -> Result<Option<String>> {
        self.connection
            .prepare_cached(RETRY_OF)
            .and_then(|mut query| query.query_row(params![id], |row| row.get(0)).optional())
            .map_err(wrong)
    }

    /// Returns the payload of unit `id`; `None` if there is no such unit.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn payload(&self, id: &str) -> Result<Option<Bytes>> {
        let sql = "SELECT body, bytes FROM unit LEFT JOIN payload ON payload.id = unit.payload
                   WHERE unit.id = ?1";
        self.connection
            .prepare_cached(sql)
            .and_then(|mut query| {
                let payload = |row: &Row<'_>| read_payload(row, 0);
                query.query_row(params![id], payload).optional()
            })
            .map_err(wrong)
    }

    /// The unit `id` with its payload, as a runner needs it.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn unit_with_payload(&self, id: &str) -> Result<Option<Record>> {
        let record = |row: &Row<'_>| {
            let mut record = whole(&self.connection, &self.specs, row)?;
            record.unit.payload = Some(read_payload(row, 23)?);
            Ok(record)
        };
        self.connection
            .prepare_cached(&with_payload())
            .and_then(|mut query| query.query_row(params![id], record).optional())
            .map_err(wrong)
    }

    /// Returns the bytes of the payloads of units that wait. A shared payload counts once for each
    /// unit.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn waiting_bytes(&self) -> Result<u64> {
        // The header of a row contains the length of a blob.
        let sql = "SELECT coalesce(sum(coalesce(length(body), length(bytes))), 0) FROM unit
                   LEFT JOIN payload ON payload.id = unit.payload
                   WHERE ended IS NULL AND state = 'pending'";
        self.connection
            .prepare_cached(sql)
            .and_then(|mut query| query.query_row([], |row| row.get::<_, i64>(0)))
            .map(i64::cast_unsigned)
            .map_err(wrong)
    }

    /// Returns the number of units that wait.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn waiting(&self) -> Result<u64> {
        let sql = "SELECT count(*) FROM unit WHERE ended IS NULL AND state = 'pending'";
        self.connection
            .prepare_cached(sql)
            .and_then(|mut query| query.query_row([], |row| row.get::<_, i64>(0)))
            .map(i64::cast_unsigned)
            .map_err(wrong)
    }

    /// Returns whether there is a unit `id`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn holds(&self, id: &str) -> Result<bool> {
        self.connection
            .prepare_cached("SELECT 1 FROM unit WHERE id = ?1")
            .and_then(|mut query| query.exists(params![id]))
            .map_err(wrong)
    }

    /// Returns the unit that has not ended, of unit `id` and its retries.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn unfinished(&self, id: &str) -> Result<Option<String>> {
        // An index has the few units that have not ended, and none has what retries a unit.
        let sql = "WITH RECURSIVE line (live, id) AS (
                       SELECT id, id FROM unit
                       WHERE ended IS NULL AND (id = ?1 OR retry_of IS NOT NULL)
                       UNION ALL
                       SELECT live, retry_of FROM line JOIN unit USING (id)
                       WHERE retry_of IS NOT NULL)
                   SELECT live FROM line WHERE id = ?1 LIMIT 1";
        self.connection
            .prepare_cached(sql)
            .and_then(|mut query| query.query_row(params![id], |row| row.get(0)).optional())
            .map_err(wrong)
    }

    /// Returns some units in `state`, which is not an end, after the one at `seq`, oldest first, and
    /// none after the last. They lack variables, payload and passthrough attributes, so that a page has
    /// a bounded size. Nothing stays open between two pages: a long-lived reader would keep the log
    /// from being copied.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn live_page(&self, state: State, seq: i64) -> Result<Vec<Record>> {
        let sql = format!(
            "SELECT {NARROW} FROM unit WHERE ended IS NULL AND state = ?1 AND seq > ?2
             ORDER BY seq LIMIT {PAGE}"
        );
        self.records(&sql, params![state.name(), seq])
    }

    fn records(&self, sql: &str, params: impl rusqlite::Params) -> Result<Vec<Record>> {
        let record = |row: &Row<'_>| record(&self.connection, &self.specs, row);
        self.connection
            .prepare_cached(sql)
            .and_then(|mut query| query.query_map(params, record)?.collect())
            .map_err(wrong)
    }

    /// Returns those of the sorted `ids` that are not units of the ledger.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn unknown<'a>(&self, ids: &'a [String]) -> Result<Vec<&'a str>> {
        let Some(first) = ids.first() else {
            return Ok(Vec::new());
        };
        let find = || {
            let sql = "SELECT id FROM unit WHERE id >= ?1 ORDER BY id";
            let mut query = self.connection.prepare_cached(sql)?;
            let mut rows = query.query(params![first])?;
            let (mut unknown, mut left) = (Vec::new(), ids);
            while !left.is_empty() {
                let Some(row) = rows.next()? else {
                    unknown.extend(left.iter().map(String::as_str));
                    break;
                };
                let known = row.get_ref(0)?.as_str()?;
                let smaller = left.partition_point(|id| id.as_str() < known);
                let (gone, same) = left.split_at(smaller);
                unknown.extend(gone.iter().map(String::as_str));
                left = match same {
                    [id, rest @ ..] if id == known => rest,
                    other => other,
                };
            }
            Ok(unknown)
        };
        find().map_err(wrong)
    }

    /// Returns the unit that failed last, without its payload.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn last_failed(&self) -> Result<Option<Record>> {
        let last = "SELECT seq FROM unit WHERE state = 'failed' AND ended IS NOT NULL
                    ORDER BY ended DESC, seq DESC LIMIT 1";
        self.one(&format!("seq = ({last})"), [])
    }

    /// Returns the unit that ended last, of those that had begun, without its payload.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn last_ended(&self) -> Result<Option<Record>> {
        // In the order of the index, so that it reads one row.
        let last = "SELECT seq FROM unit WHERE ended IS NOT NULL AND outcome IS NOT NULL
                    ORDER BY ended DESC, state DESC, seq DESC LIMIT 1";
        self.one(&format!("seq = ({last})"), [])
    }

    /// Returns when the last run ended that succeeded, milliseconds since 1970.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn last_success(&self) -> Result<Option<i64>> {
        // The index alone answers.
        let sql = "SELECT ended FROM unit WHERE ended IS NOT NULL AND state = 'succeeded'
                   ORDER BY ended DESC LIMIT 1";
        self.connection
            .prepare_cached(sql)
            .and_then(|mut query| query.query_row([], |row| row.get(0)).optional())
            .map_err(wrong)
    }

    /// Returns whether the folder of unit `id` can be removed.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn is_released(&self, id: &str) -> Result<bool> {
        self.connection
            .prepare_cached("SELECT 1 FROM released WHERE unit = ?1")
            .and_then(|mut query| query.exists(params![id]))
            .map_err(wrong)
    }

    /// Returns some released units whose folders may still exist, in the order of their release,
    /// after the one at `seq`; with the place of each.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn released(&self, seq: i64, limit: usize) -> Result<Vec<(i64, String)>> {
        let sql = "SELECT seq, unit FROM released WHERE seq > ?1 ORDER BY seq LIMIT ?2";
        let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.connection
            .prepare_cached(sql)
            .and_then(|mut query| query.query_map(params![seq, limit], row)?.collect())
            .map_err(wrong)
    }

    /// Returns what triggers that wait for silence have heard.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn heard(&self) -> Result<Vec<Heard>> {
        let row = |row: &Row<'_>| {
            Ok(Heard {
                trigger: row.get(0)?,
                at: row.get(1)?,
                fired: row.get(2)?,
            })
        };
        self.connection
            .prepare_cached("SELECT trigger, heard, fired FROM silence")
            .and_then(|mut query| query.query_map([], row)?.collect())
            .map_err(wrong)
    }

    /// Returns the last units of an event, newest first, two at most. Older ones than the last
    /// [`RECENT`] are not found.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn recent_units_of(&self, event: &str) -> Result<Vec<String>> {
        let sql = "SELECT id FROM (SELECT id, event FROM unit ORDER BY seq DESC LIMIT ?2)
                   WHERE event = ?1 LIMIT 2";
        self.connection
            .prepare_cached(sql)
            .and_then(|mut query| {
                query
                    .query_map(params![event, RECENT], |row| row.get(0))?
                    .collect()
            })
            .map_err(wrong)
    }

    /// Returns messages to publish, in order: those after sequence number `after`, at most `rows`,
    /// and none beyond `bytes`. Also returns how many follow.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn outbox(&self, after: u64, rows: usize, bytes: usize) -> Result<(Vec<Queued>, u64)> {
        let sql = "SELECT seq, topic, payload, qos, retain, properties FROM outbox
                   WHERE seq > ?1 AND route = ?2 ORDER BY seq";
        let read = || {
            let mut query = self.connection.prepare_cached(sql)?;
            let route = Route::Broker.name();
            let mut found = query.query(params![after.cast_signed(), route])?;
            let (mut list, mut held) = (Vec::new(), 0);
            while list.len() < rows
                && held < bytes
                && let Some(row) = found.next()?
            {
                let queued: Queued = read_message(row)?;
                held += queued.message.memory();
                list.push(queued);
            }
            let last = list.last().map_or(after, |queued| queued.seq);
            Ok((list, self.behind(last)?))
        };
        read().map_err(wrong)
    }

    /// Returns how many messages for the broker follow sequence number `seq` in the outbox.
    fn behind(&self, seq: u64) -> rusqlite::Result<u64> {
        let sql = "SELECT count(*) FROM outbox WHERE seq > ?1 AND route = ?2";
        let mut query = self.connection.prepare_cached(sql)?;
        let row = params![seq.cast_signed(), Route::Broker.name()];
        let count: i64 = query.query_row(row, |row| row.get(0))?;
        Ok(count.cast_unsigned())
    }

    /// Returns the size of the payloads of the messages to publish, bytes.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn outbox_bytes(&self) -> Result<u64> {
        // The header of a row contains the length of a blob.
        let sql = "SELECT coalesce(sum(length(payload)), 0) FROM outbox WHERE route = ?1";
        self.connection
            .prepare_cached(sql)
            .and_then(|mut query| {
                query.query_row([Route::Broker.name()], |row| row.get::<_, i64>(0))
            })
            .map(i64::cast_unsigned)
            .map_err(wrong)
    }

    /// Returns the number of messages to publish.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn waiting_messages(&self) -> Result<u64> {
        self.behind(0).map_err(wrong)
    }

    /// Returns the time before which the broker knows all acknowledgements, milliseconds since
    /// 1970.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn answered(&self) -> Result<i64> {
        self.connection
            .query_row("SELECT max(answered) FROM link", [], |row| row.get(0))
            .map_err(wrong)
    }

    /// Returns when the last event was accepted, milliseconds since 1970; 0 if none was.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn last_accepted(&self) -> Result<i64> {
        let sql = "SELECT accepted FROM event ORDER BY seq DESC LIMIT 1";
        let last = self.connection.query_row(sql, [], |row| row.get(0));
        last.optional()
            .map(Option::unwrap_or_default)
            .map_err(wrong)
    }

    /// Returns the numbers of units and events.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn totals(&self) -> Result<Totals> {
        let count = |sql: &str| -> Result<u64> {
            self.connection
                .prepare_cached(sql)
                .and_then(|mut query| query.query_row([], |row| row.get::<_, i64>(0)))
                .map(i64::cast_unsigned)
                .map_err(wrong)
        };
        let mut totals = Totals {
            refused: count("SELECT count(*) FROM event WHERE refusal IS NOT NULL")?,
            outbox: self.waiting_messages()?,
            ..Totals::default()
        };
        // An index alone answers each.
        for which in ["IS NULL", "IS NOT NULL"] {
            let sql =
                format!("SELECT state, count(*) FROM unit WHERE ended {which} GROUP BY state");
            let row = |row: &Row<'_>| Ok((read_state(row, 0)?, row.get(1)?));
            let states: Vec<(State, i64)> = self
                .connection
                .prepare_cached(&sql)
                .and_then(|mut query| query.query_map([], row)?.collect())
                .map_err(wrong)?;
            for (state, count) in states {
                let place = match state {
                    State::Pending => &mut totals.pending,
                    State::Running => &mut totals.running,
                    State::Succeeded => &mut totals.succeeded,
                    State::Failed => &mut totals.failed,
                    State::Canceled => &mut totals.canceled,
                };
                *place = count.cast_unsigned();
            }
        }
        Ok(totals)
    }

    /// Returns the event of `key`, a request, if the ledger knows it.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn known_request(&self, key: &EventKey) -> Result<Option<Known>> {
        identity::known(&self.connection, key, "", "").map_err(wrong)
    }

    /// Returns the last id of a sender, in the order of bytes, from `from` and before `to`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn latest_sender(&self, from: &str, to: &str) -> Result<Option<String>> {
        identity::latest_sender(&self.connection, from, to).map_err(wrong)
    }

    /// Returns whether the id of a sender can name an event here.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn naming(&self, sender: &str, digest: &[u8; 32]) -> Result<Naming> {
        identity::naming(&self.connection, sender, digest).map_err(wrong)
    }
}
