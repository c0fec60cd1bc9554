//! What is written to the ledger, one operation at a time.

use rusqlite::{Connection, OptionalExtension, params};

use crate::model::message::Message;
use crate::model::outcome::outcome_text;
use crate::model::unit::{Outcome, State, Unit};
use crate::store::ledger::Queued;
use crate::store::ledger::accept::{Acceptance, Part, accept};
use crate::store::ledger::identity::EventKey;
use crate::store::ledger::prune::{Pruned, Retention, prune};
use crate::store::ledger::rows::{delete_unit, insert_unit, post_all};

/// When a trigger that waits for silence last heard something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Names the trigger and what it waits for.
    pub trigger: String,
    /// Milliseconds since the epoch.
    pub at: i64,
    /// Whether the command has run for the silence since then.
    pub fired: bool,
}

/// One change.
#[derive(Debug, Clone)]
pub enum Op {
    /// An event, with what each trigger makes of it.
    Accept {
        /// What tells it from others.
        key: EventKey,
        /// Its topic.
        topic: String,
        /// Now, milliseconds since the epoch.
        at: i64,
        /// Identifies this boot of the host.
        boot: String,
        /// One for each trigger that is meant.
        parts: Vec<Part>,
    },
    /// A waiting unit is handed to a runner.
    Start {
        /// The unit.
        unit: String,
        /// Identifies this boot of the host.
        boot: String,
    },
    /// A unit was handed over and never begun: it waits again.
    Unstart {
        /// The unit.
        unit: String,
    },
    /// A unit that still waits will not run.
    Drop {
        /// The unit.
        unit: String,
        /// When, milliseconds since the epoch.
        at: i64,
        /// For people.
        note: String,
    },
    /// A unit's command has started.
    Started {
        /// The unit.
        unit: String,
        /// When, milliseconds since the epoch.
        at: i64,
        /// The status that says so.
        status: Message,
    },
    /// A unit has ended.
    Settle {
        /// The unit.
        unit: String,
        /// Its last state.
        state: State,
        /// How it ended, if it had begun.
        outcome: Option<Outcome>,
        /// When, milliseconds since the epoch.
        at: i64,
        /// For people.
        note: Option<String>,
        /// The statuses that say so.
        statuses: Vec<Message>,
        /// The next try.
        retry: Option<Box<Unit>>,
    },
    /// A trigger that waits for silence has heard something, or runs because it has not.
    Heard(Heard),
    /// The broker has acknowledged messages, and knows which of its own are.
    Sent {
        /// Ours.
        list: Vec<u64>,
        /// What came before is acknowledged, milliseconds since the epoch.
        answered: i64,
    },
    /// A message waits to be published.
    Post(Message),
    /// What is older than wanted, or more, is forgotten, a little at a time.
    Prune(Retention),
    /// The folders of these released units are gone.
    Removed(Vec<String>),
    /// A unit that has ended is forgotten, and its folder marked as released.
    Release {
        /// The unit.
        unit: String,
        /// Also if it has not ended.
        force: bool,
    },
}

/// What came of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// What became of each part of an event; and the statuses that wait.
    Accepted {
        /// One for each part.
        parts: Vec<Acceptance>,
        /// Refusals' statuses.
        queued: Vec<Queued>,
    },
    /// Whether the change applied, and the statuses that wait now.
    Changed {
        /// Whether a row was in the state that the change needs.
        applied: bool,
        /// Its statuses.
        queued: Vec<Queued>,
    },
    /// What a step of pruning has left.
    Pruned(Pruned),
}

