//! The units that other nodes run: to the rest of the client, a node is a runner.
//!
//! docs/protocol.md has the messages. Of a unit, the ledger holds that it runs, its folder holds what
//! came of its output, and everything else is asked of its node, which knows it.

mod acks;
pub mod asks;
mod checks;
mod delegate;
mod effect;
pub mod ends;
mod flight;
mod following;
mod node;
mod offer;
pub mod offers;
mod open_files;
mod outgoing;
mod patience;
mod payload;
mod phase;
mod timers;
mod units;

use std::hash::Hash;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::engine::commit::step::{Step, Steps};
use crate::engine::pipeline::Pipeline;
use crate::engine::work::delegates::acks::Acks;
use crate::engine::work::delegates::asks::{Asker, Questions};
use crate::engine::work::delegates::checks::{Checked, Checks};
use crate::engine::work::delegates::delegate::Delegate;
use crate::engine::work::delegates::effect::Effect;
use crate::engine::work::delegates::flight::Flight;
use crate::engine::work::delegates::node::{Heard, Node, Nodes, place};
use crate::engine::work::delegates::offers::{Offered, Offers};
use crate::engine::work::delegates::outgoing::Cancel;
use crate::engine::work::delegates::phase::CANCEL;
use crate::engine::work::delegates::units::{Effects, Units};
use crate::engine::work::pool::Report;
use crate::error::Error;
use crate::model::message::{Delivery, Message};
use crate::model::receptor::{NO_ROUTE, TRY_AGAIN};
use crate::model::remote::wire::{self, Answer, Request};
use crate::model::text::printable;
use crate::model::topic::{Filter, PipelineTopic};
use crate::model::unit::{Outcome, Unit};
use crate::os::hooks;
use crate::os::logging::SENDERS;
use crate::store::ledger::Op;
use crate::store::ledger::submitted::Debt;

/// The units that other nodes run; `T` is a token of a publish.
#[derive(Debug)]
pub struct Delegates<T> {
    units: Units,
    nodes: Nodes,
    /// Whether the last message did not go out: there was no connection, or no room.
    is_blocked: bool,
    /// Whether there is a connection.
    is_online: bool,
    checks: Checks,
    acks: Acks,
    offers: Offers,
    questions: Questions<T>,
    flight: Flight<T>,
}

impl<T> Default for Delegates<T> {
    fn default() -> Self {
        Self {
            units: Units::default(),
            nodes: Nodes::new(),
            is_blocked: false,
            is_online: false,
            checks: Checks::default(),
            acks: Acks::default(),
            offers: Offers::default(),
            questions: Questions::default(),
            flight: Flight::default(),
        }
    }
}

impl<T: Copy + Eq + Hash> Delegates<T> {
    // --- Units ---

    /// Takes a new unit, which is running in the ledger.
    pub fn begin(&mut self, pipeline: &Pipeline, unit: &Unit) {
        let (Some(work), Some(delegation)) = (&unit.work, unit.delegation()) else {
            return;
        };
        hooks::failpoint("delegate.before");
        let delegate = Delegate::offered(&unit.id, &delegation.node, Arc::clone(work));
        self.add(pipeline, delegate);
    }

    /// Takes a unit that an earlier client has left. `started` is when its command was heard to have
    /// started, milliseconds since 1970. Returns its end, if its output has no place.
    #[must_use]
    pub fn take_up(
        &mut self,
        pipeline: &Pipeline,
        unit: &Unit,
        started: Option<i64>,
    ) -> Option<Report> {
        let work = unit.work.as_ref()?;
        let node = work.delegation.as_ref()?.node.clone();
        match Delegate::found(pipeline, &unit.id, &node, Arc::clone(work), started) {
            Ok(delegate) => {
                self.add(pipeline, delegate);
                None
            }
            Err(e) => {
                let cause = format!("read its folder: {e}");
                Some(Report::Ended(unit.id.clone(), Outcome::not_started(cause)))
            }
        }
    }

    /// Takes a released unit, of which its node must hear that. Returns whether it was here before.
    pub fn owe(&mut self, pipeline: &Pipeline, debt: &Debt) -> bool {
        let delegate = Delegate::released(&debt.unit, &debt.node, debt.signed);
        self.add(pipeline, delegate)
    }

    fn add(&mut self, pipeline: &Pipeline, mut delegate: Delegate) -> bool {
        // It may have been canceled before it was here.
        if !delegate.is_released() && pipeline.dir(&delegate.unit).is_canceled() {
            delegate.outgoing.want_end();
        }
        let (questions, node) = (&self.questions, &delegate.node);
        // A node of a unit has room in any case.
        let _ = questions.make_room(&mut self.nodes, node, self.units.nodes());
        node::know(&mut self.nodes, pipeline, node);
        self.units.add(delegate)
    }

