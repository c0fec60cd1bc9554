//! What is read from the ledger.

use bytes::Bytes;
use rusqlite::{OptionalExtension, Row, params};
use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::model::outcome::parse_outcome;
use crate::model::unit::{Outcome, State, Unit};
use crate::store::ledger::rows::read_message;
use crate::store::ledger::write::Heard;
use crate::store::ledger::writer::passes;
use crate::store::ledger::{Queued, Reader};

/// Maximum number of units that are read at once.
const PAGE: usize = 256;

/// A unit with what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its place in the order in which units came.
    pub seq: i64,
    /// The unit.
    pub unit: Unit,
    /// Its state.
    pub state: State,
    /// Boot under which it was handed to a runner.
    pub boot: Option<String>,
    /// When its event was accepted, milliseconds since the epoch; so are the following.
    pub accepted: i64,
    /// When its command was started.
    pub started: Option<i64>,
    /// When its end was booked.
    pub ended: Option<i64>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// For people.
    pub note: Option<String>,
}

/// How many events and units the ledger holds.
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

/// The columns of bounded size, in the order of [`record`]; those that are not follow.
const NARROW: &str = "seq, id, trigger, event, topic, reason, hops, traceparent, attempt, retry_of,
    due, state, boot, accepted, started, ended, outcome, note, command";

pub(super) fn wrong(e: rusqlite::Error) -> Error {
    let kind = if passes(&e) {
        Kind::TryAgain
    } else {
        Kind::CannotCreate
    };
    Error::new(kind, format!("read the ledger: {e}"))
}

/// A row of [`NARROW`], without what the unit needs to run.
fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let (state, outcome): (String, Option<String>) = (row.get(11)?, row.get(16)?);
    Ok(Record {
        seq: row.get(0)?,
        unit: Unit {
            id: row.get(1)?,
            trigger: row.get(2)?,
            event: row.get(3)?,
            topic: row.get(4)?,
            reason: row.get(5)?,
            hops: row.get(6)?,
            traceparent: row.get(7)?,
            attempt: row.get(8)?,
            retry_of: row.get(9)?,
            due: row.get(10)?,
            command: row.get(18)?,
            variables: Vec::new(),
            passthrough: serde_json::Map::new(),
            payload: None,
        },
        state: State::from_name(&state).ok_or_else(|| {
            let cause = format!("unknown state '{state}'");
            rusqlite::Error::FromSqlConversionFailure(11, rusqlite::types::Type::Text, cause.into())
        })?,
        boot: row.get(12)?,
        accepted: row.get(13)?,
        started: row.get(14)?,
        ended: row.get(15)?,
        outcome: outcome.and_then(|text| parse_outcome(text.as_bytes())),
        note: row.get(17)?,
    })
}

/// A row of [`NARROW`] with variables and what is passed through.
fn whole(row: &Row<'_>) -> rusqlite::Result<Record> {
    let mut record = record(row)?;
    let (variables, passthrough): (String, String) = (row.get(19)?, row.get(20)?);
    record.unit.variables = serde_json::from_str(&variables).unwrap_or_default();
    if let Ok(Value::Object(map)) = serde_json::from_str(&passthrough) {
        record.unit.passthrough = map;
    }
    Ok(record)
}

