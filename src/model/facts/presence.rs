//! The presence of a node, and whether its facts are fresh.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::model::facts::bounds::MAX_MESSAGE;
use crate::model::facts::kind::Kind;

/// Number of intervals without a sign of life after which facts are stale.
const MAX_INTERVALS: i64 = 3;

/// Maximum time between two looks of a node, seconds: 30 days.
pub const MAX_INTERVAL: i64 = 30 * 86_400;

/// Maximum time by which a clock may be ahead of ours, seconds. What is said to be later has no age.
const MAX_SKEW: i64 = 30;

/// Maximum number of failed facts that a presence names.
pub const MAX_FAILED: usize = 64;

/// Seconds between two looks of a node that does not say it: those of `--interval`.
const INTERVAL: i64 = 300;

/// Whether a node is there, as it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It looks at its facts.
    Online,
    /// Its daemon was stopped.
    Offline,
    /// The connection of its daemon broke; the broker publishes this.
    Lost,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Lost => "lost",
        }
    }
}

/// A presence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// State.
    pub state: State,
    /// Name of the node.
    pub node: String,
    /// Its host.
    pub host: String,
    /// Version of Tael.
    pub version: String,
    /// When it last looked at its facts, seconds since 1970.
    pub ts: i64,
    /// Seconds between two looks.
    pub interval: i64,
    /// Digests of the facts, by kind.
    pub kinds: BTreeMap<Kind, String>,
    /// Facts that could not be told.
    pub failed: Vec<String>,
    /// Hash of the machine; empty if it is not known.
    pub machine: String,
}

/// What a reader thinks of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its facts are as told.
    Fresh,
    /// It has not looked at them for too long.
    Stale,
    /// It was stopped.
    Offline,
    /// Its connection broke.
    Lost,
    /// It says that it has looked in the future: how old its facts are is unknown.
    Skewed,
}

impl Verdict {
    /// Returns the word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale => "stale",
            Self::Offline => "offline",
            Self::Lost => "lost",
            Self::Skewed => "skewed",
        }
    }
}

/// Returns how many seconds before second `now` something was told at second `ts`; `None` if that is more
/// than 30 s ahead of our clock. One of the two clocks is wrong then, and the age is unknown.
#[must_use]
pub fn age(ts: i64, now: i64) -> Option<i64> {
    let age = now.saturating_sub(ts);
    (age >= -MAX_SKEW).then_some(age.max(0))
}

impl Presence {
    /// Returns the payload.
    #[must_use]
    pub fn payload(&self) -> Value {
        let kinds = self.kinds.iter();
        let kinds: serde_json::Map<String, Value> = kinds
            .map(|(kind, digest)| (kind.name().to_owned(), json!(digest)))
            .collect();
        json!({
            "state": self.state.name(),
            "node": self.node,
            "host": self.host,
            "version": self.version,
            "ts": self.ts,
            "interval": self.interval,
            "kinds": kinds,
            "failed": failed(&self.failed),
            "machine": self.machine,
        })
    }

    /// Returns the presence in a payload; `None` if it has no presence, or is larger than one of ours.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        if payload.len() > MAX_MESSAGE {
            return None;
        }
        let value: Value = serde_json::from_slice(payload).ok()?;
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
        let state = [State::Online, State::Offline, State::Lost];
        let state = state
            .into_iter()
            .find(|state| state.name() == text("state"))?;
        let kinds = value.get("kinds").and_then(Value::as_object);
        let kinds = kinds.into_iter().flatten().filter_map(|(kind, digest)| {
            Some((Kind::parse(kind).ok()?, digest.as_str()?.to_owned()))
        });
        let failed = value.get("failed").and_then(Value::as_array);
        let failed = failed.into_iter().flatten().take(MAX_FAILED + 1);
        let interval = value.get("interval").and_then(Value::as_i64);
        Some(Self {
            state,
            node: text("node").to_owned(),
            host: text("host").to_owned(),
            version: text("version").to_owned(),
            ts: value.get("ts").and_then(Value::as_i64)?,
            // A longer one would keep it fresh for longer than any node of ours.
            interval: interval
                .filter(|seconds| *seconds > 0)
                .map_or(INTERVAL, |seconds| seconds.min(MAX_INTERVAL)),
            kinds: kinds.collect(),
            failed: failed
                .filter_map(|name| Some(name.as_str()?.to_owned()))
                .collect(),
            machine: text("machine").to_owned(),
        })
    }

    /// Returns what to think of it at second `now`.
    #[must_use]
    pub fn verdict(&self, now: i64) -> Verdict {
        match (self.state, age(self.ts, now)) {
            (State::Lost, _) => Verdict::Lost,
            (State::Offline, _) => Verdict::Offline,
            (State::Online, None) => Verdict::Skewed,
            (State::Online, Some(age)) => match age < self.interval.saturating_mul(MAX_INTERVALS) {
                true => Verdict::Fresh,
                false => Verdict::Stale,
            },
        }
    }

    /// Returns by how many seconds the clock of the node is ahead of ours, if that is too much.
    #[must_use]
    pub fn skew(&self, now: i64) -> Option<i64> {
        let ahead = self.ts.saturating_sub(now);
        age(self.ts, now).is_none().then_some(ahead)
    }
}

