//! Writes to the ledger, one operation at a time.

use std::sync::{Arc, Once};

use rusqlite::{Connection, OptionalExtension, Row, params};
use tracing::warn;

use crate::model::letter::Letter;
use crate::model::message::Message;
use crate::model::outcome::outcome_text;
use crate::model::state::{Change, IllegalChange, Next, Stage};
use crate::model::unit::{Outcome, State, Unit};
use crate::store::ledger::accept::{Acceptance, Part, accept};
use crate::store::ledger::identity::EventKey;
use crate::store::ledger::letters::{Posted, close_messages, post_letters, remove_letters};
use crate::store::ledger::prune::{Pruned, Retention, prune};
use crate::store::ledger::rows::{
    Entry, Queued, delete_unit, insert_unit, post_all, read_state, write_environment,
};
use crate::store::ledger::state::WriterState;

/// Last message for a trigger that waits for silence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Identifies the trigger and what it waits for.
    pub trigger: String,
    /// Time of the message, milliseconds since 1970.
    pub at: i64,
    /// Whether the command has run for the silence since then.
    pub fired: bool,
}

/// A change to the ledger.
#[derive(Debug, Clone)]
pub enum Op {
    /// Accept an event, with what each trigger makes of it.
    Accept {
        /// Its identity.
        key: EventKey,
        /// Its topic.
        topic: String,
        /// Time of acceptance, milliseconds since 1970.
        at: i64,
        /// Identifies this boot of the host.
        boot: String,
        /// One part for each trigger.
        parts: Vec<Part>,
    },
    /// A waiting unit goes to a runner.
    Start {
        /// The unit, with the spec that it carries from now on.
        unit: Arc<Unit>,
        /// Whether it has another environment from now on.
        anew: bool,
        /// Identifies this boot of the host.
        boot: String,
    },
    /// A unit that went to a runner never began: it waits again.
    Unstart {
        /// The unit.
        unit: String,
    },
    /// A unit that still waits will not run.
    Drop {
        /// The unit.
        unit: String,
        /// When, milliseconds since 1970.
        at: i64,
        /// Reason for people.
        note: String,
        /// Answer to publish, if a requester waits for it.
        answer: Option<Message>,
        /// Letters to send.
        letters: Vec<Letter>,
    },
    /// The command of a unit has started.
    Started {
        /// The unit.
        unit: String,
        /// When, milliseconds since 1970.
        at: i64,
        /// Status to publish.
        status: Message,
    },
    /// A unit has ended.
    Settle {
        /// The unit.
        unit: String,
        /// Its final state.
        state: State,
        /// How it ended, if it had begun.
        outcome: Option<Outcome>,
        /// When, milliseconds since 1970.
        at: i64,
        /// Note for people.
        note: Option<String>,
        /// Statuses to publish.
        statuses: Vec<Message>,
        /// Letters to send.
        letters: Vec<Letter>,
        /// Its retry.
        retry: Option<Box<Unit>>,
    },
    /// A person has the event of an ended unit run again.
    Retry {
        /// The new unit.
        retry: Box<Unit>,
        /// When, milliseconds since 1970.
        at: i64,
        /// Whether to do so also if the unit has succeeded, or was retried already.
        again: bool,
    },
    /// A trigger that waits for silence has heard a message, or runs because of the silence.
    Heard(Heard),
    /// The broker has acknowledged messages, and knows some of our acknowledgements.
    Sent {
        /// Numbers of our messages.
        list: Vec<u64>,
        /// Time before which the broker knows our acknowledgements, milliseconds since 1970.
        answered: i64,
    },
    /// A message to publish.
    Post(Message),
    /// The brokers of queues have these letters.
    LettersSent(Vec<u64>),
    /// The messages of queues that made these units do not come again.
    MessagesClosed(Vec<String>),
    /// Forget a little of what is beyond the limits.
    Prune(Retention),
    /// The folders of these released units are removed.
    Removed(Vec<String>),
    /// The output of these units was fetched, all of it.
    Fetched(Vec<String>),
    /// Forget a unit as soon as it has ended.
    WantRelease {
        /// The unit.
        unit: String,
    },
    /// What people read of a unit that has not ended.
    Note {
        /// The unit.
        unit: String,
        /// The note; `None` removes it.
        note: Option<String>,
    },
    /// The node that ran this released unit knows that.
    Paid {
        /// The unit.
        unit: String,
    },
    /// Forget a unit that has ended, and mark its folder as released. The node that has run it, if
    /// another one has, must hear of that.
    Release {
        /// The unit.
        unit: String,
        /// Whether to forget it also if it has not ended.
        force: bool,
    },
}

