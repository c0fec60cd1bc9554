//! What was heard of one pipeline.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::model::event::{Attributes, attributes};
use crate::model::message::property;
use crate::model::text::printable;
use crate::model::{duration, json};

/// Maximum number of runs, of statuses, and of runs at a time that are kept.
const MAX_RUNS: usize = 100;
const MAX_STATUSES: usize = 20;
const MAX_RUNNING: usize = 100;

/// Maximum number of characters of a reason and of an id.
const MAX_REASON: usize = 200;
const MAX_ID: usize = 64;

/// Memory of a run, bytes, at most.
const RUN: usize = 1024;

/// A run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Run {
    /// Id of the unit; empty if it is not known.
    pub unit: String,
    /// Id of its event; empty if it is not known.
    pub event: String,
    /// Why it runs.
    pub reason: String,
    /// When it was started, seconds since 1970.
    pub started: f64,
}

/// A run that has ended.
#[derive(Debug)]
struct Ended {
    run: Option<Run>,
    state: &'static str,
    at: f64,
    seconds: Option<f64>,
    code: Option<i64>,
    status: Value,
}

/// What was heard of a pipeline.
#[derive(Debug, Default)]
pub(super) struct Heard {
    running: VecDeque<Run>,
    ended: VecDeque<Ended>,
    statuses: VecDeque<Bytes>,
    /// Number of units that wait, if the ledger is on this host.
    waiting: Option<u64>,
    /// Memory of what is kept of the retained messages.
    pub presence: usize,
    pub last: usize,
    /// Its JSON object, as a page shows it.
    pub shown: Bytes,
    /// Number of the connection on which the broker told its presence last.
    pub round: u64,
    /// Whether an end was heard after the one that the broker retains.
    is_ahead: bool,
}

impl Heard {
    /// Returns the memory of all this.
    pub fn bytes(&self) -> usize {
        let statuses: usize = self.statuses.iter().map(Bytes::len).sum();
        (self.running.len() + self.ended.len()) * RUN + statuses + self.presence + self.last
    }

    /// Takes a status that came at `now`: with the id of the event that has led to it, and whether a person
    /// has ended the run. It may take `room` bytes more.
    pub fn status(
        &mut self,
        attributes: &Attributes,
        payload: &Bytes,
        (cause, is_canceled): (Option<&str>, bool),
        now: f64,
        room: usize,
    ) {
        let text = |key: &str| attributes.get(key).and_then(Value::as_str);
        let code = attributes.get("return_code").and_then(Value::as_i64);
        let cause = printable(cause.unwrap_or_default(), MAX_ID);
        let state = match text("status") {
            Some("started") => {
                // The ledger may know it already, and with its unit.
                let is_known = self.is_local() && self.place_of(&cause).is_some();
                if !is_known && room >= RUN {
                    if self.running.len() >= MAX_RUNNING {
                        self.running.pop_front();
                    }
                    self.running.push_back(Run {
                        unit: String::new(),
                        event: cause,
                        reason: printable(text("reason").unwrap_or_default(), MAX_REASON),
                        started: now,
                    });
                }
                self.keep(payload, room);
                return;
            }
            Some("finished") => "succeeded",
            _ if is_canceled => "canceled",
            Some("failed" | "falsestart") => "failed",
            _ => return,
        };
        // A run that was never started has no place among those that run, and of others the ledger may
        // know already that they have ended.
        let is_exact = text("status") == Some("falsestart") || self.is_local();
        let first = (!is_exact && !self.running.is_empty()).then_some(0);
        let place = self.place_of(&cause).or(first);
        let run = place.and_then(|place| self.running.remove(place));
        let elapsed = text("time_elapsed").and_then(duration::from_python);
        let name = match is_canceled {
            true => property::CANCELED.to_owned(),
            false => printable(text("status").unwrap_or_default(), MAX_ID),
        };
        let status = json!({
            "status": name,
            "return_code": code,
            "ts": attributes.get("ts").and_then(Value::as_i64),
            "time_elapsed": text("time_elapsed").map(|text| printable(text, MAX_ID)),
            "reason": run.as_ref().map(|run| run.reason.clone()),
        });
        if self.ended.len() >= MAX_RUNS {
            self.ended.pop_front();
        }
        // Without room the oldest makes way.
        if room < RUN {
            self.ended.pop_front();
        }
        if room >= RUN || !self.ended.is_empty() {
            self.is_ahead = true;
            self.ended.push_back(Ended {
                run,
                state,
                at: now,
                seconds: elapsed.map(|elapsed| elapsed.as_secs_f64()),
                code,
                status,
            });
        }
        // Its payload is that of a failed one.
        let canceled = is_canceled.then(|| {
            let mut shown = attributes.clone();
            shown.insert("status".to_owned(), property::CANCELED.into());
            Bytes::from(json::to_text(&Value::Object(shown)))
        });
        self.keep(
            canceled.as_ref().unwrap_or(payload),
            room.saturating_sub(RUN),
        );
    }

    fn place_of(&self, cause: &str) -> Option<usize> {
        let same = |run: &Run| !cause.is_empty() && run.event == cause;
        self.running.iter().position(same)
    }

