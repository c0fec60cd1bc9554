//! What tells one event from another.
//!
//! An event is the id that its sender gave it *and* the digest of topic and payload: programs
//! that copy user properties from one message to the next send different messages under one id.
//! A message without an id is the same one as before if the broker says that it may have sent it
//! before (DUP), under the same packet identifier (MQTT 5.0, section 4.4), that identifier has
//! carried nothing else since, and the broker may not know that it was acknowledged: a broker that
//! was restored from an older save has forgotten what it knew.

use std::sync::Once;

use rusqlite::{Connection, OptionalExtension, Row, params};
use tracing::warn;

use crate::error::Result;
use crate::store::ledger::read::wrong;
use crate::store::ledger::{Reader, packets};

/// Maximum number of topics, of all triggers, whose last retained content is remembered; what was
/// heard longest ago is forgotten first, and may run again.
pub const MAX_RETAINED: u32 = 10_000;

/// What tells one event from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventKey {
    /// What commands and statuses call the event.
    pub id: String,
    /// The id that its sender gave it.
    pub sender: Option<String>,
    /// SHA-256 of topic and payload.
    pub digest: [u8; 32],
    /// The packet identifier that it came under; 0 at QoS 0, and for events of our own.
    pub packet: u16,
    /// Present if the broker says that it may have sent the message before.
    pub again: Option<Again>,
    /// Whether the broker has sent it because it was retained.
    pub replay: bool,
    /// Whether it is a request: then it is one event, whichever trigger it is about.
    pub request: bool,
    /// Whether no earlier event can have the sender's id, so that none is looked for.
    pub is_new: bool,
}

/// Since when a message that may have been sent before can have been accepted, milliseconds since
/// the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Again {
    /// Accepted since then, the broker may not know that it was acknowledged.
    pub unacknowledged: i64,
    /// Accepted since then, a broker that has forgotten that may send it again.
    pub kept: i64,
}

/// An event that is in the ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Its row; `None` if only its content is remembered.
    pub(super) seq: Option<i64>,
    /// The unit that it made; `None` if it was refused.
    pub unit: Option<String>,
    /// The unit that this one tries again.
    pub retry_of: Option<String>,
    /// Why it was refused.
    pub detail: Option<String>,
}

/// Whether a sender's id can name an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Naming {
    /// No event that ran has it.
    Free,
    /// It is the id of this very event, which is called so here.
    Same(String),
    /// Events of other contents have it.
    Taken,
}

fn known_row(row: &Row<'_>) -> rusqlite::Result<Known> {
    Ok(Known {
        seq: row.get(0)?,
        unit: row.get(1)?,
        detail: row.get(2)?,
        retry_of: None,
    })
}

/// The event of `key` as `trigger` knows it, if that is so; one that has run before one that was
/// refused.
pub(super) fn known(
    connection: &Connection,
    key: &EventKey,
    trigger: &str,
    topic: &str,
) -> rusqlite::Result<Option<Known>> {
    let found = match (&key.sender, key.again) {
        (Some(_), _) if key.is_new => None,
        (Some(sender), _) => by_sender(connection, key, sender, trigger)?,
        (None, Some(again)) => by_packet(connection, key, again, trigger)?,
        (None, None) => None,
    };
    let mut found = match found {
        None if key.replay => by_content(connection, key, trigger, topic)?,
        found => found,
    };
    if let Some(Known {
        unit: Some(unit),
        retry_of,
        ..
    }) = &mut found
    {
        let sql = "SELECT retry_of FROM unit WHERE id = ?1";
        let mut query = connection.prepare_cached(sql)?;
        *retry_of = query
            .query_row([&*unit], |row| row.get(0))
            .optional()?
            .flatten();
    }
    Ok(found)
}

/// Finds an event by its sender's id and its digest. Rows from before digests were kept have an
/// empty one: there the id alone counts.
fn by_sender(
    connection: &Connection,
    key: &EventKey,
    sender: &str,
    trigger: &str,
) -> rusqlite::Result<Option<Known>> {
    // An IN list, or ORDER BY, would cost more than the look itself: a table of its own each time.
    let sql = "SELECT seq, unit, detail FROM event
               WHERE sender = ?1 AND digest = ?2 AND (?3 OR trigger = ?4)";
    let mut query = connection.prepare_cached(sql)?;
    let mut found: Option<Known> = None;
    for digest in [&key.digest[..], &[]] {
        let row = params![sender, digest, key.request, trigger];
        for known in query.query_map(row, known_row)? {
            let known = known?;
            if known.unit.is_some() {
                return Ok(Some(known));
            }
            found.get_or_insert(known);
        }
    }
    Ok(found)
}

