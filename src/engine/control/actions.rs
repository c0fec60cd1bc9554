//! What a pipeline does when it is asked to, and what it answers.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tracing::info;

use crate::engine::client::{Pipeline, Then, now_ms};
use crate::engine::intake::judge::{self, Admission};
use crate::engine::report::reply::{self, ReplyTo};
use crate::engine::report::settle;
use crate::error::Kind;
use crate::model::control::{self, Action, Envelope};
use crate::model::event::{self, Attributes};
use crate::model::message::Delivery;
use crate::model::status;
use crate::model::trigger::Trigger;
use crate::net::session::SessionAck;
use crate::os::host::new_id;
use crate::os::logging::SENDERS;
use crate::store::ledger::{EventKey, Part, Refused};
use crate::store::mark;

/// Why a request is not carried out: the requester's exit code and a text for people.
type Refusal = (Kind, String);

/// A request on its way to its answer.
#[derive(Debug, Clone)]
struct Request {
    key: EventKey,
    reply: Option<ReplyTo>,
    ack: SessionAck,
}

impl Pipeline {
    /// Carries out a control message. It is acknowledged when it is done, or on disk.
    pub(crate) fn on_control(&mut self, delivery: &Delivery, ack: SessionAck) {
        if delivery.retained || delivery.payload.is_empty() {
            // A request is for now; one that is replayed at every start is a mistake, and an empty
            // message clears it.
            return self.session.acknowledge(&ack);
        }
        let (envelope, action) = control::parse(&delivery.payload, self.config.max_payload);
        let request = Request {
            reply: ReplyTo::of(&self.config, delivery, &envelope),
            key: self.request_key(delivery, &envelope),
            ack,
        };
        if envelope.present && delivery.properties.user.is_empty() {
            self.say_how_to_bridge(delivery);
        }
        if let Some(refused) = expired(delivery, &envelope) {
            return self.refuse(request, refused);
        }
        let answer = match action {
            Ok(Action::Raise { .. } | Action::Retry { .. }) if self.knows(&request) => return,
            Ok(Action::Raise {
                trigger,
                attributes,
            }) => match self.raise(
                delivery,
                trigger.as_deref(),
                attributes,
                &envelope,
                &request,
            ) {
                Ok(()) => return,
                Err(refusal) => Err(refusal),
            },
            Ok(Action::Retry { unit }) => match self.retry(unit.as_deref(), &request) {
                Ok(()) => return,
                Err(refusal) => Err(refusal),
            },
            Ok(Action::Cancel { unit }) => self.cancel(&unit),
            Ok(Action::Pause) => self.pause(true),
            Ok(Action::Resume) => self.pause(false),
            Ok(Action::Status) => self.status(),
            Err(cause) => Err((Kind::Data, cause)),
        };
        let answer = match answer {
            Ok(fields) => control::accepted(fields),
            Err((kind, cause)) => {
                info!(target: SENDERS, "control request refused: {cause}");
                control::refused(kind, &cause)
            }
        };
        self.answer(request, answer);
    }

    fn request_key(&self, delivery: &Delivery, envelope: &Envelope) -> EventKey {
        let sender = judge::sender_id(delivery).or(envelope.id.as_deref());
        let id = sender.filter(|id| event::is_id(id));
        let id = id.map_or_else(new_id, str::to_owned);
        EventKey {
            request: true,
            is_new: false,
            ..judge::key(delivery, id, sender, self.redelivery.again())
        }
    }

    /// Acknowledges a request that leaves nothing in the ledger, and answers it.
    fn answer(&mut self, request: Request, answer: Value) {
        // First this: a broker that cuts us off for the reply would send the request again.
        self.session.acknowledge(&request.ack);
        if let Some(reply) = request.reply {
            self.publish(reply.message(answer));
        }
    }

    /// Whether a request has been carried out before; it is answered again then. What it asked for
    /// may not be possible any more.
    fn knows(&mut self, request: &Request) -> bool {
        let known = match request.key.sender {
            Some(_) => self.reader.known_request(&request.key),
            // The ledger tells when it is accepted.
            None => return false,
        };
        let Some(answer) = known.ok().flatten().as_ref().and_then(reply::repeated) else {
            return false;
        };
        self.counts.duplicates += 1;
        info!(target: SENDERS, TAEL_EVENT = request.key.id, "request came again; not done again");
        self.answer(request.clone(), answer);
        true
    }

    /// Records a request that is not carried out.
    fn refuse(&mut self, request: Request, refused: Refused) {
        let admission = Admission {
            key: request.key,
            topic: self.topics.control(),
            parts: vec![Part::Refuse {
                trigger: String::new(),
                refused: Box::new(refused),
                retained: false,
            }],
        };
        self.accept(admission, Some(request.ack), request.reply);
    }

    fn chosen(&self, name: Option<&str>) -> Result<&Trigger, Refusal> {
        match (name, &self.config.triggers[..]) {
            (Some(name), _) => self
                .trigger(name)
                .ok_or_else(|| (Kind::Data, format!("there is no trigger '{name}'"))),
            (None, [only]) => Ok(only),
            (None, all) => {
                let names: Vec<&str> = all.iter().map(|t| t.name.as_str()).collect();
                let names = names.join(", ");
                Err((Kind::Usage, format!("say which trigger to raise: {names}")))
            }
        }
    }

    /// Whether one more unit may wait.
    fn check_room(&mut self) -> Result<(), Refusal> {
        match self.has_room() {
            true => Ok(()),
            false => Err((Kind::TryAgain, "too many units wait".to_owned())),
        }
    }

