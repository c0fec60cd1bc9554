//! Units as the ledger holds them.

use std::cell::RefCell;
use std::sync::Arc;

use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};
use serde_json::Value;

use crate::model::outcome::parse_outcome;
use crate::model::spec::Spec;
use crate::model::unit::{Outcome, State, Unit};
use crate::model::work::node_of_lane;
use crate::store::ledger::rows::read_state;

/// A unit, and what the ledger knows about its run.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Number in the order of units.
    pub seq: i64,
    /// The unit.
    pub unit: Unit,
    /// Its state.
    pub state: State,
    /// Boot under which it was handed to a runner.
    pub boot: Option<String>,
    /// When its event was accepted, milliseconds since 1970; also the unit of the following times.
    pub accepted: i64,
    /// When its command was started.
    pub started: Option<i64>,
    /// When its end was booked.
    pub ended: Option<i64>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Note for people.
    pub note: Option<String>,
}

impl Record {
    /// Returns the state that people read: another node that has the unit may let it wait.
    #[must_use]
    pub fn shown_state(&self) -> State {
        match (self.state, node_of_lane(self.unit.lane()), self.started) {
            (State::Running, Some(_), None) => State::Pending,
            (state, ..) => state,
        }
    }
}

/// Finds the last retry of a unit. A retry comes after its unit, which has mostly ended a short time
/// ago.
pub(super) const RETRY_OF: &str = "SELECT id FROM unit WHERE retry_of = ?1
     AND seq > (SELECT seq FROM unit WHERE id = ?1) ORDER BY seq DESC LIMIT 1";

/// Columns of bounded size, in the order of [`record`]; the others follow.
pub(super) const NARROW: &str =
    "seq, id, spec, event, topic, reason, hops, traceparent, attempt, retry_of, due,
    state, boot, accepted, started, ended, outcome, note";

/// The last spec that was read, and its number: units in sequence mostly share it.
#[derive(Debug, Default)]
pub(super) struct LastSpec(RefCell<Option<(i64, Arc<Spec>)>>);

impl LastSpec {
    /// Returns the spec of this number.
    fn get(&self, connection: &Connection, number: i64) -> rusqlite::Result<Arc<Spec>> {
        if let Some((last, spec)) = &*self.0.borrow()
            && *last == number
        {
            return Ok(Arc::clone(spec));
        }
        let sql = "SELECT content FROM spec WHERE id = ?1";
        let mut query = connection.prepare_cached(sql)?;
        let content: String = query.query_row(params![number], |row| row.get(0))?;
        let spec: Spec = serde_json::from_str(&content)
            .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, e.into()))?;
        let spec = Arc::new(spec);
        self.0.replace(Some((number, Arc::clone(&spec))));
        Ok(spec)
    }
}

/// Reads a row of [`NARROW`], without the data for the command.
pub(super) fn record(
    connection: &Connection,
    specs: &LastSpec,
    row: &Row<'_>,
) -> rusqlite::Result<Record> {
    let outcome: Option<String> = row.get(16)?;
    Ok(Record {
        seq: row.get(0)?,
        unit: Unit {
            id: row.get(1)?,
            spec: specs.get(connection, row.get(2)?)?,
            event: row.get(3)?,
            topic: row.get(4)?,
            reason: row.get(5)?,
            hops: row.get(6)?,
            traceparent: row.get(7)?,
            attempt: row.get(8)?,
            retry_of: row.get(9)?,
            due: row.get(10)?,
            variables: Vec::new(),
            passthrough: serde_json::Map::new(),
            payload: None,
            reply: None,
            origin: None,
            work: None,
        },
        state: read_state(row, 11)?,
        boot: row.get(12)?,
        accepted: row.get(13)?,
        started: row.get(14)?,
        ended: row.get(15)?,
        outcome: outcome.and_then(|text| parse_outcome(text.as_bytes())),
        note: row.get(17)?,
    })
}

/// The columns of [`NARROW`], variables, passthrough attributes, the address of answers, submitted work, and the message
/// of a queue.
pub(super) const WHOLE: &str = "seq, unit.id, spec, event, topic, reason, hops, traceparent, attempt,
    retry_of, due, state, boot, accepted, started, ended, outcome, note, variables, passthrough, reply, work,
    origin";

/// Reads a row of [`WHOLE`].
pub(super) fn whole(
    connection: &Connection,
    specs: &LastSpec,
    row: &Row<'_>,
) -> rusqlite::Result<Record> {
    let mut record = record(connection, specs, row)?;
    let (variables, passthrough): (String, String) = (row.get(18)?, row.get(19)?);
    record.unit.variables = serde_json::from_str(&variables).unwrap_or_default();
    if let Ok(Value::Object(map)) = serde_json::from_str(&passthrough) {
        record.unit.passthrough = map;
    }
    let reply: Option<String> = row.get(20)?;
    record.unit.reply = reply.and_then(|text| serde_json::from_str(&text).ok());
    let work: Option<String> = row.get(21)?;
    record.unit.work = work
        .and_then(|text| serde_json::from_str(&text).ok())
        .map(Arc::new);
    let origin: Option<String> = row.get(22)?;
    record.unit.origin = origin
        .and_then(|text| serde_json::from_str(&text).ok())
        .map(Arc::new);
    Ok(record)
}
