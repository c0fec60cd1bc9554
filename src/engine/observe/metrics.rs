//! Metrics: a file for the textfile collector of the Prometheus node exporter (format:
//! prometheus.io/docs/instrumenting/exposition_formats).

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use tokio::time::{Duration, Instant};
use tracing::{info, warn};

use crate::engine::observe::ends::{BUCKETS, Ends, OfTrigger};
use crate::engine::observe::snapshot::Snapshot;
use crate::engine::queue::QueueView;
use crate::error::Result;
use crate::model::unit::Outcome;
use crate::store::ledger::Reader;
use crate::store::ledger::last_ends::{MAX_ENDS, last_ends};

/// Minimum time between two writes.
const PAUSE: Duration = Duration::from_secs(5);

/// Maximum time between two writes, so that the file says at least every minute that the client
/// lives.
const RENEWAL: Duration = Duration::from_secs(55);

/// Delay before a file that could not be written is written again. An idle client would otherwise
/// show for ever what was true before a full disk.
const RETRY: Duration = Duration::from_secs(60);

/// The file, and the ends that are counted for it.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    ends: Ends,
    /// The last content, without the time at which it was written.
    written: String,
    /// When a change may be written.
    free: Instant,
    /// When the file is written in any case.
    due: Instant,
    /// Whether something may have changed that waits for its time.
    stale: bool,
    failed: bool,
}

