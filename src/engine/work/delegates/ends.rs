//! Ends of units that other nodes run, as the ledger has them.

use tokio::time::Instant;

use crate::engine::pipeline::now_ms;
use crate::model::remote::wire;
use crate::model::text::printable;
use crate::model::unit::{End, Outcome, State, Stopped};

/// Returns the outcome of a unit that a person has ended before the node ran it.
pub fn canceled() -> Outcome {
    Outcome {
        stopped: Some(Stopped::Canceled),
        ..Outcome::not_started("canceled before the node ran it")
    }
}

/// Returns the outcome of a unit that its node has lost.
pub fn lost(cause: &str) -> Outcome {
    Outcome::not_started(format!("lost: {cause}"))
}

/// Beginning of the detail of a run that a signal has ended, as [`End`] is shown.
const BY_SIGNAL: &str = "killed by signal ";

/// Returns the outcome that a node reports; `started` is when its command was heard to have started.
pub fn outcome(state: &wire::State, started: Option<(i64, Instant)>) -> Outcome {
    let detail = printable(&state.detail, 500);
    let signal = state.detail.strip_prefix(BY_SIGNAL);
    let how = match (state.code, signal.and_then(|text| text.parse().ok())) {
        (_, Some(signal)) => End::Signaled(signal),
        (Some(code), None) => End::Exited(code.into()),
        (None, None) => End::NotStarted(detail.to_string()),
    };
    let is_canceled = State::from_name(&state.state) == Some(State::Canceled);
    let elapsed = started.map(|(_, since)| since.elapsed().as_micros());
    Outcome {
        stopped: is_canceled.then_some(Stopped::Canceled),
        started: started.map_or_else(now_ms, |(at, _)| at),
        elapsed: elapsed.map_or(0, |elapsed| u64::try_from(elapsed).unwrap_or(u64::MAX)),
        end: how,
        ..Outcome::not_started("")
    }
}
