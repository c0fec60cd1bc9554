//! Rows of the tables of units and messages.

use bytes::Bytes;
use rusqlite::types::{Type, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::model::message::{Message, Properties, Qos, Route};
use crate::model::unit::{State, Unit};
use crate::model::variables::Value;
use crate::model::work::Work;
use crate::store::ledger::state::WriterState;

/// Maximum size of a payload in the row of its unit, bytes. It then needs no page of its own in the
/// log. Larger ones have a table, so that queries for units do not read past them.
const MAX_BODY: usize = 1024;

/// A message that waits to be published, and its place in the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    /// Its place; also its token while it is in flight.
    pub seq: u64,
    /// The message.
    pub message: Message,
}

/// Place of a payload.
#[derive(Debug, Clone, Default)]
pub(super) struct Stored {
    /// Its number in the table of payloads, if it is there.
    number: Option<i64>,
    /// Its bytes in the row of the unit, if they are there.
    body: Option<Vec<u8>>,
}

/// Circumstances of a new unit.
pub(super) struct Entry<'a> {
    pub state: State,
    /// The boot of the host under which a runner gets it.
    pub boot: Option<&'a str>,
    /// When it is accepted, milliseconds since 1970.
    pub at: i64,
}

/// Adds `unit`. A large payload is stored once. A retry refers to that of its first unit. The units
/// of one event refer to the payload in `shared`, or put it there.
pub(super) fn insert_unit(
    tx: &Connection,
    state: &mut WriterState,
    unit: &Unit,
    entry: &Entry<'_>,
    shared: &mut Option<Stored>,
) -> rusqlite::Result<()> {
    let stored = match shared.take() {
        Some(stored) => stored,
        None => match stored_of(tx, unit.retry_of.as_deref())? {
            Some(stored) => stored,
            None => {
                let file = unit.work.as_deref().and_then(Work::file_name);
                store_payload(tx, unit.payload.as_deref().unwrap_or_default(), file)?
            }
        },
    };
    let spec = state.spec(tx, &unit.spec)?;
    let sql = "INSERT INTO unit
                   (id, spec, event, topic, reason, hops, traceparent, attempt, retry_of, due, state,
                    boot, accepted, payload, reply, variables, passthrough, body, work, origin)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17,
                    ?18, ?19, ?20)";
    tx.prepare_cached(sql)?.execute(params![
        unit.id,
        spec,
        unit.event,
        unit.topic,
        unit.reason,
        unit.hops,
        unit.traceparent,
        unit.attempt,
        unit.retry_of,
        unit.due,
        entry.state.name(),
        entry.boot,
        entry.at,
        stored.number,
        unit.reply.as_ref().map(|reply| json!(reply).to_string()),
        variables_text(unit),
        passthrough_text(unit),
        stored.body,
        unit.work.as_ref().map(|work| json!(**work).to_string()),
        unit.origin
            .as_ref()
            .map(|origin| json!(**origin).to_string()),
    ])?;
    *shared = Some(stored);
    Ok(())
}

fn variables_text(unit: &Unit) -> String {
    json!(unit.variables).to_string()
}

fn passthrough_text(unit: &Unit) -> String {
    serde_json::Value::Object(unit.passthrough.clone()).to_string()
}

/// Writes the variables and the passthrough attributes of `unit`, whose number is `seq`.
pub(super) fn write_environment(tx: &Connection, seq: i64, unit: &Unit) -> rusqlite::Result<()> {
    let sql = "UPDATE unit SET variables = ?2, passthrough = ?3 WHERE seq = ?1";
    let row = params![seq, variables_text(unit), passthrough_text(unit)];
    tx.prepare_cached(sql)?.execute(row).map(drop)
}

/// Returns where the payload of unit `id` is stored, if there is such a unit.
fn stored_of(tx: &Connection, id: Option<&str>) -> rusqlite::Result<Option<Stored>> {
    let Some(id) = id else {
        return Ok(None);
    };
    let stored = |row: &Row<'_>| {
        Ok(Stored {
            number: row.get(0)?,
            body: row.get(1)?,
        })
    };
    tx.prepare_cached("SELECT payload, body FROM unit WHERE id = ?1")?
        .query_row(params![id], stored)
        .optional()
}

/// Stores the payload of a new unit. A large one goes into its table, under the number of the unit;
/// so does the name of a `file` that holds it.
fn store_payload(tx: &Connection, bytes: &[u8], file: Option<&str>) -> rusqlite::Result<Stored> {
    if bytes.is_empty() && file.is_none() {
        return Ok(Stored::default());
    }
    if bytes.len() <= MAX_BODY && file.is_none() {
        return Ok(Stored {
            number: None,
            body: Some(bytes.to_vec()),
        });
    }
    let sql = "SELECT coalesce(max(seq), 0) + 1 FROM unit";
    let seq: i64 = tx.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    // A number that is free among units is free here: every unit that refers to a payload came with
    // it or later.
    let sql = "INSERT OR REPLACE INTO payload (id, bytes, file) VALUES (?1, ?2, ?3)";
    tx.prepare_cached(sql)?.execute(params![seq, bytes, file])?;
    Ok(Stored {
        number: Some(seq),
        body: None,
    })
}

/// Prefix of the mark of a released payload file. Other marks are ids of units.
pub(super) const FILE_MARK: &str = "payload-";