    /// Notes that a person wants the end of `unit`.
    pub fn cancel(&mut self, unit: &str, steps: &mut Steps) -> Vec<Report> {
        let Some(delegate) = self.units.get_mut(unit) else {
            return Vec::new();
        };
        let effects = delegate.cancel();
        self.units.is_ready(unit);
        self.follow(unit, effects, steps)
    }

    /// Returns what tells a submitter what becomes of the offer of `unit`, which `waits` in its lane or does
    /// not; nothing if it was accepted before, or has ended.
    pub fn watch(&mut self, unit: &str, waits: bool) -> Option<watch::Receiver<Offered>> {
        let delegate = self.units.get(unit);
        let is_offered = waits || delegate.is_some_and(|d| d.phase.is_offered());
        (is_offered || self.offers.is_refused(unit)).then(|| self.offers.watch(unit))
    }

    // --- Questions ---

    /// Asks `node` something that is about no unit of ours; signs it if that is `signed` and we have a
    /// key.
    pub fn ask(
        &mut self,
        pipeline: &Pipeline,
        node: String,
        (request, signed): (Request, bool),
        asker: Asker,
    ) {
        let refused = match () {
            () if !self.is_online => Err(format!("{TRY_AGAIN}the broker is away")),
            () if node::is_away(&self.nodes, &node) => Err(NO_ROUTE.to_owned()),
            () => self
                .questions
                .make_room(&mut self.nodes, &node, self.units.nodes()),
        };
        if let Err(cause) = refused {
            // Who has gone needs no answer.
            let _ = asker.send(Err(cause));
            return;
        }
        node::know(&mut self.nodes, pipeline, &node);
        self.questions.add(node, request, signed, asker);
    }

    /// Returns the names of the nodes that have said that they are there.
    pub fn here(&self) -> Vec<&str> {
        node::here(&self.nodes)
    }

    // --- Subscriptions ---

    /// Returns the filters of the answers and the presence of all nodes.
    ///
    /// # Errors
    /// 65 if a topic is too long.
    pub fn filters(&self) -> Result<Vec<Filter>, Error> {
        node::filters(&self.nodes)
    }

    /// Returns whether a node has come since the last [`Delegates::subscribed`].
    #[must_use]
    pub fn wants_subscriptions(&self) -> bool {
        self.nodes.values().any(|node| !node.is_subscribed)
    }

    /// Notes that the broker has answered for the filters, and there is a connection. `is_refused` is
    /// whether it has refused one.
    pub fn subscribed(&mut self, is_refused: impl Fn(&Filter) -> bool) {
        for node in self.nodes.values_mut() {
            node.subscribed(&is_refused);
        }
        if !std::mem::replace(&mut self.is_online, true) {
            self.units.ask_again();
        }
        self.units.are_ready();
    }

    /// Notes that the connection is gone.
    pub fn went_offline(&mut self) {
        self.units.changed();
        self.is_online = false;
        self.questions.went_offline();
        self.flight.went_offline();
    }

    /// Notes that a publish is complete: `heard` is whether anyone subscribes to it, or why the broker does
    /// not take it.
    pub fn published(&mut self, token: T, heard: Result<bool, &Error>, steps: &mut Steps) {
        self.is_blocked = false;
        if matches!(heard, Ok(false)) {
            self.questions.not_heard(token);
        }
        let Some((unit, is_offer)) = self.flight.published(&token) else {
            return;
        };
        if let Some(delegate) = self.units.get_mut(&unit)
            && let Some(note) = flight::note(&delegate.node, heard)
        {
            if is_offer {
                delegate.phase.was_not_heard();
            }
            let effects = delegate.noted(Some(note));
            self.note(vec![(unit, effects)], steps);
        }
    }

    // --- Messages ---

