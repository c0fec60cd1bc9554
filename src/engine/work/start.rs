//! Whether a unit that has its turn starts, as the configuration says now.

use tracing::{info, warn};

use crate::engine::config::Config;
use crate::engine::pipeline::now_ms;
use crate::model::answer::requester;
use crate::model::event::Refusal;
use crate::model::follow::Followed;
use crate::model::unit::Unit;
use crate::os::logging::SENDERS;

/// What becomes of a unit that has its turn.
#[derive(Debug)]
pub enum Start {
    /// It starts, with another environment than the one that it was accepted with if `anew`.
    Begins { unit: Unit, anew: bool },
    /// It does not run: its requester waits no longer.
    Expired(Unit),
    /// It does not run: its event lacks what its trigger requires now.
    Refused(Unit, Refusal),
}

impl Start {
    /// Decides about `unit`, which has its payload.
    pub fn of(config: &Config, mut unit: Unit) -> Self {
        if has_given_up(&unit) {
            info!(
                TAEL_UNIT = unit.id,
                "not run: its requester waits no longer"
            );
            return Self::Expired(unit);
        }
        match config.follow(&mut unit) {
            Ok(Followed::AsAccepted) => Self::Begins { unit, anew: false },
            Ok(Followed::Anew(warnings)) => {
                for warning in &warnings {
                    warn!(target: SENDERS, TAEL_UNIT = unit.id, "{warning}");
                }
                Self::Begins { unit, anew: true }
            }
            Err(refusal) => Self::Refused(unit, refusal),
        }
    }
}

/// Returns whether the requester of `unit` waits no longer for its output.
fn has_given_up(unit: &Unit) -> bool {
    let at_end = requester(unit).and_then(|address| address.at_end.as_ref());
    let expires = at_end.and_then(|at_end| at_end.expires);
    expires.is_some_and(|expires| expires <= now_ms() / 1000)
}
