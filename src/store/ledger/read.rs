//! What is read from the ledger.

use bytes::Bytes;
use rusqlite::{OptionalExtension, Row, params};
use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::model::unit::{Outcome, State, Unit};
use crate::store::ledger::rows::read_message;
use crate::store::ledger::write::Heard;
use crate::store::ledger::writer::passes;
use crate::store::ledger::{Queued, Reader};
use crate::store::outcome::parse_outcome;

/// A unit with what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
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
    /// Units that were cancelled.
    pub canceled: u64,
    /// Events that were refused.
    pub refused: u64,
    /// Messages that wait to be published.
    pub outbox: u64,
}

const COLUMNS: &str = "id, trigger, event, topic, reason, hops, traceparent, attempt, due,
    variables, passthrough, payload, command, state, boot, accepted, started, ended, outcome, note,
    retry_of";

pub(super) fn wrong(e: rusqlite::Error) -> Error {
    let kind = if passes(&e) {
        Kind::TryAgain
    } else {
        Kind::CannotCreate
    };
    Error::new(kind, format!("read the ledger: {e}"))
}

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let (variables, passthrough): (String, String) = (row.get(9)?, row.get(10)?);
    let (state, outcome): (String, Option<String>) = (row.get(13)?, row.get(18)?);
    Ok(Record {
        unit: Unit {
            id: row.get(0)?,
            trigger: row.get(1)?,
            event: row.get(2)?,
            topic: row.get(3)?,
            reason: row.get(4)?,
            hops: row.get(5)?,
            traceparent: row.get(6)?,
            attempt: row.get(7)?,
            retry_of: row.get(20)?,
            due: row.get(8)?,
            variables: serde_json::from_str(&variables).unwrap_or_default(),
            passthrough: match serde_json::from_str(&passthrough) {
                Ok(Value::Object(map)) => map,
                _ => serde_json::Map::new(),
            },
            payload: Bytes::from(row.get::<_, Vec<u8>>(11)?),
            command: row.get(12)?,
        },
        state: State::from_name(&state).ok_or_else(|| {
            let cause = format!("unknown state '{state}'");
            rusqlite::Error::FromSqlConversionFailure(13, rusqlite::types::Type::Text, cause.into())
        })?,
        boot: row.get(14)?,
        accepted: row.get(15)?,
        started: row.get(16)?,
        ended: row.get(17)?,
        outcome: outcome.and_then(|text| parse_outcome(text.as_bytes())),
        note: row.get(19)?,
    })
}

impl Reader {
    /// The unit `id`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn unit(&self, id: &str) -> Result<Option<Record>> {
        let sql = format!("SELECT {COLUMNS} FROM unit WHERE id = ?1");
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut query| query.query_row(params![id], record).optional())
            .map_err(wrong)
    }

    /// All units, oldest first, without their payloads; only those that have not ended if
    /// `live`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn units(&self, live: bool) -> Result<Vec<Record>> {
        let only = if live {
            "WHERE state IN ('pending', 'running')"
        } else {
            ""
        };
        let columns = COLUMNS.replace("payload", "x''");
        let sql = format!("SELECT {columns} FROM unit {only} ORDER BY seq");
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut query| query.query_map([], record)?.collect())
            .map_err(wrong)
    }

    /// The unit that failed last.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn last_failed(&self) -> Result<Option<Record>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM unit WHERE state = 'failed' ORDER BY ended DESC, seq DESC"
        );
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut query| query.query_row([], record).optional())
            .map_err(wrong)
    }

    /// The unit that ended last, of those that had begun.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn last_ended(&self) -> Result<Option<Record>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM unit WHERE ended IS NOT NULL AND outcome IS NOT NULL
             ORDER BY ended DESC, seq DESC LIMIT 1"
        );
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut query| query.query_row([], record).optional())
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

    /// Messages that wait to be published, in order.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn outbox(&self) -> Result<Vec<Queued>> {
        let sql = "SELECT seq, topic, payload, qos, retain, properties FROM outbox ORDER BY seq";
        self.connection
            .prepare_cached(sql)
            .and_then(|mut query| query.query_map([], read_message)?.collect())
            .map_err(wrong)
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
        Ok(Totals {
            pending: count("SELECT count(*) FROM unit WHERE state = 'pending'")?,
            running: count("SELECT count(*) FROM unit WHERE state = 'running'")?,
            succeeded: count("SELECT count(*) FROM unit WHERE state = 'succeeded'")?,
            failed: count("SELECT count(*) FROM unit WHERE state = 'failed'")?,
            canceled: count("SELECT count(*) FROM unit WHERE state = 'canceled'")?,
            refused: count("SELECT count(*) FROM event WHERE refusal IS NOT NULL")?,
            outbox: count("SELECT count(*) FROM outbox")?,
        })
    }
}
