//! The chain that every event follows: offer -> judge -> commit -> receipt -> start -> end -> commit
//! -> publish. The parts decide each step, and the client performs it.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::debug;

use crate::engine::after::After;
use crate::engine::client::Client;
use crate::engine::commit::permit::StartPermit;
use crate::engine::commit::receipt::{Progress, QueueAck, Receipt};
use crate::engine::intake::backlog::Load;
use crate::engine::intake::judge::Admission;
use crate::engine::intake::offer::Offer;
use crate::engine::intake::source::Source;
use crate::engine::pipeline::now_ms;
use crate::engine::repeats;
use crate::engine::report::followers::Stage;
use crate::engine::report::last::End;
use crate::engine::report::reply::{self, ReplyTo};
use crate::engine::report::status;
use crate::engine::report::{answers, letters};
use crate::engine::work::retry::retry;
use crate::engine::work::{Ended, Report};
use crate::error::Result;
use crate::model::message::Message;
use crate::model::unit::Unit;
use crate::os::hooks;
use crate::store::ledger::submitted::debts;
use crate::store::ledger::{Acceptance, Committed, Done, Op, Part, Posted};

/// Offer: a source has delivered something.
pub fn on_source(client: &mut Client, source: Source) {
    let offer = source.offer(&client.pipeline, &mut client.steps);
    client.perform();
    let Some(offer) = offer else { return };
    let load = || Load::of(client.work.lanes(), client.commits.waiting());
    let admitted = client
        .intake
        .admit(&client.pipeline, offer, load, &mut client.steps);
    client.perform();
    match admitted {
        Ok(offer) => judge(client, offer),
        Err(dropped) => dropped
            .into_iter()
            .for_each(|receipt| client.settle(receipt, Progress::Refused)),
    }
}

/// Takes offers that were held, if there is room.
pub fn take_held(client: &mut Client) {
    while client.commits.keeps_up() {
        let load = || Load::of(client.work.lanes(), client.commits.waiting());
        let Some(offer) = client.intake.held(&client.pipeline, load) else {
            return;
        };
        judge(client, offer);
    }
}

/// Judge: what the offer means to the triggers.
fn judge(client: &mut Client, offer: Offer) {
    let from_broker = offer.is_message();
    if from_broker {
        client.intake.pressure.came(Instant::now());
    }
    let reply = offer.reply.as_ref();
    match client.intake.judge(&client.pipeline, offer.subject, reply) {
        Some(admission) => commit(client, admission, offer.receipt, offer.reply),
        None => client.settle(offer.receipt, Progress::Refused),
    }
    if from_broker {
        client.intake.pressure.served(Instant::now());
    }
}

/// Commit: the ledger accepts the event. Meanwhile runners prepare what starts at once.
fn commit(client: &mut Client, mut admission: Admission, receipt: Receipt, reply: Option<ReplyTo>) {
    let (mut permits, mut bytes) = (Vec::new(), 0);
    let holds = client.intake.pressure.holds_until(Instant::now()).is_some();
    for (place, part) in admission.parts.iter_mut().enumerate() {
        if let Part::Run { unit, start, .. } = part {
            let payload = unit.payload.as_ref().map_or(0, |p| p.len());
            bytes += payload + unit.exported_bytes();
            client.intake.came(payload);
            *start = client.work.claim(unit, holds);
            if *start && let Some(permit) = client.work.reserve(unit) {
                client.starting.push((Arc::clone(unit), permit.clone()));
                permits.push((place, permit));
            }
        }
    }
    let packet = admission.key.packet;
    let op = Op::Accept {
        key: admission.key.clone(),
        topic: admission.topic.clone(),
        at: client.intake.redelivery.came(now_ms(), packet),
        boot: client.pipeline.boot.clone(),
        parts: admission.parts.clone(),
    };
    hooks::failpoint("commit.before");
    let after = After::Accepted {
        admission: Box::new(admission),
        permits,
        receipt,
        reply,
        bytes,
    };
    client.commits.hold(bytes);
    client.commits.submit(op, after);
    make_ready(client);
}

