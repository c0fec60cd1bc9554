//! Questions to triggers that come again.

use tracing::warn;

use crate::engine::after::After;
use crate::engine::client::Client;
use crate::engine::intake::judge::Admission;
use crate::engine::report::answers;
use crate::model::answer::requester;
use crate::os::logging::SENDERS;
use crate::store::ledger::{Acceptance, Op, Part};

/// Answers questions that are asked again, without a run. What the broker only delivers again is
/// answered already, or at the end of its run.
pub fn answer(client: &mut Client, admission: &Admission, became: &[Acceptance]) {
    if admission.key.again.is_some() {
        return;
    }
    for (part, became) in admission.parts.iter().zip(became) {
        let (Part::Run { unit, .. }, Acceptance::Known(known)) = (part, became) else {
            continue;
        };
        let (Some(address), Some(known)) = (requester(unit), known.unit.as_deref()) else {
            continue;
        };
        // A short question can have a long answer. Who gets none now asks again.
        if !client.reports.has_room() || !client.commits.keeps_up() {
            let why = "too many messages wait for the broker";
            warn!(target: SENDERS, "a question that came again is not answered now: {why}");
            return;
        }
        if let Some(answer) = answers::again(&client.pipeline, known, address) {
            let bytes = answer.payload.len() + answer.properties.memory();
            client.commits.hold(bytes);
            let after = After::AnsweredAgain(bytes);
            client.commits.submit(Op::Post(answer), after);
        }
    }
}
