//! The chain that every event follows, from its offer to the status of its end, and the one place
//! that performs what the parts decide.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;
use tracing::{debug, error, warn};

use crate::engine::after::After;
use crate::engine::commit::Commits;
use crate::engine::commit::receipt::{Progress, Receipt};
use crate::engine::commit::step::{Step, Steps};
use crate::engine::intake::Intake;
use crate::engine::intake::backlog::Load;
use crate::engine::intake::judge::Admission;
use crate::engine::intake::offer::Offer;
use crate::engine::intake::source::Source;
use crate::engine::link::{self, Link};
use crate::engine::observe::snapshot::Snapshot;
use crate::engine::observe::{Observer, Signs};
use crate::engine::pipeline::{Pipeline, now_ms};
use crate::engine::report::outbox::Loss;
use crate::engine::report::reply::{self, ReplyTo};
use crate::engine::report::{Reports, status};
use crate::engine::work::cleanup::{Cleanup, Removed};
use crate::engine::work::retry::retry;
use crate::engine::work::{Ended, Report, Units};
use crate::error::Result;
use crate::model::message::Message;
use crate::model::unit::Unit;
use crate::net::mqtt::{Refused, Refuser, Token};
use crate::net::session::{Event, SessionReceived};
use crate::os::hooks;
use crate::store::ledger::{Acceptance, Committed, Done, Op, Part};

/// A client: its parts, which decide, and its connections to the ledger and the broker. No part
/// knows another.
pub struct Client {
    pub pipeline: Pipeline,
    pub link: Link,
    pub commits: Commits<After>,
    pub intake: Intake<Token>,
    pub work: Units,
    pub cleanup: Cleanup,
    pub reports: Reports<Token>,
    pub observer: Observer,
    /// Steps that the parts have requested; empty between two turns of the loop.
    pub steps: Steps,
    /// Units whose start is being committed, until their runners prepare them.
    pub starting: Vec<Arc<Unit>>,
}

impl Client {
    /// Performs the steps of the parts.
    pub fn perform(&mut self) {
        while let Some(step) = self.steps.pop_front() {
            match step {
                Step::Commit(op) => self.commits.submit(op, After::Nothing),
                Step::Start(unit, permit) => {
                    let op = Op::Start {
                        unit: unit.id.clone(),
                        spec: Arc::clone(&unit.spec),
                        boot: self.pipeline.boot.clone(),
                    };
                    self.starting.push(Arc::clone(&unit));
                    self.commits.submit(op, After::Start(unit, permit));
                }
                Step::Drop(unit, note) => {
                    let op = Op::Drop {
                        unit: unit.clone(),
                        at: now_ms(),
                        note: note.to_owned(),
                    };
                    self.commits.submit(op, After::Dropped(unit));
                }
                Step::Sent(seq) => self.commits.sent(seq, self.intake.redelivery.known()),
                Step::Publish(message) => {
                    self.publish(message);
                }
                Step::Settle(receipt) => self.settle(receipt, Progress::Ended),
                Step::Signal(unit) => {
                    if let Err(e) = self.pipeline.dir(&unit).cancel() {
                        warn!(TAEL_UNIT = unit, "cannot cancel: {e}");
                    }
                }
            }
        }
    }

    // --- The chain: offer -> judge -> commit -> receipt -> start -> end -> commit -> publish ---

    /// Offer: a source has delivered something.
    pub fn on_source(&mut self, source: Source) {
        let offer = source.offer(&self.pipeline, &mut self.steps);
        self.perform();
        let Some(offer) = offer else { return };
        let load = || Load::of(self.work.lanes(), self.commits.waiting());
        match self.intake.admit(&self.pipeline, offer, load) {
            Ok(offer) => self.judge(offer),
            Err(dropped) => dropped
                .into_iter()
                .for_each(|receipt| self.settle(receipt, Progress::Refused)),
        }
    }

    /// Takes offers that were held, if there is room.
    pub fn take_held(&mut self) {
        while self.commits.keeps_up() {
            let load = || Load::of(self.work.lanes(), self.commits.waiting());
            let Some(offer) = self.intake.held(&self.pipeline, load) else {
                return;
            };
            self.judge(offer);
        }
    }

