//! The payloads that Tael sends. Keys and their order are what Tael's first clients sent.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::model::duration;
use crate::model::event::Attributes;
use crate::model::trigger::Trigger;
use crate::model::unit::End;

/// Keys that a status sets itself; no passthrough may take them.
pub const RESERVED: &[&str] = &[
    "status",
    "announce",
    "reason",
    "return_code",
    "time_elapsed",
    "ts",
];

/// The reason given for a run that an event started.
#[must_use]
pub fn reason_finished(topic: &str) -> String {
    format!("{topic} finished")
}

/// The reason given for a run that was raised by hand.
pub const REASON_RAISED: &str = "manually raised by control message";

fn object<const N: usize>(
    fixed: [(&str, Value); N],
    passthrough: &Attributes,
    now: Timestamp,
) -> Map<String, Value> {
    let mut map: Map<String, Value> = fixed
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    for (key, value) in passthrough {
        map.insert(key.clone(), value.clone());
    }
    map.insert("ts".into(), json!(now.as_second()));
    map
}

/// A run has started.
#[must_use]
pub fn started(reason: &str, passthrough: &Attributes, now: Timestamp) -> Map<String, Value> {
    object(
        [
            ("status", json!("started")),
            ("announce", json!(false)),
            ("reason", json!(reason)),
        ],
        passthrough,
        now,
    )
}

/// A run has ended after `elapsed`, or could not be started.
#[must_use]
pub fn ended(
    end: &End,
    elapsed: Duration,
    passthrough: &Attributes,
    now: Timestamp,
) -> Map<String, Value> {
    let Some(code) = end.return_code() else {
        return falsestart(passthrough, now);
    };
    let mut map = object(
        [
            (
                "status",
                json!(if code == 0 { "finished" } else { "failed" }),
            ),
            ("return_code", json!(code)),
            ("announce", json!(code != 0)),
            ("time_elapsed", json!(duration::python(elapsed))),
        ],
        passthrough,
        now,
    );
    if *end == End::Interrupted {
        map.insert("reason".into(), json!("interrupted"));
    }
    map
}

/// A run that should have started could not.
#[must_use]
pub fn falsestart(passthrough: &Attributes, now: Timestamp) -> Map<String, Value> {
    object(
        [
            ("status", json!("falsestart")),
            ("return_code", Value::Null),
            ("announce", json!(true)),
            ("time_elapsed", Value::Null),
        ],
        passthrough,
        now,
    )
}

/// What a pipeline's retained presence says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It takes events.
    Online,
    /// It takes events and starts nothing.
    Paused,
    /// It was stopped.
    Offline,
    /// Its connection broke; the broker says so in its stead.
    Lost,
}

/// Maximum number of triggers that a presence lists, and of their bytes as JSON.
const MAX_LISTED: usize = 100;
const MAX_LISTED_BYTES: usize = 16 * 1024;

/// Triggers as a presence lists them, as many as fit.
fn listed(triggers: &[Trigger]) -> Vec<Value> {
    let texts = |list: &mut dyn Iterator<Item = String>| list.collect::<Vec<_>>();
    let mut room = MAX_LISTED_BYTES;
    let mut list = Vec::new();
    for trigger in triggers.iter().take(MAX_LISTED) {
        let mut map = json!({
            "name": trigger.name,
            "topics": texts(&mut trigger.filters.iter().map(ToString::to_string)),
            "when": texts(&mut trigger.conditions.iter().map(ToString::to_string)),
        });
        if let Some(absent) = trigger.absent {
            map["absent"] = json!(absent.as_secs_f64());
        }
        match room.checked_sub(map.to_string().len() + 1) {
            Some(left) => room = left,
            None => break,
        }
        list.push(map);
    }
    list
}

/// The presence of a pipeline that has been up since `since`. A broker publishes `lost` in our
/// stead and gets it with CONNECT, where it has 65,535 bytes at most (MQTT 5.0, section 3.1.3.4):
/// it names no triggers.
#[must_use]
pub fn presence(
    state: Presence,
    who: &str,
    host: &str,
    triggers: &[Trigger],
    since: Timestamp,
) -> Value {
    let mut presence = json!({
        "state": match state {
            Presence::Online | Presence::Paused => "online",
            Presence::Offline => "offline",
            Presence::Lost => "lost",
        },
        "who": who,
        "host": host,
        "version": env!("CARGO_PKG_VERSION"),
        "since": since.as_second(),
    });
    if state != Presence::Lost {
        presence["trigger_count"] = json!(triggers.len());
        presence["triggers"] = json!(listed(triggers));
    }
    if state == Presence::Paused {
        presence["paused"] = json!(true);
    }
    presence
}

