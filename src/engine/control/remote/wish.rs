//! What requesters want of units: that they end, or are deleted.

use super::action::{Action, Actions};
use crate::engine::commit::receipt::Receipt;
use crate::engine::control::remote::answers::{answer, message, refuse};
use crate::engine::control::remote::permission::{is_signed, unsigned};
use crate::engine::pipeline::Pipeline;
use crate::engine::report::reply::ReplyTo;
use crate::model::remote::wire::{Answer, Done, Target};
use crate::store::ledger::Record;

/// What a requester wants of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// That it ends.
    Cancel,
    /// That it ends, and is deleted.
    Release,
}

/// Continues when the id of a unit that was not here is used up: its submission may have been on its
/// way to the disk, and came before.
pub fn after_ahead(
    pipeline: &Pipeline,
    wish: Wish,
    target: Target,
    reply: &ReplyTo,
    receipt: Receipt,
) -> Actions {
    let unit = target.unit.clone();
    let record = match pipeline.reader.unit(&unit) {
        Ok(record) => record.filter(|record| record.unit.work.is_some()),
        Err(e) => return vec![refuse(reply, &unit, &e), Action::Settle(receipt)],
    };
    let Some(record) = record else {
        let result = Done::Unknown;
        let done = answer(reply, &Answer::Done { unit, result });
        return vec![done, Action::Settle(receipt)];
    };
    // A signature was checked before.
    let work = record.unit.work.as_deref();
    if target.signature.is_none() && work.is_some_and(|work| is_signed(pipeline, work)) {
        return vec![refuse(reply, &unit, &unsigned()), Action::Settle(receipt)];
    }
    end(wish, &record, reply, receipt)
}

/// Ends a unit, or deletes it.
pub fn end(wish: Wish, record: &Record, reply: &ReplyTo, receipt: Receipt) -> Actions {
    let (unit, lane) = (record.unit.id.clone(), record.unit.lane().to_owned());
    let ended = record.state.is_end();
    let result = match (wish, ended) {
        (Wish::Release, _) => Done::Released,
        (Wish::Cancel, true) => Done::Ended,
        (Wish::Cancel, false) => Done::Canceled,
    };
    let done = Answer::Done {
        unit: unit.clone(),
        result,
    };
    if wish == Wish::Release {
        let answer = Box::new(message(reply, &done));
        return vec![Action::Release {
            unit,
            lane,
            ended,
            answer,
            receipt,
        }];
    }
    let action = (!ended).then_some(Action::Cancel { unit, lane });
    let rest = [answer(reply, &done), Action::Settle(receipt)];
    action.into_iter().chain(rest).collect()
}
