//! Checks for a monitoring system, in the form of its plugins: one line, performance data after a
//! bar, and an exit code (Monitoring Plugins Development Guidelines, sections 2 and 3).

use std::time::Duration;

use serde_json::Value;

use crate::model::duration;
use crate::model::event::Attributes;
use crate::model::message::property;
use crate::model::network::Success;
use crate::model::text::printable;

/// Result of a check; the number is the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// All is well.
    Ok = 0,
    /// Needs attention.
    Warning = 1,
    /// Broken.
    Critical = 2,
    /// Cannot be determined.
    Unknown = 3,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// Returns the more important of two results: a failure comes before the unknown.
    fn worse(self, other: Self) -> Self {
        let weight = |level| match level {
            Self::Critical => 4,
            level => level as u8,
        };
        if weight(other) > weight(self) {
            other
        } else {
            self
        }
    }
}

/// Maximum ages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Older is a warning.
    pub warning: Option<Duration>,
    /// Older is critical.
    pub critical: Option<Duration>,
}

impl Limits {
    /// Returns the result for an age.
    #[must_use]
    pub fn judge(&self, age: Duration) -> Level {
        let over = |limit: Option<Duration>| limit.is_some_and(|limit| age > limit);
        if over(self.critical) {
            Level::Critical
        } else if over(self.warning) {
            Level::Warning
        } else {
            Level::Ok
        }
    }

    /// Returns `LABEL=VALUEs;WARNING;CRITICAL`.
    #[must_use]
    pub fn figure(&self, label: &str, seconds: f64) -> String {
        let limit =
            |limit: Option<Duration>| limit.map_or(String::new(), |l| number(l.as_secs_f64()));
        let (warning, critical) = (limit(self.warning), limit(self.critical));
        let text = format!("{label}={}s;{warning};{critical}", number(seconds));
        text.trim_end_matches(';').to_owned()
    }
}

fn number(seconds: f64) -> String {
    let rounded = (seconds * 1000.0).round() / 1000.0;
    // No negative zero.
    format!("{}", rounded + 0.0)
}

/// The outcome of a check.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    subject: &'static str,
    level: Level,
    texts: Vec<String>,
    figures: Vec<String>,
}

impl Report {
    /// Returns an empty report about `subject`, a word in capitals.
    #[must_use]
    pub const fn new(subject: &'static str) -> Self {
        Self {
            subject,
            level: Level::Ok,
            texts: Vec::new(),
            figures: Vec::new(),
        }
    }

    /// Adds a finding and its result.
    #[must_use]
    pub fn with(mut self, level: Level, text: impl AsRef<str>) -> Self {
        self.level = self.level.worse(level);
        // The bar begins the performance data; a sender must not add any.
        self.texts
            .push(printable(text.as_ref(), 200).replace('|', "/"));
        self
    }

    /// Adds the result of another aspect of the last finding.
    #[must_use]
    pub fn with_level(mut self, level: Level) -> Self {
        self.level = self.level.worse(level);
        self
    }

    /// Adds performance data.
    #[must_use]
    pub fn figure(mut self, figure: String) -> Self {
        self.figures.push(figure);
        self
    }

    /// Returns the result.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }

    /// Returns the line `SUBJECT LEVEL - text, text | figures`.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = format!(
            "{} {} - {}",
            self.subject,
            self.level.name(),
            self.texts.join(", ")
        );
        if !self.figures.is_empty() {
            line += " | ";
            line += &self.figures.join(" ");
        }
        line
    }
}

/// Returns when a beat was sent, seconds since 1970: from `date` and `time` (UTC) of a beacon,
/// otherwise from `ts`.
#[must_use]
pub fn beat_time(attributes: &Attributes) -> Option<i64> {
    let text = |key: &str| attributes.get(key).and_then(Value::as_str);
    if let (Some(date), Some(time)) = (text("date"), text("time")) {
        let stamp = format!("{date}{time}");
        let parsed = jiff::civil::DateTime::strptime("%Y%m%d%H%M%S", &stamp).ok()?;
        let zoned = parsed.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
        return Some(zoned.timestamp().as_second());
    }
    attributes.get("ts").and_then(Value::as_i64)
}

