//! What a pipeline does when it is asked to, and what it answers.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tracing::info;

use crate::engine::admit::{self, Admission};
use crate::engine::pipeline::{Pipeline, Then, now_ms};
use crate::engine::settle;
use crate::error::Kind;
use crate::model::control::{self, Action};
use crate::model::event::{self, Attributes};
use crate::model::message::{Delivery, Message, Properties, Qos};
use crate::model::topic;
use crate::model::trigger::Trigger;
use crate::net::session::SessionAck;
use crate::os::logging::SENDERS;
use crate::store::ledger::Part;

/// Levels of a topic that is replied on. mosquitto cuts off whoever publishes on one of more than
/// 200.
const MAX_REPLY_LEVELS: usize = 100;

/// Why a request is not carried out: the requester's exit code and a text for people.
type Refusal = (Kind, String);

impl Pipeline {
    /// Carries out a control message. It is acknowledged when it is done, or on disk.
    pub(super) fn on_control(&mut self, delivery: &Delivery, ack: SessionAck) {
        if delivery.retained {
            // A request is for now; one that is replayed at every start is a mistake.
            return self.session.acknowledge(&ack);
        }
        let action = Action::parse(&delivery.payload, self.config.max_payload)
            .map_err(|cause| (Kind::Data, cause));
        let answer = match action {
            Ok(Action::Raise {
                trigger,
                attributes,
            }) => match self.raise(delivery, trigger.as_deref(), attributes, &ack) {
                Ok(()) => return,
                Err(refusal) => Err(refusal),
            },
            Ok(Action::Retry { unit }) => match self.retry(delivery, unit.as_deref(), &ack) {
                Ok(()) => return,
                Err(refusal) => Err(refusal),
            },
            Ok(Action::Cancel { unit }) => self.cancel(&unit),
            Ok(Action::Pause) => self.pause(true),
            Ok(Action::Resume) => self.pause(false),
            Ok(Action::Status) => self.status(),
            Err(refusal) => Err(refusal),
        };
        let answer = match answer {
            Ok(fields) => control::accepted(fields),
            Err((kind, cause)) => {
                info!(target: SENDERS, "control request refused: {cause}");
                control::refused(kind, &cause)
            }
        };
        // First this: a broker that cuts us off for the reply would send the request again.
        self.session.acknowledge(&ack);
        if let Some(reply) = reply(delivery, &answer) {
            self.publish(reply);
        }
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

    fn raise(
        &mut self,
        delivery: &Delivery,
        trigger: Option<&str>,
        attributes: Attributes,
        ack: &SessionAck,
    ) -> Result<(), Refusal> {
        let trigger = self.chosen(trigger)?;
        let since = self.redelivery.since();
        let (admission, unit) = admit::raise(&self.config, trigger, delivery, attributes, since);
        let answer = match unit {
            Ok(unit) => control::accepted(fields([("unit", json!(unit))])),
            Err(refusal) => control::refused(Kind::Data, &format!("not raised: {refusal}")),
        };
        self.accept(admission, Some(ack.clone()), reply(delivery, &answer));
        Ok(())
    }

    fn retry(
        &mut self,
        delivery: &Delivery,
        unit: Option<&str>,
        ack: &SessionAck,
    ) -> Result<(), Refusal> {
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
        let again = settle::again(&record.unit, record.unit.attempt + 1, 0);
        let answer = control::accepted(fields([
            ("unit", json!(again.id)),
            ("retries", json!(record.unit.id)),
        ]));
        // The request is the new event; the unit keeps the original one.
        let id = event::with_attributes(delivery, "", Attributes::new()).id;
        let admission = Admission {
            key: admit::key(delivery, id.as_deref(), self.redelivery.since()),
            topic: self.topics.control(),
            parts: vec![Part::Run {
                unit: Arc::new(again),
                start: false,
            }],
        };
        self.accept(admission, Some(ack.clone()), reply(delivery, &answer));
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
            self.queue.remove(&record.unit.trigger, unit);
            let op = settle::dropped(unit, "cancelled by control message");
            self.submit(op, Then::Nothing);
        }
        Ok(fields([("unit", json!(unit))]))
    }

    fn pause(&mut self, paused: bool) -> Result<Map<String, Value>, Refusal> {
        let mark = self.paused_mark();
        let kept = if paused {
            std::fs::write(&mark, "")
        } else {
            match std::fs::remove_file(&mark) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            }
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

/// The reply that the requester waits for, if it said where.
fn reply(request: &Delivery, answer: &Value) -> Option<Message> {
    let topic = request.properties.response_topic.clone()?;
    topic::check_name(&topic).ok()?;
    if topic.matches('/').count() >= MAX_REPLY_LEVELS {
        return None;
    }
    Some(Message {
        topic,
        payload: Bytes::from(answer.to_string()),
        qos: Qos::AtLeastOnce,
        retain: false,
        properties: Properties {
            correlation_data: request.properties.correlation_data.clone(),
            ..Properties::default()
        },
    })
}
