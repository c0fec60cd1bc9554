//! The state of a client at one moment. The status reply, the metrics and the status line of the
//! service manager all use it.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::engine::intake::{Counts, Intake};
use crate::engine::pipeline::{Pipeline, now_ms};
use crate::engine::queue::{QueueView, Queues};
use crate::engine::report::Reports;
use crate::engine::work::Units;
use crate::store::ledger::Totals;
use crate::store::room::Fill;

/// A client at one moment.
#[derive(Debug)]
pub struct Snapshot<'a> {
    /// Name of the pipeline.
    pub who: &'a str,
    /// Name of the host.
    pub host: &'a str,
    /// When the client started.
    pub since: Timestamp,
    /// Address of the broker.
    pub broker: String,
    /// Returns whether the broker is connected and has our subscriptions.
    pub online: bool,
    /// Returns whether starts are paused.
    pub paused: bool,
    /// Ids of the units that run.
    pub running: Vec<&'a String>,
    /// Number of units that wait.
    pub waiting: usize,
    /// Counts of events since the client started.
    pub counts: Counts,
    /// Number of statuses that are not published yet.
    pub outbox: usize,
    /// Size and limit of the state folder, if there is a limit.
    pub state: Option<Fill>,
    /// Time of the last message of each trigger that waits for silence, milliseconds since 1970.
    pub heard: Vec<(&'a str, i64)>,
    /// Queues that it takes from.
    pub queues: Vec<QueueView<'a>>,
}

impl<'a> Snapshot<'a> {
    /// Returns the present state of the parts of a client.
    pub fn of<T: Copy + PartialEq>(
        pipeline: &'a Pipeline,
        (work, intake, reports): (&'a Units, &'a Intake<T>, &'a Reports<T>),
        online: bool,
    ) -> Self {
        let (config, lanes) = (&pipeline.config, work.lanes());
        Self {
            who: &config.who,
            host: &config.host,
            since: pipeline.since,
            broker: config.broker.address(),
            online,
            paused: lanes.is_paused(),
            running: lanes.running().collect(),
            waiting: lanes.waiting(),
            counts: intake.counts,
            outbox: reports.waiting(),
            state: pipeline.room.fill(),
            heard: intake.silence.last_heard().collect(),
            queues: Vec::new(),
        }
    }

    /// Adds the queues.
    #[must_use]
    pub fn with_queues(self, queues: &'a Queues) -> Self {
        Self {
            queues: queues.views().collect(),
            ..self
        }
    }

    /// Returns the status line of the service manager.
    pub fn line(&self) -> String {
        let not = if self.online { "" } else { "not " };
        let paused = if self.paused { ", paused" } else { "" };
        let away = self.queues.iter().filter(|queue| !queue.is_online);
        let away: String = away
            .map(|queue| format!(", not to queue {}", queue.name))
            .collect();
        format!(
            "{not}connected to {}{away}; {} running, {} waiting{paused}",
            self.broker,
            self.running.len(),
            self.waiting
        )
    }

    /// Returns the fields of the answer to a status request; `totals` has the numbers of the
    /// ledger.
    pub fn fields(&self, totals: &Totals) -> Map<String, Value> {
        let fields = [
            ("who", json!(self.who)),
            ("host", json!(self.host)),
            ("version", json!(env!("CARGO_PKG_VERSION"))),
            ("since", json!(self.since.as_second())),
            (
                "uptime",
                json!((now_ms() - self.since.as_millisecond()) / 1000),
            ),
            ("paused", json!(self.paused)),
            ("running", json!(self.running)),
            ("waiting", json!(self.waiting)),
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
            ("outbox", json!(self.outbox)),
        ];
        let state = |fill: Fill| json!({"bytes": fill.used, "limit": fill.limit});
        let state = self.state.map(|fill| ("disk", state(fill)));
        let queue = |queue: &QueueView<'_>| {
            json!({
                "queue": queue.name,
                "online": queue.is_online,
                "held": queue.held,
                "letters": queue.letters,
            })
        };
        let queues = (!self.queues.is_empty()).then(|| {
            let queues: Vec<Value> = self.queues.iter().map(queue).collect();
            ("queues", json!(queues))
        });
        fields
            .into_iter()
            .chain(state)
            .chain(queues)
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_and_the_reply_tell_the_same() {
        let unit = "u".to_owned();
        let snapshot = Snapshot {
            who: "p",
            host: "h",
            since: Timestamp::now(),
            broker: "b:1883".into(),
            online: false,
            paused: true,
            running: vec![&unit],
            waiting: 3,
            counts: Counts::default(),
            outbox: 2,
            state: Some(Fill {
                used: 5,
                limit: 7,
                refused: 0,
            }),
            heard: Vec::new(),
            queues: vec![QueueView {
                name: "jobs",
                is_online: false,
                held: 1,
                letters: 2,
            }],
        };
        let line = snapshot.line();
        assert_eq!(
            line,
            "not connected to b:1883, not to queue jobs; 1 running, 3 waiting, paused"
        );
        let fields = snapshot.fields(&Totals::default());
        assert_eq!(fields["running"], json!(["u"]));
        assert_eq!(
            (&fields["waiting"], &fields["outbox"]),
            (&json!(3), &json!(2))
        );
        assert_eq!(fields["paused"], json!(true));
        let queue = json!({"queue": "jobs", "online": false, "held": 1, "letters": 2});
        assert_eq!(fields["queues"], json!([queue]));
        assert_eq!(fields["disk"], json!({"bytes": 5, "limit": 7}));
    }
}