/// Returns the name of the payload file that a mark is about; `None` if it is about a unit.
#[must_use]
pub fn released_file(mark: &str) -> Option<&str> {
    mark.strip_prefix(FILE_MARK)
}

/// Deletes the unit of this number, marks its folder as released, and deletes the payload unless
/// another unit shares it; a file of the payload is marked as released as well. Returns the id of
/// the unit.
pub(super) fn delete_unit(tx: &Connection, seq: i64) -> rusqlite::Result<String> {
    let sql = "DELETE FROM unit WHERE seq = ?1 RETURNING id, payload";
    let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let (id, payload): (String, Option<i64>) =
        tx.prepare_cached(sql)?.query_row(params![seq], row)?;
    let sql = "DELETE FROM payload WHERE id = ?1
               AND NOT EXISTS (SELECT 1 FROM unit WHERE seq = ?1 AND payload = ?1)
               AND NOT EXISTS (SELECT 1 FROM unit WHERE payload = ?1 AND payload <> seq)
               RETURNING file";
    let mut file = None;
    if let Some(payload) = payload {
        let mut delete = tx.prepare_cached(sql)?;
        let deleted = delete.query_row(params![payload], |row| row.get::<_, Option<String>>(0));
        file = deleted.optional()?.flatten();
    }
    // Its message came too long ago to come again.
    let sql = "DELETE FROM queue_open WHERE unit = ?1";
    tx.prepare_cached(sql)?.execute(params![id])?;
    let sql = "INSERT OR IGNORE INTO released (unit) VALUES (?1)";
    let mut mark = tx.prepare_cached(sql)?;
    mark.execute(params![id])?;
    if let Some(file) = file {
        mark.execute(params![format!("{FILE_MARK}{file}")])?;
    }
    Ok(id)
}

/// Adds messages for the broker to the outbox.
pub(super) fn post_all(
    tx: &Connection,
    state: &mut WriterState,
    messages: &[Message],
) -> rusqlite::Result<Vec<Queued>> {
    if messages.is_empty() {
        return Ok(Vec::new());
    }
    let sql = "INSERT INTO outbox (seq, route, topic, payload, qos, retain, properties)
               VALUES (max(?1, (SELECT coalesce(max(seq), 0) + 1 FROM outbox)), ?2, ?3, ?4, ?5, ?6,
                    ?7)";
    let mut insert = tx.prepare_cached(sql)?;
    messages
        .iter()
        .map(|message| {
            let seq = insert.insert(params![
                state.next_message(),
                Route::Broker.name(),
                message.topic,
                &message.payload[..],
                message.qos as u8,
                message.retain,
                properties_text(&message.properties),
            ])?;
            state.message(seq);
            Ok(Queued {
                seq: seq.cast_unsigned(),
                message: message.clone(),
            })
        })
        .collect()
}

/// Properties of a message with correlation data, as the outbox has them. Those of others are a list of
/// their user properties.
#[derive(Serialize, Deserialize)]
struct Correlated {
    user: Vec<(String, String)>,
    correlation: Value,
}

fn properties_text(properties: &Properties) -> String {
    match &properties.correlation_data {
        None => json!(properties.user).to_string(),
        Some(data) => json!(Correlated {
            user: properties.user.clone(),
            correlation: data.to_vec().into(),
        })
        .to_string(),
    }
}

/// Reads what [`properties_text`] has written.
fn read_properties(text: &str) -> Properties {
    let (user, correlation_data) = match serde_json::from_str::<Correlated>(text) {
        Ok(both) => {
            let data = both.correlation.as_bytes().to_vec();
            (both.user, Some(Bytes::from(data)))
        }
        Err(_) => (serde_json::from_str(text).unwrap_or_default(), None),
    };
    Properties {
        user,
        correlation_data,
        ..Properties::default()
    }
}

/// Reads a message from a row of the outbox, as [`post_all`] wrote it.
pub(super) fn read_message(row: &Row<'_>) -> rusqlite::Result<Queued> {
    let properties: String = row.get(5)?;
    Ok(Queued {
        seq: row.get::<_, i64>(0)?.cast_unsigned(),
        message: Message {
            topic: row.get(1)?,
            payload: Bytes::from(row.get::<_, Vec<u8>>(2)?),
            qos: Qos::from_number(row.get(3)?).unwrap_or(Qos::AtLeastOnce),
            retain: row.get(4)?,
            properties: read_properties(&properties),
        },
    })
}

/// Reads the state in column `at` of the row of a unit.
pub(super) fn read_state(row: &Row<'_>, at: usize) -> rusqlite::Result<State> {
    let name = row.get_ref(at)?.as_str()?;
    State::from_name(name).ok_or_else(|| {
        let cause = format!("unknown state '{name}'");
        rusqlite::Error::FromSqlConversionFailure(at, Type::Text, cause.into())
    })
}

/// Reads the payload of a unit: the bytes in column `at`, otherwise those in the next column.
pub(super) fn read_payload(row: &Row<'_>, at: usize) -> rusqlite::Result<Bytes> {
    let bytes = match row.get_ref(at)? {
        ValueRef::Null => row.get::<_, Option<Vec<u8>>>(at + 1)?,
        body => Some(body.as_blob()?.to_vec()),
    };
    Ok(Bytes::from(bytes.unwrap_or_default()))
}
