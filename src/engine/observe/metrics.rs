//! Metrics: a file for the textfile collector of the Prometheus node exporter (format:
//! prometheus.io/docs/instrumenting/exposition_formats).

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tokio::time::{Duration, Instant};
use tracing::warn;

use crate::engine::observe::snapshot::Snapshot;
use crate::model::unit::{Outcome, State};

/// Minimum time between two writes.
const PAUSE: Duration = Duration::from_secs(5);

/// Delay before a file that could not be written is written again. An idle client would otherwise
/// show for ever what was true before a full disk.
const RETRY: Duration = Duration::from_secs(60);

/// Runs that have ended since the client started.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Ends {
    succeeded: u64,
    failed: u64,
    canceled: u64,
    seconds: f64,
}

/// The file, and the ends that are counted for it.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    ends: Ends,
    written: String,
    free: Instant,
    stale: bool,
    failed: bool,
}

impl Metrics {
    /// Returns metrics that are written to `path`.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            ends: Ends::default(),
            written: String::new(),
            free: Instant::now(),
            stale: false,
            failed: false,
        }
    }

    /// Counts a run that has ended.
    pub fn count(&mut self, outcome: &Outcome) {
        match outcome.state() {
            State::Succeeded => self.ends.succeeded += 1,
            State::Canceled => self.ends.canceled += 1,
            _ => self.ends.failed += 1,
        }
        self.ends.seconds += std::time::Duration::from_micros(outcome.elapsed).as_secs_f64();
    }

    /// Returns when a delayed write is due.
    pub fn wake(&self) -> Option<Instant> {
        self.stale.then_some(self.free)
    }

    /// Writes the metrics if they have changed; `last` skips the pause.
    pub fn show(&mut self, snapshot: &Snapshot<'_>, last: bool) {
        let text = self.text(snapshot);
        if text == self.written {
            self.stale = false;
        } else if last || Instant::now() >= self.free {
            self.write(text);
        } else {
            self.stale = true;
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
        let seconds = |at: i64| count(u64::try_from(at).unwrap_or(0)) / 1000.0;
        family(
            "start_timestamp_seconds",
            "gauge",
            "When the client started.",
            &one(seconds(snapshot.since.as_millisecond())),
        );
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
        out
    }

    fn write(&mut self, text: String) {
        match replace(&self.path, &text) {
            Ok(()) => {
                self.free = Instant::now() + PAUSE;
                (self.stale, self.failed) = (false, false);
                self.written = text;
            }
            Err(e) => {
                self.free = Instant::now() + RETRY;
                self.stale = true;
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
    use jiff::Timestamp;

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
            heard: vec![("t", 1500)],
        }
    }

    #[test]
    fn what_could_not_be_written_is_written_later_without_a_change() {
        let unit = "u".to_owned();
        let (snapshot, dir) = (snapshot(&unit), tempfile::tempdir().expect("tempdir"));
        let folder = dir.path().join("later");
        let mut metrics = Metrics::new(folder.join("tael.prom"));
        metrics.show(&snapshot, false);
        let at = metrics.wake().expect("another try");
        assert!(at > Instant::now(), "it waits");
        fs::create_dir(&folder).expect("folder");
        metrics.free = Instant::now();
        metrics.show(&snapshot, false);
        let written = fs::read_to_string(folder.join("tael.prom")).expect("read");
        assert_eq!(written, metrics.text(&snapshot));
        assert!(metrics.wake().is_none());
    }

    #[test]
    fn figures_are_in_the_exposition_format() {
        let unit = "u".to_owned();
        let snapshot = snapshot(&unit);
        let mut metrics = Metrics::new(PathBuf::from("/"));
        metrics.ends = Ends {
            succeeded: 2,
            seconds: 1.5,
            ..Ends::default()
        };
        let text = metrics.text(&snapshot);
        // What has changed waits for its time; once it is as it was written, nothing waits.
        metrics.free = Instant::now() + PAUSE;
        metrics.show(&snapshot, false);
        assert!(metrics.wake().is_some());
        metrics.written.clone_from(&text);
        metrics.show(&snapshot, false);
        assert!(metrics.wake().is_none());
        for line in [
            "# TYPE tael_events_total counter",
            r#"tael_events_total{who="a\"b",result="accepted"} 3"#,
            r#"tael_units_total{who="a\"b",end="succeeded"} 2"#,
            r#"tael_run_seconds_total{who="a\"b"} 1.5"#,
            r#"tael_connected{who="a\"b"} 1"#,
            r#"tael_last_beat_timestamp_seconds{who="a\"b",trigger="t"} 1.5"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }
}
