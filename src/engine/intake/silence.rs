//! Triggers that run when no message comes.
//!
//! Silence counts only during a connection that is read, because without one nothing can be heard. When
//! it begins or is read again, messages of the time before come first, so they get a little time.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::time::{Duration, Instant, sleep_until};
use tracing::info;

use crate::engine::commit::step::{Step, Steps};
use crate::engine::intake::judge;
use crate::engine::intake::offer::Subject;
use crate::engine::pipeline::{Pipeline, now_ms};
use crate::model::duration;
use crate::model::event::{self, Event};
use crate::model::message::Delivery;
use crate::model::trigger::Trigger;
use crate::store::ledger::{Heard, Op};

/// Time for messages that were sent without a connection.
const CATCH_UP: Duration = Duration::from_secs(5);

/// The last message is written when it is older than this part of the wait. After a crash, the
/// silence looks longer by that part. Otherwise every message would cost a commit.
const WRITE_PART: u32 = 20;

#[derive(Debug)]
struct Watch {
    trigger: String,
    /// Identifies this silence among those of the trigger.
    key: String,
    absent: Duration,
    /// Time of the last message, and what the ledger knows of it; milliseconds since 1970.
    heard: i64,
    written: i64,
    /// Whether the command has run for this silence.
    fired: bool,
    deadline: Option<Instant>,
    /// Its deadline among [`Silence::deadlines`].
    queued: Option<Instant>,
}