/// Continues after a commit.
pub fn on_committed(client: &mut Client, committed: Committed<After>) {
    match (committed.then, committed.done) {
        (
            After::Accepted {
                admission,
                permits,
                receipt,
                reply,
                bytes,
            },
            Done::Accepted {
                parts,
                queued,
                letters,
            },
        ) => {
            client.commits.took(bytes);
            client.intake.arrived(&admission);
            hooks::failpoint("commit.after");
            repeats::answer(client, &admission, &parts);
            match receipt {
                Receipt::Queue(ack) => give_back_to_queue(client, ack, &admission, &parts, letters),
                receipt => give_back(client, receipt, &admission, &parts),
            }
            hooks::failpoint("ack.after");
            client.reports.extend(queued);
            if let Some(reply) = reply
                && let Some(answer) = reply::accepted(&admission.parts, &parts)
            {
                client.answer(reply.message(answer));
            }
            start(client, *admission, permits, &parts);
        }
        (After::Start(unit, permit), Done::Changed { applied: true, .. }) => {
            let (pipeline, steps) = (&client.pipeline, &mut client.steps);
            let ended = client.work.begin(pipeline, unit, permit.as_ref(), steps);
            client.perform();
            end(client, ended);
        }
        (After::Start(unit, permit), Done::Changed { .. } | Done::Illegal { .. }) => {
            let permit = permit.as_ref();
            client.work.not_started(&unit, permit, &mut client.steps);
        }
        (
            After::Settled { unit, retry, last },
            Done::Changed {
                applied,
                queued,
                letters,
            },
        ) => {
            hooks::failpoint("settle.after");
            // Publish: the outbox goes out before the loop waits again.
            client.reports.extend(queued);
            client.queues.posted(letters);
            if applied {
                client.reports.last.set(*last);
            }
            let retry = retry.filter(|_| applied);
            if let Some(retry) = &retry {
                let (spec, id) = (&retry.spec, &retry.id);
                client.work.wait(&client.pipeline, spec, id, retry.due);
            }
            let retry = retry.as_ref().map(|retry| &*retry.id);
            client.work.settled(&unit, retry, &mut client.steps);
            ended(client, &unit);
        }
        // The drop came too late, and the unit runs or has ended.
        (After::Dropped(unit), Done::Changed { applied: false, .. })
            if matches!(client.pipeline.reader.holds(&unit), Ok(true)) => {}
        (
            After::Dropped(unit),
            Done::Changed {
                queued, letters, ..
            },
        ) => {
            client.reports.extend(queued);
            client.queues.posted(letters);
            client.work.settled(&unit, None, &mut client.steps);
            ended(client, &unit);
        }
        (After::Settled { unit, .. } | After::Dropped(unit), Done::Illegal { .. }) => {
            client.work.settled(&unit, None, &mut client.steps);
            ended(client, &unit);
        }
        (After::Released(unit), _) => {
            client.followers.tell(&unit, Stage::Released);
            client.remote.ended(&client.pipeline, &unit);
            client.cleanup.released(&unit);
            owe_release(client, unit);
            client.cleanup.prune(&client.pipeline, &mut client.steps);
        }
        (After::Answered(answer, receipt), _) => {
            client.answer(*answer);
            client.settle(receipt, Progress::Refused);
        }
        (After::AnsweredAgain(bytes), done) => {
            client.commits.took(bytes);
            if let Done::Changed { queued, .. } = done {
                client.reports.extend(queued);
            }
        }
        (After::Nothing, Done::Changed { queued, .. }) => client.reports.extend(queued),
        (After::Nothing, Done::Pruned(pruned)) => {
            let cleanup = &mut client.cleanup;
            cleanup.on_pruned(&client.pipeline, &pruned, &mut client.steps);
        }
        (after, done) => debug!("unexpected: {after:?} brought {done:?}"),
    }
    client.perform();
}

/// The node that has run a released unit, if another one has, hears of that.
fn owe_release(client: &mut Client, unit: String) {
    // What cannot be read now is read by the next client.
    let debts = debts(&client.pipeline.reader, Some(&unit)).unwrap_or_default();
    let Some(debt) = debts.first() else { return };
    if client.owe_release(debt) {
        on_report(client, Report::Unknown(unit));
    }
}