    /// Judge: what the offer means to the triggers.
    fn judge(&mut self, offer: Offer) {
        let from_broker = offer.is_message();
        if from_broker {
            self.intake.pressure.came(Instant::now());
        }
        let admission = self.intake.judge(
            &self.pipeline,
            offer.subject,
            offer.reply.as_ref(),
            &mut self.steps,
        );
        self.perform();
        match admission {
            Some(admission) => self.commit(admission, offer.receipt, offer.reply),
            None => self.settle(offer.receipt, Progress::Refused),
        }
        if from_broker {
            self.intake.pressure.served(Instant::now());
        }
    }

    /// Commit: the ledger accepts the event. Meanwhile runners prepare what starts at once.
    fn commit(&mut self, mut admission: Admission, receipt: Receipt, reply: Option<ReplyTo>) {
        let (mut permits, mut bytes) = (Vec::new(), 0);
        let holds = self.intake.pressure.holds_until(Instant::now()).is_some();
        for (place, part) in admission.parts.iter_mut().enumerate() {
            if let Part::Run { unit, start, .. } = part {
                let payload = unit.payload.as_ref().map_or(0, |p| p.len());
                bytes += payload + unit.exported_bytes();
                self.intake.came(payload);
                *start = self.work.claim(unit, holds);
                if *start && let Some(permit) = self.work.reserve(&unit.id) {
                    permits.push((place, permit));
                    self.starting.push(Arc::clone(unit));
                }
            }
        }
        let packet = admission.key.packet;
        let op = Op::Accept {
            key: admission.key.clone(),
            topic: admission.topic.clone(),
            at: self.intake.redelivery.came(now_ms(), packet),
            boot: self.pipeline.boot.clone(),
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
        self.commits.hold(bytes);
        self.commits.submit(op, after);
        self.make_ready();
    }

    /// Continues after a commit.
    pub fn on_committed(&mut self, committed: Committed<After>) {
        match (committed.then, committed.done) {
            (
                After::Accepted {
                    admission,
                    permits: _,
                    receipt,
                    reply,
                    bytes,
                },
                Done::Accepted { parts, queued },
            ) => {
                self.commits.took(bytes);
                self.intake.arrived(&admission);
                hooks::failpoint("commit.after");
                self.give_back(receipt, &admission, &parts);
                hooks::failpoint("ack.after");
                self.reports.extend(queued);
                if let Some(reply) = reply
                    && let Some(answer) = reply::accepted(&admission.parts, &parts)
                {
                    self.publish(reply.message(answer));
                }
                self.start(*admission, &parts);
            }
            (After::Start(unit, _), Done::Changed { applied: true, .. }) => {
                let ended = self.work.begin(&self.pipeline, unit, &mut self.steps);
                self.perform();
                self.end(ended);
            }
            (After::Start(unit, _), Done::Changed { .. } | Done::Illegal { .. }) => {
                self.work.not_started(&unit, &mut self.steps);
            }
            (After::Settled { unit, retry, last }, Done::Changed { applied, queued }) => {
                hooks::failpoint("settle.after");
                // Publish: the outbox goes out before the loop waits again.
                self.reports.extend(queued);
                if applied {
                    self.reports.last.set(*last);
                }
                let retry = retry.filter(|_| applied);
                if let Some(retry) = &retry {
                    let (spec, id) = (&retry.spec, &retry.id);
                    self.work.wait(&self.pipeline, spec, id, retry.due);
                }
                let retry = retry.as_ref().map(|retry| &*retry.id);
                self.work.settled(&unit, retry, &mut self.steps);
            }
            (After::Settled { unit, .. }, Done::Illegal { .. })
            | (After::Dropped(unit), Done::Changed { .. } | Done::Illegal { .. }) => {
                self.work.settled(&unit, None, &mut self.steps);
            }
            (After::Nothing, Done::Changed { queued, .. }) => self.reports.extend(queued),
            (After::Nothing, Done::Pruned(pruned)) => {
                let cleanup = &mut self.cleanup;
                cleanup.on_pruned(&self.pipeline, &pruned, &mut self.steps);
            }
            (after, done) => debug!("unexpected: {after:?} brought {done:?}"),
        }
        self.perform();
    }

    /// Receipt: the source gets it now, or when the units have ended.
    fn give_back(&mut self, receipt: Receipt, admission: &Admission, became: &[Acceptance]) {
        let progress = admission.progress(became);
        if receipt.is_spent_by(progress) {
            self.settle(receipt, progress);
            return self.intake.pressure.served(Instant::now());
        }
        let units = admission.units(became, &self.pipeline.reader);
        if let Some(receipt) = self.work.attach(receipt, units) {
            self.settle(receipt, Progress::Ended);
        }
    }

    #[cfg_attr(
        not(test),
        expect(unused_variables, reason = "MQTT's acknowledgement tells no progress")
    )]
    pub fn settle(&mut self, receipt: Receipt, progress: Progress<'_>) {
        match receipt {
            Receipt::None => {}
            Receipt::Mqtt(ack) => self.link.session.acknowledge(&ack),
            #[cfg(test)]
            Receipt::Script(receipt) => receipt.spend(progress),
        }
    }

    /// Start: the units of a new event begin, or wait.
    fn start(&mut self, admission: Admission, became: &[Acceptance]) {
        let names = (&*admission.key.id, &*admission.topic);
        for (part, became) in admission.parts.into_iter().zip(became) {
            self.intake.count(names, &part, became);
            let fresh = *became == Acceptance::Fresh;
            match part {
                Part::Run { unit, start, .. } => {
                    let ended =
                        self.work
                            .accepted(&self.pipeline, unit, start, fresh, &mut self.steps);
                    self.perform();
                    self.end(ended);
                }
                Part::Refuse { .. } if fresh => {
                    self.cleanup
                        .one_more_to_keep(&self.pipeline, &mut self.steps);
                    self.perform();
                }
                Part::Refuse { .. } => {}
            }
        }
    }

    /// Starts units that wait. A burst is taken in first, because its events are safe then.
    pub fn start_waiting(&mut self) -> Result<()> {
        if self.intake.pressure.holds_until(Instant::now()).is_some() {
            return Ok(());
        }
        let started = self.work.start_waiting(&self.pipeline, &mut self.steps);
        self.perform();
        self.make_ready();
        started
    }

    /// Makes the ledger commit the submitted operations, while runners prepare what starts.
    fn make_ready(&mut self) {
        if !self.starting.is_empty() {
            self.commits.send();
            self.work.make_ready(&self.pipeline, &self.starting);
            self.starting.clear();
        }
    }

    pub fn on_report(&mut self, report: Report) {
        let (pipeline, steps) = (&self.pipeline, &mut self.steps);
        let ended = match report {
            Report::Started(unit, at) => {
                if let Some(unit) = self.work.started(&unit, at) {
                    self.commits.started(Op::Started {
                        unit: unit.id.clone(),
                        at,
                        status: status::started(&pipeline.config, unit, at),
                    });
                }
                None
            }
            Report::Ended(unit, outcome) => self.work.ended(pipeline, &unit, outcome, steps),
            Report::Refused(unit, what) => {
                self.work.refused(pipeline, &unit, &what, steps);
                None
            }
            Report::Unknown(unit) => self.work.unknown(pipeline, &unit, steps),
        };
        self.perform();
        self.end(ended);
    }

    /// End: the outcome, its statuses and the retry go to the ledger in one change.
    pub fn end(&mut self, ended: Option<Ended>) {
        let Some(ended) = ended else { return };
        ended.log(&self.pipeline);
        let Ended { unit, outcome, .. } = &ended;
        self.observer.count(outcome);
        let config = &self.pipeline.config;
        let retries = &config.triggers.spec_for(&unit.spec).retries;
        let now = Timestamp::now();
        let at = now.as_millisecond();
        let retry = retry(retries, unit, outcome, now);
        let statuses = status::ended(config, unit, outcome, ended.said, at);
        let last: Value = status::end(unit, outcome, at).into();
        let op = ended.op(statuses, retry.clone(), now);
        hooks::failpoint("settle.before");
        let after = After::Settled {
            unit: ended.unit.id,
            retry: retry.map(Box::new),
            last: Box::new(last),
        };
        self.commits.submit(op, after);
        self.cleanup
            .one_more_to_keep(&self.pipeline, &mut self.steps);
        self.perform();
    }

    /// Publish: what the outbox may send now.
    pub fn flush_reports(&mut self) -> Result<()> {
        let (session, redelivery) = (&mut self.link.session, &mut self.intake.redelivery);
        let publish = |message: &Message| {
            let token = session.publish(message.clone())?;
            redelivery.sent(token, now_ms());
            Some(token)
        };
        let flushed = self.reports.flush(&self.pipeline, &mut self.steps, publish);
        self.perform();
        flushed
    }

    /// Publishes a message that no ledger holds, if there is a connection. The answer shows what
    /// the broker knows, like the answer to a status.
    pub fn publish(&mut self, message: Message) -> Option<Token> {
        let token = self.link.session.publish(message)?;
        self.intake.redelivery.sent(token, now_ms());
        Some(token)
    }

    // --- The session ---

    /// Handles an event of the session. Returns a message on the control topic.
    pub fn on_session(&mut self, event: Event) -> Option<SessionReceived> {
        match event {
            Event::Online => {
                self.link.went_online();
                self.tell_presence();
                self.intake.silence.online(true);
                self.reports.last.due();
                self.observer.health.ready();
            }
            Event::Subscribed(result) => {
                if let Err(e) = result {
                    error!("reload: {e}; events of that filter do not come");
                }
                self.observer.health.notify.ready();
            }
            Event::Holds(filters) => self.link.held(&self.pipeline.config, filters),
            Event::Left => {}
            Event::Offline => {
                let cut = self.link.went_offline();
                let loss = match self.link.session.is_packet_at_fault() {
                    true => Loss::Packet,
                    false => Loss::Link,
                };
                self.reports.lost(loss, &mut self.steps);
                self.perform();
                self.intake.disconnected(cut.then(now_ms));
            }
            Event::Published(token, result) => {
                match &result {
                    Err(Refused(_, Refuser::Local)) => self.intake.redelivery.unanswered(token),
                    Ok(()) | Err(Refused(_, Refuser::Broker)) => {
                        self.intake.redelivery.answered(token);
                    }
                }
                let result = result.map_err(|Refused(e, _)| e);
                let reports = &mut self.reports;
                reports.published(&self.pipeline, token, result, &mut self.steps);
                self.perform();
            }
            Event::Received(received) => {
                let delivery = &received.delivery;
                let redelivery = &mut self.intake.redelivery;
                redelivery.delivered(delivery.packet, delivery.duplicate);
                if delivery.topic == self.pipeline.topics.control().as_bytes() {
                    return Some(received);
                }
                self.on_source(Source::Mqtt(received));
            }
        }
        None
    }

    /// Publishes our presence.
    pub fn tell_presence(&mut self) {
        let here = link::here(&self.pipeline, self.work.lanes().is_paused());
        self.publish(here);
    }

    // --- The time ---

    /// Returns whether more messages can be taken.
    pub fn takes_more(&self) -> bool {
        self.commits.keeps_up() && self.intake.takes_more()
    }

    /// Returns when work is due without an event.
    pub fn wake(&self) -> Option<Instant> {
        let held = self.intake.pressure.holds_until(Instant::now());
        let times = [
            self.work.wake(&self.pipeline, held),
            self.commits.wake(),
            self.observer.wake(),
            self.reports.last.wake(),
            self.reports.wake().filter(|_| self.link.is_online()),
            self.cleanup.wake(),
            self.intake.wake(),
        ];
        times.into_iter().flatten().min()
    }

    /// Does the work that is due.
    pub fn on_time(&mut self) {
        self.work.on_time();
        self.commits.flush_due();
        self.reports.last.tell(&self.pipeline, &mut self.steps);
        self.cleanup.on_time(&self.pipeline, &mut self.steps);
        self.perform();
    }

    /// Continues after folders were removed.
    pub fn on_removed(&mut self, removed: Removed) {
        let cleanup = &mut self.cleanup;
        cleanup.on_removed(&self.pipeline, removed, &mut self.steps);
        self.perform();
    }

    // --- What others see ---

    /// Returns the present state of the client.
    pub fn snapshot(&self) -> Snapshot<'_> {
        let parts = (&self.work, &self.intake, &self.reports);
        Snapshot::of(&self.pipeline, parts, self.link.is_online())
    }

    /// Reports our state to observers, if there are any.
    pub fn observe(&mut self) {
        if self.observer.looks() {
            let parts = (&self.work, &self.intake, &self.reports);
            let snapshot = Snapshot::of(&self.pipeline, parts, self.link.is_online());
            let signs = Signs {
                stalled: self.link.session.is_stalled(),
                attempts: (self.commits.waiting() > 0).then(|| self.commits.attempts()),
            };
            self.observer.show(&snapshot, signs);
        }
    }

    /// Reports the final state of the client.
    pub fn observe_last(&mut self) {
        let parts = (&self.work, &self.intake, &self.reports);
        let snapshot = Snapshot::of(&self.pipeline, parts, false);
        self.observer.show_last(&snapshot);
    }
}
