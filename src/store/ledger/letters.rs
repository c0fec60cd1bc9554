//! Letters for the queues of a broker, and messages of queues that may be delivered again: what is
//! written.

use rusqlite::{Connection, params};
use serde_json::json;

use crate::model::letter::Letter;
use crate::store::ledger::identity::EventKey;

/// A letter in the ledger, and its place in the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posted {
    /// Its place. Letters never have the same one.
    pub seq: u64,
    /// The letter.
    pub letter: Letter,
}

/// Adds letters.
pub(super) fn post_letters<'a>(
    tx: &Connection,
    letters: impl IntoIterator<Item = &'a Letter>,
) -> rusqlite::Result<Vec<Posted>> {
    let sql = "INSERT INTO letter (source, key, unit, dead, properties, body)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let mut posted = Vec::new();
    for letter in letters {
        let seq = tx.prepare_cached(sql)?.insert(params![
            letter.source,
            letter.key,
            letter.unit,
            letter.dead,
            json!(letter.properties).to_string(),
            &letter.body[..],
        ])?;
        posted.push(Posted {
            seq: seq.cast_unsigned(),
            letter: letter.clone(),
        });
    }
    Ok(posted)
}

/// Removes the letters of these numbers: their broker has them.
pub(super) fn remove_letters(tx: &Connection, list: &[u64]) -> rusqlite::Result<()> {
    let mut delete = tx.prepare_cached("DELETE FROM letter WHERE seq = ?1")?;
    for seq in list {
        delete.execute(params![seq.cast_signed()])?;
    }
    Ok(())
}

/// Notes that the message of `key`, which made `unit`, may be delivered again.
pub(super) fn open_message(tx: &Connection, key: &EventKey, unit: &str) -> rusqlite::Result<()> {
    let Some(source) = &key.open else {
        return Ok(());
    };
    let sql = "INSERT OR IGNORE INTO queue_open (unit, source, digest) VALUES (?1, ?2, ?3)";
    let row = params![unit, source, &key.digest[..]];
    tx.prepare_cached(sql)?.execute(row).map(drop)
}

/// Notes that the messages that made these units are not delivered again.
pub(super) fn close_messages(tx: &Connection, units: &[String]) -> rusqlite::Result<()> {
    let mut delete = tx.prepare_cached("DELETE FROM queue_open WHERE unit = ?1")?;
    for unit in units {
        delete.execute(params![unit])?;
    }
    Ok(())
}