/// Result of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// The results of an event, and the statuses to publish.
    Accepted {
        /// One for each part.
        parts: Vec<Acceptance>,
        /// Statuses of refusals.
        queued: Vec<Queued>,
        /// Letters of refusals.
        letters: Vec<Posted>,
    },
    /// Whether the change applied, and the statuses to publish now.
    Changed {
        /// Whether the unit was in a state that allows the change.
        applied: bool,
        /// Its statuses.
        queued: Vec<Queued>,
        /// Its letters.
        letters: Vec<Posted>,
    },
    /// The state of the unit does not allow the change, and stays. The ledger has logged that.
    Illegal {
        /// The unit.
        unit: String,
        /// The change.
        change: IllegalChange,
    },
    /// Result of a step of pruning.
    Pruned(Pruned),
}

/// Performs `op`.
///
/// # Errors
/// As SQLite.
pub fn apply(tx: &Connection, state: &mut WriterState, op: &Op) -> rusqlite::Result<Done> {
    match op {
        Op::Accept {
            key,
            topic,
            at,
            boot,
            parts,
        } => {
            let (parts, queued, letters) = accept(tx, state, key, topic, *at, boot, parts)?;
            Ok(Done::Accepted {
                parts,
                queued,
                letters,
            })
        }
        Op::Start { unit, anew, boot } => change(tx, &unit.id, Change::Start, |seq, next| {
            if *anew {
                write_environment(tx, seq, unit)?;
            }
            let spec = state.spec(tx, &unit.spec)?;
            let sql = "UPDATE unit SET state = ?2, spec = ?3, boot = ?4 WHERE seq = ?1";
            let row = params![seq, next.state().name(), spec, boot];
            tx.prepare_cached(sql)?.execute(row)?;
            Ok(vec![])
        }),
        Op::Unstart { unit } => change(tx, unit, Change::TakeBack, |seq, next| {
            let sql = "UPDATE unit SET state = ?2, boot = NULL WHERE seq = ?1";
            let row = params![seq, next.state().name()];
            tx.prepare_cached(sql)?.execute(row)?;
            Ok(vec![])
        }),
        Op::Drop {
            unit,
            at,
            note,
            answer,
            letters,
        } => {
            let dropped = change(tx, unit, Change::Drop, |seq, next| {
                let sql = "UPDATE unit SET state = ?2, ended = ?3, note = ?4 WHERE seq = ?1";
                let row = params![seq, next.state().name(), at, note];
                tx.prepare_cached(sql)?.execute(row)?;
                post_all(tx, state, answer.as_slice())
            })?;
            with_letters(tx, dropped, letters)
        }
        Op::Started { unit, at, status } => change(tx, unit, Change::Begin, |seq, _| {
            let sql = "UPDATE unit SET started = ?2 WHERE seq = ?1";
            tx.prepare_cached(sql)?.execute(params![seq, at])?;
            post_all(tx, state, std::slice::from_ref(status))
        }),
        Op::Settle {
            unit,
            state: end,
            outcome,
            at,
            note,
            statuses,
            letters,
            retry,
        } => {
            let settled = change(tx, unit, Change::End(*end), |seq, next| {
                let sql = "UPDATE unit SET state = ?2, outcome = ?3, ended = ?4, note = ?5
                           WHERE seq = ?1";
                let outcome = outcome.as_ref().map(outcome_text);
                let row = params![seq, next.state().name(), outcome, at, note];
                tx.prepare_cached(sql)?.execute(row)?;
                if let Some(retry) = retry {
                    let entry = Entry {
                        state: State::Pending,
                        boot: None,
                        at: *at,
                    };
                    insert_unit(tx, state, retry, &entry, &mut None)?;
                }
                post_all(tx, state, statuses)
            })?;
            with_letters(tx, settled, letters)
        }
        Op::Retry { retry, at, again } => {
            let sql = "SELECT 1 FROM unit WHERE id = ?1 AND ended IS NOT NULL AND (?2 OR
                           state <> 'succeeded'
                           AND NOT EXISTS (SELECT 1 FROM unit AS other WHERE other.retry_of = ?1))";
            let mut may = tx.prepare_cached(sql)?;
            if !may.exists(params![retry.retry_of, again])? {
                return Ok(changed(0, vec![]));
            }
            let entry = Entry {
                state: State::Pending,
                boot: None,
                at: *at,
            };
            insert_unit(tx, state, retry, &entry, &mut None)?;
            record_retry(tx, retry, *at)?;
            Ok(changed(1, vec![]))
        }
        Op::Sent { list, answered } => {
            let sql = "UPDATE link SET answered = ?1";
            tx.prepare_cached(sql)?.execute(params![answered])?;
            let mut delete = tx.prepare_cached("DELETE FROM outbox WHERE seq = ?1")?;
            for seq in list {
                delete.execute(params![seq.cast_signed()])?;
            }
            Ok(changed(list.len(), vec![]))
        }
        Op::Heard(heard) => {
            let sql = "INSERT INTO silence (trigger, heard, fired) VALUES (?1, ?2, ?3)
                       ON CONFLICT DO UPDATE SET heard = excluded.heard, fired = excluded.fired";
            let row = params![heard.trigger, heard.at, heard.fired];
            Ok(changed(tx.prepare_cached(sql)?.execute(row)?, vec![]))
        }
        Op::Post(message) => Ok(changed(
            1,
            post_all(tx, state, std::slice::from_ref(message))?,
        )),
        Op::LettersSent(list) => {
            remove_letters(tx, list)?;
            Ok(changed(list.len(), vec![]))
        }
        Op::MessagesClosed(units) => {
            close_messages(tx, units)?;
            Ok(changed(units.len(), vec![]))
        }
        Op::Prune(retention) => prune(tx, state, retention).map(Done::Pruned),
        Op::Removed(units) => {
            let mut delete = tx.prepare_cached("DELETE FROM released WHERE unit = ?1")?;
            for unit in units {
                delete.execute(params![unit])?;
            }
            Ok(changed(units.len(), vec![]))
        }
        Op::Fetched(units) => {
            let sql = "UPDATE unit SET fetched = ended WHERE id = ?1 AND fetched IS NULL";
            let mut update = tx.prepare_cached(sql)?;
            for unit in units {
                update.execute(params![unit])?;
            }
            Ok(changed(units.len(), vec![]))
        }
        Op::WantRelease { unit } => {
            let sql = "UPDATE unit SET wanted = 'release' WHERE id = ?1";
            let rows = tx.prepare_cached(sql)?.execute(params![unit])?;
            Ok(changed(rows, vec![]))
        }
        Op::Note { unit, note } => {
            let sql = "UPDATE unit SET note = ?2 WHERE id = ?1 AND ended IS NULL";
            let rows = tx.prepare_cached(sql)?.execute(params![unit, note])?;
            Ok(changed(rows, vec![]))
        }
        Op::Paid { unit } => {
            let sql = "DELETE FROM debt WHERE unit = ?1";
            let rows = tx.prepare_cached(sql)?.execute(params![unit])?;
            Ok(changed(rows, vec![]))
        }
        Op::Release { unit, force } => {
            let wanted = match force {
                true => Change::ForceRelease,
                false => Change::Release,
            };
            match decide(tx, unit, wanted)? {
                Decision::Changes(seq, _) => {
                    owe_release(tx, seq)?;
                    delete_unit(tx, seq)?;
                    Ok(changed(1, vec![]))
                }
                Decision::Stays(done) => Ok(done),
            }
        }
    }
}