    fn keep(&mut self, payload: &Bytes, room: usize) {
        if self.statuses.len() >= MAX_STATUSES {
            self.statuses.pop_front();
        }
        if payload.len() + RUN <= room {
            // The packet that it came in is larger.
            self.statuses.push_back(Bytes::copy_from_slice(payload));
        }
    }

    /// Takes what the ledger says. Returns whether that is new.
    pub fn ledger(&mut self, running: Vec<Run>, waiting: u64) -> bool {
        let running: VecDeque<Run> = running.into_iter().take(MAX_RUNNING).collect();
        let is_new = self.running != running || self.waiting != Some(waiting);
        (self.running, self.waiting) = (running, Some(waiting));
        is_new
    }

    /// Takes the end that the broker retains.
    pub fn told(&mut self, last: Option<&Value>) {
        let ts = |status: &Value| status.get("ts").and_then(Value::as_i64);
        let heard = self.ended.back().and_then(|ended| ts(&ended.status));
        self.is_ahead = heard > last.and_then(ts);
    }

    /// Returns whether an end was heard after the one that the broker retains.
    pub const fn is_ahead(&self) -> bool {
        self.is_ahead
    }

    /// Returns the retained end `last` with the reason that was heard, if its client does not tell one.
    pub fn explained(&self, mut last: Value) -> Value {
        if last.get("reason").is_some_and(Value::is_null)
            && let Some(ended) = self
                .ended
                .back()
                .filter(|ended| is_same(&ended.status, &last))
            && let (Some(reason), Some(last)) = (ended.status.get("reason"), last.as_object_mut())
        {
            last.insert("reason".to_owned(), reason.clone());
        }
        last
    }

    pub const fn waiting(&self) -> Option<u64> {
        self.waiting
    }

    pub const fn is_local(&self) -> bool {
        self.waiting.is_some()
    }

    /// Returns what runs. The reasons have `room` bytes; of others there is none.
    pub fn running(&self, mut room: usize) -> Vec<Value> {
        let run = |run: &Run| {
            let is_told = run.reason.len() <= room;
            let reason = if is_told { run.reason.as_str() } else { "" };
            room -= reason.len();
            json!({ "unit": run.unit, "reason": reason, "started": run.started })
        };
        self.running.iter().map(run).collect()
    }

    /// Returns the last end.
    pub fn last_json(&self) -> Option<Value> {
        self.ended.back().map(|ended| ended.status.clone())
    }

    /// Returns the runs, newest first. The end that the broker retains, `last`, is the oldest, unless it
    /// was heard.
    pub fn runs(&self, last: Option<Value>, limit: usize) -> Vec<Value> {
        let running = self.running.iter().rev().map(|run| {
            json!({
                "unit": run.unit, "event": run.event, "state": "running", "reason": run.reason,
                "started": run.started, "ended": null, "seconds": null, "code": null, "attempt": null,
            })
        });
        let ended = self.ended.iter().rev().map(|ended| {
            let run = ended.run.clone().unwrap_or_default();
            let started = match (&ended.run, ended.seconds) {
                (_, Some(seconds)) => Some(ended.at - seconds),
                (Some(run), None) => Some(run.started),
                (None, None) => None,
            };
            json!({
                "unit": run.unit, "event": run.event, "state": ended.state, "reason": run.reason,
                "started": started,
                "ended": ended.at, "seconds": ended.seconds, "code": ended.code, "attempt": null,
            })
        });
        let last = last.filter(|last| !self.has_heard(last)).map(|last| {
            let text = |key: &str| last.get(key).and_then(Value::as_str);
            let state = match text("status") {
                Some("finished") => "succeeded",
                Some(property::CANCELED) => property::CANCELED,
                _ => "failed",
            };
            let seconds = text("time_elapsed").and_then(duration::from_python);
            let seconds = seconds.map(|elapsed| elapsed.as_secs_f64());
            let ended = last.get("ts").and_then(Value::as_f64);
            json!({
                "unit": "", "event": "", "state": state, "reason": text("reason").unwrap_or_default(),
                "started": ended.zip(seconds).map(|(ended, seconds)| ended - seconds),
                "ended": ended, "seconds": seconds, "code": last.get("return_code"), "attempt": null,
            })
        });
        running.chain(ended).chain(last).take(limit).collect()
    }

    fn has_heard(&self, last: &Value) -> bool {
        let mut ended = self.ended.iter().rev();
        ended.any(|ended| is_same(&ended.status, last))
    }

    /// Returns the statuses, newest first. The end that the broker retains, `last`, is the oldest, unless
    /// it was heard.
    pub fn statuses(&self, last: Option<Value>, limit: usize) -> Vec<Value> {
        let read = |payload: &Bytes| attributes(payload, payload.len()).ok().map(Value::Object);
        let heard = self.statuses.iter().rev().filter_map(read);
        let last = last.filter(|last| !self.has_heard(last));
        heard.chain(last).take(limit).collect()
    }
}

/// Returns whether two statuses are of the same end. Their ids are not in them.
fn is_same(one: &Value, other: &Value) -> bool {
    ["ts", "return_code", "time_elapsed"]
        .iter()
        .all(|key| one.get(key) == other.get(key))
}
