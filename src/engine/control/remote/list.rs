//! The units of submitted work, for another node.

use crate::engine::control::remote::permission::is_signed;
use crate::engine::control::remote::state;
use crate::engine::pipeline::Pipeline;
use crate::error::Result;
use crate::model::remote::MAX_HEADER;
use crate::model::remote::wire::{Answer, State};
use crate::store::ledger::submitted;

/// Size of the units in an answer after which the next answer goes on, bytes. One more unit still
/// has room.
const PAGE: usize = MAX_HEADER / 2;

/// Maximum length of the text about a unit and of its submitter in a list, characters.
const MAX_TEXT: usize = 200;

/// Returns the units behind the place `after`. Units of signed work are among them for a request that
/// `is_allowed` by its signature.
///
/// # Errors
/// When the ledger cannot be read.
pub fn page(pipeline: &Pipeline, after: i64, is_allowed: bool) -> Result<Answer> {
    let (mut units, mut next, mut size) = (Vec::new(), None, 0);
    for record in submitted::page(&pipeline.reader, after)? {
        // There may be more behind the last one. The answer after that is empty.
        next = Some(record.seq);
        let work = record.unit.work.as_deref();
        if !is_allowed && work.is_some_and(|work| is_signed(pipeline, work)) {
            continue;
        }
        let unit = short(state(&record));
        size += serde_json::to_vec(&unit).map_or(0, |text| text.len());
        units.push(unit);
        if size > PAGE {
            break;
        }
    }
    Ok(Answer::Units { after, units, next })
}

fn short(state: State) -> State {
    let cut = |text: String| text.chars().take(MAX_TEXT).collect();
    State {
        detail: cut(state.detail),
        submitter: cut(state.submitter),
        ..state
    }
}