/// The beacon's payload, in UTC: `{"date":"YYYYMMDD","status":"finished","time":"HHMMSS"}`.
#[must_use]
pub fn beacon(now: Timestamp) -> String {
    let utc = now.to_zoned(jiff::tz::TimeZone::UTC);
    format!(
        r#"{{"date":"{}","status":"finished","time":"{}"}}"#,
        utc.strftime("%Y%m%d"),
        utc.strftime("%H%M%S")
    )
}

/// A user's message: `user` first unless `attributes` replace it, `ts` last and always ours.
#[must_use]
pub fn message(user: &str, attributes: Attributes, now: Timestamp) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("user".into(), json!(user));
    map.extend(attributes);
    map.shift_remove("ts");
    map.insert("ts".into(), json!(now.as_second()));
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::env::Export;
    use crate::model::topic::Filter;
    use crate::model::trigger::{Command, Policy};

    fn text(map: Map<String, Value>) -> String {
        Value::Object(map).to_string()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("timestamp")
    }

    #[test]
    fn payloads_are_the_wire_table_to_the_letter() {
        let (none, now) = (Attributes::new(), at(1_700_000_000));
        let elapsed = Duration::from_micros(1_234_567);
        let sample: Attributes = [("SAMPLE".to_owned(), json!("S1"))].into_iter().collect();
        assert_eq!(
            text(started("lab/seq/status finished", &none, now)),
            r#"{"status":"started","announce":false,"reason":"lab/seq/status finished","ts":1700000000}"#
        );
        assert_eq!(
            text(ended(&End::Exited(0), elapsed, &sample, now)),
            r#"{"status":"finished","return_code":0,"announce":false,"time_elapsed":"0:00:01.234567","SAMPLE":"S1","ts":1700000000}"#
        );
        assert_eq!(
            text(ended(&End::Exited(3), elapsed, &none, now)),
            r#"{"status":"failed","return_code":3,"announce":true,"time_elapsed":"0:00:01.234567","ts":1700000000}"#
        );
        assert!(
            text(ended(&End::Signaled(9), elapsed, &none, now))
                .contains(r#""return_code":137,"announce":true"#)
        );
        assert_eq!(
            text(ended(&End::NotStarted("x".into()), elapsed, &none, now)),
            r#"{"status":"falsestart","return_code":null,"announce":true,"time_elapsed":null,"ts":1700000000}"#
        );
        assert_eq!(
            ended(&End::Interrupted, elapsed, &none, now)["reason"],
            "interrupted"
        );
        assert_eq!(
            beacon(at(1_700_000_001)),
            r#"{"date":"20231114","status":"finished","time":"221321"}"#
        );
    }

    #[test]
    fn a_presence_is_small_whatever_it_lists() {
        let trigger = |filter: String| Trigger {
            name: "t".into(),
            filters: vec![Filter::new(filter).expect("filter")],
            conditions: Vec::new(),
            command: Command::direct("true").expect("command"),
            export: Export::new(None, Vec::new()).expect("export"),
            passthrough: Vec::new(),
            accept_retained: false,
            cwd: None,
            env_file: None,
            absent: None,
            policy: Policy::default(),
        };
        for (filter, listed) in [("lab/a".to_owned(), MAX_LISTED), ("x".repeat(1000), 15)] {
            let triggers = vec![trigger(filter); 10_000];
            let say = |state| presence(state, "p", "h", &triggers, at(5));
            let online = say(Presence::Online);
            assert_eq!(online["trigger_count"], 10_000);
            assert_eq!(online["triggers"].as_array().map(Vec::len), Some(listed));
            assert!(online.to_string().len() < MAX_LISTED_BYTES + 1024);
            let lost = say(Presence::Lost).to_string();
            let version = env!("CARGO_PKG_VERSION");
            assert_eq!(
                lost,
                format!(
                    r#"{{"state":"lost","who":"p","host":"h","version":"{version}","since":5}}"#
                )
            );
        }
    }

    #[test]
    fn a_message_may_replace_the_user_and_not_the_time() {
        let attributes = |pairs: Value| pairs.as_object().cloned().expect("object");
        let now = at(5);
        assert_eq!(
            text(message(
                "ann",
                attributes(json!({"status": "finished"})),
                now
            )),
            r#"{"user":"ann","status":"finished","ts":5}"#
        );
        assert_eq!(
            text(message(
                "ann",
                attributes(json!({"ts": 1, "user": "bob", "a": 1})),
                now
            )),
            r#"{"user":"bob","a":1,"ts":5}"#
        );
    }
}