    /// Returns the node whose message `delivery` is: an answer or a presence.
    fn node_of<'a>(&self, pipeline: &Pipeline, delivery: &'a Delivery) -> Option<(&'a str, bool)> {
        if self.nodes.is_empty() {
            return None;
        }
        let topic = std::str::from_utf8(&delivery.topic).ok()?;
        let parts = PipelineTopic::parse(topic)?;
        let node = self.nodes.get(parts.who)?;
        let is_answer = topic == node.reply;
        let is_presence = parts.root == pipeline.config.root && parts.name == "presence";
        (is_answer || is_presence).then_some((parts.who, is_answer))
    }

    /// Returns whether a message is an answer or the presence of a node that runs units for us.
    #[must_use]
    pub fn takes(&self, pipeline: &Pipeline, delivery: &Delivery) -> bool {
        self.node_of(pipeline, delivery).is_some()
    }

    /// Takes an answer or a presence.
    pub fn on_message(
        &mut self,
        pipeline: &Pipeline,
        delivery: &Delivery,
        steps: &mut Steps,
    ) -> Vec<Report> {
        let Some((node, is_answer)) = self.node_of(pipeline, delivery) else {
            return Vec::new();
        };
        if !is_answer {
            self.on_presence(node, delivery, steps);
            return Vec::new();
        }
        if self.questions.take(node, delivery) {
            return Vec::new();
        }
        let (answer, body) = match wire::read_answer(&delivery.payload) {
            Ok(read) => read,
            Err(e) => {
                warn!(target: SENDERS, "answer of node {node} ignored: {e}");
                return Vec::new();
            }
        };
        let unit = answer.unit().to_owned();
        if let Answer::End(end) = &answer
            && self.units.get(&unit).is_none()
        {
            // The node has not heard that it is on disk; or it is not wanted any more.
            self.acks.again(&unit, node, end.lengths);
            return Vec::new();
        }
        let of_node = |delegate: &&mut Delegate| delegate.node == node;
        let Some(delegate) = self.units.get_mut(&unit).filter(of_node) else {
            return Vec::new();
        };
        let mark = delivery.properties.correlation_data.as_deref();
        let effects = match answer {
            Answer::Refused { error, .. } if mark == Some(CANCEL) => {
                let error = printable(&error, 500);
                delegate.noted(Some(format!(
                    "waits: node {node} does not cancel it: {error}"
                )))
            }
            // It may answer an earlier request.
            Answer::Refused { .. } if !delegate.phase.is_asked(mark) => Vec::new(),
            answer => delegate.on_answer(pipeline, answer, body),
        };
        self.units.is_ready(&unit);
        self.follow(&unit, effects, steps)
    }

    fn on_presence(&mut self, name: &str, delivery: &Delivery, steps: &mut Steps) {
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        self.units.changed();
        match node.on_presence(delivery) {
            Heard::Same => return,
            Heard::Away => {
                self.questions.is_away(name);
                let effects = self.units.change_of(name, |delegate| {
                    let waits = delegate.phase.is_offered();
                    waits.then(|| delegate.noted(Some(node::away_note(name))))
                });
                return self.note(effects, steps);
            }
            Heard::Back => {}
        }
        // What it was asked before may be lost.
        let effects = self.units.change_of(name, |delegate| {
            delegate.ask_again();
            Some(delegate.noted(None))
        });
        for (unit, _) in &effects {
            self.units.is_ready(unit);
        }
        self.note(effects, steps);
    }

    /// Does what follows for several units, of which none ends.
    fn note(&mut self, effects: Effects, steps: &mut Steps) {
        for (unit, effects) in effects {
            drop(self.follow(&unit, effects, steps));
        }
    }

    /// Returns the next output that was checked. Cancel safe.
    pub async fn next(&mut self) -> Option<Checked> {
        self.checks.next().await
    }

    /// Continues with output that was checked.
    pub fn on_checked(&mut self, checked: Checked, steps: &mut Steps) -> Vec<Report> {
        let Checked {
            unit,
            incoming,
            end,
            digests,
        } = checked;
        hooks::failpoint("check.after");
        let Some(delegate) = self.units.get_mut(&unit) else {
            return Vec::new();
        };
        let effects = delegate.checked(*incoming, &end, digests);
        self.units.is_ready(&unit);
        self.follow(&unit, effects, steps)
    }

    /// Does what follows an answer about `unit`. Returns what that means, as a runner would report it.
    fn follow(&mut self, unit: &str, effects: Vec<Effect>, steps: &mut Steps) -> Vec<Report> {
        let mut reports = Vec::new();
        for effect in effects {
            match effect {
                Effect::Accepted => {
                    hooks::failpoint("accepted.before");
                    self.offers.tell(unit, Offered::Accepted);
                }
                Effect::Started(at) => reports.push(Report::Started(unit.to_owned(), at)),
                Effect::Wrote => {
                    hooks::failpoint("wrote.after");
                    self.units.wrote(unit);
                    reports.push(Report::Wrote(unit.to_owned()));
                }
                Effect::Ended(outcome) => {
                    self.units.remove(unit);
                    self.offers.tell(unit, Offered::at_end(&outcome));
                    reports.push(Report::Ended(unit.to_owned(), outcome));
                }
                Effect::Note(note) => {
                    note.iter()
                        .for_each(|note| info!(TAEL_UNIT = unit, "{note}"));
                    let unit = unit.to_owned();
                    steps.push_back(Step::Commit(Op::Note { unit, note }));
                }
                Effect::Fetched(at) => {
                    if let Some(delegate) = self.units.get(unit) {
                        self.acks.fetched(unit, &delegate.node, at);
                    }
                }
                Effect::Check(incoming, end) => {
                    hooks::failpoint("check.before");
                    self.checks.begin(unit, incoming, end);
                }
                Effect::Paid => {
                    hooks::failpoint("paid.before");
                    self.units.remove(unit);
                    steps.push_back(Step::Commit(Op::Paid {
                        unit: unit.to_owned(),
                    }));
                }
            }
        }
        reports
    }

    /// Notes that the end of `unit` is on disk.
    pub fn settled(&mut self, unit: &str) {
        self.acks.settled(unit);
        self.offers.settled(unit);
    }

    /// Sends what may go out. `publish` returns whether it did. Returns ends of units whose work
    /// cannot be offered.
    pub fn send(
        &mut self,
        pipeline: &Pipeline,
        steps: &mut Steps,
        mut publish: impl FnMut(Message) -> Option<T>,
    ) -> Vec<Report> {
        let mut reports = Vec::new();
        if !self.is_online || self.is_blocked {
            return reports;
        }
        let nodes = &self.nodes;
        let acknowledged = self.acks.send(|name, ack| {
            let node = nodes.get(name).filter(|node| node.away.is_none());
            // It is not signed, and needs no key. One that is away keeps the unit.
            let request = node.and_then(|node| node.request(pipeline, false, ack).ok());
            request.is_none_or(|request| publish(request).is_some())
        });
        if !acknowledged {
            self.is_blocked = true;
            return reports;
        }
        if !self.questions.send(pipeline, nodes, &mut publish) {
            self.is_blocked = true;
            return reports;
        }
        while let Some(unit) = self.units.next_ready() {
            let Some(delegate) = self.units.get_mut(&unit) else {
                continue;
            };
            let Some(node) = self.nodes.get(&delegate.node) else {
                continue;
            };
            // It is asked when that has passed: what it gets then is what is wanted then.
            if delegate.phase.is_offered()
                && let Some(note) = node.offers_wait(delegate.outgoing.cancel != Cancel::No)
            {
                let effects = delegate.noted(Some(note));
                reports.extend(self.follow(&unit, effects, steps));
                continue;
            }
            if !node.is_subscribed || node.away.is_some() {
                continue;
            }
            loop {
                let message = match delegate.next(pipeline) {
                    Ok(Some(message)) => message,
                    Ok(None) => break,
                    Err(e) => {
                        let effects = delegate.cannot(pipeline, &e);
                        reports.extend(self.follow(&unit, effects, steps));
                        break;
                    }
                };
                let request = match node.request(pipeline, delegate.signed, &message) {
                    Ok(request) => request,
                    Err(e) => {
                        let effects = delegate.cannot(pipeline, &e);
                        reports.extend(self.follow(&unit, effects, steps));
                        break;
                    }
                };
                hooks::failpoint(place(&message.0, false));
                let Some(token) = publish(request) else {
                    self.is_blocked = true;
                    self.units.is_next(unit);
                    return reports;
                };
                self.flight.sent(token, &unit, &message.0);
                delegate.sent(&message);
                hooks::failpoint(place(&message.0, true));
            }
        }
        reports
    }

    // --- The time ---

    /// Returns when something is due.
    #[must_use]
    pub fn wake(&self) -> Option<Instant> {
        let may_ask = may_ask(self.is_online, &self.nodes);
        let lost = self.nodes.values().filter_map(Node::lost_at);
        self.units.wake(may_ask, lost)
    }

    /// Does what is due. Returns the ends of units whose time is up.
    pub fn on_time(&mut self, steps: &mut Steps) -> Vec<Report> {
        let now = Instant::now();
        let mut effects = Vec::new();
        for (name, note) in node::lost(&mut self.nodes, now) {
            let lost = |d: &mut Delegate| Some(d.noted(Some(note.clone())));
            effects.extend(self.units.change_of(&name, lost));
        }
        let may_ask = may_ask(self.is_online, &self.nodes);
        effects.extend(self.units.on_time(now, may_ask));
        let each = effects.into_iter();
        each.flat_map(|(unit, effects)| self.follow(&unit, effects, steps))
            .collect()
    }
}

/// Returns what tells whether the node of a unit may be asked.
fn may_ask(is_online: bool, nodes: &Nodes) -> impl Fn(&Delegate) -> bool {
    move |delegate| is_online && !node::is_away(nodes, &delegate.node)
}
