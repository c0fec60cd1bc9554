//! Judges a delivered message for each trigger, ready for the ledger.

use std::sync::Arc;

use tracing::warn;

use crate::engine::commit::receipt::Progress;
use crate::engine::config::Config;
use crate::engine::report::status::falsestart;
use crate::model::digest::Sha256;
use crate::model::event::{Event, Refusal};
use crate::model::meaning::{Meaning, NO_TRIGGER, Rules};
use crate::model::message::{Delivery, Message, property};
use crate::model::status;
use crate::model::text::printable_bytes;
use crate::model::trigger::{Decision, Objection, Trigger};
use crate::model::unit::{ReplyAddress, Unit};
use crate::os::host::new_id;
use crate::os::logging::SENDERS;
use crate::store::ledger::{Acceptance, Again, EventKey, Part, Reader, Refused};

/// A message that triggers wait for.
#[derive(Debug)]
pub struct Admission {
    /// Identity of the event.
    pub key: EventKey,
    /// Its topic, printable.
    pub topic: String,
    /// One part for each trigger, at least one.
    pub parts: Vec<Part>,
}

impl Admission {
    /// Gives the units the address at which the requester of the event waits for answers.
    pub fn answer_to(&mut self, reply: Option<&ReplyAddress>) {
        for part in &mut self.parts {
            if let Part::Run { unit, .. } = part
                // This is the only reference so far.
                && let Some(unit) = Arc::get_mut(unit)
            {
                unit.reply = reply.cloned();
            }
        }
    }

    /// Returns the progress of the event whose parts `became` this in the ledger.
    pub fn progress<'a>(&self, became: &'a [Acceptance]) -> Progress<'a> {
        let mut progress = Progress::Refused;
        for (part, became) in self.parts.iter().zip(became) {
            match (part, became) {
                (Part::Run { .. }, Acceptance::Fresh) => return Progress::Accepted,
                (Part::Run { .. }, Acceptance::Taken) => return Progress::Taken,
                (Part::Run { .. }, Acceptance::Known(known)) => {
                    progress = Progress::Duplicate(known.unit.as_deref());
                }
                (Part::Run { .. }, Acceptance::Retried(_)) | (Part::Refuse { .. }, _) => {}
            }
        }
        progress
    }

    /// Returns the units of the event that have not ended, or their retries, if its parts `became`
    /// this in the ledger. A unit that cannot be read counts as ended.
    pub fn units(&self, became: &[Acceptance], reader: &Reader) -> Vec<String> {
        let unit = |(part, became): (&Part, &Acceptance)| match (part, became) {
            (Part::Run { unit, .. }, Acceptance::Fresh) => Some(unit.id.clone()),
            (Part::Run { .. }, Acceptance::Known(known)) => {
                reader.unfinished(known.unit.as_deref()?).ok().flatten()
            }
            (Part::Run { .. }, Acceptance::Retried(_) | Acceptance::Taken)
            | (Part::Refuse { .. }, _) => None,
        };
        self.parts.iter().zip(became).filter_map(unit).collect()
    }
}

/// What a message is to the triggers of a pipeline.
#[derive(Debug, Default)]
pub struct Judged {
    /// What those make of it that wait for it, if any does.
    pub admission: Option<Admission>,
    /// Why others ignore it: names of triggers, and reasons for people. A name is empty if the
    /// reason is that of all.
    pub ignored: Vec<(String, String)>,
}

impl Judged {
    fn ignored(why: &impl ToString) -> Self {
        Self {
            admission: None,
            ignored: vec![(String::new(), why.to_string())],
        }
    }
}

/// Judges a message from a subscribed topic by its `meaning`. `again` has the times at which a
/// possible redelivery can have been accepted.
#[must_use]
pub fn judge(
    config: &Config,
    rules: &Rules<'_>,
    delivery: &Delivery,
    meaning: Meaning,
    again: Again,
) -> Judged {
    let mut ignored = Vec::new();
    let (id, parts) = match meaning {
        Meaning::Ignored(why) => return Judged::ignored(&why),
        Meaning::Unreadable { refusal, retained } => {
            let unread = refuse(String::new(), &refusal, retained, None);
            (new_id(), vec![unread])
        }
        Meaning::Event(event) => {
            let called = event.id.clone().unwrap_or_else(new_id);
            let mut parts = Vec::new();
            for (trigger, decision) in rules.decisions(&event) {
                let reason = || status::reason_finished(&event.topic);
                match part(config, trigger, &event, &called, decision, reason) {
                    Ok(part) => parts.push(part),
                    Err(_) if ignored.len() >= MAX_OBJECTIONS => {}
                    Err(why) => ignored.push((trigger.name.clone(), why.explain(&event))),
                }
            }
            if parts.is_empty() && ignored.is_empty() {
                let silences = rules.to_silences(&event).take(MAX_OBJECTIONS);
                let silences = silences.map(|(trigger, why)| (trigger.name.clone(), why));
                ignored.extend(silences);
                if ignored.is_empty() {
                    return Judged::ignored(&NO_TRIGGER);
                }
            }
            (called, parts)
        }
    };
    // An ignored message needs no digest.
    let admission = (!parts.is_empty()).then(|| Admission {
        key: key(delivery, id, sender_id(delivery), again),
        topic: printable_bytes(&delivery.topic, MAX_TOPIC),
        parts,
    });
    Judged { admission, ignored }
}

