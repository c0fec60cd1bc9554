//! How an event is accepted, unless it has been before.

use std::sync::Arc;

use rusqlite::{Connection, params};

use crate::model::message::Message;
use crate::model::unit::{State, Unit};
use crate::store::ledger::Queued;
use crate::store::ledger::identity::{
    EventKey, Known, count_as_accepted, known, remember_retained,
};
use crate::store::ledger::packets::remember_packet;
use crate::store::ledger::rows::{Entry, insert_unit, post_all};
use crate::store::ledger::state::WriterState;

/// Why an event was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// A short name.
    pub code: &'static str,
    /// For people.
    pub detail: String,
    /// The status that says so, if a pipeline should have run.
    pub status: Option<Message>,
}

/// What an event means to one trigger.
#[derive(Debug, Clone)]
pub enum Part {
    /// A run; `start` hands it to a runner in the same commit.
    Run {
        /// The unit.
        unit: Arc<Unit>,
        /// Whether it starts now.
        start: bool,
        /// Whether its trigger takes retained messages: the ledger then remembers the last
        /// content of the topic for as long as it is the last.
        retained: bool,
    },
    /// A refusal; the trigger is empty when the message could not even be read.
    Refuse {
        /// Name of the trigger.
        trigger: String,
        /// Why.
        refused: Box<Refused>,
        /// As for a run.
        retained: bool,
    },
}

impl Part {
    /// Name of the trigger.
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

/// What became of one part of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acceptance {
    /// It is in the ledger now.
    Fresh,
    /// It was there before.
    Known(Known),
}

/// Accepts an event that came at `at` (milliseconds since the epoch) under this `boot`. Returns
/// what became of each part, and the statuses of refusals.
pub(super) fn accept(
    tx: &Connection,
    state: &mut WriterState,
    key: &EventKey,
    topic: &str,
    at: i64,
    boot: &str,
    parts: &[Part],
) -> rusqlite::Result<(Vec<Acceptance>, Vec<Queued>)> {
    let (mut became, mut queued) = (Vec::with_capacity(parts.len()), Vec::new());
    let mut payload = None;
    for part in parts {
        let before = known(tx, key, part.trigger(), topic)?;
        let before = match (before, part) {
            // A refusal uses nothing up: what may run now has not run yet.
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
            }
            Part::Refuse { refused, .. } => {
                queued.extend(post_all(tx, state, refused.status.as_slice())?);
            }
        }
    }
    // After all parts were compared with what the identifier carried before.
    remember_packet(tx, key, at)?;
    Ok((became, queued))
}

/// Writes the row of an event. Its number is larger than those of all others, and its time is not
/// smaller: events are pruned in this order.
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
