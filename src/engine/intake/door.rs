//! The door for all events: how many may wait, and what each means.

use tokio::time::Instant;
use tracing::{Level, debug, enabled, info, warn};

use crate::engine::commit::receipt::Receipt;
use crate::engine::commit::step::Steps;
use crate::engine::intake::backlog::{Backlog, Load};
use crate::engine::intake::bridge::BridgeHint;
use crate::engine::intake::judge::{self, Admission, MAX_TOPIC};
use crate::engine::intake::names::Names;
use crate::engine::intake::offer::{Offer, Subject};
use crate::engine::intake::pace::Pace;
use crate::engine::intake::pressure::Pressure;
use crate::engine::intake::recent::Recent;
use crate::engine::intake::redelivery::Redelivery;
use crate::engine::intake::requesters::address_parts;
use crate::engine::intake::silence::Silence;
use crate::engine::intake::source::Source;
use crate::engine::pipeline::{Pipeline, now_ms};
use crate::engine::report::reply::ReplyTo;
use crate::error::Result;
use crate::model::meaning::Meaning;
use crate::model::message::Delivery;
use crate::model::note::{self, Fate, Note};
use crate::model::text::printable_bytes;
use crate::model::unit::Unit;
use crate::os::logging::SENDERS;
use crate::store::ledger::{Acceptance, Part};

/// Counts since the client started.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Events that made a unit.
    pub accepted: u64,
    /// Events that came before.
    pub duplicates: u64,
    /// Events that were refused.
    pub refused: u64,
    /// Messages that no trigger waits for.
    pub ignored: u64,
}

/// State of the intake. `T` identifies a publish: answers of the broker show what it knows.
#[derive(Debug)]
pub struct Intake<T> {
    /// Counts of events so far.
    pub counts: Counts,
    /// How fast messages come.
    pub pressure: Pressure,
    /// Which messages may be redeliveries.
    pub redelivery: Redelivery<T>,
    /// The triggers that wait for silence.
    pub silence: Silence,
    /// The hint about bridges.
    pub bridge: BridgeHint,
    /// Notes about the last messages.
    pub recent: Recent,
    names: Names,
    pace: Pace,
    backlog: Backlog,
    /// Offers of a test.
    #[cfg(test)]
    pub script: Option<tokio::sync::mpsc::UnboundedReceiver<Offer>>,
}