/// Carries out `op`.
///
/// # Errors
/// As SQLite.
pub fn apply(tx: &Connection, op: &Op) -> rusqlite::Result<Done> {
    match op {
        Op::Accept {
            key,
            topic,
            at,
            boot,
            parts,
        } => {
            let (parts, queued) = accept(tx, key, topic, *at, boot, parts)?;
            Ok(Done::Accepted { parts, queued })
        }
        Op::Start { unit, boot } => {
            let sql = "UPDATE unit SET state = 'running', boot = ?2
                       WHERE id = ?1 AND state = 'pending'";
            changed(
                tx.prepare_cached(sql)?.execute(params![unit, boot])?,
                vec![],
            )
        }
        Op::Unstart { unit } => {
            let sql = "UPDATE unit SET state = 'pending', boot = NULL
                       WHERE id = ?1 AND state = 'running' AND started IS NULL";
            changed(tx.prepare_cached(sql)?.execute(params![unit])?, vec![])
        }
        Op::Drop { unit, at, note } => {
            let sql = "UPDATE unit SET state = 'canceled', ended = ?2, note = ?3
                       WHERE id = ?1 AND state = 'pending'";
            let rows = tx.prepare_cached(sql)?.execute(params![unit, at, note])?;
            changed(rows, vec![])
        }
        Op::Started { unit, at, status } => {
            let sql = "UPDATE unit SET started = ?2
                       WHERE id = ?1 AND state = 'running' AND started IS NULL";
            let rows = tx.prepare_cached(sql)?.execute(params![unit, at])?;
            let queued = if rows > 0 {
                post_all(tx, std::slice::from_ref(status))?
            } else {
                vec![]
            };
            changed(rows, queued)
        }
        Op::Settle {
            unit,
            state,
            outcome,
            at,
            note,
            statuses,
            retry,
        } => {
            let sql = "UPDATE unit SET state = ?2, outcome = ?3, ended = ?4, note = ?5
                       WHERE id = ?1 AND state IN ('pending', 'running')";
            let rows = tx.prepare_cached(sql)?.execute(params![
                unit,
                state.name(),
                outcome.as_ref().map(outcome_text),
                at,
                note
            ])?;
            if rows == 0 {
                return changed(0, vec![]);
            }
            if let Some(retry) = retry {
                insert_unit(tx, retry, State::Pending, None, *at, &mut None)?;
            }
            changed(rows, post_all(tx, statuses)?)
        }
        Op::Sent { list, answered } => {
            let sql = "UPDATE link SET answered = ?1";
            tx.prepare_cached(sql)?.execute(params![answered])?;
            let mut delete = tx.prepare_cached("DELETE FROM outbox WHERE seq = ?1")?;
            for seq in list {
                delete.execute(params![seq.cast_signed()])?;
            }
            changed(list.len(), vec![])
        }
        Op::Heard(heard) => {
            let sql = "INSERT INTO silence (trigger, heard, fired) VALUES (?1, ?2, ?3)
                       ON CONFLICT DO UPDATE SET heard = excluded.heard, fired = excluded.fired";
            let row = params![heard.trigger, heard.at, heard.fired];
            changed(tx.prepare_cached(sql)?.execute(row)?, vec![])
        }
        Op::Post(message) => changed(1, post_all(tx, std::slice::from_ref(message))?),
        Op::Prune(retention) => prune(tx, retention).map(Done::Pruned),
        Op::Removed(units) => {
            let mut delete = tx.prepare_cached("DELETE FROM released WHERE unit = ?1")?;
            for unit in units {
                delete.execute(params![unit])?;
            }
            changed(units.len(), vec![])
        }
        Op::Release { unit, force } => {
            let sql = "SELECT seq FROM unit
                       WHERE id = ?1 AND (?2 OR state NOT IN ('pending', 'running'))";
            let mut query = tx.prepare_cached(sql)?;
            let seq: Option<i64> = query
                .query_row(params![unit, force], |row| row.get(0))
                .optional()?;
            if let Some(seq) = seq {
                delete_unit(tx, seq)?;
            }
            changed(seq.into_iter().count(), vec![])
        }
    }
}

fn changed(rows: usize, queued: Vec<Queued>) -> rusqlite::Result<Done> {
    Ok(Done::Changed {
        applied: rows > 0,
        queued,
    })
}
