//! Identity of events.
//!
//! An event is the id that its sender gave it *and* the digest of topic and payload: programs that
//! copy user properties send different messages under one id. A message without an id is the same
//! as an earlier one under four conditions. The broker says that it may have sent it before (DUP).
//! It has the same packet identifier (MQTT 5.0, section 4.4). That identifier has carried nothing
//! else since. And the broker may not know the acknowledgement, because a broker that was restored
//! from an older save has forgotten it.

use std::sync::Once;

use rusqlite::{Connection, OptionalExtension, Row, params};
use tracing::warn;

use crate::store::ledger::packets;

/// Maximum number of topics, of all triggers, whose last retained content is remembered. The one
/// heard longest ago is forgotten first, and may run again.
pub const MAX_RETAINED: u32 = 10_000;

/// Identity of an event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventKey {
    /// Id of the event for commands and statuses.
    pub id: String,
    /// Id that the sender gave it.
    pub sender: Option<String>,
    /// SHA-256 of topic and payload.
    pub digest: [u8; 32],
    /// Packet identifier of the message; 0 at QoS 0, and for our own events.
    pub packet: u16,
    /// Present if the broker may have sent the message before.
    pub again: Option<Again>,
    /// Whether the broker sent it because it was retained.
    pub replay: bool,
    /// Whether it is a request, which is one event for all triggers.
    pub request: bool,
    /// Whether no earlier event can have the sender's id, so that none is looked for.
    pub is_new: bool,
    /// The source of a message of a queue without id, which is kept until it cannot come again.
    pub open: Option<String>,
}

/// Earliest times at which a message that may be a redelivery can have been accepted, milliseconds
/// since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Again {
    /// Earliest time, if the broker may not know the acknowledgement.
    pub unacknowledged: i64,
    /// Earliest time, if the broker may have forgotten the acknowledgement.
    pub kept: i64,
}

/// An event that is in the ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Number of its row; `None` if only its content is remembered.
    pub(super) seq: Option<i64>,
    /// Unit that it made; `None` if it was refused.
    pub unit: Option<String>,
    /// Unit of which this one is a retry.
    pub retry_of: Option<String>,
    /// Reason of its refusal.
    pub detail: Option<String>,
}

impl Known {
    /// Returns, for people, what became of the event when it came before.
    #[must_use]
    pub fn explain(&self) -> String {
        match (&self.unit, &self.detail) {
            (Some(unit), _) => format!("it came before, and made unit {unit}"),
            (None, Some(detail)) => format!("it came before, and was refused: {detail}"),
            (None, None) => "it came before".to_owned(),
        }
    }
}

/// Whether the id of a sender can name an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Naming {
    /// No event that ran has it.
    Free,
    /// This very event has it, under this name.
    Same(String),
    /// Events of other content have it.
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

/// Returns the event of `key` for `trigger`, if the ledger knows it. One that ran takes precedence
/// over one that was refused.
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

/// Returns the event of the packet identifier of `key`, if that has carried nothing else since, and
/// the broker may send it again.
fn by_packet(
    connection: &Connection,
    key: &EventKey,
    again: Again,
    trigger: &str,
) -> rusqlite::Result<Option<Known>> {
    let Some(accepted) = packets::last_accepted(connection, key.packet, &key.digest)? else {
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

/// A retained message is the same as long as it is retained, however it was sent before. The last
/// content of the topic decides; for a topic that is not remembered, every earlier content.
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

/// Notes that a redelivered message was accepted at `at`: until the broker knows the
/// acknowledgement, it may come again. Its row moves behind all others.
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

/// Remembers the last content of a topic for `trigger`, for when the broker sends it again.
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

/// The last id, in the order of bytes, that a sender gave an event, of those at least `from` and
/// before `to`.
pub(super) fn latest_sender(
    connection: &Connection,
    from: &str,
    to: &str,
) -> rusqlite::Result<Option<String>> {
    let sql = "SELECT max(sender) FROM event WHERE sender >= ?1 AND sender < ?2";
    connection.query_row(sql, [from, to], |row| row.get(0))
}

/// Whether the id that a sender gave an event can name it here.
pub(super) fn naming(
    connection: &Connection,
    sender: &str,
    digest: &[u8; 32],
) -> rusqlite::Result<Naming> {
    let same = "SELECT id FROM event
                WHERE sender = ?1 AND digest IN (?2, x'') AND unit IS NOT NULL LIMIT 1";
    let any = "SELECT 1 FROM event WHERE sender = ?1 AND unit IS NOT NULL LIMIT 1";
    let mut query = connection.prepare_cached(same)?;
    let found = query.query_row(params![sender, &digest[..]], |row| row.get(0));
    if let Some(id) = found.optional()? {
        return Ok(Naming::Same(id));
    }
    let taken = connection.prepare_cached(any)?.exists([sender])?;
    Ok(if taken { Naming::Taken } else { Naming::Free })
}
