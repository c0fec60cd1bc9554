//! The unit that tries another one again.

use jiff::Timestamp;

use crate::model::policy::Retries;
use crate::model::unit::{Outcome, Unit};
use crate::os::host::new_id;

/// Returns the unit that follows one with this `outcome`, if `retries` want one.
pub fn retry(retries: &Retries, unit: &Unit, outcome: &Outcome, now: Timestamp) -> Option<Unit> {
    let delay = retries.after(unit.attempt, outcome)?;
    let delay = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
    let due = now.as_millisecond().saturating_add(delay);
    Some(unit.again(new_id(), due))
}