/// Maximum number of triggers whose reasons to ignore a message are kept.
const MAX_OBJECTIONS: usize = 20;

/// Maximum length of a topic in a record or a log line, characters.
pub const MAX_TOPIC: usize = 1024;

/// Returns the identity of an event of our own, by its id.
pub fn own_key(event: &Event) -> EventKey {
    EventKey {
        id: event.id.clone().unwrap_or_else(new_id),
        sender: event.id.clone(),
        digest: digest(event.topic.as_bytes(), &event.payload),
        ..EventKey::default()
    }
}

/// Judges an event for `trigger`, without a check of topic and conditions.
#[must_use]
pub fn admit(
    config: &Config,
    trigger: &Trigger,
    event: &Event,
    key: EventKey,
    reason: String,
) -> Admission {
    let decision = trigger.admit(event);
    let part = part(config, trigger, event, &key.id, decision, || reason);
    Admission {
        key,
        topic: event.topic.clone(),
        parts: part.into_iter().collect(),
    }
}

/// Maximum length of a sender's id as a part of the identity, bytes. Commands may not see such an
/// id.
const MAX_SENDER_ID: usize = 256;

/// Returns the id that the sender of a message gave it.
pub fn sender_id(delivery: &Delivery) -> Option<&str> {
    let id = delivery.properties.user(property::ID);
    id.filter(|id| (1..=MAX_SENDER_ID).contains(&id.len()))
}

/// Returns the identity of the event of a message. `id` is its name here, `sender` the id of its
/// sender; `again` as in [`judge`].
pub fn key(delivery: &Delivery, id: String, sender: Option<&str>, again: Again) -> EventKey {
    EventKey {
        id,
        sender: sender.map(str::to_owned),
        digest: digest(&delivery.topic, &delivery.payload),
        packet: delivery.packet,
        again: delivery.duplicate.then_some(again),
        replay: delivery.retained,
        request: false,
        is_new: false,
        open: None,
    }
}

fn digest(topic: &[u8], payload: &[u8]) -> [u8; 32] {
    let mut digest = Sha256::default();
    // A topic contains no NUL, so the parts stay separate.
    for part in [topic, b"\0", payload] {
        digest.update(part);
    }
    digest.finish()
}

pub(super) fn part<'a>(
    config: &Config,
    trigger: &'a Trigger,
    event: &Event,
    event_id: &str,
    decision: Decision<'a>,
    reason: impl FnOnce() -> String,
) -> Result<Part, Objection<'a>> {
    match decision {
        Decision::Ignore(why) => Err(why),
        Decision::Run => Ok(Part::Run {
            unit: Arc::new(unit(trigger, event, event_id, reason())),
            start: false,
            retained: trigger.accept_retained,
            first_retry: false,
        }),
        Decision::Refuse(refusal) => {
            let unit = unit(trigger, event, event_id, reason());
            // An event in a loop gets no status: the status would loop too.
            let falsestart =
                matches!(refusal, Refusal::Missing(_)).then(|| falsestart(config, &unit));
            let name = trigger.name.clone();
            Ok(refuse(name, &refusal, trigger.accept_retained, falsestart))
        }
    }
}

pub(super) fn refuse(
    trigger: String,
    refusal: &Refusal,
    retained: bool,
    status: Option<Message>,
) -> Part {
    Part::Refuse {
        trigger,
        refused: Box::new(Refused {
            code: refusal.code(),
            detail: refusal.to_string(),
            status,
            answer: None,
            letters: Vec::new(),
        }),
        retained,
    }
}

fn unit(trigger: &Trigger, event: &Event, event_id: &str, reason: String) -> Unit {
    let taken = trigger.take(&event.attributes);
    for warning in &taken.warnings {
        warn!(target: SENDERS, TAEL_EVENT = event_id, TAEL_TOPIC = event.topic, "{warning}");
    }
    Unit {
        id: new_id(),
        spec: Arc::clone(&trigger.spec),
        event: event_id.to_owned(),
        topic: event.topic.clone(),
        reason,
        hops: event.hops,
        traceparent: event.traceparent.clone(),
        attempt: 1,
        retry_of: None,
        due: 0,
        variables: taken.variables,
        passthrough: taken.passthrough,
        payload: Some(event.payload.clone()),
        reply: None,
        origin: None,
        work: None,
    }
}
