//! The parts of a client, and the one place that performs what they decide.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{error, warn};

use crate::engine::after::After;
use crate::engine::commit::Commits;
use crate::engine::commit::permit::StartPermit;
use crate::engine::commit::receipt::{Progress, Receipt};
use crate::engine::commit::step::{Step, Steps};
use crate::engine::control::remote::Remote;
use crate::engine::intake::Intake;
use crate::engine::link::{self, Link};
use crate::engine::observe::snapshot::Snapshot;
use crate::engine::observe::{Observer, Signs};
use crate::engine::pipeline::{Pipeline, now_ms};
use crate::engine::queue::{Found, Queues};
use crate::engine::report::Reports;
use crate::engine::report::followers::Followers;
use crate::engine::report::outbox::Loss;
use crate::engine::report::{answers, letters};
use crate::engine::work::cleanup::{Beside, Cleanup};
use crate::engine::work::delegates::Delegates;
use crate::engine::work::delegates::asks::Asker;
use crate::engine::work::{Report, Units};
use crate::model::message::{Delivery, Message};
use crate::model::remote::wire::Request;
use crate::model::status::Presence;
use crate::model::unit::Unit;
use crate::net::mqtt::{Audience, Refused, Refuser, Token};
use crate::net::session::{Event, SessionReceived};
use crate::store::ledger::Op;
use crate::store::ledger::submitted::Debt;

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
    pub followers: Followers,
    pub remote: Remote<Token>,
    pub delegates: Delegates<Token>,
    pub queues: Queues,
    pub observer: Observer,
    /// Steps that the parts have requested; empty between two turns of the loop.
    pub steps: Steps,
    /// What became of units that other nodes run; empty between two turns of the loop.
    pub reported: Vec<Report>,
    /// Units whose start is being committed, until their runners prepare them, which wait for these
    /// permits.
    pub starting: Vec<(Arc<Unit>, StartPermit)>,
}

impl Client {
    /// Performs the steps of the parts.
    pub fn perform(&mut self) {
        while let Some(step) = self.steps.pop_front() {
            match step {
                Step::Commit(op) => self.commits.submit(op, After::Nothing),
                Step::Start { unit, anew, permit } => {
                    let op = Op::Start {
                        unit: Arc::clone(&unit),
                        anew,
                        boot: self.pipeline.boot.clone(),
                    };
                    if let Some(permit) = &permit {
                        self.starting.push((Arc::clone(&unit), permit.clone()));
                    }
                    self.commits.submit(op, After::Start(unit, permit));
                }
                Step::Drop(unit, note) => {
                    let letters = match self.queues.has_any() {
                        true => letters::dropped(&self.pipeline, &unit, note),
                        false => Vec::new(),
                    };
                    let answer = answers::dropped(&self.pipeline, &unit, note);
                    let op = Op::Drop {
                        unit: unit.clone(),
                        at: now_ms(),
                        note: note.to_owned(),
                        answer,
                        letters,
                    };
                    self.commits.submit(op, After::Dropped(unit));
                }
                Step::Release(unit, force) => {
                    let op = Op::Release {
                        unit: unit.clone(),
                        force,
                    };
                    self.commits.submit(op, After::Released(unit));
                }
                Step::Sent(seq) => self.commits.sent(seq, self.intake.redelivery.known()),
                Step::Publish(message) => {
                    self.publish(message);
                }
                Step::Settle(Receipt::Queue(ack), unit) => self.queues.ended(&ack, &unit),
                Step::Settle(receipt, _) => self.settle(receipt, Progress::Ended),
                Step::Refuse(receipt) => self.settle(receipt, Progress::Refused),
                Step::Signal(unit) => {
                    let ended = self.delegates.cancel(&unit, &mut self.steps);
                    self.reported.extend(ended);
                    if let Err(e) = self.pipeline.dir(&unit).cancel() {
                        warn!(TAEL_UNIT = unit, "cannot cancel: {e}");
                    }
                }
                Step::Delegate(unit) => {
                    self.delegates.begin(&self.pipeline, &unit);
                    self.subscribe_to_nodes();
                }
                Step::Resume(unit, started) => {
                    let ended = self.delegates.take_up(&self.pipeline, &unit, started);
                    self.reported.extend(ended);
                    self.subscribe_to_nodes();
                }
            }
        }
    }

    /// Takes a released unit, of which its node must hear that.
    pub fn owe_release(&mut self, debt: &Debt) -> bool {
        let was_here = self.delegates.owe(&self.pipeline, debt);
        self.subscribe_to_nodes();
        was_here
    }

    /// Asks another node something that is about no unit of ours.
    pub fn ask_node(&mut self, node: String, question: (Request, bool), asker: Asker) {
        self.delegates.ask(&self.pipeline, node, question, asker);
        self.subscribe_to_nodes();
    }

    /// Asks the broker for the answers of nodes that have run nothing for us before.
    fn subscribe_to_nodes(&mut self) {
        if !self.delegates.wants_subscriptions() {
            return;
        }
        let prepared = self.delegates.filters().and_then(|filters| {
            let (config, topics) = (&self.pipeline.config, &self.pipeline.topics);
            self.link.prepare(config, topics, filters)
        });
        match prepared {
            Ok(subscriptions) => {
                let asked = self.link.session.subscribe(subscriptions);
                if !asked && self.link.is_online() {
                    self.nodes_answer();
                }
            }
            Err(e) => error!("cannot subscribe to the answers of other nodes: {e}"),
        }
    }

    /// Notes that the broker has answered for the topics of the nodes, and there is a connection.
    fn nodes_answer(&mut self) {
        let session = &self.link.session;
        self.delegates
            .subscribed(|filter| session.is_refused(filter));
    }