/// Returns the names of failed facts, as many as a presence has.
#[must_use]
pub fn failed(all: &[String]) -> Vec<String> {
    let mut names: Vec<String> = all.iter().take(MAX_FAILED).cloned().collect();
    let more = all.len().saturating_sub(MAX_FAILED);
    names.extend((more > 0).then(|| format!("and {more} more")));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presence(state: State, ts: i64) -> Presence {
        Presence {
            state,
            node: "seq1".into(),
            host: "seq1.lab".into(),
            version: "1".into(),
            ts,
            interval: 60,
            kinds: BTreeMap::from([(Kind::State, "0123456789ab".to_owned())]),
            failed: vec!["static/raid".into()],
            machine: "abc".into(),
        }
    }

    #[test]
    fn what_is_published_is_read() {
        let own = presence(State::Online, 7);
        let text = own.payload().to_string();
        let want = r#"{"state":"online","node":"seq1","host":"seq1.lab","version":"1","ts":7,"interval":60,"kinds":{"state":"0123456789ab"},"failed":["static/raid"],"machine":"abc"}"#;
        assert_eq!(text, want);
        assert_eq!(Presence::parse(text.as_bytes()), Some(own));
        for wrong in [
            "",
            "[]",
            "{}",
            r#"{"state":"there","ts":1}"#,
            r#"{"state":"lost"}"#,
        ] {
            assert_eq!(Presence::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn three_intervals_without_a_look_are_stale() {
        let own = presence(State::Online, 1000);
        assert_eq!(own.verdict(1179), Verdict::Fresh);
        assert_eq!(own.verdict(1180), Verdict::Stale);
        assert_eq!((own.skew(970), own.skew(969)), (None, Some(31)));
        assert_eq!(presence(State::Lost, 1000).verdict(1000), Verdict::Lost);
        assert_eq!(
            presence(State::Offline, 1000).verdict(1000),
            Verdict::Offline
        );
        assert_eq!(
            presence(State::Online, i64::MIN).verdict(i64::MAX),
            Verdict::Stale
        );
    }

    #[test]
    fn what_was_told_in_the_future_is_not_fresh() {
        let own = presence(State::Online, 1000);
        assert_eq!(own.verdict(970), Verdict::Fresh);
        assert_eq!(own.verdict(969), Verdict::Skewed);
        for ts in [1031, i64::MAX] {
            let lies = presence(State::Online, ts);
            assert_eq!(lies.verdict(1000), Verdict::Skewed, "{ts}");
            assert_eq!(presence(State::Lost, ts).verdict(1000), Verdict::Lost);
        }
        assert_eq!((age(1030, 1000), age(1031, 1000)), (Some(0), None));
        assert_eq!((age(i64::MAX, i64::MIN), age(-7, 3)), (None, Some(10)));
    }

    #[test]
    fn numbers_that_are_no_times_make_no_node_fresh() {
        let parse = |ts: &str, interval: &str| {
            let text = format!(
                r#"{{"state":"online","node":"n","ts":{ts},"interval":{interval},"machine":"m"}}"#
            );
            Presence::parse(text.as_bytes())
        };
        for ts in [
            "1e300",
            "99999999999.5",
            "\"1000\"",
            "null",
            "18446744073709551615",
            "1e999",
            "{}",
        ] {
            assert_eq!(parse(ts, "60"), None, "{ts}");
        }
        let fresh = |ts: &str, interval: &str| {
            parse(ts, interval).map(|presence| presence.verdict(1_000_000_000))
        };
        for ts in ["-5", "0", "-9223372036854775808"] {
            assert_eq!(fresh(ts, "60"), Some(Verdict::Stale), "{ts}");
        }
        assert_eq!(fresh("9223372036854775807", "60"), Some(Verdict::Skewed));
        // An interval that never ends does not keep it fresh either.
        for interval in ["9223372036854775807", "18446744073709551615", "-1", "1e9"] {
            assert_eq!(
                fresh("900000000", interval),
                Some(Verdict::Stale),
                "{interval}"
            );
        }
        let large = format!(
            r#"{{"state":"online","ts":1,"host":"{}"}}"#,
            "x".repeat(70_000)
        );
        assert_eq!(Presence::parse(large.as_bytes()), None);
    }

    #[test]
    fn many_failures_are_counted() {
        let all: Vec<String> = (0..MAX_FAILED + 3).map(|n| n.to_string()).collect();
        let names = failed(&all);
        assert_eq!(names.len(), MAX_FAILED + 1);
        assert_eq!(names[MAX_FAILED], "and 3 more");
    }
}
