//! How many messages are confirmed, and how they have ended.

use std::collections::HashSet;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::model::text::printable;

/// Maximum number of messages whose ends are waited for: their ids are in memory.
pub const MAX_AWAITED: u64 = 1_000_000;

/// Maximum number of failures that are listed.
pub const MAX_LISTED: usize = 1000;

/// Maximum length of a text of a report, characters.
const MAX_TEXT: usize = 200;

/// Report of a client of Tael about the end of a message.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Report {
    /// Id of the message.
    #[serde(default)]
    pub id: Option<String>,
    /// `finished`, `failed` or `canceled`.
    pub status: String,
    /// Exit code of its command.
    #[serde(default)]
    pub return_code: Option<i64>,
    /// The unit.
    #[serde(default)]
    pub unit: Option<String>,
    /// The host.
    #[serde(default)]
    pub host: Option<String>,
    /// The pipeline.
    #[serde(default)]
    pub who: Option<String>,
    /// For people.
    #[serde(default)]
    pub detail: Option<String>,
}

impl Report {
    /// Returns it as JSON about the message `id`.
    #[must_use]
    pub fn json(&self, id: &str) -> Value {
        json!({
            "id": id,
            "status": self.status,
            "return_code": self.return_code,
            "unit": self.unit,
            "host": self.host,
            "who": self.who,
            "detail": self.detail,
        })
    }

    /// Returns it on a line about the message `id`.
    #[must_use]
    pub fn line(&self, id: &str) -> String {
        let shown = |text: &Option<String>| text.as_deref().map(|text| printable(text, MAX_TEXT));
        let mut line = format!(
            "{} {}",
            printable(&self.status, MAX_TEXT),
            printable(id, MAX_TEXT)
        );
        if let Some(detail) = shown(&self.detail) {
            line += &format!(": {detail}");
        } else if let Some(code) = self.return_code {
            line += &format!(": exit code {code}");
        }
        if let (Some(who), Some(host)) = (shown(&self.who), shown(&self.host)) {
            line += &format!(" ({who} on {host})");
        }
        line
    }
}

/// What became of the messages.
#[derive(Debug)]
pub struct Tally {
    /// Number of all messages, if it is known.
    pub total: Option<u64>,
    /// Number that were begun.
    begun: u64,
    /// Number that the broker has confirmed.
    pub confirmed: u64,
    /// Ids of those whose end is not known; `None` if ends are not waited for.
    left: Option<HashSet<String>>,
    /// Number of those that have succeeded.
    pub finished: u64,
    /// Number of those that were canceled.
    pub canceled: u64,
    /// Number of those that are done as far as the queue shows.
    pub unreported: u64,
    /// Number of those that have failed.
    pub failed: u64,
    /// Reports of the first [`MAX_LISTED`] that have failed or were canceled, and their ids.
    pub bad: Vec<(String, Report)>,
    /// Whether a client of Tael takes from the queue, as far as was seen.
    pub has_reporter: bool,
    /// When there was progress last.
    moved: Instant,
    /// Why there is no progress at present.
    pub hindrance: Option<Hindrance>,
    /// Whether nothing is waited for but our own input.
    is_idle: bool,
}

/// Why there is no progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hindrance {
    /// There is no connection, and why.
    Lost(String),
    /// The broker takes no messages, and why.
    Blocked(String),
}

impl Tally {
    /// Returns the tally of `total` messages.
    #[must_use]
    pub fn new(total: Option<u64>, waits: bool) -> Self {
        Self {
            total,
            begun: 0,
            confirmed: 0,
            left: waits.then(HashSet::new),
            finished: 0,
            canceled: 0,
            unreported: 0,
            failed: 0,
            bad: Vec::new(),
            has_reporter: false,
            moved: Instant::now(),
            hindrance: None,
            is_idle: false,
        }
    }

    /// Notes that the message `id` is sent for the first time.
    pub fn sent(&mut self, id: &str) {
        self.begun += 1;
        if let Some(left) = &mut self.left {
            left.insert(id.to_owned());
        }
    }

