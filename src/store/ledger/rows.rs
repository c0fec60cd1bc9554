//! Rows of the tables of units and messages.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Value, json};

use crate::model::message::{Message, Properties, Qos};
use crate::model::unit::{State, Unit};
use crate::store::ledger::Queued;

/// Adds `unit`. Its payload is stored once: a retry refers to that of the unit that it tries
/// again, and the units of one event to the one that is in `shared`, or put there now.
pub(super) fn insert_unit(
    tx: &Connection,
    unit: &Unit,
    state: State,
    boot: Option<&str>,
    at: i64,
    shared: &mut Option<i64>,
) -> rusqlite::Result<()> {
    let sql = "SELECT coalesce(max(seq), 0) + 1 FROM unit";
    let seq: i64 = tx.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    let payload = match (*shared, payload_of(tx, unit.retry_of.as_deref())?) {
        (Some(shared), _) => Some(shared),
        (None, Some(known)) => known,
        (None, None) => insert_payload(tx, seq, unit.payload.as_deref().unwrap_or_default())?,
    };
    *shared = payload;
    let sql = "INSERT INTO unit
                   (seq, id, trigger, event, topic, reason, hops, traceparent, attempt, retry_of,
                    due, state, boot, accepted, command, payload, variables, passthrough)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16,
                    ?17, ?18)";
    tx.prepare_cached(sql)?.execute(params![
        seq,
        unit.id,
        unit.trigger,
        unit.event,
        unit.topic,
        unit.reason,
        unit.hops,
        unit.traceparent,
        unit.attempt,
        unit.retry_of,
        unit.due,
        state.name(),
        boot,
        at,
        unit.command,
        payload,
        json!(unit.variables).to_string(),
        Value::Object(unit.passthrough.clone()).to_string(),
    ])?;
    Ok(())
}

/// What the unit `id`, if there is one, refers to as its payload.
fn payload_of(tx: &Connection, id: Option<&str>) -> rusqlite::Result<Option<Option<i64>>> {
    let Some(id) = id else {
        return Ok(None);
    };
    let sql = "SELECT payload FROM unit WHERE id = ?1";
    let mut query = tx.prepare_cached(sql)?;
    query.query_row(params![id], |row| row.get(0)).optional()
}

/// Stores a payload under the number of the first unit that has it, unless it is empty.
fn insert_payload(tx: &Connection, seq: i64, bytes: &[u8]) -> rusqlite::Result<Option<i64>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    // A number that is free among the units is so here: whoever refers to a payload came with it
    // or after it.
    let sql = "INSERT OR REPLACE INTO payload (id, bytes) VALUES (?1, ?2)";
    tx.prepare_cached(sql)?.execute(params![seq, bytes])?;
    Ok(Some(seq))
}

/// Deletes the unit with this number and marks its folder as released, and deletes the payload
/// unless another unit shares it. Returns the unit's id.
pub(super) fn delete_unit(tx: &Connection, seq: i64) -> rusqlite::Result<String> {
    let sql = "DELETE FROM unit WHERE seq = ?1 RETURNING id, payload";
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let (id, payload): (String, Option<i64>) =
        tx.prepare_cached(sql)?.query_row(params![seq], row)?;
    let sql = "DELETE FROM payload WHERE id = ?1
               AND NOT EXISTS (SELECT 1 FROM unit WHERE seq = ?1 AND payload = ?1)
               AND NOT EXISTS (SELECT 1 FROM unit WHERE payload = ?1 AND payload <> seq)";
    if let Some(payload) = payload {
        tx.prepare_cached(sql)?.execute(params![payload])?;
    }
    let sql = "INSERT OR IGNORE INTO released (unit) VALUES (?1)";
    tx.prepare_cached(sql)?.execute(params![id])?;
    Ok(id)
}

pub(super) fn post_all(tx: &Connection, messages: &[Message]) -> rusqlite::Result<Vec<Queued>> {
    let sql = "INSERT INTO outbox (topic, payload, qos, retain, properties)
               VALUES (?1, ?2, ?3, ?4, ?5)";
    let mut insert = tx.prepare_cached(sql)?;
    messages
        .iter()
        .map(|message| {
            let seq = insert.insert(params![
                message.topic,
                &message.payload[..],
                message.qos as u8,
                message.retain,
                json!(message.properties.user).to_string(),
            ])?;
            Ok(Queued {
                seq: seq.cast_unsigned(),
                message: message.clone(),
            })
        })
        .collect()
}

/// The message in a row of the outbox, as [`post_all`] wrote it.
pub(super) fn read_message(row: &rusqlite::Row<'_>) -> rusqlite::Result<Queued> {
    let user: String = row.get(5)?;
    Ok(Queued {
        seq: row.get::<_, i64>(0)?.cast_unsigned(),
        message: Message {
            topic: row.get(1)?,
            payload: Bytes::from(row.get::<_, Vec<u8>>(2)?),
            qos: Qos::from_number(row.get(3)?).unwrap_or(Qos::AtLeastOnce),
            retain: row.get(4)?,
            properties: Properties {
                user: serde_json::from_str(&user).unwrap_or_default(),
                ..Properties::default()
            },
        },
    })
}
