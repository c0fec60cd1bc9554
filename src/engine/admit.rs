//! What a delivered message means to each trigger, ready to be accepted by the ledger.

use std::sync::Arc;

use jiff::Timestamp;
use ring::digest::{Context, SHA256};
use serde_json::Map;
use tracing::warn;

use crate::engine::config::Config;
use crate::engine::settle;
use crate::model::event::{self, Event, Refusal};
use crate::model::json;
use crate::model::message::Delivery;
use crate::model::status;
use crate::model::text::printable_bytes;
use crate::model::trigger::{Decision, Trigger};
use crate::model::unit::Unit;
use crate::os::host::new_id;
use crate::os::logging::SENDERS;
use crate::store::ledger::{EventKey, Part, Refused};

/// What a message means: nothing, if there are no parts.
#[derive(Debug)]
pub struct Admission {
    /// What tells the event from others.
    pub key: EventKey,
    /// Its topic, fit for a record.
    pub topic: String,
    /// One for each trigger that is meant.
    pub parts: Vec<Part>,
}

/// Judges a message from a subscribed topic. `redelivery_since` is when a message that the
/// broker has perhaps sent before may have been accepted at the earliest.
#[must_use]
pub fn judge(config: &Config, delivery: &Delivery, redelivery_since: i64) -> Admission {
    let parsed = event::parse(delivery, config.max_payload);
    let (key, parts) = match &parsed {
        Ok(event) => {
            let key = key(delivery, event.id.as_deref(), redelivery_since);
            let parts = config
                .triggers
                .iter()
                .filter_map(|trigger| {
                    let decision = trigger.decide(event, &config.who);
                    let reason = status::reason_finished(&event.topic);
                    part(config, trigger, event, &key.id, decision, reason)
                })
                .collect();
            (key, parts)
        }
        Err(refusal) => {
            let key = key(delivery, None, redelivery_since);
            (key, refuse_unread(config, delivery, refusal))
        }
    };
    Admission {
        key,
        topic: printable_bytes(&delivery.topic, 1024),
        parts,
    }
}

/// Why no trigger waits for a message, for people who wonder.
#[must_use]
pub fn objections(config: &Config, delivery: &Delivery) -> String {
    let event = match event::parse(delivery, config.max_payload) {
        Ok(event) => event,
        Err(refusal) => return refusal.to_string(),
    };
    let waiting = config.triggers.iter().filter(|t| t.absent.is_none());
    let objections = waiting.filter_map(|trigger| {
        let objection = trigger.objection(&event, &config.who)?;
        Some(match &config.triggers[..] {
            [_] => objection.to_string(),
            _ => format!("trigger '{}': {objection}", trigger.name),
        })
    });
    objections.collect::<Vec<_>>().join("; ")
}

/// Judges an event that was raised by hand for `trigger`: its topic and conditions are not in
/// question.
///
/// # Errors
/// Why it cannot run, with what is to be recorded.
pub fn raise(
    config: &Config,
    trigger: &Trigger,
    delivery: &Delivery,
    attributes: event::Attributes,
    redelivery_since: i64,
) -> (Admission, Result<String, Refusal>) {
    let topic = String::from_utf8_lossy(&delivery.topic);
    let event = event::with_attributes(delivery, &topic, attributes);
    let key = key(delivery, event.id.as_deref(), redelivery_since);
    admit(
        config,
        trigger,
        &event,
        key,
        status::REASON_RAISED.to_owned(),
    )
}

/// Judges an event of our own making for `trigger`; it has an id.
pub fn made(
    config: &Config,
    trigger: &Trigger,
    event: &Event,
    reason: String,
) -> (Admission, Result<String, Refusal>) {
    let key = EventKey {
        id: event.id.clone().unwrap_or_else(new_id),
        digest: None,
        packet: 0,
        redelivery_since: None,
    };
    admit(config, trigger, event, key, reason)
}