/// The end of a unit is on disk: its readers hear of it, here and on other nodes, and it goes if a
/// person wants that.
fn ended(client: &mut Client, unit: &str) {
    client.delegates.settled(unit);
    client.followers.tell(unit, Stage::Ended);
    client.remote.ended(&client.pipeline, unit);
    client
        .cleanup
        .ended(&client.pipeline, unit, &mut client.steps);
}

/// Receipt: the source gets it now, or when the units have ended.
fn give_back(client: &mut Client, receipt: Receipt, admission: &Admission, became: &[Acceptance]) {
    let progress = admission.progress(became);
    if receipt.is_spent_by(progress) {
        client.settle(receipt, progress);
        return client.intake.pressure.served(Instant::now());
    }
    let units = admission.units(became, &client.pipeline.reader);
    if let Some(receipt) = client.work.attach(receipt, units) {
        client.settle(receipt, Progress::Ended);
    }
}

/// The same for a message of a queue, whose refusal may have `letters`.
fn give_back_to_queue(
    client: &mut Client,
    ack: QueueAck,
    admission: &Admission,
    became: &[Acceptance],
    letters: Vec<Posted>,
) {
    let dead = letters.iter().find(|posted| posted.letter.dead);
    let dead = dead.map(|posted| posted.seq);
    client.queues.posted(letters);
    for (part, became) in admission.parts.iter().zip(became) {
        if let (Part::Run { unit, .. }, Acceptance::Fresh) = (part, became) {
            let steps = &mut client.steps;
            client
                .queues
                .accepted(&ack, &admission.key, &unit.id, steps);
        }
    }
    match dead {
        Some(_) => client.queues.settle(&ack, dead),
        None => give_back(client, Receipt::Queue(ack), admission, became),
    }
}

/// Start: the units of a new event begin, or wait. `permits` are in the order of the parts.
fn start(
    client: &mut Client,
    admission: Admission,
    permits: Vec<(usize, StartPermit)>,
    became: &[Acceptance],
) {
    let names = (&*admission.key.id, &*admission.topic);
    let mut permits = permits.into_iter().peekable();
    for (place, (part, became)) in admission.parts.into_iter().zip(became).enumerate() {
        client.intake.count(names, &part, became);
        let fresh = *became == Acceptance::Fresh;
        match part {
            Part::Run { unit, start, .. } => {
                let permit = permits.next_if(|(of, _)| *of == place);
                let start = (start, permit.map(|(_, permit)| permit));
                let (pipeline, steps) = (&client.pipeline, &mut client.steps);
                let ended = client.work.accepted(pipeline, unit, start, fresh, steps);
                client.perform();
                end(client, ended);
            }
            Part::Refuse { .. } if fresh => {
                client
                    .cleanup
                    .one_more_to_keep(&client.pipeline, &mut client.steps);
                client.perform();
            }
            Part::Refuse { .. } => {}
        }
    }
}

/// Starts units that wait. A burst is taken in first, because its events are safe then.
pub fn start_waiting(client: &mut Client) -> Result<()> {
    if client.intake.pressure.holds_until(Instant::now()).is_some() {
        return Ok(());
    }
    let refused = client
        .work
        .start_waiting(&client.pipeline, &mut client.steps);
    client.perform();
    make_ready(client);
    for ended in refused? {
        // Another attempt would lack the same.
        book(client, ended, None, Timestamp::now());
    }
    Ok(())
}

/// Makes the ledger commit the submitted operations, while runners prepare what starts.
fn make_ready(client: &mut Client) {
    if !client.starting.is_empty() {
        client.commits.send();
        client.work.make_ready(&client.pipeline, &client.starting);
        client.starting.clear();
    }
}

