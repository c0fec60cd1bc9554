//! Ends of units that other nodes run, as the ledger has them.

use tokio::time::Instant;

use crate::engine::pipeline::now_ms;
use crate::engine::work::delegates::effect::Effect;
use crate::model::remote::assembly::Fit;
use crate::model::remote::wire;
use crate::model::text::printable;
use crate::model::unit::{End, Outcome, State, Stopped};

/// Returns the outcome of a unit that a person has ended, and of which its node knows nothing; `started`
/// is when its command was heard to have started.
pub fn canceled(started: Option<(i64, Instant)>) -> Outcome {
    let outcome = match started {
        Some((at, _)) => Outcome::interrupted(at),
        None => Outcome::not_started("canceled before the node ran it"),
    };
    Outcome {
        stopped: Some(Stopped::Canceled),
        ..outcome
    }
}

/// Returns the outcome of a unit that its node has lost; `started` is when its command was heard to have
/// started.
pub fn lost(cause: &str, started: Option<(i64, Instant)>) -> Outcome {
    let cause = format!("lost: {cause}");
    match started {
        Some((at, _)) => Outcome {
            note: Some(cause),
            ..Outcome::interrupted(at)
        },
        None => Outcome::not_started(cause),
    }
}

/// Beginning of the detail of a run that a signal has ended, as [`End`] is shown.
const BY_SIGNAL: &str = "killed by signal ";

/// Largest number of a signal (`signal(7)`, `SIGRTMAX` of MIPS).
const MAX_SIGNAL: i32 = 128;

/// Maximum length of a stream, bytes. A node that reports more is wrong, and sums must not overflow.
const MAX_LENGTH: u64 = 1 << 60;

/// Returns how much is missing of streams with these `lengths`, whose files have these `sizes`, bytes.
fn dropped(lengths: [u64; 2], sizes: [u64; 2]) -> [u64; 2] {
    let mut missing = lengths.map(|length| length.min(MAX_LENGTH));
    for (missing, size) in missing.iter_mut().zip(sizes) {
        *missing = missing.saturating_sub(size);
    }
    missing
}

/// Returns whether output with these `digests`, which `fits` the end of its unit so, is that of the node.
/// What the node has dropped since is here, too, and has another digest there.
pub fn is_same(fits: [Fit; 2], digests: &[String; 2], end: &wire::End) -> bool {
    let mut streams = fits.iter().zip(digests.iter().zip(&end.sha256));
    streams.all(|(fit, (here, there))| *fit == Fit::More || here == there)
}

/// Returns what follows when the output of a unit of `node`, which takes up these `sizes`, was checked: it
/// `is_same` as that of the node, or is not.
pub fn effects(
    end: &wire::End,
    sizes: [u64; 2],
    is_same: bool,
    node: &str,
    started: Option<(i64, Instant)>,
) -> Vec<Effect> {
    let outcome = Outcome {
        dropped: dropped(end.lengths, sizes),
        note: (!is_same).then(|| format!("its output differs from that on node {node}")),
        ..outcome(&end.state, started)
    };
    // The output of an end that is wrong is no reason to forget the one of the node.
    let fetched = if is_same { end.lengths } else { [0, 0] };
    let mut effects = vec![Effect::Fetched(fetched)];
    // A run that was too short to be seen has started, too.
    if !matches!(outcome.end, End::NotStarted(_)) && started.is_none() {
        effects.push(Effect::Started(outcome.started));
    }
    effects.push(Effect::Ended(outcome));
    effects
}

/// Returns the outcome that a node reports; `started` is when its command was heard to have started.
pub fn outcome(state: &wire::State, started: Option<(i64, Instant)>) -> Outcome {
    let detail = printable(&state.detail, 500);
    let signal = state.detail.strip_prefix(BY_SIGNAL);
    let signal = signal.and_then(|text| text.parse().ok());
    let how = match (state.code, signal) {
        _ if state.detail == End::Interrupted.to_string() => End::Interrupted,
        (_, Some(signal @ 1..=MAX_SIGNAL)) => End::Signaled(signal),
        (Some(code), _) => End::Exited(code.into()),
        (None, _) => End::NotStarted(detail.to_string()),
    };
    let is_canceled = State::from_name(&state.state) == Some(State::Canceled);
    // A node of an earlier version does not say how long it has run.
    let since = started.map(|(_, since)| since.elapsed().as_micros());
    let elapsed = since.map(|elapsed| u64::try_from(elapsed).unwrap_or(u64::MAX));
    Outcome {
        stopped: is_canceled.then_some(Stopped::Canceled),
        started: started.map_or_else(now_ms, |(at, _)| at),
        elapsed: state.elapsed.or(elapsed).unwrap_or(0),
        end: how,
        ..Outcome::not_started("")
    }
}
