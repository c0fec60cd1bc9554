//! Does what requests of other nodes demand.

use crate::engine::after::After;
use crate::engine::chain;
use crate::engine::client::Client;
use crate::engine::commit::receipt::{Progress, Receipt};
use crate::engine::commit::step::Step;
use crate::engine::control::remote::Action;
use crate::engine::intake::backlog::{Load, TOO_MANY};
use crate::model::message::Delivery;
use crate::model::work::WorkType;
use crate::store::ledger::Op;

/// Returns whether a message is a request for work.
pub fn is_request(client: &Client, delivery: &Delivery) -> bool {
    let pipeline = &client.pipeline;
    !pipeline.config.work.is_empty() && delivery.topic == pipeline.topics.work().as_bytes()
}

/// Takes a request for work.
pub fn on_request(client: &mut Client, delivery: &Delivery, receipt: Receipt) {
    let (pipeline, work) = (&client.pipeline, &client.work);
    let has_room = |kind: &WorkType| {
        if !work.lanes().has_room(&kind.spec.lane, kind.queue) {
            return Err(kind.is_full());
        }
        let load = || Load::of(work.lanes(), client.commits.waiting());
        match client.intake.has_room(pipeline, load) {
            true => Ok(()),
            false => Err(TOO_MANY.to_owned()),
        }
    };
    let actions = client
        .remote
        .on_request(pipeline, delivery, receipt, has_room);
    act(client, actions);
}

/// Does what a request demands.
pub fn act(client: &mut Client, actions: Vec<Action>) {
    for action in actions {
        match action {
            Action::Answer(answer) => client.answer(answer),
            Action::Settle(receipt) => client.settle(receipt, Progress::Refused),
            Action::Submit(source) => chain::on_source(client, *source),
            Action::Fetched(unit) => client.commits.fetched(unit),
            Action::Cancel { unit, lane } => {
                client.work.cancel(&lane, &unit, &mut client.steps);
            }
            Action::Release {
                unit,
                lane,
                ended,
                answer,
                receipt,
            } => {
                let wanted = Op::WantRelease { unit: unit.clone() };
                client
                    .commits
                    .submit(wanted, After::Answered(answer, receipt));
                if ended {
                    client.steps.push_back(Step::Release(unit, false));
                } else {
                    client.work.cancel(&lane, &unit, &mut client.steps);
                    client.cleanup.release_at_end(&unit);
                }
            }
        }
        client.perform();
    }
}