/// Adds the check of the last end of a pipeline, a status as it was published; `now` is in seconds
/// since 1970. Only an end that reports success and has a time is OK, or one that a person wanted
/// (`canceled`); `failed` is the result for other ends.
#[must_use]
pub fn end(
    report: Report,
    (last, canceled): (&Attributes, bool),
    now: i64,
    limits: &Limits,
    max_skew: Duration,
    failed: Level,
) -> Report {
    let status = last.get("status").and_then(Value::as_str);
    let code = last.get("return_code").and_then(Value::as_i64);
    let announced = last.get("announce") == Some(&Value::Bool(true));
    let how = match (status, code) {
        _ if canceled => Level::Ok,
        (Some("finished"), None | Some(0)) if !announced => Level::Ok,
        (Some("finished" | "failed" | "falsestart"), _) => failed,
        _ if announced => failed,
        _ => Level::Unknown,
    };
    let with = match code {
        Some(code) if how != Level::Ok => format!(" with {code}"),
        _ => String::new(),
    };
    let status = match canceled {
        true => Some(property::CANCELED),
        false => status,
    };
    let text = format!("last run {}{with}", status.unwrap_or("?"));
    let Some(at) = last.get("ts").and_then(Value::as_i64) else {
        return report
            .with(how, text)
            .with(Level::Unknown, "it does not say when");
    };
    let ahead = u64::try_from(at.saturating_sub(now)).unwrap_or(0);
    let age = Duration::from_secs(u64::try_from(now.saturating_sub(at)).unwrap_or(0));
    let report = report.with(
        how,
        format!("{text}{} {} ago", comma(&with), duration::brief(age)),
    );
    let report = match Duration::from_secs(ahead) {
        ahead if ahead > max_skew => {
            let text = format!("its clock is {} ahead of ours", duration::text(ahead));
            report.with(Level::Warning, text)
        }
        _ => report,
    };
    report
        .with_level(limits.judge(age))
        .figure(limits.figure("age", age.as_secs_f64()))
}

/// Adds the check of the last success of a pipeline; `last` is the status of its last end, if one is
/// known. A success that is older than `limit` is critical, and so is none at all after a run has
/// ended.
#[must_use]
pub fn success(
    report: Report,
    success: Success,
    last: Option<&Attributes>,
    now: i64,
    limit: Duration,
) -> Report {
    let at = match (success, last) {
        (Success::At(at), _) => at,
        (Success::Never, _) => return report.with(Level::Critical, "no run has succeeded"),
        (Success::Untold, None) => return report,
        // Earlier clients publish the last end only.
        (Success::Untold, Some(last)) => {
            let finished = last.get("status").and_then(Value::as_str) == Some("finished");
            match last.get("ts").and_then(Value::as_i64).filter(|_| finished) {
                Some(at) => at,
                None => {
                    let text = "its client does not say when a run succeeded";
                    return report.with(Level::Unknown, text);
                }
            }
        }
    };
    let age = Duration::from_secs(u64::try_from(now.saturating_sub(at)).unwrap_or(0));
    let limits = Limits {
        warning: None,
        critical: Some(limit),
    };
    let level = limits.judge(age);
    let figure = limits.figure("success_age", age.as_secs_f64());
    let report = report.figure(figure);
    match level {
        Level::Ok => report,
        level => report.with(level, format!("last success {} ago", duration::brief(age))),
    }
}

/// Adds the check of the number of runs that wait; more than `limit` is a warning.
#[must_use]
pub fn waiting(report: Report, waiting: u64, limit: u64) -> Report {
    let level = match waiting > limit {
        true => Level::Warning,
        false => Level::Ok,
    };
    let text = match waiting {
        1 => "1 run waits".to_owned(),
        n => format!("{n} runs wait"),
    };
    report
        .with(level, text)
        .figure(format!("waiting={waiting};{limit}"))
}

