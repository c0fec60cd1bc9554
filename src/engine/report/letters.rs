//! Letters about units that came from queues.

use bytes::Bytes;
use jiff::Timestamp;
use tracing::warn;

use crate::engine::config::Config;
use crate::engine::pipeline::Pipeline;
use crate::model::letter::{self, Letter, Writer};
use crate::model::unit::{Outcome, State, Unit};

/// Returns who writes a letter at `now`.
pub fn writer(config: &Config, now: Timestamp) -> Writer<'_> {
    Writer {
        who: &config.who,
        host: &config.host,
        at: now.as_second(),
    }
}

/// Returns the letters about the end of `unit` at `now`, which no retry follows. `stderr` returns the
/// last lines of the standard error of its command.
pub fn at_end(
    pipeline: &Pipeline,
    unit: &Unit,
    outcome: &Outcome,
    stderr: impl FnOnce() -> Vec<String>,
    now: Timestamp,
) -> Vec<Letter> {
    if unit.origin.is_none() {
        return Vec::new();
    }
    let (mut body, mut lines) = (Bytes::new(), Vec::new());
    if outcome.state() == State::Failed {
        lines = stderr();
        body = match &unit.payload {
            Some(payload) => payload.clone(),
            None => pipeline
                .reader
                .payload(&unit.id)
                .unwrap_or_else(|e| {
                    warn!(
                        TAEL_UNIT = unit.id,
                        "the dead letter of a unit has no body: {e}"
                    );
                    Some(Bytes::new())
                })
                .unwrap_or_default(),
        };
    }
    let stderr = (!lines.is_empty()).then(|| lines.join("\n"));
    let writer = writer(&pipeline.config, now);
    letter::at_end(unit, outcome, body, stderr.as_deref(), writer)
}

/// Returns the letter about `unit`, which will not run, with the reason for people.
pub fn dropped(pipeline: &Pipeline, unit: &str, detail: &str) -> Vec<Letter> {
    let writer = writer(&pipeline.config, Timestamp::now());
    // It is a report to the sender only, who may be told nothing.
    let record = pipeline.reader.unit(unit).ok().flatten();
    let letter = record.and_then(|record| letter::dropped(&record.unit, detail, writer));
    letter.into_iter().collect()
}
