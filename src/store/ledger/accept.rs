//! How an event is accepted, unless it has been before.

use std::sync::Arc;

use rusqlite::{Transaction, params};

use crate::model::message::Message;
use crate::model::unit::{State, Unit};
use crate::store::ledger::Queued;
use crate::store::ledger::rows::{insert_unit, post_all};

/// What tells one event from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventKey {
    /// The sender's id, or one of our own.
    pub id: String,
    /// For senders that give none: a digest of topic and payload.
    pub digest: Option<[u8; 32]>,
    /// The packet identifier that it came under.
    pub packet: u16,
    /// A message of that digest and packet identifier accepted since then (milliseconds since
    /// the epoch) is the same one: the broker has said that it may have sent it before.
    pub redelivery_since: Option<i64>,
}

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
    },
    /// A refusal; the trigger is empty when the message could not even be read.
    Refuse {
        /// Name of the trigger.
        trigger: String,
        /// Why.
        refused: Refused,
    },
}

/// Accepts an event that came at `at` (milliseconds since the epoch) under this `boot`. Returns
/// which parts are new, and the statuses of refusals.
pub(super) fn accept(
    tx: &Transaction<'_>,
    key: &EventKey,
    topic: &str,
    at: i64,
    boot: &str,
    parts: &[Part],
) -> rusqlite::Result<(Vec<bool>, Vec<Queued>)> {
    let (mut fresh, mut queued) = (Vec::with_capacity(parts.len()), Vec::new());
    for part in parts {
        let (trigger, unit, refused) = match part {
            Part::Run { unit, .. } => (&unit.trigger, Some(unit), None),
            Part::Refuse { trigger, refused } => (trigger, None, Some(refused)),
        };
        if is_redelivery(tx, key, trigger, at)? {
            fresh.push(false);
            continue;
        }
        let sql = "INSERT INTO event
                       (trigger, id, digest, topic, accepted, unit, refusal, detail, packet)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT DO NOTHING";
        let rows = tx.prepare_cached(sql)?.execute(params![
            trigger,
            key.id,
            key.digest.as_ref().map(|digest| &digest[..]),
            topic,
            at,
            unit.map(|unit| &unit.id),
            refused.map(|refused| refused.code),
            refused.map(|refused| &refused.detail),
            key.packet,
        ])?;
        fresh.push(rows > 0);
        if rows == 0 {
            continue;
        }
        match part {
            Part::Run { unit, start: true } => {
                insert_unit(tx, unit, State::Running, Some(boot), at)?;
            }
            Part::Run { unit, start: false } => insert_unit(tx, unit, State::Pending, None, at)?,
            Part::Refuse { refused, .. } => {
                queued.extend(post_all(tx, refused.status.as_slice())?);
            }
        }
    }
    Ok((fresh, queued))
}

/// Whether the broker has sent the event before. It counts as accepted `at` then: until it is
/// known to be acknowledged, it may come once more.
fn is_redelivery(
    tx: &Transaction<'_>,
    key: &EventKey,
    trigger: &str,
    at: i64,
) -> rusqlite::Result<bool> {
    let (Some(digest), Some(since)) = (&key.digest, key.redelivery_since) else {
        return Ok(false);
    };
    let sql = "UPDATE event SET accepted = ?5
               WHERE digest = ?1 AND accepted >= ?2 AND trigger = ?3 AND packet = ?4";
    let known = params![&digest[..], since, trigger, key.packet, at];
    Ok(tx.prepare_cached(sql)?.execute(known)? > 0)
}