impl Reader {
    fn one(&self, which: &str, params: impl rusqlite::Params) -> Result<Option<Record>> {
        let sql = format!("SELECT {NARROW}, variables, passthrough FROM unit WHERE {which}");
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut query| query.query_row(params, whole).optional())
            .map_err(wrong)
    }

    /// The unit `id`, without its payload.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn unit(&self, id: &str) -> Result<Option<Record>> {
        self.one("id = ?1", params![id])
    }

    /// The payload of unit `id`; none if there is no such unit.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn payload(&self, id: &str) -> Result<Option<Bytes>> {
        let sql = "SELECT bytes FROM unit LEFT JOIN payload ON payload.id = unit.payload
                   WHERE unit.id = ?1";
        let bytes = |row: &Row<'_>| row.get::<_, Option<Vec<u8>>>(0);
        self.connection
            .prepare_cached(sql)
            .and_then(|mut query| query.query_row(params![id], bytes).optional())
            .map(|row| row.map(|bytes| Bytes::from(bytes.unwrap_or_default())))
            .map_err(wrong)
    }

    /// The bytes of the payloads of units that wait. Payloads that several units share count once
    /// for each.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn waiting_bytes(&self) -> Result<u64> {
        // The length of a blob is in its row's header.
        let sql = "SELECT coalesce(sum(length(bytes)), 0) FROM unit
                   JOIN payload ON payload.id = unit.payload WHERE state = 'pending'";
        self.connection
            .prepare_cached(sql)
            .and_then(|mut query| query.query_row([], |row| row.get::<_, i64>(0)))
            .map(i64::cast_unsigned)
            .map_err(wrong)
    }

    /// Whether there is a unit `id`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn holds(&self, id: &str) -> Result<bool> {
        self.connection
            .prepare_cached("SELECT 1 FROM unit WHERE id = ?1")
            .and_then(|mut query| query.exists(params![id]))
            .map_err(wrong)
    }

    /// Some units that came after the one at `seq`, oldest first, and none once there are no
    /// more; only those that have not ended if `live`. They lack variables, payload and what is
    /// passed through, so that a page has a bounded size. Nothing is held open between two
    /// pages: a reader that stays would keep the log from being copied.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn page(&self, seq: i64, live: bool) -> Result<Vec<Record>> {
        // The plus keeps SQLite from collecting all by state to sort them.
        let only = match live {
            true => "AND +state IN ('pending', 'running')",
            false => "",
        };
        let sql =
            format!("SELECT {NARROW} FROM unit WHERE seq > ?1 {only} ORDER BY seq LIMIT {PAGE}");
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut query| query.query_map(params![seq], record)?.collect())
            .map_err(wrong)
    }

    /// The unit that failed last, without its payload.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn last_failed(&self) -> Result<Option<Record>> {
        let last = "SELECT seq FROM unit WHERE +state = 'failed' AND ended IS NOT NULL
                    ORDER BY ended DESC, seq DESC LIMIT 1";
        self.one(&format!("seq = ({last})"), [])
    }

    /// The unit that ended last, of those that had begun, without its payload.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn last_ended(&self) -> Result<Option<Record>> {
        let last = "SELECT seq FROM unit WHERE ended IS NOT NULL AND outcome IS NOT NULL
                    ORDER BY ended DESC, seq DESC LIMIT 1";
        self.one(&format!("seq = ({last})"), [])
    }

    /// Whether the folder of unit `id` is to be removed.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn is_released(&self, id: &str) -> Result<bool> {
        self.connection
            .prepare_cached("SELECT 1 FROM released WHERE unit = ?1")
            .and_then(|mut query| query.exists(params![id]))
            .map_err(wrong)
    }

    /// Some units that were released and whose folders may still be there, in the order of their
    /// release, after the one at `seq`; with the place of each.
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

    /// What the triggers that wait for silence have heard.
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

    /// Messages that wait to be published, in order: those behind sequence number `after`, at most
    /// `rows`, and no more once they hold `bytes`. With them, how many there are behind these.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn outbox(&self, after: u64, rows: usize, bytes: usize) -> Result<(Vec<Queued>, u64)> {
        let sql = "SELECT seq, topic, payload, qos, retain, properties FROM outbox
                   WHERE seq > ?1 ORDER BY seq";
        let read = || {
            let mut query = self.connection.prepare_cached(sql)?;
            let mut found = query.query([after.cast_signed()])?;
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

    /// How many messages of the outbox are behind sequence number `seq`.
    fn behind(&self, seq: u64) -> rusqlite::Result<u64> {
        let sql = "SELECT count(*) FROM outbox WHERE seq > ?1";
        let mut query = self.connection.prepare_cached(sql)?;
        let count: i64 = query.query_row([seq.cast_signed()], |row| row.get(0))?;
        Ok(count.cast_unsigned())
    }

    /// What came before is known to the broker as acknowledged, milliseconds since the epoch.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn answered(&self) -> Result<i64> {
        self.connection
            .query_row("SELECT max(answered) FROM link", [], |row| row.get(0))
            .map_err(wrong)
    }

    /// When the last event was accepted, milliseconds since the epoch; 0 if none was.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn last_accepted(&self) -> Result<i64> {
        let sql = "SELECT coalesce(max(accepted), 0) FROM event";
        self.connection
            .query_row(sql, [], |row| row.get(0))
            .map_err(wrong)
    }

    /// Counts.
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
            outbox: count("SELECT count(*) FROM outbox")?,
            ..Totals::default()
        };
        let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let states: Vec<(String, i64)> = self
            .connection
            .prepare_cached("SELECT state, count(*) FROM unit GROUP BY state")
            .and_then(|mut query| query.query_map([], row)?.collect())
            .map_err(wrong)?;
        for (state, count) in states {
            let place = match State::from_name(&state) {
                Some(State::Pending) => &mut totals.pending,
                Some(State::Running) => &mut totals.running,
                Some(State::Succeeded) => &mut totals.succeeded,
                Some(State::Failed) => &mut totals.failed,
                Some(State::Canceled) => &mut totals.canceled,
                None => continue,
            };
            *place = count.cast_unsigned();
        }
        Ok(totals)
    }
}
