//! What the ledgers of this host know about pipelines.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::Result;
use crate::model::page::Run;
use crate::model::text::printable;
use crate::model::unit::State;
use crate::store::ledger::listing::{Listing, Selection};
use crate::store::ledger::{Reader, Record};
use crate::tools::work::{effective, state_name};

/// Maximum number of characters of a reason.
const MAX_REASON: usize = 200;

/// Returns a time of the ledger in seconds.
#[allow(clippy::cast_precision_loss)] // milliseconds of this millennium
fn seconds(milliseconds: i64) -> f64 {
    milliseconds as f64 / 1000.0
}

/// Returns what runs in the pipeline of this folder, and how many units wait.
///
/// # Errors
/// When there is no ledger, or it cannot be read.
pub fn live(pipeline: &Path) -> Result<(Vec<Run>, u64)> {
    let reader = Reader::open(pipeline)?;
    let mut running = Vec::new();
    for record in reader.live_page(State::Running, 0)? {
        if effective(pipeline, &record)?.0 != State::Running {
            continue;
        }
        running.push(Run {
            started: seconds(record.started.unwrap_or(record.accepted)),
            reason: printable(&record.unit.reason, MAX_REASON),
            event: record.unit.event,
            unit: record.unit.id,
        });
    }
    Ok((running, reader.waiting()?))
}

/// Returns the last runs in the pipeline of this folder, newest first.
///
/// # Errors
/// When there is no ledger, or it cannot be read.
pub fn runs(pipeline: &Path, limit: usize) -> Result<Vec<Value>> {
    let reader = Reader::open(pipeline)?;
    let selection = Selection::default();
    let listing = Listing::new(&reader, &selection);
    let (mut runs, mut seq) = (Vec::new(), i64::MAX);
    while runs.len() < limit {
        let page = listing.before(seq)?;
        let Some(last) = page.last() else {
            break;
        };
        seq = last.record.seq;
        for listed in &page {
            if runs.len() < limit {
                runs.push(run(pipeline, &listed.record)?);
            }
        }
    }
    Ok(runs)
}

fn run(pipeline: &Path, record: &Record) -> Result<Value> {
    let (state, outcome) = effective(pipeline, record)?;
    let started = record.started.map(seconds);
    let ended = record.ended.map(seconds);
    let spent = started.zip(ended).map(|(started, ended)| ended - started);
    Ok(json!({
        "unit": record.unit.id,
        "state": state_name(record, state),
        "reason": printable(&record.unit.reason, MAX_REASON),
        "started": started,
        "ended": ended,
        "seconds": spent,
        "code": outcome.as_ref().and_then(|outcome| outcome.reported().return_code()),
        "attempt": record.unit.attempt,
    }))
}
