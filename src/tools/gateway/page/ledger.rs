//! What the ledgers of this host know about pipelines.

use std::path::Path;

use serde_json::{Value, json};

use crate::engine::report::status;
use crate::error::Result;
use crate::model::message::property;
use crate::model::page::Run;
use crate::model::text::printable;
use crate::model::unit::{Outcome, State};
use crate::store::ledger::Reader;
use crate::store::ledger::listing::{Listed, Listing, Selection};
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
    let listed = newest(pipeline, limit)?;
    let runs = listed.iter();
    runs.map(|listed| run(pipeline, listed)).collect()
}

/// Returns the newest units in the pipeline of this folder, newest first.
fn newest(pipeline: &Path, limit: usize) -> Result<Vec<Listed>> {
    let reader = Reader::open(pipeline)?;
    let selection = Selection::default();
    let listing = Listing::new(&reader, &selection);
    let (mut units, mut seq) = (Vec::new(), i64::MAX);
    while units.len() < limit {
        let page = listing.before(seq)?;
        let Some(last) = page.last() else {
            break;
        };
        seq = last.record.seq;
        units.extend(page);
    }
    units.truncate(limit);
    Ok(units)
}

/// Returns the last statuses of the pipeline of this folder, newest first, as its client publishes them,
/// but without passthrough attributes.
///
/// # Errors
/// When there is no ledger, or it cannot be read.
pub fn statuses(pipeline: &Path, limit: usize) -> Result<Vec<Value>> {
    let mut statuses = Vec::new();
    for Listed { record, .. } in newest(pipeline, limit)? {
        let outcome = record.outcome.as_ref();
        if outcome.is_some_and(Outcome::was_canceled_before_it_began) {
            continue;
        }
        if let (Some(ended), Some(outcome)) = (record.ended, outcome) {
            let mut end = status::end(&record.unit, outcome, ended);
            if record.state == State::Canceled {
                end.insert("status".to_owned(), property::CANCELED.into());
            }
            statuses.push((ended, true, Value::Object(end)));
        }
        let has_begun = outcome.is_none_or(|outcome| outcome.end.return_code().is_some());
        if let Some(started) = record.started.filter(|_| has_begun) {
            let start = status::start(&record.unit, started);
            statuses.push((started, false, Value::Object(start)));
        }
    }
    statuses.sort_by_key(|(at, is_end, _)| std::cmp::Reverse((*at, *is_end)));
    statuses.truncate(limit);
    Ok(statuses.into_iter().map(|(_, _, status)| status).collect())
}

fn run(pipeline: &Path, listed: &Listed) -> Result<Value> {
    let record = &listed.record;
    let (state, outcome) = effective(pipeline, record)?;
    let started = record.started.map(seconds);
    let ended = record.ended.map(seconds);
    let spent = started.zip(ended).map(|(started, ended)| ended - started);
    let about = listed.about.iter();
    let about: Vec<String> = about
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    Ok(json!({
        "unit": record.unit.id,
        "event": record.unit.event,
        "state": state_name(record, state),
        "reason": printable(&record.unit.reason, MAX_REASON),
        "about": printable(&about.join(" "), MAX_REASON),
        "started": started,
        "ended": ended,
        "seconds": spent,
        "code": outcome.as_ref().and_then(|outcome| outcome.reported().return_code()),
        "attempt": record.unit.attempt,
    }))
}
