//! The end of the last run, retained for whoever looks later.

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use crate::engine::client::Pipeline;
use crate::engine::report::settle;
use crate::error::Result;
use crate::model::json;
use crate::model::message::{Message, Properties, Qos, property};
use crate::store::ledger::Reader;

/// Time between two messages at least: when runs end fast, the last one counts.
const PAUSE: Duration = Duration::from_secs(1);

/// The status of the last end, and when the broker is to have it.
#[derive(Debug)]
pub(crate) struct LastEnd {
    status: Option<Value>,
    due: Option<Instant>,
    free: Instant,
}

impl LastEnd {
    /// What the ledger says of it.
    pub fn read(reader: &Reader) -> Result<Self> {
        let record = reader.last_ended()?;
        let status = record.and_then(|record| {
            let ended = record.ended.unwrap_or_default();
            let outcome = record.outcome?;
            Some(settle::end_status(&record.unit, &outcome, ended).into())
        });
        Ok(Self {
            status,
            due: None,
            free: Instant::now(),
        })
    }

    pub fn set(&mut self, status: Value) {
        self.status = Some(status);
        self.due();
    }

    /// The broker may not have it.
    pub fn due(&mut self) {
        self.due = self.status.is_some().then_some(self.free);
    }

    /// No later end is waited for.
    pub fn flush(&mut self) {
        self.due = self.due.map(|_| Instant::now());
    }

    pub const fn wake(&self) -> Option<Instant> {
        self.due
    }
}

impl Pipeline {
    /// Tells the last end, if it is time to.
    pub(crate) fn tell_last(&mut self) {
        let now = Instant::now();
        if self.last.due.is_none_or(|due| due > now) {
            return;
        }
        self.last.due = None;
        self.last.free = now + PAUSE;
        if let Some(status) = &self.last.status {
            // Not a status itself: whoever listens to all topics must not see the end twice.
            let payload = json!({ "last": status });
            let message = Message {
                topic: self.topics.last(),
                payload: Bytes::from(json::to_text(&payload)),
                qos: Qos::AtLeastOnce,
                retain: true,
                properties: Properties {
                    user: vec![(property::WHO.to_owned(), self.config.who.clone())],
                    ..Properties::default()
                },
            };
            // Without a connection it is told when there is one.
            self.publish(message);
        }
    }
}