impl<T: Copy + PartialEq> Intake<T> {
    /// Continues with what the ledger knows of earlier events.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn open(pipeline: &Pipeline) -> Result<Self> {
        let reader = &pipeline.reader;
        let mut silence = Silence::default();
        silence.take_up(&pipeline.config.triggers, &reader.heard()?, now_ms());
        Ok(Self {
            counts: Counts::default(),
            pressure: Pressure::default(),
            redelivery: Redelivery::new(reader.answered()?, reader.last_accepted()?),
            silence,
            bridge: BridgeHint::default(),
            recent: Recent::default(),
            names: Names::read(reader)?,
            pace: Pace::default(),
            backlog: Backlog::default(),
            #[cfg(test)]
            script: None,
        })
    }

    /// Returns what comes from a source other than the broker. Cancel safe.
    pub async fn next(&mut self) -> Source {
        #[cfg(test)]
        if let Some(script) = &mut self.script {
            return tokio::select! {
                biased;
                Some(offer) = script.recv() => Source::Script(offer),
                due = self.silence.next() => Source::Silence(due),
            };
        }
        Source::Silence(self.silence.next().await)
    }

    /// Notes that the connection is gone; `cut` is when the other side has dropped it, milliseconds
    /// since 1970.
    pub fn disconnected(&mut self, cut: Option<i64>) {
        self.silence.online(false);
        self.redelivery.disconnected(cut);
        self.backlog.disconnected();
    }

    // --- Room ---

    /// Returns whether more offers can be held.
    pub fn takes_more(&self) -> bool {
        self.backlog.takes_more()
    }

    /// Takes everything from now on: the session ends, and with it what is not taken.
    pub fn leave(&mut self) {
        self.backlog.open();
    }

    /// Returns when a held offer may find room.
    pub fn wake(&self) -> Option<Instant> {
        self.backlog.wake()
    }

    /// Returns whether another event may wait, with the present `load`.
    pub fn has_room(&mut self, pipeline: &Pipeline, load: impl FnOnce() -> Load) -> bool {
        self.backlog.has_room(pipeline, load)
    }

    /// Returns `offer` if it may be taken now. Otherwise it is held. A message that does not come
    /// again is dropped if too many are held, and its receipt is returned.
    pub fn admit(
        &mut self,
        pipeline: &Pipeline,
        offer: Offer,
        load: impl FnOnce() -> Load,
        steps: &mut Steps,
    ) -> Result<Offer, Option<Receipt>> {
        let Subject::Message(delivery) = &offer.subject else {
            return Ok(offer);
        };
        if self.silence.is_watched() {
            let rules = pipeline.config.rules(&pipeline.topics);
            let is_ours = matches!(rules.read(delivery), Meaning::Ignored(why) if why.is_ours());
            if !is_ours {
                // It has come, also if it is held.
                self.silence.listen(pipeline, delivery, steps);
            }
        }
        if !self.backlog.holds() && self.backlog.has_room(pipeline, load) {
            return Ok(offer);
        }
        let topic = match &offer.subject {
            Subject::Message(delivery) if !offer.comes_again() => {
                printable_bytes(&delivery.topic, MAX_TOPIC)
            }
            _ => String::new(),
        };
        let dropped = self.backlog.hold(offer);
        if dropped.is_some() {
            self.counts.ignored += 1;
            self.recent.add(Note {
                at: now_ms(),
                fate: Fate::Ignored,
                trigger: String::new(),
                topic,
                event: String::new(),
                unit: None,
                why: "too many events wait, and a message of QoS 0 does not come again".to_owned(),
                aside: false,
            });
        }
        Err(dropped)
    }

    /// Returns a held offer, if there is room for it now.
    pub fn held(&mut self, pipeline: &Pipeline, load: impl FnOnce() -> Load) -> Option<Offer> {
        let room = self.backlog.holds() && self.backlog.has_room(pipeline, load);
        room.then(|| self.backlog.next()).flatten()
    }

    /// Counts a unit with a payload of `bytes`, which is being written to the ledger.
    pub fn came(&mut self, bytes: usize) {
        self.backlog.came(bytes);
    }

    // --- Meaning ---

    /// Returns what an offer means, with the name of its event; `None` if nothing waits for it.
    /// The units of a request carry where its `reply` goes.
    pub fn judge(
        &mut self,
        pipeline: &Pipeline,
        subject: Subject,
        reply: Option<&ReplyTo>,
    ) -> Option<Admission> {
        let config = &pipeline.config;
        let is_message = matches!(subject, Subject::Message(_));
        let control = || pipeline.topics.control();
        let mut admission = match subject {
            Subject::Message(delivery) => self.message(pipeline, &delivery)?,
            Subject::Event {
                key,
                trigger,
                event,
                reason,
            } => judge::admit(config, pipeline.trigger(&trigger)?, &event, key, reason),
            Subject::Again { key, unit, first } => Admission {
                key,
                topic: control(),
                parts: vec![Part::Run {
                    unit,
                    start: false,
                    retained: false,
                    first_retry: first,
                }],
            },
            Subject::Submitted { key, unit } => {
                // It names itself.
                return Some(Admission {
                    key,
                    topic: unit.topic.clone(),
                    parts: vec![Part::Run {
                        unit,
                        start: false,
                        retained: false,
                        first_retry: false,
                    }],
                });
            }
            Subject::Queued(message) => message.judge(config, pipeline.trigger(&message.trigger)?),
            Subject::Refused { key, refused } => Admission {
                key,
                topic: control(),
                parts: vec![Part::Refuse {
                    trigger: String::new(),
                    refused: Box::new(refused),
                    retained: false,
                }],
            },
        };
        if !is_message {
            admission.answer_to(reply.map(ReplyTo::address).as_ref());
        }
        self.names.name(&pipeline.reader, &mut admission);
        Some(admission)
    }

    fn message(&mut self, pipeline: &Pipeline, delivery: &Delivery) -> Option<Admission> {
        let config = &pipeline.config;
        let rules = config.rules(&pipeline.topics);
        let meaning = rules.read(delivery);
        if matches!(&meaning, Meaning::Ignored(why) if why.is_ours()) {
            self.counts.ignored += 1;
            return None;
        }
        let again = self.redelivery.again();
        let judged = judge::judge(config, &rules, delivery, meaning, again);
        let Some(mut admission) = judged.admission else {
            self.counts.ignored += 1;
            self.ignored(pipeline, delivery, judged.ignored, "", false);
            return None;
        };
        if !judged.ignored.is_empty() {
            let event = &admission.key.id;
            self.ignored(pipeline, delivery, judged.ignored, event, true);
        }
        let pace = &mut self.pace;
        pace.hold_back(pipeline, delivery, &mut admission, &mut self.bridge);
        address_parts(pipeline, &mut admission, delivery, now_ms());
        Some(admission)
    }

    /// Notes why triggers ignore a message; `aside` is whether another one takes it.
    fn ignored(
        &self,
        pipeline: &Pipeline,
        delivery: &Delivery,
        reasons: Vec<(String, String)>,
        event: &str,
        aside: bool,
    ) {
        let topic = printable_bytes(&delivery.topic, MAX_TOPIC);
        if !aside && enabled!(Level::DEBUG) {
            let why = reasons.iter().map(|(trigger, why)| {
                let of_all = trigger.is_empty() || pipeline.config.triggers.len() == 1;
                match of_all {
                    true => why.clone(),
                    false => format!("trigger '{trigger}': {why}"),
                }
            });
            let why = why.collect::<Vec<_>>().join("; ");
            debug!(TAEL_TOPIC = topic, "ignored: {why}");
        }
        let at = now_ms();
        for (trigger, why) in reasons {
            self.recent.add(Note {
                at,
                fate: Fate::Ignored,
                trigger,
                topic: topic.clone(),
                event: event.to_owned(),
                unit: None,
                why,
                aside,
            });
        }
    }

    /// Notes that an event is in the ledger, so that its name can be looked up there.
    pub fn arrived(&mut self, admission: &Admission) {
        self.names.arrived(&admission.key);
    }

    /// Counts and logs the result of one part of an event.
    pub fn count(&mut self, admission: (&str, &str), part: &Part, became: &Acceptance) {
        let (event, topic) = admission;
        if let Acceptance::Retried(other) = became {
            info!(target: SENDERS,
                TAEL_EVENT = event,
                TAEL_UNIT = other,
                "control request refused: the run was retried meanwhile"
            );
            return;
        }
        self.note(admission, part, became);
        match (part, *became == Acceptance::Fresh) {
            (Part::Run { .. }, false) => {
                self.counts.duplicates += 1;
                info!(target: SENDERS,
                    TAEL_EVENT = event,
                    TAEL_TOPIC = topic,
                    "event came again; not run"
                );
            }
            (Part::Run { unit, .. }, true) => {
                self.counts.accepted += 1;
                debug!(
                    TAEL_EVENT = event,
                    TAEL_TOPIC = topic,
                    TAEL_UNIT = unit.id,
                    "accepted"
                );
            }
            (Part::Refuse { .. }, false) => {
                self.counts.duplicates += 1;
                debug!(
                    TAEL_EVENT = event,
                    TAEL_TOPIC = topic,
                    "refused event came again"
                );
            }
            (Part::Refuse { refused, .. }, true) => {
                self.counts.refused += 1;
                warn!(target: SENDERS,
                    TAEL_EVENT = event,
                    TAEL_TOPIC = topic,
                    "event refused: {}",
                    refused.detail
                );
            }
        }
    }

    /// Notes a retry that another process has written into the ledger.
    pub fn retried(&self, unit: &Unit) {
        if self.recent.is_read() {
            self.recent.add(Note {
                at: now_ms(),
                fate: Fate::Accepted,
                trigger: unit.lane().to_owned(),
                topic: unit.topic.clone(),
                // As the ledger calls it.
                event: unit.id.clone(),
                unit: Some(unit.id.clone()),
                why: note::RETRIED.to_owned(),
                aside: false,
            });
        }
    }

    /// Adds a note about one part of an event. The ledger has what is new.
    fn note(&self, (event, topic): (&str, &str), part: &Part, became: &Acceptance) {
        let fresh = *became == Acceptance::Fresh;
        if fresh && !self.recent.is_read() {
            return;
        }
        let (fate, unit, why) = match (part, became) {
            (Part::Run { unit, .. }, Acceptance::Fresh) => {
                let why = note::occasion(&unit.reason, &unit.topic, unit.retry_of.is_some());
                (Fate::Accepted, Some(unit.id.clone()), why)
            }
            (Part::Refuse { refused, .. }, Acceptance::Fresh) => {
                (Fate::Refused, None, refused.detail.clone())
            }
            (_, Acceptance::Known(known)) => (Fate::Duplicate, known.unit.clone(), known.explain()),
            (_, Acceptance::Retried(_)) => return,
            (_, Acceptance::Taken) => (Fate::Refused, None, "another unit has its id".to_owned()),
        };
        self.recent.add(Note {
            at: now_ms(),
            fate,
            trigger: part.trigger().to_owned(),
            topic: topic.to_owned(),
            event: event.to_owned(),
            unit,
            why,
            aside: false,
        });
    }
}
