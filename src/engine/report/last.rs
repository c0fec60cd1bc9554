//! The end of the last run, as a retained message.

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use crate::engine::commit::step::{Step, Steps};
use crate::engine::pipeline::Pipeline;
use crate::engine::report::status;
use crate::error::Result;
use crate::model::cause::Cause;
use crate::model::json;
use crate::model::message::{Message, Properties, Qos, property};
use crate::model::text::printable;
use crate::model::unit::{Outcome, State, Unit};
use crate::store::ledger::Reader;

/// Minimum time between two messages. When runs end faster, the last one counts.
const PAUSE: Duration = Duration::from_secs(1);

/// Maximum number of characters of a reason.
const MAX_REASON: usize = 300;

/// An end, as it is published.
#[derive(Debug)]
pub struct End {
    /// Its status.
    status: Value,
    /// Why the run was started; its status does not say.
    reason: String,
    /// Whether a person has ended the run; its status does not say.
    canceled: bool,
    /// What continues the count and the trace of its event.
    trail: Vec<(String, String)>,
}

impl End {
    /// Returns the end of `unit` with this `outcome`, at `at` (milliseconds since 1970).
    pub fn of(unit: &Unit, outcome: &Outcome, at: i64) -> Self {
        Self {
            status: status::end(unit, outcome, at).into(),
            reason: printable(&unit.reason, MAX_REASON),
            canceled: outcome.state() == State::Canceled,
            trail: Cause::of(unit).trail(),
        }
    }
}

/// The last end, the time of the last success, and when to publish both.
#[derive(Debug)]
pub struct LastEnd {
    end: Option<End>,
    /// When a run last ended with 0, seconds since 1970, as the statuses say it.
    success: Option<i64>,
    due: Option<Instant>,
    free: Instant,
}

impl LastEnd {
    /// Reads it from the ledger.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn read(reader: &Reader) -> Result<Self> {
        let record = reader.last_ended()?;
        let end = record.and_then(|record| {
            let ended = record.ended.unwrap_or_default();
            let outcome = record.outcome?;
            Some(End::of(&record.unit, &outcome, ended))
        });
        let success = match &end {
            Some(end) => match succeeded(&end.status) {
                Some(at) => Some(at),
                None => reader.last_success()?.map(|at| at.div_euclid(1000)),
            },
            None => None,
        };
        Ok(Self {
            end,
            success,
            due: None,
            free: Instant::now(),
        })
    }

    /// Notes a later end.
    pub fn set(&mut self, end: End) {
        self.success = succeeded(&end.status).or(self.success);
        self.end = Some(end);
        self.due();
    }

    /// Notes that the broker may not have it.
    pub fn due(&mut self) {
        self.due = self.end.is_some().then_some(self.free);
    }

    /// Makes it due now, without waiting for a later end.
    pub fn flush(&mut self) {
        self.due = self.due.map(|_| Instant::now());
    }

    /// Returns when it is due.
    pub const fn wake(&self) -> Option<Instant> {
        self.due
    }

    /// Publishes the last end, if it is due. Without a connection it is due again at the next one.
    pub fn tell(&mut self, pipeline: &Pipeline, steps: &mut Steps) {
        let now = Instant::now();
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        self.due = None;
        self.free = now + PAUSE;
        let Some(End {
            status,
            reason,
            canceled,
            trail,
        }) = &self.end
        else {
            return;
        };
        // It is not a status itself. Otherwise subscribers of all topics would see the end twice.
        let mut payload = json!({ "last": status, "last_success": self.success, "reason": reason });
        if let (true, Value::Object(payload)) = (canceled, &mut payload) {
            payload.insert("end".to_owned(), json!(property::CANCELED));
        }
        let mut user = vec![(property::WHO.to_owned(), pipeline.config.who.clone())];
        user.extend_from_slice(trail);
        steps.push_back(Step::Publish(Message {
            topic: pipeline.topics.last(),
            payload: Bytes::from(json::to_text(&payload)),
            qos: Qos::AtLeastOnce,
            retain: true,
            properties: Properties {
                user,
                ..Properties::default()
            },
        }));
    }
}

/// Returns the time in the status of a run that ended with 0, seconds since 1970.
fn succeeded(status: &Value) -> Option<i64> {
    let finished = status.get("status").and_then(Value::as_str) == Some("finished");
    let at = status.get("ts").and_then(Value::as_i64);
    at.filter(|_| finished)
}
