//! The end of a unit, before the ledger knows it.

use std::time::Duration;

use jiff::Timestamp;
use tracing::{error, info, warn};

use crate::model::duration;
use crate::model::letter::Letter;
use crate::model::message::Message;
use crate::model::text::printable_bytes;
use crate::model::unit::{End, Outcome, State, Stopped, Unit};
use crate::store::ledger::Op;
use crate::store::unit_dir::UnitDir;
use crate::store::unit_dir::reader;
use crate::store::unit_dir::stream::Stream;

/// Maximum size of the stderr of a failed run in the log, bytes.
const TAIL_BYTES: u64 = 2048;

/// Maximum number of its lines, and length of a line, characters.
const TAIL_LINES: usize = 10;
const MAX_LINE: usize = 500;

/// A unit that has ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The unit.
    pub unit: Unit,
    /// Its outcome.
    pub outcome: Outcome,
    /// Whether its start is being committed, together with its status.
    pub said: bool,
}

impl Ended {
    /// Logs the end. If the command has failed and a person has not seen its output, its last lines
    /// of stderr are read from `dir`.
    pub fn log(&self, dir: impl FnOnce() -> Option<UnitDir>) {
        let (unit, outcome) = (&self.unit, &self.outcome);
        let elapsed = Duration::from_micros(outcome.elapsed);
        let topic = &unit.topic;
        if let Some(remains) = &outcome.remains {
            error!(TAEL_UNIT = unit.id, "{remains}; it is not tried again");
        }
        if outcome.state() == State::Succeeded {
            info!(
                TAEL_UNIT = unit.id,
                TAEL_EVENT = unit.event,
                TAEL_TOPIC = topic,
                "finished after {}",
                duration::text(elapsed)
            );
            return;
        }
        let why = match outcome.stopped {
            Some(Stopped::TimedOut) => " (timed out)",
            Some(Stopped::Canceled) | None => "",
        };
        if outcome.state() == State::Canceled {
            info!(
                TAEL_UNIT = unit.id,
                TAEL_EVENT = unit.event,
                TAEL_TOPIC = topic,
                "canceled after {}",
                duration::text(elapsed)
            );
            return;
        }
        warn!(
            TAEL_UNIT = unit.id,
            TAEL_EVENT = unit.event,
            TAEL_TOPIC = topic,
            "failed after {}: {}{why}",
            duration::text(elapsed),
            outcome.end
        );
        if let Some(dir) = dir() {
            for line in self.last_lines(&dir) {
                warn!(TAEL_UNIT = unit.id, "stderr: {line}");
            }
        }
    }

    /// Returns the last lines of the standard error of the command, printable; none if it did not run.
    #[must_use]
    pub fn last_lines(&self, dir: &UnitDir) -> Vec<String> {
        if !matches!(self.outcome.end, End::Exited(_) | End::Signaled(_)) {
            return Vec::new();
        }
        let whole = reader::Ended::with(Some(&self.outcome), Stream::Stderr);
        let tail = reader::tail(dir, Stream::Stderr, TAIL_BYTES, whole);
        let lines: Vec<&[u8]> = tail
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .collect();
        let skipped = lines.len().saturating_sub(TAIL_LINES);
        let last = lines.iter().skip(skipped);
        last.map(|line| printable_bytes(line, MAX_LINE)).collect()
    }

    /// Returns the change for the ledger: the end, its `statuses` and `letters`, and the `retry` that
    /// follows.
    pub fn op(
        &self,
        statuses: Vec<Message>,
        letters: Vec<Letter>,
        retry: Option<Unit>,
        at: Timestamp,
    ) -> Op {
        let outcome = &self.outcome;
        let note = match (&outcome.end, outcome.stopped) {
            (End::NotStarted(cause), _) => Some(format!("not started: {cause}")),
            (End::Interrupted, _) => Some("interrupted".to_owned()),
            (_, Some(Stopped::TimedOut)) => Some("timed out".to_owned()),
            _ => None,
        };
        let notes = [note, outcome.remains.clone(), outcome.note.clone()];
        let notes = notes.into_iter().flatten();
        let note = notes.reduce(|note, other| format!("{note}; {other}"));
        Op::Settle {
            unit: self.unit.id.clone(),
            state: outcome.state(),
            outcome: Some(outcome.clone()),
            at: at.as_millisecond(),
            note,
            statuses,
            letters,
            retry: retry.map(Box::new),
        }
    }
}