fn comma(code: &str) -> &str {
    if code.is_empty() { "" } else { "," }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::status;
    use jiff::Timestamp;

    #[test]
    fn lines_are_those_of_a_plugin() {
        let limits = Limits {
            warning: Some(Duration::from_secs(360)),
            critical: Some(Duration::from_secs(660)),
        };
        let report = Report::new("BEACON")
            .with(limits.judge(Duration::from_secs(12)), "beat 12 s ago")
            .figure(limits.figure("age", 12.0));
        assert_eq!(
            (report.line().as_str(), report.level()),
            ("BEACON OK - beat 12 s ago | age=12s;360;660", Level::Ok)
        );
        assert_eq!(limits.judge(Duration::from_secs(361)), Level::Warning);
        assert_eq!(limits.judge(Duration::from_secs(661)), Level::Critical);
        assert_eq!(Limits::default().figure("skew", -0.25), "skew=-0.25s");
        let worse = report
            .with(Level::Critical, "a|b\nc")
            .with(Level::Unknown, "d");
        assert!(
            worse
                .line()
                .starts_with("BEACON CRITICAL - beat 12 s ago, a/b\\nc, d | "),
            "{}",
            worse.line()
        );
    }

    #[test]
    fn only_an_end_that_says_that_all_went_well_is_ok() {
        let judge = |last: &str| {
            let last = serde_json::from_str(last).expect("object");
            let skew = Duration::from_secs(30);
            let (report, limits) = (Report::new("P"), Limits::default());
            let report = end(report, (&last, false), 1000, &limits, skew, Level::Warning);
            (report.level(), report.line())
        };
        for (last, want) in [
            (
                r#"{"status":"finished","return_code":0,"ts":990}"#,
                Level::Ok,
            ),
            (r#"{"status":"finished","ts":1030}"#, Level::Ok),
            (r#"{"status":"finished","ts":1031}"#, Level::Warning),
            (
                r#"{"status":"finished","ts":9223372036854775807}"#,
                Level::Warning,
            ),
            (
                r#"{"status":"finished","ts":-9223372036854775808}"#,
                Level::Ok,
            ),
            (
                r#"{"status":"finished","return_code":3,"ts":990}"#,
                Level::Warning,
            ),
            (
                r#"{"status":"finished","announce":true,"ts":990}"#,
                Level::Warning,
            ),
            (
                r#"{"status":"failed","return_code":1,"ts":990}"#,
                Level::Warning,
            ),
            (r#"{"status":"falsestart","ts":990}"#, Level::Warning),
            (r#"{"status":"finished"}"#, Level::Unknown),
            (r#"{"status":"finished","ts":"990"}"#, Level::Unknown),
            (r#"{"status":"failed"}"#, Level::Unknown),
            (r#"{"status":"fine","ts":990}"#, Level::Unknown),
            (r#"{"ts":990}"#, Level::Unknown),
        ] {
            assert_eq!(judge(last).0, want, "{last}");
        }
        let (_, line) = judge(r#"{"status":"failed","return_code":3,"ts":940}"#);
        assert_eq!(line, "P WARNING - last run failed with 3, 1m ago | age=60s");
        let (_, line) = judge(r#"{"status":"finished","ts":940}"#);
        assert_eq!(line, "P OK - last run finished 1m ago | age=60s");
    }

    #[test]
    fn a_run_that_a_person_has_ended_has_not_failed() {
        let last = r#"{"status":"failed","return_code":143,"announce":true,"ts":940}"#;
        let last = serde_json::from_str(last).expect("object");
        let limits = Limits::default();
        let skew = Duration::from_secs(30);
        let judge = |canceled| {
            let report = Report::new("P");
            end(
                report,
                (&last, canceled),
                1000,
                &limits,
                skew,
                Level::Critical,
            )
            .line()
        };
        assert_eq!(judge(true), "P OK - last run canceled 1m ago | age=60s");
        assert_eq!(
            judge(false),
            "P CRITICAL - last run failed with 143, 1m ago | age=60s"
        );
    }

    #[test]
    fn a_failed_run_may_be_critical_and_nothing_else_is() {
        for (last, want) in [
            (
                r#"{"status":"failed","return_code":1,"ts":990}"#,
                Level::Critical,
            ),
            (r#"{"status":"falsestart","ts":990}"#, Level::Critical),
            (
                r#"{"status":"odd","announce":true,"ts":990}"#,
                Level::Critical,
            ),
            (
                r#"{"status":"finished","return_code":0,"ts":990}"#,
                Level::Ok,
            ),
            (r#"{"status":"finished","ts":9000}"#, Level::Warning),
            (r#"{"status":"fine","ts":990}"#, Level::Unknown),
        ] {
            let parsed = serde_json::from_str(last).expect("object");
            let (report, limits) = (Report::new("P"), Limits::default());
            let skew = Duration::from_secs(30);
            let report = end(
                report,
                (&parsed, false),
                1000,
                &limits,
                skew,
                Level::Critical,
            );
            assert_eq!(report.level(), want, "{last}");
        }
    }

    #[test]
    fn a_success_is_as_old_as_it_may_be() {
        let last = |text: &str| -> Attributes { serde_json::from_str(text).expect("object") };
        let failed = last(r#"{"status":"failed","return_code":1,"ts":990}"#);
        let finished = last(r#"{"status":"finished","ts":990}"#);
        let day = Duration::from_secs(86_400);
        let check = |told, last: Option<&Attributes>, now| {
            let report = success(Report::new("P"), told, last, now, day);
            (report.level(), report.line())
        };
        for (told, last, now, want) in [
            (Success::At(0), Some(&failed), 86_400, Level::Ok),
            (Success::At(0), Some(&failed), 86_401, Level::Critical),
            (Success::At(50), Some(&failed), 0, Level::Ok),
            (Success::Never, Some(&failed), 0, Level::Critical),
            (Success::Untold, None, 0, Level::Ok),
            (Success::Untold, Some(&failed), 1000, Level::Unknown),
            (Success::Untold, Some(&finished), 1000, Level::Ok),
            (Success::Untold, Some(&finished), 90_000, Level::Critical),
        ] {
            let (level, line) = check(told, last, now);
            assert_eq!(level, want, "{told:?} {now}: {line}");
        }
        let (_, line) = check(Success::At(0), None, 90_000);
        let want = "P CRITICAL - last success 1d 1h ago | success_age=90000s;;86400";
        assert_eq!(line, want);
    }

    #[test]
    fn more_runs_than_may_wait_are_a_warning() {
        let line = |n| waiting(Report::new("P"), n, 3).line();
        assert_eq!(line(3), "P OK - 3 runs wait | waiting=3;3");
        assert_eq!(line(4), "P WARNING - 4 runs wait | waiting=4;3");
    }

    #[test]
    fn beats_say_when() {
        let now = Timestamp::from_second(1_700_000_001).expect("timestamp");
        let beat = serde_json::from_str(&status::beacon(now)).expect("object");
        assert_eq!(beat_time(&beat), Some(1_700_000_001));
        let other = serde_json::from_str(r#"{"ts":5}"#).expect("object");
        assert_eq!(beat_time(&other), Some(5));
        let odd = serde_json::from_str(r#"{"date":"x","time":1}"#).expect("object");
        assert_eq!(beat_time(&odd), None);
    }
}