impl Metrics {
    /// Returns metrics that are written to `path`. The ledger knows the last ends.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn open(path: PathBuf, reader: &Reader) -> Result<Self> {
        let (known, more) = last_ends(reader)?;
        if more {
            info!(
                "metrics: the last ends of triggers are those of the last {MAX_ENDS} runs, until the \
                 next ones end"
            );
        }
        Ok(Self::new(path, Ends::of(known)))
    }

    fn new(path: PathBuf, ends: Ends) -> Self {
        let now = Instant::now();
        Self {
            path,
            ends,
            written: String::new(),
            free: now,
            due: now,
            stale: false,
            failed: false,
        }
    }

    /// Counts a run of `trigger` that has ended at `at`, milliseconds since 1970.
    pub fn count(&mut self, trigger: &str, outcome: &Outcome, at: i64) {
        self.ends.count(trigger, outcome, at);
    }

    /// Returns when the next write is due.
    pub fn wake(&self) -> Instant {
        if self.stale { self.free } else { self.due }
    }

    /// Writes the metrics if they have changed, or if it is time to say that the client lives; `last`
    /// skips the pause. Until the pause is over, it does not look whether they have changed.
    pub fn show(&mut self, snapshot: &Snapshot<'_>, last: bool) {
        let now = Instant::now();
        if now < self.free && !last {
            self.stale = true;
            return;
        }
        let text = self.text(snapshot);
        if text == self.written && now < self.due {
            self.stale = false;
        } else {
            self.write(text, snapshot.who);
        }
    }

    fn text(&self, snapshot: &Snapshot<'_>) -> String {
        let mut out = String::new();
        let who = label(snapshot.who);
        let mut family = |name: &str, kind: &str, help: &str, rows: &[(String, f64)]| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "# HELP tael_{name} {help}\n# TYPE tael_{name} {kind}");
            for (labels, value) in rows {
                let _ = writeln!(out, "tael_{name}{{who=\"{who}\"{labels}}} {value}");
            }
        };
        #[allow(clippy::cast_precision_loss)] // counts stay below 2^53
        let count = |n: u64| n as f64;
        let by = |name: &str, value: &str, n: f64| (format!(",{name}=\"{}\"", label(value)), n);
        let one = |n: f64| [(String::new(), n)];
        let counts = &snapshot.counts;
        family(
            "events_total",
            "counter",
            "Messages by result.",
            &[
                by("result", "accepted", count(counts.accepted)),
                by("result", "refused", count(counts.refused)),
                by("result", "duplicate", count(counts.duplicates)),
                by("result", "ignored", count(counts.ignored)),
            ],
        );
        family(
            "units_total",
            "counter",
            "Runs that have ended, by their end.",
            &[
                by("end", "succeeded", count(self.ends.succeeded)),
                by("end", "failed", count(self.ends.failed)),
                by("end", "canceled", count(self.ends.canceled)),
            ],
        );
        let gauge = |n: usize| one(count(n as u64));
        let seconds = |at: i64| count(u64::try_from(at).unwrap_or(0)) / 1000.0;
        family(
            "run_seconds_total",
            "counter",
            "Time that ended runs took.",
            &one(self.ends.seconds),
        );
        family(
            "units_running",
            "gauge",
            "Runs that are running.",
            &gauge(snapshot.running.len()),
        );
        family(
            "units_waiting",
            "gauge",
            "Runs that wait.",
            &gauge(snapshot.waiting),
        );
        family(
            "outbox_messages",
            "gauge",
            "Statuses that are not published yet.",
            &gauge(snapshot.outbox),
        );
        family(
            "connected",
            "gauge",
            "Whether the client is connected (1) or not (0).",
            &gauge(usize::from(snapshot.online)),
        );
        family(
            "start_timestamp_seconds",
            "gauge",
            "When the client started.",
            &one(seconds(snapshot.since.as_millisecond())),
        );
        if let Some(state) = snapshot.state {
            for (name, kind, help, value) in [
                (
                    "state_bytes",
                    "gauge",
                    "Size of the state folder.",
                    state.used,
                ),
                (
                    "state_limit_bytes",
                    "gauge",
                    "Maximum size of the state folder.",
                    state.limit,
                ),
                (
                    "state_refusals_total",
                    "counter",
                    "Submissions that were refused because the state folder was full.",
                    state.refused,
                ),
            ] {
                family(name, kind, help, &one(count(value)));
            }
        }
        let queues = |value: fn(&QueueView<'_>) -> usize| -> Vec<(String, f64)> {
            let queues = snapshot.queues.iter();
            queues
                .map(|queue| by("queue", queue.name, count(value(queue) as u64)))
                .collect()
        };
        for (name, help, rows) in [
            (
                "queue_connected",
                "Whether the client can take from a queue (1) or not (0).",
                queues(|queue| usize::from(queue.is_online)),
            ),
            (
                "queue_held_messages",
                "Messages that came again, and wait because another host may run them.",
                queues(|queue| queue.held),
            ),
            (
                "queue_letters",
                "Dead letters and reports that wait for the broker of a queue.",
                queues(|queue| queue.letters),
            ),
        ] {
            if !rows.is_empty() {
                family(name, "gauge", help, &rows);
            }
        }
        let heard: Vec<_> = snapshot
            .heard
            .iter()
            .map(|(trigger, at)| by("trigger", trigger, seconds(*at)))
            .collect();
        if !heard.is_empty() {
            family(
                "last_beat_timestamp_seconds",
                "gauge",
                "When the topic of a trigger with absent last had a message.",
                &heard,
            );
        }
        let ends = |of: fn(&OfTrigger) -> Option<i64>| -> Vec<(String, f64)> {
            let known = self.ends.by_trigger();
            known
                .filter_map(|(trigger, ends)| Some(by("trigger", trigger, seconds(of(ends)?))))
                .collect()
        };
        for (name, help, rows) in [
            (
                "last_success_timestamp_seconds",
                "When the last run of a trigger ended that succeeded.",
                ends(|ends| ends.last_success),
            ),
            (
                "last_end_timestamp_seconds",
                "When the last run of a trigger ended.",
                ends(|ends| ends.last),
            ),
        ] {
            if !rows.is_empty() {
                family(name, "gauge", help, &rows);
            }
        }
        self.add_histogram(&mut out, &who);
        out
    }

    /// Adds the histogram of run times. Its rows have names of their own.
    fn add_histogram(&self, out: &mut String, who: &str) {
        let mut head = "# HELP tael_run_seconds Time that ended runs took.\n\
                        # TYPE tael_run_seconds histogram\n";
        for (trigger, ends) in self.ends.by_trigger() {
            let labels = format!("who=\"{who}\",trigger=\"{}\"", label(trigger));
            out.push_str(std::mem::take(&mut head));
            let cumulative = ends.cumulative();
            let bounds = BUCKETS.map(|bound| bound.to_string());
            let bounds = bounds.iter().map(String::as_str).chain(["+Inf"]);
            // Writing to a string cannot fail.
            for (bound, count) in bounds.zip(cumulative) {
                let _ = writeln!(
                    out,
                    "tael_run_seconds_bucket{{{labels},le=\"{bound}\"}} {count}"
                );
            }
            let (sum, count) = (ends.seconds, cumulative.last().copied().unwrap_or(0));
            let _ = writeln!(out, "tael_run_seconds_sum{{{labels}}} {sum}");
            let _ = writeln!(out, "tael_run_seconds_count{{{labels}}} {count}");
        }
    }

    /// Returns the rows that say that the client lives now.
    fn alive(who: &str, now: Timestamp) -> String {
        let name = "tael_alive_timestamp_seconds";
        let (who, now) = (label(who), now.as_second());
        format!(
            "# HELP {name} When the client wrote this.\n# TYPE {name} gauge\n\
             {name}{{who=\"{who}\"}} {now}\n"
        )
    }

    fn write(&mut self, text: String, who: &str) {
        let alive = Self::alive(who, Timestamp::now());
        let written = replace(&self.path, &format!("{text}{alive}"));
        let now = Instant::now();
        self.stale = false;
        match written {
            Ok(()) => {
                (self.free, self.due) = (now + PAUSE, now + RENEWAL);
                self.failed = false;
                self.written = text;
            }
            Err(e) => {
                (self.free, self.due) = (now + RETRY, now + RETRY);
                if !std::mem::replace(&mut self.failed, true) {
                    warn!("cannot write metrics to {}: {e}", self.path.display());
                }
            }
        }
    }
}

