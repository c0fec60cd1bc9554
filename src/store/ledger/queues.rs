//! Letters for the queues of a broker, and messages of queues that may be delivered again: what is
//! read.

use bytes::Bytes;
use rusqlite::{Row, params};

use crate::error::Result;
use crate::model::letter::Letter;
use crate::store::ledger::failure::wrong;
use crate::store::ledger::identity::{self, EventKey, Known};
use crate::store::ledger::letters::Posted;
use crate::store::ledger::reader::Reader;

/// A message without id that a broker may deliver again, because it may not know the acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenMessage {
    /// The unit that it made.
    pub unit: String,
    /// SHA-256 of queue, sender and body.
    pub digest: [u8; 32],
}

/// Returns letters of `source` in order: those after number `after`, at most `rows`, and none beyond
/// `bytes`.
///
/// # Errors
/// When the ledger cannot be read.
pub fn letters(
    reader: &Reader,
    source: &str,
    after: u64,
    rows: usize,
    bytes: usize,
) -> Result<Vec<Posted>> {
    let sql = "SELECT seq, source, key, unit, dead, properties, body FROM letter
               WHERE source = ?1 AND seq > ?2 ORDER BY seq";
    let read = || {
        let mut query = reader.connection.prepare_cached(sql)?;
        let mut found = query.query(params![source, after.cast_signed()])?;
        let (mut list, mut held) = (Vec::new(), 0);
        while list.len() < rows
            && held < bytes
            && let Some(row) = found.next()?
        {
            let posted = posted(row)?;
            held += posted.letter.body.len();
            list.push(posted);
        }
        Ok(list)
    };
    read().map_err(wrong)
}

fn posted(row: &Row<'_>) -> rusqlite::Result<Posted> {
    let properties: String = row.get(5)?;
    Ok(Posted {
        seq: row.get::<_, i64>(0)?.cast_unsigned(),
        letter: Letter {
            source: row.get(1)?,
            key: row.get(2)?,
            unit: row.get(3)?,
            dead: row.get(4)?,
            body: Bytes::from(row.get::<_, Vec<u8>>(6)?),
            properties: serde_json::from_str(&properties).unwrap_or_default(),
        },
    })
}

/// Returns the sources of letters, and how many letters of each wait.
///
/// # Errors
/// When the ledger cannot be read.
pub fn waiting_letters(reader: &Reader) -> Result<Vec<(String, u64)>> {
    let sql = "SELECT source, count(*) FROM letter GROUP BY source";
    let row = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned()));
    reader
        .connection
        .prepare_cached(sql)
        .and_then(|mut query| query.query_map([], row)?.collect())
        .map_err(wrong)
}

/// Returns the messages of `source` that may be delivered again, oldest first.
///
/// # Errors
/// When the ledger cannot be read.
pub fn open_messages(reader: &Reader, source: &str) -> Result<Vec<OpenMessage>> {
    let sql = "SELECT unit, digest FROM queue_open WHERE source = ?1 ORDER BY unit";
    let row = |row: &Row<'_>| {
        let digest: Vec<u8> = row.get(1)?;
        Ok(OpenMessage {
            unit: row.get(0)?,
            // Only digests are written there.
            digest: digest.try_into().unwrap_or_default(),
        })
    };
    reader
        .connection
        .prepare_cached(sql)
        .and_then(|mut query| query.query_map([source], row)?.collect())
        .map_err(wrong)
}

/// Returns the event of `key`, a message of a queue with an id, for `trigger`, if the ledger knows it.
///
/// # Errors
/// When the ledger cannot be read.
pub fn known_message(reader: &Reader, key: &EventKey, trigger: &str) -> Result<Option<Known>> {
    identity::known(&reader.connection, key, trigger, "").map_err(wrong)
}
