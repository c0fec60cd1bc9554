//! What the network brings: messages, and answers to our own.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{Level, debug, enabled, error, warn};

use crate::engine::client::{Pipeline, Then, now_ms};
use crate::engine::intake::judge::{self, Admission};
use crate::engine::report::reply::ReplyTo;
use crate::engine::report::settle;
use crate::error::Kind;
use crate::model::marker;
use crate::model::message::Delivery;
use crate::model::text::printable_bytes;
use crate::model::topic::Filter;
use crate::net::mqtt::{Refused, Refuser, Token};
use crate::net::session::{Event, SessionAck};
use crate::os::hooks;
use crate::os::logging::SENDERS;
use crate::store::ledger::{Op, Part, Queued};

impl Pipeline {
    pub(crate) fn on_session(&mut self, event: Event) {
        match event {
            Event::Online => {
                self.online = true;
                self.tell_presence();
                self.silence.online(true);
                self.last.due();
                self.health.ready();
            }
            Event::Subscribed(result) => self.on_subscribed(result),
            Event::Holds(filters) => self.on_held(filters),
            Event::Left => {}
            Event::Offline => {
                let cut = std::mem::take(&mut self.online) && self.session.was_cut();
                self.outbox_lost();
                self.silence.online(false);
                self.redelivery.disconnected(cut.then(now_ms));
                self.backlog.disconnected();
            }
            Event::Published(token, result) => self.on_published(token, result),
            Event::Received(received) => {
                let delivery = &received.delivery;
                let packet = delivery.packet;
                self.redelivery.delivered(packet, delivery.duplicate);
                if received.delivery.topic == self.topics.control().as_bytes() {
                    self.on_control(&received.delivery, received.ack);
                } else {
                    self.on_message(received);
                }
            }
        }
    }

    /// Notes what the broker holds for us now. If that fails, the file names more.
    fn on_held(&mut self, filters: Vec<Filter>) {
        let broker = &self.config.broker;
        let outlives = !self.config.triggers.are_shared();
        let held = self
            .identity
            .holds(&broker.client_id, &broker.address(), filters, outlives);
        if let Err(e) = held {
            warn!("{e}; it names more than the broker holds until the next change");
        }
    }

    pub(crate) fn on_delivery(&mut self, delivery: &Delivery, ack: SessionAck) {
        let own = std::str::from_utf8(&delivery.topic).is_ok_and(|t| self.topics.own(t));
        if own || marker::is_marker(&delivery.topic) {
            // A pipeline does not start itself, under any sender; and a question to the
            // broker is no event.
            self.counts.ignored += 1;
            return self.session.acknowledge(&ack);
        }
        if self.silence.is_watched() {
            self.listen(delivery);
        }
        if delivery.payload.is_empty() {
            // It clears a retained message (MQTT 5.0, section 3.3.1.3): nothing has happened.
            self.counts.ignored += 1;
            let topic = printable_bytes(&delivery.topic, 1024);
            debug!(TAEL_TOPIC = topic, "ignored: its payload is empty");
            return self.session.acknowledge(&ack);
        }
        let again = self.redelivery.again();
        let Some(mut admission) = judge::judge(&self.config, delivery, again) else {
            self.counts.ignored += 1;
            if enabled!(Level::DEBUG) {
                let why = judge::objections(&self.config, delivery);
                let topic = printable_bytes(&delivery.topic, 1024);
                debug!(TAEL_TOPIC = topic, "ignored: {why}");
            }
            return self.session.acknowledge(&ack);
        };
        self.pace(delivery, &mut admission);
        self.accept(admission, Some(ack), None);
    }

    /// Says, once, that a message of Tael has come without what belongs to it.
    pub(crate) fn say_how_to_bridge(&mut self, delivery: &Delivery) {
        if std::mem::replace(&mut self.bridge_said, true) {
            return;
        }
        let topic = printable_bytes(&delivery.topic, 1024);
        warn!(
            TAEL_TOPIC = topic,
            "a message of Tael on '{topic}' came without its MQTT 5 properties: a bridge on its way \
             speaks MQTT 3.1.1, or its sender is older; a bridge of mosquitto keeps them with \
             'bridge_protocol_version mqttv50'"
        );
    }

    /// Has the ledger accept an event; it is acknowledged once that is on disk.
    pub(crate) fn accept(
        &mut self,
        mut admission: Admission,
        ack: Option<SessionAck>,
        reply: Option<ReplyTo>,
    ) {
        self.name(&mut admission);
        let (mut words, mut units) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        let holds = self.pressure.holds_until(Instant::now()).is_some();
        for (place, part) in admission.parts.iter_mut().enumerate() {
            if let Part::Run { unit, start, .. } = part {
                let payload = unit.payload.as_ref().map_or(0, |p| p.len());
                bytes += payload + unit.exported_bytes();
                self.backlog.came(payload);
                match unit.due {
                    0 if holds => self.queue.announce(unit.lane()),
                    0 => *start = self.queue.claim(unit.lane(), &unit.id),
                    _ => {}
                }
                // If it fails, it is tried again when the event is on disk.
                if *start && let Ok(word) = self.runners.reserve(&unit.id) {
                    words.push((place, word));
                    units.push(Arc::clone(unit));
                }
            }
        }
        let at = self.redelivery.came(now_ms(), admission.key.packet);
        let op = Op::Accept {
            key: admission.key.clone(),
            topic: admission.topic.clone(),
            at,
            boot: self.boot.clone(),
            parts: admission.parts.clone(),
        };
        hooks::failpoint("commit.before");
        let then = Then::Accepted {
            admission: Box::new(admission),
            words,
            ack,
            reply,
            bytes,
        };
        self.uncommitted_bytes += bytes;
        self.submit(op, then);
        self.make_ready(&units);
    }

    fn on_published(&mut self, token: Token, result: Result<(), Refused>) {
        self.outbox.answered();
        match &result {
            Err(Refused(_, Refuser::Local)) => self.redelivery.unanswered(token),
            Ok(()) | Err(Refused(_, Refuser::Broker)) => self.redelivery.answered(token),
        }
        if let Err(Refused(e, _)) = &result
            && e.kind() == Kind::TryAgain
        {
            return self.retry_status(token, e);
        }
        let Some(Queued { seq, message }) = self.outbox.complete(token) else {
            if let Err(Refused(e, _)) = result
                && !std::mem::replace(&mut self.unseen, true)
            {
                let prefix = self.topics.presence();
                warn!("what is said on '{prefix}' and beside it does not get there: {e}");
            }
            return;
        };
        if let Err(Refused(e, _)) = result {
            match settle::without_passthrough(&message) {
                Some(smaller) => {
                    warn!(target: SENDERS, "a status is told without what was to be passed through: {e}");
                    self.submit(Op::Post(smaller), Then::Nothing);
                }
                None => error!(target: SENDERS, "status on '{}' is given up: {e}", message.topic),
            }
        }
        hooks::failpoint("publish.after");
        self.later.sent(seq, self.redelivery.known());
    }
}
