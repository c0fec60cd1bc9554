//! Judges a message of a queue for its trigger, ready for the ledger.

use std::sync::Arc;

use jiff::Timestamp;

use crate::engine::config::Config;
use crate::engine::intake::judge::{Admission, part, refuse};
use crate::engine::report::letters::writer;
use crate::model::cause::Cause;
use crate::model::digest::Sha256;
use crate::model::event::Event;
use crate::model::letter::{self, Completion, Death, Reason};
use crate::model::queue::QueueSource;
use crate::model::queue_delivery::{QueueDelivery, QueueOrigin};
use crate::model::trigger::{Decision, Trigger};
use crate::os::host::new_id;
use crate::store::ledger::{EventKey, Part, Refused};

/// Short name of the refusal of a message that no trigger wants.
const UNWANTED: &str = "unwanted";

/// A message of a queue, for the trigger that takes from it.
#[derive(Debug)]
pub struct Queued {
    /// Name of the trigger.
    pub trigger: String,
    /// The queue.
    pub source: Arc<QueueSource>,
    /// The message.
    pub delivery: QueueDelivery,
}

impl Queued {
    /// Returns the identity of the event, called `id` here. A message without `message_id` is another
    /// one than all before, unless the client knows that it comes again.
    pub fn key(&self, id: String) -> EventKey {
        let delivery = &self.delivery;
        let is_open = delivery.message_id.is_none();
        EventKey {
            id,
            sender: delivery.message_id.clone(),
            digest: self.digest(),
            open: is_open.then(|| self.source.url.to_string()),
            ..EventKey::default()
        }
    }

    /// Returns the SHA-256 of queue, sender and body.
    pub fn digest(&self) -> [u8; 32] {
        let app_id = self.delivery.app_id.as_deref().unwrap_or_default();
        let mut sha256 = Sha256::default();
        sha256.part(self.source.url.queue.as_bytes());
        sha256.part(app_id.as_bytes());
        sha256.update(&self.delivery.body);
        sha256.finish()
    }

    fn origin(&self) -> QueueOrigin {
        let delivery = &self.delivery;
        QueueOrigin {
            source: self.source.url.to_string(),
            queue: self.source.url.queue.clone(),
            message_id: delivery.message_id.clone(),
            reply_to: delivery.reply_to.clone(),
            correlation_id: delivery.correlation_id.clone(),
            dead_letter: self.source.dead_letter(),
            redelivered: delivery.redelivered,
            fence: delivery.fence,
            properties: delivery.properties.clone(),
        }
    }

    /// Returns what the message means to `trigger`, which takes it.
    pub fn judge(&self, config: &Config, trigger: &Trigger) -> Admission {
        let queue = &self.source.url.queue;
        let origin = self.origin();
        let (id, part) = match self.delivery.event(queue, config.max_payload) {
            Ok(event) => {
                let id = event.id.clone().unwrap_or_else(new_id);
                let part = self.decide(config, trigger, &event, &id, origin);
                (id, part)
            }
            Err(refusal) => {
                let id = new_id();
                let mut part = refuse(trigger.name.clone(), &refusal, false, None);
                self.add_letters(&mut part, config, &origin, Reason::Unreadable);
                (id, part)
            }
        };
        Admission {
            key: self.key(id),
            topic: queue.clone(),
            parts: vec![part],
        }
    }

    fn decide(
        &self,
        config: &Config,
        trigger: &Trigger,
        event: &Event,
        id: &str,
        origin: QueueOrigin,
    ) -> Part {
        let decision = match trigger.objection_on_topic(event, &config.who) {
            Some(objection) => Decision::Ignore(objection),
            None => trigger.admit(event),
        };
        let reason = || format!("message of queue {}", self.source.url.queue);
        let (mut part, reason) = match part(config, trigger, event, id, decision, reason) {
            Ok(part) => (part, Reason::Refused),
            // No other trigger gets it.
            Err(objection) => {
                let refused = Refused {
                    code: UNWANTED,
                    detail: objection.explain(event),
                    status: None,
                    answer: None,
                    letters: Vec::new(),
                };
                let part = Part::Refuse {
                    trigger: trigger.name.clone(),
                    refused: Box::new(refused),
                    retained: false,
                };
                (part, Reason::Unwanted)
            }
        };
        match &mut part {
            Part::Run { unit, .. } => {
                // This is the only reference so far.
                if let Some(unit) = Arc::get_mut(unit) {
                    unit.origin = Some(Arc::new(origin));
                }
            }
            Part::Refuse { .. } => self.add_letters(&mut part, config, &origin, reason),
        }
        part
    }

    /// Adds the letters of a refusal: the dead message, and the report to its sender.
    fn add_letters(&self, part: &mut Part, config: &Config, origin: &QueueOrigin, reason: Reason) {
        let Part::Refuse { refused, .. } = part else {
            return;
        };
        let writer = writer(config, Timestamp::now());
        // Brought back into its queue, it is another event.
        let death = Death {
            detail: &refused.detail,
            id: &new_id(),
            ..Death::default()
        };
        let body = self.delivery.body.clone();
        let dead = letter::dead(origin, body, reason, &death, writer);
        let cause = Cause {
            hops: self.delivery.hops,
            traceparent: self.delivery.trace(),
            ..Cause::default()
        };
        let completion = Completion {
            status: "failed",
            return_code: None,
            detail: Some(&refused.detail),
            unit: None,
            cause,
        };
        let completion = letter::completion(origin, completion, writer);
        refused.letters = [dead].into_iter().chain(completion).collect();
    }
}
