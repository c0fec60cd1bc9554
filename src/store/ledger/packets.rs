//! The last message of an MQTT broker under each packet identifier.
//!
//! Only messages without an id need it to be recognised again. There are 65,535 identifiers, so the
//! table stays small.

use rusqlite::{Connection, OptionalExtension, params};

use crate::store::ledger::identity::EventKey;

/// Returns when the message of `key` was last accepted under its packet identifier, milliseconds
/// since 1970; `None` if the identifier carried something else last, or nothing.
pub(super) fn last_accepted(
    connection: &Connection,
    key: &EventKey,
) -> rusqlite::Result<Option<i64>> {
    let sql = "SELECT accepted FROM mqtt_packet WHERE packet = ?1 AND digest = ?2";
    let mut query = connection.prepare_cached(sql)?;
    let row = params![key.packet, &key.digest[..]];
    query.query_row(row, |row| row.get(0)).optional()
}

/// Remembers that the message of `key` was accepted `at` under its packet identifier.
pub(super) fn remember_packet(tx: &Connection, key: &EventKey, at: i64) -> rusqlite::Result<()> {
    if key.packet == 0 {
        return Ok(());
    }
    if key.sender.is_some() {
        let sql = "DELETE FROM mqtt_packet WHERE packet = ?1";
        tx.prepare_cached(sql)?.execute(params![key.packet])?;
    } else {
        let sql = "INSERT INTO mqtt_packet (packet, digest, accepted) VALUES (?1, ?2, ?3)
                   ON CONFLICT DO UPDATE SET digest = excluded.digest, accepted = excluded.accepted";
        let row = params![key.packet, &key.digest[..], at];
        tx.prepare_cached(sql)?.execute(row)?;
    }
    Ok(())
}
