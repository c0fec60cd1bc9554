//! The record of events: which messages were accepted and which were refused.

use rusqlite::{Row, params};

use crate::error::Result;
use crate::model::note::{Fate, Note};
use crate::model::unit::State;
use crate::store::ledger::failure::wrong;
use crate::store::ledger::reader::Reader;
use crate::store::ledger::rows::read_state;

/// A message that the ledger has a record of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Number in the order of arrival.
    pub seq: i64,
    /// What became of it.
    pub note: Note,
    /// Present state of its unit, and a note about that for people; `None` without a unit, or if
    /// the unit was forgotten.
    pub unit: Option<(State, Option<String>)>,
}

/// Which records to read.
#[derive(Debug, Clone, Copy)]
pub struct Which<'a> {
    /// Those after this number.
    pub after: i64,
    /// Those from this time on, milliseconds since 1970.
    pub since: i64,
    /// Those of this trigger, and those that are about all; by default those of all triggers.
    pub trigger: Option<&'a str>,
    /// Those that were accepted, or refused; by default both.
    pub fate: Option<Fate>,
    /// Maximum number: the newest ones.
    pub limit: usize,
}

/// Returns records of messages, newest first.
///
/// # Errors
/// When the ledger cannot be read.
pub fn received(reader: &Reader, which: Which<'_>) -> Result<Vec<Received>> {
    let sql =
        "SELECT event.seq, event.accepted, trigger, event.topic, event.id, event.unit, refusal,
                      detail, state, note
               FROM event LEFT JOIN unit ON unit.id = event.unit
               WHERE event.seq > ?1 AND event.accepted >= ?2 AND (?3 IS NULL OR trigger IN (?3, ''))
                   AND (?4 IS NULL OR (refusal IS NOT NULL) = ?4)
               ORDER BY event.seq DESC LIMIT ?5";
    let refused = which.fate.map(|fate| fate == Fate::Refused);
    let limit = i64::try_from(which.limit).unwrap_or(i64::MAX);
    let row = params![which.after, which.since, which.trigger, refused, limit];
    reader
        .connection
        .prepare_cached(sql)
        .and_then(|mut query| query.query_map(row, record)?.collect())
        .map_err(wrong)
}

fn record(row: &Row<'_>) -> rusqlite::Result<Received> {
    let refusal: Option<String> = row.get(6)?;
    let detail: Option<String> = row.get(7)?;
    let state: Option<String> = row.get(8)?;
    let unit = match state {
        Some(_) => Some((read_state(row, 8)?, row.get(9)?)),
        None => None,
    };
    Ok(Received {
        seq: row.get(0)?,
        note: Note {
            at: row.get(1)?,
            fate: match refusal {
                Some(_) => Fate::Refused,
                None => Fate::Accepted,
            },
            trigger: row.get(2)?,
            topic: row.get(3)?,
            event: row.get(4)?,
            unit: row.get(5)?,
            why: detail.or(refusal).unwrap_or_default(),
            aside: false,
        },
        unit,
    })
}