    /// Notes that no more messages follow.
    pub const fn end(&mut self) {
        self.total = Some(self.begun);
    }

    /// Notes that the broker has `count` more messages.
    pub fn confirmed(&mut self, count: usize) {
        self.confirmed += count as u64;
        self.moved();
    }

    /// Notes progress.
    pub fn moved(&mut self) {
        self.moved = Instant::now();
        self.hindrance = None;
    }

    /// Notes whether nothing is waited for but our own input. The time without progress begins after
    /// that.
    pub fn set_idle(&mut self, is_idle: bool) {
        if self.is_idle && !is_idle {
            self.moved = Instant::now();
        }
        self.is_idle = is_idle;
    }

    /// Notes that the connection is lost, and why.
    pub fn lost(&mut self, cause: String) {
        self.set_idle(false);
        self.hindrance = Some(Hindrance::Lost(cause));
    }

    /// Returns how long there was no progress that depends on the broker.
    #[must_use]
    pub fn rest(&self) -> Duration {
        match self.is_idle {
            true => Duration::ZERO,
            false => self.moved.elapsed(),
        }
    }

    /// Notes the end of the message `id`. A second report about it changes nothing.
    pub fn ended(&mut self, id: &str, report: Report) {
        self.has_reporter = true;
        if !self.left.as_mut().is_some_and(|left| left.remove(id)) {
            return;
        }
        match report.status.as_str() {
            "finished" => self.finished += 1,
            "canceled" => self.canceled += 1,
            _ => self.failed += 1,
        }
        if report.status != "finished" && self.bad.len() < MAX_LISTED {
            self.bad.push((id.to_owned(), report));
        }
    }

    /// Notes that the queue is empty and nothing works on its messages: all others are done.
    pub fn drained(&mut self) {
        if let Some(left) = &mut self.left {
            self.unreported += left.len() as u64;
            left.clear();
        }
    }

    /// Returns the number of messages whose end is not known.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left.as_ref().map_or(0, |left| left.len() as u64)
    }

    /// Returns whether ends are waited for.
    #[must_use]
    pub const fn waits(&self) -> bool {
        self.left.is_some()
    }

    /// Returns the state of the ends, for people.
    #[must_use]
    pub fn ends(&self) -> String {
        let mut parts = vec![format!("{} finished", self.finished)];
        for (count, what) in [
            (self.unreported, "done (not reported)"),
            (self.failed, "failed"),
            (self.canceled, "canceled"),
        ] {
            if count > 0 {
                parts.push(format!("{count} {what}"));
            }
        }
        let left = self.left();
        if left > 0 {
            parts.push(format!("{left} left"));
        }
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(status: &str) -> Report {
        let text = json!({"status": status, "return_code": 3, "host": "h", "who": "w"});
        serde_json::from_value(text).expect("report")
    }

    #[test]
    fn each_message_ends_once() {
        let mut tally = Tally::new(Some(4), true);
        for id in ["a", "b", "c", "d"] {
            tally.sent(id);
        }
        tally.ended("a", report("finished"));
        tally.ended("a", report("failed"));
        tally.ended("of another", report("failed"));
        tally.ended("b", report("failed"));
        assert_eq!(tally.ends(), "1 finished, 1 failed, 2 left");
        tally.ended("c", report("canceled"));
        tally.drained();
        assert_eq!(
            tally.ends(),
            "1 finished, 1 done (not reported), 1 failed, 1 canceled"
        );
        assert_eq!(tally.bad.len(), 2);
        assert_eq!(tally.bad[0].1.line("b"), "failed b: exit code 3 (w on h)");
    }

    #[test]
    fn failures_are_counted_beyond_the_list() {
        let mut tally = Tally::new(None, true);
        for n in 0..MAX_LISTED + 5 {
            let id = n.to_string();
            tally.sent(&id);
            tally.ended(&id, report("failed"));
        }
        assert_eq!(
            (tally.bad.len(), tally.failed),
            (MAX_LISTED, MAX_LISTED as u64 + 5)
        );
        assert_eq!(tally.left(), 0);
    }
}
