//! Rows of the tables of units and messages.

use bytes::Bytes;
use rusqlite::{Transaction, params};
use serde_json::{Value, json};

use crate::model::message::{Message, Properties, Qos};
use crate::model::unit::{State, Unit};
use crate::store::ledger::Queued;

pub(super) fn insert_unit(
    tx: &Transaction<'_>,
    unit: &Unit,
    state: State,
    boot: Option<&str>,
    at: i64,
) -> rusqlite::Result<()> {
    let sql = "INSERT INTO unit
                   (id, trigger, event, topic, reason, hops, traceparent, attempt, due,
                    variables, passthrough, payload, command, state, boot, accepted, retry_of)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)";
    tx.prepare_cached(sql)?.execute(params![
        unit.id,
        unit.trigger,
        unit.event,
        unit.topic,
        unit.reason,
        unit.hops,
        unit.traceparent,
        unit.attempt,
        unit.due,
        json!(unit.variables).to_string(),
        Value::Object(unit.passthrough.clone()).to_string(),
        &unit.payload[..],
        unit.command,
        state.name(),
        boot,
        at,
        unit.retry_of,
    ])?;
    Ok(())
}

pub(super) fn post_all(
    tx: &Transaction<'_>,
    messages: &[Message],
) -> rusqlite::Result<Vec<Queued>> {
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