/// The event that came under the packet identifier of `key`, if that has carried nothing else since
/// and the broker may send it again.
fn by_packet(
    connection: &Connection,
    key: &EventKey,
    again: Again,
    trigger: &str,
) -> rusqlite::Result<Option<Known>> {
    let Some(accepted) = packets::last_accepted(connection, key)? else {
        return Ok(None);
    };
    if accepted < again.unacknowledged.min(again.kept) {
        return Ok(None);
    }
    let sql = "SELECT seq, unit, detail FROM event
               WHERE sender IS NULL AND digest = ?1 AND accepted = ?2 AND (?3 OR trigger = ?4)
               ORDER BY unit IS NULL, seq DESC LIMIT 1";
    let mut query = connection.prepare_cached(sql)?;
    let row = params![&key.digest[..], accepted, key.request, trigger];
    query.query_row(row, known_row).optional()
}

/// A retained message says the same for as long as it is retained, whatever it was sent as before.
/// What the topic has said last decides; of one that is not remembered any content that has come.
fn by_content(
    connection: &Connection,
    key: &EventKey,
    trigger: &str,
    topic: &str,
) -> rusqlite::Result<Option<Known>> {
    let sql = "SELECT NULL, unit, NULL, digest = ?3 AND sender IS ?4 FROM retained
               WHERE trigger = ?1 AND topic = ?2";
    let mut query = connection.prepare_cached(sql)?;
    let row = params![trigger, topic, &key.digest[..], key.sender];
    let said = |row: &Row<'_>| Ok((known_row(row)?, row.get(3)?));
    if let Some((known, same)) = query.query_row(row, said).optional()? {
        return Ok(Some(known).filter(|_| same));
    }
    let sql = "SELECT seq, unit, detail FROM event
               WHERE ?1 IS NULL AND sender IS NULL AND digest = ?2 AND trigger = ?3
               ORDER BY unit IS NULL LIMIT 1";
    let mut query = connection.prepare_cached(sql)?;
    let row = params![key.sender, &key.digest[..], trigger];
    query.query_row(row, known_row).optional()
}

/// Counts a message that came again as accepted `at`: until the broker is known to have its
/// acknowledgement, it may come once more. Its row moves behind all others.
pub(super) fn count_as_accepted(
    tx: &Connection,
    key: &EventKey,
    known: &Known,
    at: i64,
) -> rusqlite::Result<()> {
    if key.sender.is_none() && key.again.is_some() {
        let sql = "UPDATE event SET accepted = ?2, seq = (SELECT max(seq) + 1 FROM event)
                   WHERE seq = ?1";
        tx.prepare_cached(sql)?.execute(params![known.seq, at])?;
    }
    Ok(())
}

/// Remembers what a topic has last said to `trigger`, for when the broker replays it.
pub(super) fn remember_retained(
    tx: &Connection,
    key: &EventKey,
    trigger: &str,
    topic: &str,
    unit: Option<&str>,
    at: i64,
) -> rusqlite::Result<()> {
    let sql = "UPDATE retained SET sender = ?3, digest = ?4, unit = ?5, at = ?6
               WHERE trigger = ?1 AND topic = ?2";
    let row = params![trigger, topic, key.sender, &key.digest[..], unit, at];
    if tx.prepare_cached(sql)?.execute(row)? > 0 {
        return Ok(());
    }
    let sql = "INSERT INTO retained (trigger, topic, sender, digest, unit, at)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    tx.prepare_cached(sql)?.execute(row)?;
    let sql = "DELETE FROM retained WHERE (trigger, topic) IN
                   (SELECT trigger, topic FROM retained ORDER BY at, topic
                    LIMIT max(0, (SELECT count(*) FROM retained) - ?1))";
    let forgotten = tx.prepare_cached(sql)?.execute(params![MAX_RETAINED])?;
    if forgotten > 0 {
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            warn!(
                "more than {MAX_RETAINED} retained messages were accepted: the ledger forgets the \
                 oldest, which may run again at the next start"
            );
        });
    }
    Ok(())
}

impl Reader {
    /// The event of `key`, a request, if the ledger knows it.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn known_request(&self, key: &EventKey) -> Result<Option<Known>> {
        known(&self.connection, key, "", "").map_err(wrong)
    }

    /// The last id, in the order of bytes, that a sender gave an event, of those at least `from` and
    /// before `to`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn latest_sender(&self, from: &str, to: &str) -> Result<Option<String>> {
        let sql = "SELECT max(sender) FROM event WHERE sender >= ?1 AND sender < ?2";
        self.connection
            .query_row(sql, [from, to], |row| row.get(0))
            .map_err(wrong)
    }

    /// Whether the id that a sender gave an event can name it here.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn naming(&self, sender: &str, digest: &[u8; 32]) -> Result<Naming> {
        let same = "SELECT id FROM event
                    WHERE sender = ?1 AND digest IN (?2, x'') AND unit IS NOT NULL LIMIT 1";
        let any = "SELECT 1 FROM event WHERE sender = ?1 AND unit IS NOT NULL LIMIT 1";
        let naming = || {
            let mut query = self.connection.prepare_cached(same)?;
            let found = query.query_row(params![sender, &digest[..]], |row| row.get(0));
            if let Some(id) = found.optional()? {
                return Ok(Naming::Same(id));
            }
            let taken = self.connection.prepare_cached(any)?.exists([sender])?;
            Ok(if taken { Naming::Taken } else { Naming::Free })
        };
        naming().map_err(wrong)
    }
}
