//! Requests of operators on the control topic.

use serde_json::json;
use tracing::info;

use crate::engine::chain;
use crate::engine::client::Client;
use crate::engine::commit::receipt::{Progress, Receipt};
use crate::engine::control::actions::{self, Canceled, Demand, Request};
use crate::engine::intake::backlog::Load;
use crate::engine::intake::source::Source;
use crate::model::message::Delivery;

/// Performs a request. It is acknowledged when it is done, or on disk.
pub fn on_control(
    client: &mut Client,
    canceled: &mut Canceled,
    delivery: Delivery,
    receipt: Receipt,
) {
    let again = client.intake.redelivery.again();
    let Some(mut request) = Request::read(&client.pipeline, delivery, again) else {
        return client.settle(receipt, Progress::Refused);
    };
    if let Some(delivery) = request.without_properties() {
        client.intake.bridge.give(delivery);
    }
    let (pipeline, intake) = (&client.pipeline, &mut client.intake);
    let load = || Load::of(client.work.lanes(), client.commits.waiting());
    let has_room = || intake.has_room(pipeline, load);
    let answer = match request.demand(pipeline, canceled, has_room) {
        Demand::Run(subject) => {
            let source = Source::Request(subject, request.reply, receipt);
            return chain::on_source(client, source);
        }
        Demand::Repeated(answer) => {
            client.intake.counts.duplicates += 1;
            answer
        }
        Demand::Cancel { unit, lane } => {
            client.work.cancel(&lane, &unit, &mut client.steps);
            client.perform();
            actions::answer(Ok(actions::fields([("unit", json!(unit))])))
        }
        Demand::Pause(paused) => {
            let kept = actions::remember_pause(&client.pipeline, paused);
            if kept.is_ok() {
                client.work.pause(paused);
                client.tell_presence();
                info!("{}", if paused { "paused" } else { "resumed" });
            }
            actions::answer(kept.map(|()| actions::fields([("paused", json!(paused))])))
        }
        Demand::Status(totals) => actions::answer(Ok(client.snapshot().fields(&totals))),
        Demand::Refused(refusal) => actions::answer(Err(refusal)),
    };
    // This comes first. Otherwise a broker that drops us because of the answer would send the
    // request again.
    client.settle(receipt, Progress::Refused);
    if let Some(reply) = request.reply {
        client.answer(reply.message(answer));
    }
}
