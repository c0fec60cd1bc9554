//! Accepts events, unless they were accepted before.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use crate::model::letter::Letter;
use crate::model::message::Message;
use crate::model::unit::{State, Unit};
use crate::store::ledger::identity::{
    EventKey, Known, count_as_accepted, known, remember_retained,
};
use crate::store::ledger::letters::{Posted, open_message, post_letters};
use crate::store::ledger::packets::remember_packet;
use crate::store::ledger::records::RETRY_OF;
use crate::store::ledger::rows::{Entry, Queued, insert_unit, post_all};
use crate::store::ledger::state::WriterState;

/// Refusal of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Short name of the reason.
    pub code: &'static str,
    /// Reason for people.
    pub detail: String,
    /// Status to publish, if a pipeline should have run.
    pub status: Option<Message>,
    /// Answer to publish, if its sender asks.
    pub answer: Option<Message>,
    /// Letters to send, if it came from a queue: the message as a dead letter, and the report of its
    /// end.
    pub letters: Vec<Letter>,
}

/// What one trigger makes of an event.
#[derive(Debug, Clone)]
pub enum Part {
    /// A run; `start` hands it to a runner in the same commit.
    Run {
        /// The unit.
        unit: Arc<Unit>,
        /// Whether it starts now.
        start: bool,
        /// Whether its trigger accepts retained messages. The ledger then remembers the last
        /// content of the topic until the next one.
        retained: bool,
        /// Whether it is a retry, and only the first one of its unit may run.
        first_retry: bool,
    },
    /// A refusal. The trigger is empty when the message could not be read at all.
    Refuse {
        /// Returns the name of the trigger.
        trigger: String,
        /// Its reason.
        refused: Box<Refused>,
        /// As for a run.
        retained: bool,
    },
}

impl Part {
    /// Returns the name of the trigger.
    #[must_use]
    pub fn trigger(&self) -> &str {
        match self {
            Self::Run { unit, .. } => unit.lane(),
            Self::Refuse { trigger, .. } => trigger,
        }
    }

    const fn retained(&self) -> bool {
        match self {
            Self::Run { retained, .. } | Self::Refuse { retained, .. } => *retained,
        }
    }
}

/// Result for one part of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acceptance {
    /// It is new, and in the ledger now.
    Fresh,
    /// It was in the ledger before.
    Known(Known),
    /// It is not in the ledger: its unit was retried meanwhile, as this unit.
    Retried(String),
    /// It is submitted work whose id other work or another unit has. Nothing changes.
    Taken,
}

/// Results of the parts of an event, and the statuses and letters of refusals.
pub(super) type Accepted = (Vec<Acceptance>, Vec<Queued>, Vec<Posted>);

/// Accepts an event that came at `at` (milliseconds since 1970) under this `boot`. Returns the
/// result of each part, and the statuses and letters of refusals.
pub(super) fn accept(
    tx: &Connection,
    state: &mut WriterState,
    key: &EventKey,
    topic: &str,
    at: i64,
    boot: &str,
    parts: &[Part],
) -> rusqlite::Result<Accepted> {
    let (mut became, mut queued) = (Vec::with_capacity(parts.len()), Vec::new());
    let mut letters = Vec::new();
    let mut payload = None;
    for part in parts {
        let before = known(tx, key, part.trigger(), topic)?;
        if before.is_none()
            && let Some(other) = retried_meanwhile(tx, part)?
        {
            became.push(Acceptance::Retried(other));
            continue;
        }
        if before.is_none()
            && let Part::Run { unit, .. } = part
            && unit.work.is_some()
            && is_taken(tx, &unit.id)?
        {
            became.push(Acceptance::Taken);
            continue;
        }
        let before = match (before, part) {
            // A refused event does not use its id up: it may run now.
            (Some(row), Part::Run { .. }) if row.unit.is_none() => {
                let delete = "DELETE FROM event WHERE seq = ?1";
                tx.prepare_cached(delete)?.execute(params![row.seq])?;
                insert(tx, key, topic, at, part)?;
                None
            }
            (None, _) => {
                insert(tx, key, topic, at, part)?;
                None
            }
            (Some(row), _) => {
                count_as_accepted(tx, key, &row, at)?;
                Some(row)
            }
        };
        if part.retained() {
            let unit = match (&before, part) {
                (Some(row), _) => row.unit.as_deref(),
                (None, Part::Run { unit, .. }) => Some(&*unit.id),
                (None, Part::Refuse { .. }) => None,
            };
            remember_retained(tx, key, part.trigger(), topic, unit, at)?;
        }
        if let Some(row) = before {
            became.push(Acceptance::Known(row));
            continue;
        }
        became.push(Acceptance::Fresh);
        match part {
            Part::Run { unit, start, .. } => {
                let entry = Entry {
                    state: if *start {
                        State::Running
                    } else {
                        State::Pending
                    },
                    boot: start.then_some(boot),
                    at,
                };
                insert_unit(tx, state, unit, &entry, &mut payload)?;
                open_message(tx, key, &unit.id)?;
            }
            Part::Refuse { refused, .. } => {
                queued.extend(post_all(tx, state, refused.status.as_slice())?);
                queued.extend(post_all(tx, state, refused.answer.as_slice())?);
                letters.extend(post_letters(tx, &refused.letters)?);
            }
        }
    }
    // After all parts were compared with the earlier message of the identifier.
    let digest = key.sender.is_none().then_some(&key.digest);
    remember_packet(tx, key.packet, digest, at)?;
    Ok((became, queued, letters))
}

/// Returns the other retry of the unit that `part` retries, if that must be the first one. The
/// client has looked for it before, but may have had a request for it in the same commit.
fn retried_meanwhile(tx: &Connection, part: &Part) -> rusqlite::Result<Option<String>> {
    match part {
        Part::Run {
            unit,
            first_retry: true,
            ..
        } => {
            let mut query = tx.prepare_cached(RETRY_OF)?;
            query
                .query_row([&unit.retry_of], |row| row.get(0))
                .optional()
        }
        Part::Run { .. } | Part::Refuse { .. } => Ok(None),
    }
}

/// Refusal of work that was canceled before it came. It uses the id of the unit up.
pub const CANCELED: &str = "canceled";

/// Returns whether a unit has, or had, the id `unit` that a submitter has chosen, or was canceled
/// before it came.
fn is_taken(tx: &Connection, unit: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM unit WHERE id = ?1
               UNION ALL SELECT 1 FROM event
                   WHERE sender = ?1 AND (unit IS NOT NULL OR refusal = ?2)
               UNION ALL SELECT 1 FROM released WHERE unit = ?1";
    tx.prepare_cached(sql)?.exists(params![unit, CANCELED])
}

/// Inserts the row of an event. Its number is larger than all others, and its time is not smaller:
/// events are pruned in this order.
fn insert(
    tx: &Connection,
    key: &EventKey,
    topic: &str,
    at: i64,
    part: &Part,
) -> rusqlite::Result<()> {
    let (unit, refused) = match part {
        Part::Run { unit, .. } => (Some(&unit.id), None),
        Part::Refuse { refused, .. } => (None, Some(refused)),
    };
    let sql = "INSERT INTO event
                   (trigger, id, sender, digest, topic, accepted, unit, refusal, detail)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    tx.prepare_cached(sql)?.execute(params![
        part.trigger(),
        key.id,
        key.sender,
        &key.digest[..],
        topic,
        at,
        unit,
        refused.map(|refused| refused.code),
        refused.map(|refused| &refused.detail),
    ])?;
    Ok(())
}
