//! What a client would do with a message. It judges as the client does, and changes nothing.

use std::sync::Arc;

use bytes::Bytes;

use crate::engine::config::Config;
use crate::engine::intake::judge::{Judged, judge};
use crate::engine::intake::queued::Queued;
use crate::engine::work::job::job;
use crate::model::meaning::Meaning;
use crate::model::message::Delivery;
use crate::model::queue_delivery::QueueDelivery;
use crate::model::topic::PipelineTopics;
use crate::model::trigger::Decision;
use crate::runner::Job;
use crate::store::ledger::{Again, Part};

/// What one trigger makes of a message.
#[derive(Debug)]
pub struct Preview {
    /// Name of the trigger; empty if the reason is that of all.
    pub trigger: String,
    /// What it does.
    pub verdict: Verdict,
}

/// What a trigger does with a message.
#[derive(Debug)]
pub enum Verdict {
    /// It runs this.
    Runs(Box<Job>),
    /// It makes a run that cannot start, and why.
    CannotStart(String),
    /// It refuses the message, and why.
    Refuses(String),
    /// It ignores the message, and why.
    Ignores(String),
}

/// A new message: no earlier one can be the same.
const NEW: Again = Again {
    unacknowledged: i64::MAX,
    kept: i64::MAX,
};

/// Returns what the triggers of a pipeline make of a message, in the order of the configuration.
#[must_use]
pub fn preview(config: &Config, delivery: &Delivery) -> Vec<Preview> {
    let topics = PipelineTopics::new(&config.root, &config.who);
    let rules = config.rules(&topics);
    let meaning = rules.read(delivery);
    let event = match &meaning {
        Meaning::Event(event) => Some(event.clone()),
        Meaning::Ignored(_) | Meaning::Unreadable { .. } => None,
    };
    let Judged { admission, ignored } = judge(config, &rules, delivery, meaning, NEW);
    let mut previews: Vec<Preview> = ignored
        .into_iter()
        .map(|(trigger, why)| Preview {
            trigger,
            verdict: Verdict::Ignores(why),
        })
        .collect();
    for part in admission.into_iter().flat_map(|admission| admission.parts) {
        previews.push(Preview {
            trigger: part.trigger().to_owned(),
            verdict: verdict(config, part, delivery.payload.len()),
        });
    }
    let Some(event) = event else {
        return previews;
    };
    // What is said about all is said about each here.
    previews.retain(|preview| !preview.trigger.is_empty());
    let place = |name: &str| {
        config
            .triggers
            .iter()
            .position(|trigger| trigger.name == name)
    };
    for (trigger, why) in rules.to_silences(&event) {
        if previews
            .iter()
            .all(|preview| preview.trigger != trigger.name)
        {
            previews.push(Preview {
                trigger: trigger.name.clone(),
                verdict: Verdict::Ignores(why),
            });
        }
    }
    for trigger in &config.triggers {
        if previews
            .iter()
            .all(|preview| preview.trigger != trigger.name)
            && let Decision::Ignore(why) = trigger.decide(&event, &config.who)
        {
            previews.push(Preview {
                trigger: trigger.name.clone(),
                verdict: Verdict::Ignores(why.explain(&event)),
            });
        }
    }
    previews.sort_by_key(|preview| place(&preview.trigger));
    previews
}

/// Returns what each trigger that has a queue makes of a new message there with this `body`, in the order
/// of the configuration.
#[must_use]
pub fn preview_queued(config: &Config, body: &Bytes) -> Vec<Preview> {
    let mut previews = Vec::new();
    for trigger in &config.triggers {
        let Some(source) = &trigger.queue else {
            continue;
        };
        let queued = Queued {
            trigger: trigger.name.clone(),
            source: Arc::clone(source),
            delivery: QueueDelivery {
                body: body.clone(),
                ..QueueDelivery::default()
            },
        };
        for part in queued.judge(config, trigger).parts {
            previews.push(Preview {
                trigger: trigger.name.clone(),
                verdict: verdict(config, part, body.len()),
            });
        }
    }
    previews
}

fn verdict(config: &Config, part: Part, stdin: usize) -> Verdict {
    match part {
        Part::Refuse { refused, .. } => Verdict::Refuses(refused.detail),
        Part::Run { unit, .. } => match job(config, &unit.spec, &unit, stdin) {
            Ok(job) => Verdict::Runs(Box::new(job)),
            Err(why) => Verdict::CannotStart(why),
        },
    }
}
