//! The record of events: which messages were accepted and which were refused.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, Row, params};

use crate::error::Result;
use crate::model::note::{self, Fate, Note};
use crate::model::outcome::parse_outcome;
use crate::model::unit::{Outcome, State};
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
    /// the unit was released.
    pub unit: Option<(State, Option<String>)>,
    /// The last retry of the unit, and its state.
    pub retry: Option<(String, State)>,
}

/// End of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunEnd {
    /// Its final state.
    pub state: State,
    /// When it was booked, milliseconds since 1970.
    pub at: i64,
    /// How it ended, if it had begun.
    pub outcome: Option<Outcome>,
    /// Note for people.
    pub note: Option<String>,
    /// Its last retry so far.
    pub retry: Option<String>,
}

/// Present state of a unit.
#[derive(Debug, Clone, PartialEq)]
pub enum Now {
    /// It waits or runs.
    Open,
    /// It has ended.
    Ended(Box<RunEnd>),
    /// The ledger has it no longer.
    Released,
}

impl Now {
    /// Returns when the end was booked, milliseconds since 1970, if that is known.
    #[must_use]
    pub fn ended_at(&self) -> Option<i64> {
        match self {
            Self::Ended(end) => Some(end.at),
            Self::Open | Self::Released => None,
        }
    }
}

/// Returns the present state of `unit`.
///
/// # Errors
/// When the ledger cannot be read; likewise below.
pub fn now(reader: &Reader, unit: &str) -> Result<Now> {
    let sql = "SELECT state, ended, outcome, note FROM unit WHERE id = ?1";
    let row = |row: &Row<'_>| {
        let (state, ended) = (read_state(row, 0)?, row.get(1)?);
        let outcome: Option<String> = row.get(2)?;
        let outcome = outcome.and_then(|text| parse_outcome(text.as_bytes()));
        Ok((state, ended, outcome, row.get(3)?))
    };
    let query = reader.connection.prepare_cached(sql);
    let found = query.and_then(|mut query| query.query_row([unit], row).optional());
    Ok(match found.map_err(wrong)? {
        None => Now::Released,
        Some((_, None, _, _)) => Now::Open,
        Some((state, Some(at), outcome, note)) => Now::Ended(Box::new(RunEnd {
            state,
            at,
            outcome,
            note,
            retry: reader.retry_of(unit)?,
        })),
    })
}

/// Returns the number of the newest record; 0 if there is none.
///
/// # Errors
/// As [`now`].
pub fn newest(reader: &Reader) -> Result<i64> {
    let sql = "SELECT coalesce(max(seq), 0) FROM event";
    let found = reader.connection.query_row(sql, [], |row| row.get(0));
    found.map_err(wrong)
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
                      detail, state, note, unit.reason, unit.topic, retry_of IS NOT NULL
               FROM event LEFT JOIN unit ON unit.id = event.unit
               WHERE event.seq > ?1 AND event.accepted >= ?2 AND (?3 IS NULL OR trigger IN (?3, ''))
                   AND (?4 IS NULL OR (refusal IS NOT NULL) = ?4)
               ORDER BY event.seq DESC LIMIT ?5";
    let refused = which.fate.map(|fate| fate == Fate::Refused);
    let limit = i64::try_from(which.limit).unwrap_or(i64::MAX);
    let row = params![which.after, which.since, which.trigger, refused, limit];
    let read = || {
        let mut query = reader.connection.prepare_cached(sql)?;
        let found = query.query_map(row, record)?;
        let mut found: Vec<Received> = found.collect::<rusqlite::Result<_>>()?;
        add_retries(reader, &mut found)?;
        Ok(found)
    };
    read().map_err(wrong)
}

/// Adds the last retries of the units of `records`.
fn add_retries(reader: &Reader, records: &mut [Received]) -> rusqlite::Result<()> {
    let has_failed = |record: &Received| matches!(record.unit, Some((State::Failed, _)));
    if !records.iter().any(has_failed) {
        return Ok(());
    }
    // No index has what retries a unit: one look at all of them finds the retries of all records.
    let sql = "SELECT retry_of, id, state FROM unit WHERE retry_of IS NOT NULL ORDER BY seq";
    let mut query = reader.connection.prepare_cached(sql)?;
    let row = |row: &Row<'_>| Ok((row.get(0)?, (row.get(1)?, read_state(row, 2)?)));
    let retries = query.query_map([], row)?;
    let retries: HashMap<String, (String, State)> = retries.collect::<rusqlite::Result<_>>()?;
    for record in records.iter_mut().filter(|record| has_failed(record)) {
        let first = record.note.unit.as_ref().and_then(|unit| retries.get(unit));
        let next = |retry: &&(String, State)| retries.get(&retry.0);
        // A retry comes after its unit, so that this ends; a damaged ledger must not hang us.
        let line = std::iter::successors(first, next).take(retries.len());
        record.retry = line.last().cloned();
    }
    Ok(())
}

fn record(row: &Row<'_>) -> rusqlite::Result<Received> {
    let refusal: Option<String> = row.get(6)?;
    let detail: Option<String> = row.get(7)?;
    let state: Option<String> = row.get(8)?;
    let (mut unit, mut occasion) = (None, String::new());
    if state.is_some() {
        unit = Some((read_state(row, 8)?, row.get(9)?));
        let (reason, topic): (String, String) = (row.get(10)?, row.get(11)?);
        occasion = note::occasion(&reason, &topic, row.get(12)?);
    }
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
            why: detail.or(refusal).unwrap_or(occasion),
            aside: false,
        },
        unit,
        retry: None,
    })
}