/// A trigger that waits for something else starts a new silence.
fn key(trigger: &Trigger) -> String {
    let filters = trigger.filters.iter().map(ToString::to_string);
    let conditions = trigger.conditions.iter().map(ToString::to_string);
    let parts: Vec<String> = filters.chain(conditions).collect();
    format!("{}\n{}", trigger.name, parts.join("\n"))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl Watch {
    fn listen(&mut self, now: i64) {
        let left = self.heard.saturating_add(millis(self.absent)) - now;
        let left = Duration::from_millis(u64::try_from(left).unwrap_or(0)).min(self.absent);
        self.deadline = Instant::now().checked_add(left.max(CATCH_UP.min(self.absent)));
    }
}

/// The silences of all triggers that wait for one.
#[derive(Debug, Default)]
pub struct Silence {
    watches: Vec<Watch>,
    /// Places of the watches by the names of their triggers.
    names: HashMap<String, usize>,
    /// Deadlines of those that have not run, and their places.
    deadlines: BTreeSet<(Instant, usize)>,
    online: bool,
    /// Whether messages are not read, because too many wait.
    deaf: bool,
}

impl Silence {
    /// Continues with the knowledge of the ledger; other silences begin at `now`.
    pub fn take_up(&mut self, triggers: &[Trigger], known: &[Heard], now: i64) {
        let old = std::mem::take(&mut self.watches);
        let old: HashMap<&str, &Watch> = old.iter().map(|w| (w.key.as_str(), w)).collect();
        let known: HashMap<&str, &Heard> = known.iter().map(|h| (h.trigger.as_str(), h)).collect();
        self.names.clear();
        self.deadlines.clear();
        for trigger in triggers {
            let Some(absent) = trigger.absent else {
                continue;
            };
            let key = key(trigger);
            let before = old.get(key.as_str()).copied();
            let kept = known.get(key.as_str()).copied();
            let (heard, written, fired) = match (before, kept) {
                (Some(watch), _) => (watch.heard, watch.written, watch.fired),
                // The clock may have gone back since.
                (None, Some(kept)) => (kept.at.min(now), kept.at, kept.fired),
                (None, None) => (now, 0, false),
            };
            let mut watch = Watch {
                trigger: trigger.name.clone(),
                key,
                absent,
                heard,
                written,
                fired,
                // A silence that is already running is not extended.
                deadline: before
                    .filter(|b| b.absent == absent)
                    .and_then(|b| b.deadline),
                queued: None,
            };
            if self.online && watch.deadline.is_none() {
                watch.listen(now);
            }
            self.names.insert(watch.trigger.clone(), self.watches.len());
            self.watches.push(watch);
            self.schedule(self.watches.len() - 1);
        }
    }

    /// Updates the deadline of a watch.
    fn schedule(&mut self, place: usize) {
        let Some(watch) = self.watches.get_mut(place) else {
            return;
        };
        if let Some(queued) = watch.queued.take() {
            self.deadlines.remove(&(queued, place));
        }
        if let Some(deadline) = watch.deadline
            && !watch.fired
            && !self.deaf
        {
            watch.queued = Some(deadline);
            self.deadlines.insert((deadline, place));
        }
    }

    /// Starts or stops listening.
    pub fn online(&mut self, online: bool) {
        self.online = online;
        for watch in &mut self.watches {
            if online {
                watch.listen(now_ms());
            } else {
                watch.deadline = None;
            }
        }
        for place in 0..self.watches.len() {
            self.schedule(place);
        }
    }

    /// Notes whether messages are read. After a pause, those that have come meanwhile get a little time.
    pub fn hears(&mut self, hears: bool) {
        if self.deaf != hears {
            return;
        }
        self.deaf = !hears;
        for place in 0..self.watches.len() {
            if hears
                && let Some(watch) = self.watches.get_mut(place)
                && let Some(deadline) = &mut watch.deadline
            {
                *deadline = (*deadline).max(Instant::now() + CATCH_UP.min(watch.absent));
            }
            self.schedule(place);
        }
    }

    pub const fn is_watched(&self) -> bool {
        !self.watches.is_empty()
    }

    /// Notes a message for `trigger`. Returns the change for the ledger, if there is one.
    fn heard(&mut self, trigger: &str, now: i64) -> Option<Op> {
        let place = *self.names.get(trigger)?;
        let watch = self.watches.get_mut(place)?;
        let returned = std::mem::take(&mut watch.fired);
        watch.heard = now;
        if self.online {
            watch.deadline = Instant::now().checked_add(watch.absent);
        }
        let old = now - watch.written > millis(watch.absent / WRITE_PART);
        let written = (returned || old).then(|| watch.write());
        self.schedule(place);
        written
    }

    /// Returns what the ledger does not know yet, when the client stops.
    pub fn unwritten(&mut self) -> Vec<Op> {
        let unwritten = self.watches.iter_mut().filter(|w| w.written != w.heard);
        unwritten.map(Watch::write).collect()
    }

    /// Returns when the next silence is long enough.
    fn wake(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Waits for the next silence that is long enough, once each; cancel safe.
    pub async fn next(&mut self) -> Due {
        loop {
            match self.wake() {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
            if let Some(due) = self.due() {
                return due;
            }
        }
    }

    /// Returns a silence that is long enough, once.
    fn due(&mut self) -> Option<Due> {
        let (deadline, place) = self.deadlines.first().copied()?;
        if deadline > Instant::now() {
            return None;
        }
        let watch = self.watches.get_mut(place)?;
        watch.fired = true;
        let due = Due {
            trigger: watch.trigger.clone(),
            heard: watch.heard,
            op: watch.write(),
        };
        self.schedule(place);
        Some(due)
    }

    /// Notes which triggers a message ends the silence of.
    pub fn listen(&mut self, pipeline: &Pipeline, delivery: &Delivery, steps: &mut Steps) {
        if delivery.retained {
            // Its age is unknown.
            return;
        }
        let config = &pipeline.config;
        let parsed = event::parse(delivery, config.max_payload);
        let Ok(topic) = std::str::from_utf8(&delivery.topic) else {
            return;
        };
        let heard = config
            .triggers
            .listening_to(topic)
            .filter(|trigger| match &parsed {
                Ok(event) => trigger.means_on_topic(event, &config.who),
                // A trigger without conditions hears every message.
                Err(_) => trigger.conditions.is_empty(),
            });
        for trigger in heard {
            steps.extend(self.heard(&trigger.name, now_ms()).map(Step::Commit));
        }
    }

    /// Returns the time of the last message of each trigger, milliseconds since 1970.
    pub fn last_heard(&self) -> impl Iterator<Item = (&str, i64)> {
        self.watches.iter().map(|w| (w.trigger.as_str(), w.heard))
    }
}

impl Watch {
    fn write(&mut self) -> Op {
        self.written = self.heard;
        Op::Heard(Heard {
            trigger: self.key.clone(),
            at: self.heard,
            fired: self.fired,
        })
    }
}

/// A silence that is long enough.
#[derive(Debug)]
pub struct Due {
    trigger: String,
    /// Time of the last message, milliseconds since 1970.
    heard: i64,
    /// The change to commit with its run.
    op: Op,
}

impl Due {
    /// Returns the event of the silence, and the change to commit with it; `None` if its trigger is
    /// gone.
    pub fn subject(self, pipeline: &Pipeline) -> Option<(Subject, Op)> {
        let trigger = pipeline.trigger(&self.trigger)?;
        let event = silent(trigger, self.heard);
        let reason = format!(
            "{} silent for {}",
            event.topic,
            duration::text(trigger.absent.unwrap_or_default())
        );
        info!(TAEL_TOPIC = event.topic, "{reason}");
        let subject = Subject::Event {
            key: judge::own_key(&event),
            trigger: self.trigger,
            event,
            reason,
        };
        Some((subject, self.op))
    }
}

/// Returns the event of a silence since `heard`, with an id that identifies the silence.
fn silent(trigger: &Trigger, heard: i64) -> Event {
    let topics: Vec<String> = trigger.filters.iter().map(ToString::to_string).collect();
    let topic = topics.join(" ");
    let attributes: Map<String, Value> = [
        ("status".to_owned(), json!("silent")),
        ("topic".to_owned(), json!(topic)),
        ("last".to_owned(), json!(heard / 1000)),
    ]
    .into_iter()
    .collect();
    Event {
        topic,
        payload: Bytes::from(Value::Object(attributes.clone()).to_string()),
        attributes,
        id: Some(format!("silence-{heard}")),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::command::Command;
    use crate::model::env::Export;
    use crate::model::policy::Policy;
    use crate::model::spec::Spec;
    use std::sync::Arc;

    fn silence(heard: i64, fired: bool) -> Silence {
        let trigger = Trigger {
            name: "t".into(),
            filters: Vec::new(),
            conditions: Vec::new(),
            export: Export::new(None, Vec::new()).expect("export"),
            passthrough: Vec::new(),
            queue: None,
            accept_retained: false,
            reply: None,
            absent: Some(Duration::from_secs(60)),
            policy: Policy::default(),
            spec: Arc::new(Spec::new("t", Command::Direct(vec!["true".into()]))),
        };
        let known = Heard {
            trigger: key(&trigger),
            at: heard,
            fired,
        };
        let mut silence = Silence::default();
        silence.take_up(&[trigger], &[known], now_ms());
        silence
    }

    fn left(silence: &Silence) -> Option<u64> {
        let wake = silence.wake()?;
        // Rounded up.
        Some((wake - Instant::now()).as_secs() + 1)
    }

    #[test]
    fn a_silence_goes_on_over_a_restart_and_ends_with_a_message() {
        let now = now_ms();
        let mut watch = silence(now - 20_000, false);
        assert_eq!(left(&watch), None, "nothing listens yet");
        watch.online(true);
        assert_eq!(left(&watch), Some(40));
        watch.online(false);
        assert_eq!(left(&watch), None);
        watch.online(true);
        assert!(watch.heard("other", now_ms()).is_none());
        assert!(watch.heard("t", now_ms()).is_some());
        assert!(watch.heard("t", now_ms()).is_none(), "not every time");
        assert_eq!(left(&watch), Some(60));
        assert!(watch.due().is_none());
    }

    #[test]
    fn a_silence_that_is_over_waits_for_what_was_sent_meanwhile_and_runs_once() {
        let mut watch = silence(now_ms() - 100_000, false);
        watch.online(true);
        assert_eq!(left(&watch), Some(CATCH_UP.as_secs()));
        let mut fired = silence(now_ms() - 100_000, true);
        fired.online(true);
        assert_eq!(left(&fired), None, "it has run before the restart");
        assert!(fired.heard("t", now_ms()).is_some(), "heard again");
        assert_eq!(left(&fired), Some(60));
    }

    #[test]
    fn nothing_is_silent_while_nothing_is_read() {
        let mut watch = silence(now_ms() - 100_000, false);
        watch.online(true);
        watch.hears(false);
        assert_eq!(left(&watch), None);
        watch.online(false);
        watch.online(true);
        assert_eq!(left(&watch), None, "nothing is read yet");
        watch.hears(true);
        assert_eq!(left(&watch), Some(CATCH_UP.as_secs()));
        assert!(watch.heard("t", now_ms()).is_some());
        watch.hears(false);
        watch.hears(true);
        assert_eq!(left(&watch), Some(60), "that comes later");
    }
}