    /// Gives a receipt back to its source.
    pub fn settle(&mut self, receipt: Receipt, progress: Progress<'_>) {
        match receipt {
            Receipt::None => {}
            Receipt::Mqtt(ack) => {
                if let Some(packet) = self.link.session.acknowledge(&ack) {
                    self.intake.redelivery.settled(packet);
                }
            }
            Receipt::Submitted(submitter) => submitter.tell(progress),
            Receipt::Queue(ack) => self.queues.settle(&ack, None),
            #[cfg(test)]
            Receipt::Script(receipt) => receipt.spend(progress),
        }
    }

    /// Publishes a message that no ledger holds, if there is a connection. The answer shows what
    /// the broker knows, like the answer to a status.
    pub fn publish(&mut self, message: Message) -> Option<Token> {
        let token = self.link.session.publish(message)?;
        self.intake.redelivery.sent(token, now_ms());
        Some(token)
    }

    // --- The session ---

    /// Handles an event of the session. Returns a message that has come, and its acknowledgement.
    pub fn on_session(&mut self, event: Event) -> Option<(Delivery, Receipt)> {
        match event {
            Event::Online => {
                let answers = self.link.went_online();
                self.link.say_what_it_waits_for(&self.pipeline.config);
                self.tell_presence();
                answers.into_iter().for_each(|answer| self.answer(answer));
                self.intake.silence.online(true);
                self.remote.went_online();
                self.nodes_answer();
                self.reports.last.due();
                self.observer.health.ready();
            }
            Event::Subscribed(result) => {
                if let Err(e) = result {
                    error!("reload: {e}; events of that filter do not come");
                }
                if self.link.is_online() {
                    self.nodes_answer();
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
                self.remote.went_offline();
                self.delegates.went_offline();
                self.perform();
                self.intake.disconnected(cut.then(now_ms));
            }
            Event::Published(token, result) => {
                match &result {
                    Err(Refused(_, Refuser::Local)) => self.intake.redelivery.unanswered(token),
                    Ok(_) | Err(Refused(_, Refuser::Broker)) => {
                        self.intake.redelivery.answered(token);
                    }
                }
                self.link.published(token);
                let heard = result.as_ref().map_err(|Refused(e, _)| e);
                let heard = heard.map(|audience| *audience != Audience::None);
                self.remote.published(token, heard);
                self.delegates.published(token, heard, &mut self.steps);
                let result = result.map(drop).map_err(|Refused(e, _)| e);
                let reports = &mut self.reports;
                reports.published(&self.pipeline, token, result, &mut self.steps);
                self.perform();
            }
            Event::Received(SessionReceived { delivery, ack }) => {
                let redelivery = &mut self.intake.redelivery;
                redelivery.delivered(delivery.packet, delivery.duplicate, now_ms());
                return Some((delivery, Receipt::Mqtt(ack)));
            }
        }
        None
    }

    /// Publishes our presence.
    pub fn tell_presence(&mut self) {
        let here = link::here(&self.pipeline, self.work.lanes().is_paused());
        self.publish(here);
    }

    /// Publishes the answer to a request. A broker that has kept the session sends requests before
    /// the session is online, and their answers wait for that.
    pub fn answer(&mut self, answer: Message) {
        if self.publish(answer.clone()).is_none() {
            self.link.owe(answer);
        }
    }

    /// Publishes that we are offline from now on, unless that is on its way.
    pub fn say_goodbye(&mut self) {
        if self.link.owes_goodbye()
            && let Some(token) = self.publish(link::presence(&self.pipeline, Presence::Offline))
        {
            self.link.says_goodbye(token);
        }
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
            self.cleanup.wake(&self.pipeline, self.work.has_live()),
            self.intake.wake(),
            self.delegates.wake(),
            self.remote.wake(),
            self.queues.wake(),
        ];
        times.into_iter().flatten().min()
    }

    /// Does the work that is due.
    pub fn on_time(&mut self) {
        self.work.on_time();
        self.commits.flush_due();
        self.reports.last.tell(&self.pipeline, &mut self.steps);
        let work = &self.work;
        let running = || work.lanes().running().cloned().collect();
        self.cleanup
            .on_time(&self.pipeline, (work.has_live(), running), &mut self.steps);
        let ended = self.delegates.on_time(&mut self.steps);
        self.reported.extend(ended);
        self.remote.on_time(&self.pipeline);
        self.perform();
    }

    /// Returns messages of queues that have waited long enough.
    pub fn due_of_queues(&mut self) -> Vec<Found> {
        let due = self.queues.on_time(&self.pipeline, &mut self.steps);
        self.perform();
        due
    }

    /// Continues after work beside the loop: folders were removed, or the state was measured.
    pub fn on_beside(&mut self, beside: Beside) {
        for unit in beside.removed() {
            self.remote.ended(&self.pipeline, unit);
        }
        let cleanup = &mut self.cleanup;
        cleanup.on_beside(&self.pipeline, beside, &mut self.steps);
        self.perform();
    }

    // --- What others see ---

    /// Returns the present state of the client.
    pub fn snapshot(&self) -> Snapshot<'_> {
        let parts = (&self.work, &self.intake, &self.reports);
        let snapshot = Snapshot::of(&self.pipeline, parts, self.link.is_online());
        snapshot.with_queues(&self.queues)
    }

    /// Reports our state to observers, if there are any.
    pub fn observe(&mut self) {
        if self.observer.looks() {
            let parts = (&self.work, &self.intake, &self.reports);
            let snapshot = Snapshot::of(&self.pipeline, parts, self.link.is_online());
            let snapshot = snapshot.with_queues(&self.queues);
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