/// A reader sees the old file or the new one. Other users may read it.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    // The collector reads `*.prom` only.
    part.push(".part");
    // A file or link in its place must not be written through.
    match fs::remove_file(&part) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o644);
    let mut file = options.open(&part)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

/// Escapes the value of a label.
fn label(text: &str) -> String {
    let text = text.replace('\\', r"\\").replace('"', "\\\"");
    text.replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::intake::Counts;
    use crate::model::unit::End;

    fn snapshot(running: &String) -> Snapshot<'_> {
        Snapshot {
            who: "a\"b",
            host: "h",
            since: Timestamp::UNIX_EPOCH,
            broker: "b".into(),
            online: true,
            paused: false,
            running: vec![running],
            waiting: 0,
            counts: Counts {
                accepted: 3,
                ..Counts::default()
            },
            outbox: 0,
            state: None,
            heard: vec![("t", 1500)],
            queues: Vec::new(),
        }
    }

    #[test]
    fn what_could_not_be_written_is_written_later_without_a_change() {
        let unit = "u".to_owned();
        let (snapshot, dir) = (snapshot(&unit), tempfile::tempdir().expect("tempdir"));
        let folder = dir.path().join("later");
        let mut metrics = Metrics::new(folder.join("tael.prom"), Ends::default());
        metrics.show(&snapshot, false);
        assert!(metrics.wake() > Instant::now(), "it waits");
        fs::create_dir(&folder).expect("folder");
        metrics.free = Instant::now();
        metrics.show(&snapshot, false);
        let written = fs::read_to_string(folder.join("tael.prom")).expect("read");
        assert!(written.starts_with(&metrics.text(&snapshot)));
        assert!(!metrics.stale);
    }

    #[test]
    fn a_client_says_at_least_every_minute_that_it_lives() {
        let unit = "u".to_owned();
        let (snapshot, dir) = (snapshot(&unit), tempfile::tempdir().expect("tempdir"));
        let path = dir.path().join("tael.prom");
        let mut metrics = Metrics::new(path.clone(), Ends::default());
        let begin = Instant::now();
        metrics.show(&snapshot, false);
        assert!(metrics.wake() <= begin + Duration::from_secs(60));
        let alive = |text: &str| text.contains("\ntael_alive_timestamp_seconds{who=\"a\\\"b\"} ");
        assert!(alive(&fs::read_to_string(&path).expect("read")));
        // Nothing has changed, and it is not time yet.
        fs::remove_file(&path).expect("remove");
        metrics.free = Instant::now();
        metrics.show(&snapshot, false);
        assert!(!path.exists());
        metrics.due = Instant::now();
        metrics.show(&snapshot, false);
        assert!(alive(&fs::read_to_string(&path).expect("read")));
    }

    #[test]
    fn figures_are_in_the_exposition_format() {
        let unit = "u".to_owned();
        let snapshot = snapshot(&unit);
        let mut metrics = Metrics::new(PathBuf::from("/"), Ends::default());
        for (code, millis) in [(0, 500), (0, 1000), (3, 90_000)] {
            let outcome = Outcome {
                end: End::Exited(code),
                elapsed: millis * 1000,
                ..Outcome::interrupted(1)
            };
            metrics.count("t\n", &outcome, 2500 + i64::from(code) * 1000);
        }
        let text = metrics.text(&snapshot);
        // A change waits for its time; then nothing waits if the file has it already.
        metrics.free = Instant::now() + PAUSE;
        metrics.due = metrics.free + PAUSE;
        metrics.show(&snapshot, false);
        assert_eq!(metrics.wake(), metrics.free);
        metrics.free = Instant::now();
        metrics.written.clone_from(&text);
        metrics.show(&snapshot, false);
        assert_eq!(metrics.wake(), metrics.due);
        for line in [
            "# TYPE tael_events_total counter",
            r#"tael_events_total{who="a\"b",result="accepted"} 3"#,
            r#"tael_units_total{who="a\"b",end="succeeded"} 2"#,
            r#"tael_run_seconds_total{who="a\"b"} 91.5"#,
            r#"tael_connected{who="a\"b"} 1"#,
            r#"tael_last_beat_timestamp_seconds{who="a\"b",trigger="t"} 1.5"#,
            r#"tael_last_success_timestamp_seconds{who="a\"b",trigger="t\n"} 2.5"#,
            r#"tael_last_end_timestamp_seconds{who="a\"b",trigger="t\n"} 5.5"#,
            "# TYPE tael_run_seconds histogram",
            r#"tael_run_seconds_bucket{who="a\"b",trigger="t\n",le="0.1"} 0"#,
            r#"tael_run_seconds_bucket{who="a\"b",trigger="t\n",le="1"} 2"#,
            r#"tael_run_seconds_bucket{who="a\"b",trigger="t\n",le="300"} 3"#,
            r#"tael_run_seconds_bucket{who="a\"b",trigger="t\n",le="+Inf"} 3"#,
            r#"tael_run_seconds_sum{who="a\"b",trigger="t\n"} 91.5"#,
            r#"tael_run_seconds_count{who="a\"b",trigger="t\n"} 3"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }
}