/// Maximum number of releases that other nodes have not heard of. Nodes that never come back would fill
/// the ledger; they forget what they keep by their own limits.
pub(super) const MAX_DEBTS: i64 = 100_000;

/// Notes that the node that has run the unit of this number must hear of its release, if another one
/// has.
fn owe_release(tx: &Connection, seq: i64) -> rusqlite::Result<()> {
    let sql = "INSERT OR IGNORE INTO debt (unit, node, signed)
               SELECT id, work ->> '$.delegation.node', coalesce(work ->> '$.signed', 0)
               FROM unit WHERE seq = ?1 AND work ->> '$.delegation.node' IS NOT NULL";
    if tx.prepare_cached(sql)?.execute(params![seq])? == 0 {
        return Ok(());
    }
    // Ids of units begin with a time.
    let sql = "DELETE FROM debt WHERE unit IN
                   (SELECT unit FROM debt ORDER BY unit
                    LIMIT max(0, (SELECT count(*) FROM debt) - ?1))";
    if tx.prepare_cached(sql)?.execute(params![MAX_DEBTS])? > 0 {
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            warn!(
                "more than {MAX_DEBTS} releases wait for nodes that are away: the ledger forgets the \
                 oldest, and those nodes keep their units up to their own limits"
            );
        });
    }
    Ok(())
}