pub fn on_report(client: &mut Client, report: Report) {
    let (pipeline, steps) = (&client.pipeline, &mut client.steps);
    let ended = match report {
        Report::Started(unit, at) => {
            if let Some(unit) = client.work.started(&unit, at) {
                if client.followers.wait_for(&unit.id) {
                    // Without the mark, the end of the run wakes its readers.
                    let _ = pipeline.dir(&unit.id).follow();
                    // The runner says nothing of output before this line is read.
                    client.followers.tell(&unit.id, Stage::Open);
                }
                client.observer.started(unit, pipeline);
                client.remote.started(&unit.id);
                client.commits.started(Op::Started {
                    unit: unit.id.clone(),
                    at,
                    status: status::started(&pipeline.config, unit, at),
                });
            }
            None
        }
        Report::Wrote(unit) => {
            match client.followers.wait_for(&unit) {
                true => client.followers.tell(&unit, Stage::Open),
                false => pipeline.dir(&unit).unfollow(),
            }
            None
        }
        Report::Ended(unit, outcome) => client.work.ended(pipeline, &unit, outcome, steps),
        Report::Refused(unit, what) => {
            client.work.refused(pipeline, &unit, &what, steps);
            None
        }
        Report::Unknown(unit) => client.work.unknown(pipeline, &unit, steps),
    };
    client.perform();
    end(client, ended);
}

/// Continues with what became of units that other nodes run.
pub fn on_reports(client: &mut Client, reports: Vec<Report>) {
    client.perform();
    for report in reports {
        on_report(client, report);
    }
}

/// Sends requests to other nodes, and continues with units that ended meanwhile.
pub fn send_requests(client: &mut Client) {
    let (session, redelivery) = (&mut client.link.session, &mut client.intake.redelivery);
    let publish = |message| {
        let token = session.publish(message)?;
        redelivery.sent(token, now_ms());
        Some(token)
    };
    let mut reports = std::mem::take(&mut client.reported);
    let sent = client
        .delegates
        .send(&client.pipeline, &mut client.steps, publish);
    reports.extend(sent);
    on_reports(client, reports);
}

/// End: the outcome, its statuses and the retry go to the ledger in one change.
pub fn end(client: &mut Client, ended: Option<Ended>) {
    let Some(ended) = ended else { return };
    let Ended { unit, outcome, .. } = &ended;
    let retries = &client.pipeline.config.spec_for(&unit.spec).retries;
    let now = Timestamp::now();
    let retry = retry(retries, unit, outcome, now);
    book(client, ended, retry, now);
}

/// Commits the end of a unit at `now`, with its `retry`.
fn book(client: &mut Client, ended: Ended, retry: Option<Unit>, now: Timestamp) {
    client.observer.ended(&ended, &client.pipeline);
    let Ended { unit, outcome, .. } = &ended;
    let config = &client.pipeline.config;
    let at = now.as_millisecond();
    client.observer.count(unit.lane(), outcome, at);
    let mut statuses = status::ended(config, unit, outcome, ended.said, at);
    let last = End::of(unit, outcome, at);
    let letters = match &retry {
        Some(_) => Vec::new(),
        None => {
            let stderr = || ended.last_lines(&client.pipeline.dir(&unit.id));
            let answer = answers::at_end(&client.pipeline, unit, outcome, stderr);
            statuses.extend(answer.map(|answer| client.reports.fit(&client.pipeline, answer)));
            letters::at_end(&client.pipeline, unit, outcome, stderr, now)
        }
    };
    let op = ended.op(statuses, letters, retry.clone(), now);
    hooks::failpoint("settle.before");
    let after = After::Settled {
        unit: ended.unit.id,
        retry: retry.map(Box::new),
        last: Box::new(last),
    };
    client.commits.submit(op, after);
    client
        .cleanup
        .one_more_to_keep(&client.pipeline, &mut client.steps);
    client.perform();
}

/// Sends output of units to other nodes.
pub fn send_output(client: &mut Client) {
    let (session, redelivery) = (&mut client.link.session, &mut client.intake.redelivery);
    let config = &client.pipeline.config;
    let node = (config.who.as_str(), config.signer.as_ref());
    client.remote.send(node, |message| {
        let token = session.publish(message)?;
        redelivery.sent(token, now_ms());
        Some(token)
    });
}

/// Publish: what the outbox may send now.
pub fn flush_reports(client: &mut Client) -> Result<()> {
    let (session, redelivery) = (&mut client.link.session, &mut client.intake.redelivery);
    let publish = |message: &Message| {
        let token = session.publish(message.clone())?;
        redelivery.sent(token, now_ms());
        Some(token)
    };
    let flushed = client
        .reports
        .flush(&client.pipeline, &mut client.steps, publish);
    client.perform();
    flushed
}
