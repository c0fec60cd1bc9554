//! Messages whose senders wait for an answer.

use std::sync::Arc;

use crate::engine::intake::judge::Admission;
use crate::engine::pipeline::Pipeline;
use crate::engine::report::answers::{address, message};
use crate::model::answer::{Answer, REFUSED};
use crate::model::cause::Cause;
use crate::model::message::Delivery;
use crate::store::ledger::Part;

/// Gives the units and refusals of a message the address of the requester who waits for their end, if
/// their trigger answers.
pub fn address_parts(
    pipeline: &Pipeline,
    admission: &mut Admission,
    delivery: &Delivery,
    now: i64,
) {
    if delivery.properties.response_topic.is_none() || delivery.retained {
        return;
    }
    let config = &pipeline.config;
    for part in &mut admission.parts {
        let max = match part.trigger() {
            // No trigger could read it.
            "" => {
                let topic = String::from_utf8_lossy(&delivery.topic);
                let mut waiting = config.triggers.waiting_for(&topic);
                waiting.find_map(|trigger| trigger.reply)
            }
            name => config
                .triggers
                .named(name)
                .and_then(|trigger| trigger.reply),
        };
        let Some(max) = max else {
            continue;
        };
        let Some(address) = address(config, delivery, max, now) else {
            return;
        };
        match part {
            Part::Run { unit, .. } => {
                // This is the only reference so far.
                if let Some(unit) = Arc::get_mut(unit) {
                    unit.reply = Some(address);
                }
            }
            Part::Refuse { refused, .. } => {
                let answer = Answer::refusal(REFUSED, &refused.detail);
                let cause = Cause::of_message(delivery, &admission.key.id);
                refused.answer = Some(message(pipeline, &address, cause, answer));
            }
        }
    }
}