/// Records the retry of a person as an event that is called like its unit. It has no sender and an empty
/// digest, so that no message is taken for it.
fn record_retry(tx: &Connection, retry: &Unit, at: i64) -> rusqlite::Result<()> {
    // Events are pruned in the order of their numbers, which is that of their times.
    let sql = "INSERT INTO event (trigger, id, digest, topic, accepted, unit)
               VALUES (?1, ?2, x'', ?3, max(?4, coalesce(
                   (SELECT accepted FROM event ORDER BY seq DESC LIMIT 1), 0)), ?2)";
    let row = params![retry.lane(), retry.id, retry.topic, at];
    tx.prepare_cached(sql)?.execute(row).map(drop)
}

/// Decision of the table of states about a change.
enum Decision {
    /// The unit of this number changes.
    Changes(i64, Next),
    /// Nothing changes.
    Stays(Done),
}

/// Returns what the table of states decides about `change` of `unit`.
fn decide(tx: &Connection, unit: &str, change: Change) -> rusqlite::Result<Decision> {
    let sql = "SELECT seq, state, started IS NOT NULL FROM unit WHERE id = ?1";
    let row = |row: &Row<'_>| Ok((row.get(0)?, read_state(row, 1)?, row.get(2)?));
    let mut query = tx.prepare_cached(sql)?;
    let found: Option<(i64, State, bool)> = query.query_row(params![unit], row).optional()?;
    let Some((seq, state, begun)) = found else {
        // The unit was released.
        return Ok(Decision::Stays(changed(0, vec![])));
    };
    Ok(match Stage::of(state, begun).on(change) {
        Ok(Next::TooLate) => Decision::Stays(changed(0, vec![])),
        Ok(next) => Decision::Changes(seq, next),
        Err(change) => Decision::Stays(Done::Illegal {
            unit: unit.to_owned(),
            change,
        }),
    })
}

/// Performs `change` on `unit` with `write`, which gets the number of the unit and its next stage,
/// and returns the statuses to publish.
fn change(
    tx: &Connection,
    unit: &str,
    change: Change,
    write: impl FnOnce(i64, Stage) -> rusqlite::Result<Vec<Queued>>,
) -> rusqlite::Result<Done> {
    match decide(tx, unit, change)? {
        Decision::Changes(seq, Next::Stage(next)) => Ok(changed(1, write(seq, next)?)),
        Decision::Changes(..) => Ok(changed(0, vec![])),
        Decision::Stays(done) => Ok(done),
    }
}

const fn changed(rows: usize, queued: Vec<Queued>) -> Done {
    Done::Changed {
        applied: rows > 0,
        queued,
        letters: Vec::new(),
    }
}

/// Adds `letters` if the change applied.
fn with_letters(tx: &Connection, done: Done, letters: &[Letter]) -> rusqlite::Result<Done> {
    match done {
        Done::Changed {
            applied: true,
            queued,
            ..
        } => Ok(Done::Changed {
            applied: true,
            queued,
            letters: post_letters(tx, letters)?,
        }),
        done => Ok(done),
    }
}
