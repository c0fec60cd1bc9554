//! The last message of an MQTT broker under each packet identifier.
//!
//! Only messages without an id need it to be recognised again. There are 65,535 identifiers, so the
//! table stays small.

use rusqlite::{Connection, OptionalExtension, params};

/// Returns when the message with this digest was last accepted under `packet`, milliseconds since 1970; `None` if the identifier carried something else last, or nothing.
pub(super) fn last_accepted(
    connection: &Connection,
    packet: u16,
    digest: &[u8; 32],
) -> rusqlite::Result<Option<i64>> {
    let sql = "SELECT accepted FROM mqtt_packet WHERE packet = ?1 AND digest = ?2";
    let mut query = connection.prepare_cached(sql)?;
    let row = params![packet, &digest[..]];
    query.query_row(row, |row| row.get(0)).optional()
}

/// Remembers what `packet` has carried: the digest of a message that was accepted `at`, `None` for
/// one with a sender's id. There is no identifier 0.
pub(super) fn remember_packet(
    tx: &Connection,
    packet: u16,
    digest: Option<&[u8; 32]>,
    at: i64,
) -> rusqlite::Result<()> {
    match digest {
        _ if packet == 0 => {}
        None => {
            let sql = "DELETE FROM mqtt_packet WHERE packet = ?1";
            tx.prepare_cached(sql)?.execute(params![packet])?;
        }
        Some(digest) => {
            let sql = "INSERT INTO mqtt_packet (packet, digest, accepted) VALUES (?1, ?2, ?3)
                       ON CONFLICT DO UPDATE SET digest = excluded.digest,
                            accepted = excluded.accepted";
            tx.prepare_cached(sql)?
                .execute(params![packet, &digest[..], at])?;
        }
    }
    Ok(())
}