    fn raise(
        &mut self,
        delivery: &Delivery,
        trigger: Option<&str>,
        attributes: Attributes,
        envelope: &Envelope,
        request: &Request,
    ) -> Result<(), Refusal> {
        self.check_room()?;
        let trigger = self.chosen(trigger)?;
        let key = request.key.clone();
        let topic = String::from_utf8_lossy(&delivery.topic);
        let mut event = event::with_attributes(delivery, &topic, attributes);
        event.id = Some(key.id.clone());
        event.hops = event.hops.max(envelope.hops);
        let reason = status::REASON_RAISED.to_owned();
        let mut admission = judge::admit(&self.config, trigger, &event, key, reason);
        let reply = request.reply.as_ref().map(ReplyTo::address);
        admission.answer_to(reply.as_ref());
        self.accept(admission, Some(request.ack.clone()), request.reply.clone());
        Ok(())
    }

    fn retry(&mut self, unit: Option<&str>, request: &Request) -> Result<(), Refusal> {
        self.check_room()?;
        let unavailable = |e: crate::error::Error| (e.kind(), e.to_string());
        let record = match unit {
            Some(id) => self.reader.unit(id).map_err(unavailable)?,
            None => self.reader.last_failed().map_err(unavailable)?,
        };
        let record = record.ok_or_else(|| match unit {
            Some(id) => (Kind::Data, format!("there is no unit '{id}'")),
            None => (Kind::Data, "no run has failed".to_owned()),
        })?;
        if !record.state.is_end() {
            return Err((Kind::Data, format!("unit {} has not ended", record.unit.id)));
        }
        // The request is the new event; the unit keeps the original one.
        let mut again = settle::again(&record.unit, record.unit.attempt + 1, 0);
        // The unit may be released until this one is in the ledger.
        let payload = self.reader.payload(&record.unit.id);
        let released = || (Kind::Data, format!("there is no unit '{}'", record.unit.id));
        again.payload = Some(payload.map_err(unavailable)?.ok_or_else(released)?);
        again.reply = request.reply.as_ref().map(ReplyTo::address);
        again.spec = Arc::clone(self.config.triggers.spec_for(&record.unit.spec));
        let admission = Admission {
            key: request.key.clone(),
            topic: self.topics.control(),
            parts: vec![Part::Run {
                unit: Arc::new(again),
                start: false,
                retained: false,
            }],
        };
        self.accept(admission, Some(request.ack.clone()), request.reply.clone());
        Ok(())
    }

    fn cancel(&mut self, unit: &str) -> Result<Map<String, Value>, Refusal> {
        let record = self
            .reader
            .unit(unit)
            .map_err(|e| (e.kind(), e.to_string()))?;
        let record = record.ok_or_else(|| (Kind::Data, format!("there is no unit '{unit}'")))?;
        if record.state.is_end() {
            return Err((
                Kind::Data,
                format!("unit {unit} has ended: {}", record.state),
            ));
        }
        if self.queue.running().any(|running| running == unit) {
            self.signal(unit);
        } else {
            self.queue.remove(record.unit.lane(), unit);
            let op = settle::dropped(unit, "canceled by control message");
            self.submit(op, Then::Nothing);
        }
        Ok(fields([("unit", json!(unit))]))
    }

    fn pause(&mut self, paused: bool) -> Result<Map<String, Value>, Refusal> {
        let mark = self.paused_mark();
        let kept = match paused {
            true => mark::set(&mark),
            false => mark::clear(&mark),
        };
        kept.map_err(|e| (Kind::CannotCreate, format!("cannot remember that: {e}")))?;
        self.queue.pause(paused);
        self.tell_presence();
        info!("{}", if paused { "paused" } else { "resumed" });
        Ok(fields([("paused", json!(paused))]))
    }

    fn status(&self) -> Result<Map<String, Value>, Refusal> {
        let totals = self
            .reader
            .totals()
            .map_err(|e| (e.kind(), e.to_string()))?;
        let running: Vec<&String> = self.queue.running().collect();
        Ok(fields([
            ("who", json!(self.config.who)),
            ("host", json!(self.config.host)),
            ("version", json!(env!("CARGO_PKG_VERSION"))),
            ("since", json!(self.since.as_second())),
            (
                "uptime",
                json!((now_ms() - self.since.as_millisecond()) / 1000),
            ),
            ("paused", json!(self.queue.is_paused())),
            ("running", json!(running)),
            ("waiting", json!(self.queue.waiting())),
            (
                "units",
                json!({
                    "pending": totals.pending,
                    "running": totals.running,
                    "succeeded": totals.succeeded,
                    "failed": totals.failed,
                    "canceled": totals.canceled,
                }),
            ),
            (
                "events",
                json!({
                    "accepted": self.counts.accepted,
                    "duplicate": self.counts.duplicates,
                    "refused": self.counts.refused,
                    "ignored": self.counts.ignored,
                }),
            ),
            ("outbox", json!(self.outbox.len())),
        ]))
    }
}

fn fields<const N: usize>(list: [(&str, Value); N]) -> Map<String, Value> {
    list.into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

/// Why a request is too late, if it is. A broker that knows when it expires does not deliver it
/// then, whatever the hosts' clocks say.
fn expired(delivery: &Delivery, envelope: &Envelope) -> Option<Refused> {
    if delivery.properties.message_expiry.is_some() {
        return None;
    }
    let late = (now_ms() / 1000).saturating_sub(envelope.expires?);
    (late > 0).then(|| Refused {
        code: control::EXPIRED,
        detail: format!("the request expired {late} s ago (or a clock is wrong)"),
        status: None,
    })
}