fn admit(
    config: &Config,
    trigger: &Trigger,
    event: &Event,
    key: EventKey,
    reason: String,
) -> (Admission, Result<String, Refusal>) {
    let decision = trigger.admit(event);
    let refusal = match &decision {
        Decision::Refuse(refusal) => Some(refusal.clone()),
        Decision::Run | Decision::Ignore => None,
    };
    let part = part(config, trigger, event, &key.id, decision, reason);
    let unit = match (&part, refusal) {
        (Some(Part::Run { unit, .. }), _) => Ok(unit.id.clone()),
        (_, Some(refusal)) => Err(refusal),
        (_, None) => Ok(String::new()),
    };
    let admission = Admission {
        key,
        topic: event.topic.clone(),
        parts: part.into_iter().collect(),
    };
    (admission, unit)
}

/// What tells the event of a message from others; `redelivery_since` as in [`judge`].
pub fn key(delivery: &Delivery, id: Option<&str>, redelivery_since: i64) -> EventKey {
    match id {
        Some(id) => EventKey {
            id: id.to_owned(),
            digest: None,
            packet: delivery.packet,
            redelivery_since: None,
        },
        None => EventKey {
            id: new_id(),
            digest: Some(digest(delivery)),
            packet: delivery.packet,
            redelivery_since: delivery.duplicate.then_some(redelivery_since),
        },
    }
}

fn digest(delivery: &Delivery) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    // A topic holds no NUL, so that no two messages run together.
    for part in [&delivery.topic[..], b"\0", &delivery.payload[..]] {
        context.update(part);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

fn part(
    config: &Config,
    trigger: &Trigger,
    event: &Event,
    event_id: &str,
    decision: Decision,
    reason: String,
) -> Option<Part> {
    match decision {
        Decision::Ignore => None,
        Decision::Run => Some(Part::Run {
            unit: Arc::new(unit(trigger, event, event_id, reason)),
            start: false,
        }),
        Decision::Refuse(refusal) => {
            let unit = unit(trigger, event, event_id, reason);
            // An event in a loop is not reported: the report would go round too.
            let falsestart = matches!(refusal, Refusal::Missing(_)).then(|| {
                let payload = status::falsestart(&unit.passthrough, Timestamp::now());
                settle::message(config, &unit, payload)
            });
            Some(Part::Refuse {
                trigger: trigger.name.clone(),
                refused: Refused {
                    code: refusal.code(),
                    detail: refusal.to_string(),
                    status: falsestart,
                },
            })
        }
    }
}

/// The refusal of a message that could not be read, if any trigger would have looked at it.
fn refuse_unread(config: &Config, delivery: &Delivery, refusal: &Refusal) -> Vec<Part> {
    let topic = std::str::from_utf8(&delivery.topic).ok();
    let meant = config.triggers.iter().any(|trigger| {
        trigger.absent.is_none()
            && (trigger.accept_retained || !delivery.retained)
            && topic.is_none_or(|topic| trigger.filters.iter().any(|f| f.matches(topic)))
    });
    let refuse = || Part::Refuse {
        trigger: String::new(),
        refused: Refused {
            code: refusal.code(),
            detail: refusal.to_string(),
            status: None,
        },
    };
    meant.then(refuse).into_iter().collect()
}

fn unit(trigger: &Trigger, event: &Event, event_id: &str, reason: String) -> Unit {
    let exported = trigger.export.apply(&event.attributes);
    for warning in &exported.warnings {
        warn!(target: SENDERS, TAEL_EVENT = event_id, TAEL_TOPIC = event.topic, "{warning}");
    }
    let passthrough = trigger
        .passthrough
        .iter()
        .filter_map(|name| {
            let (_, value) = exported.variables.iter().find(|(n, _)| n == name)?;
            Some((name.clone(), json::string_of(value.as_bytes()).into()))
        })
        .collect::<Map<_, _>>();
    Unit {
        id: new_id(),
        trigger: trigger.name.clone(),
        event: event_id.to_owned(),
        topic: event.topic.clone(),
        reason,
        hops: event.hops,
        traceparent: event.traceparent.clone(),
        attempt: 1,
        retry_of: None,
        due: 0,
        variables: exported.variables,
        passthrough,
        payload: event.payload.clone(),
        command: trigger.command.text(),
    }
}
