//! Payloads that Tael publishes. Keys and their order are those of its earlier clients.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::model::event::Attributes;
use crate::model::trigger::Trigger;
use crate::model::unit::End;
use crate::model::work::WorkType;
use crate::model::{duration, json};

/// Keys that every status sets itself; passthrough cannot use them.
pub const RESERVED: &[&str] = &[
    "status",
    "announce",
    "reason",
    "return_code",
    "time_elapsed",
    "ts",
];

/// Returns the reason of a run that an event has started.
#[must_use]
pub fn reason_finished(topic: &str) -> String {
    format!("{topic} finished")
}

/// Reason of a run that an operator has raised.
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

/// Returns the status of a run that has started.
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

/// Returns the status of a run that has ended after `elapsed`, or could not start.
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

/// Returns the status of a run that could not start.
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

/// State of a pipeline in its retained presence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It accepts events and starts runs.
    Online,
    /// It accepts events and starts nothing.
    Paused,
    /// It was stopped.
    Offline,
    /// Its connection broke; the broker publishes this.
    Lost,
}

impl Presence {
    /// Returns whether a pipeline with this state does not hear what it is asked.
    #[must_use]
    pub fn is_away(state: &str) -> bool {
        [Self::Offline, Self::Lost]
            .iter()
            .any(|away| away.name() == state)
    }

    /// Returns its name on the wire. A paused pipeline says so beside it.
    const fn name(self) -> &'static str {
        match self {
            Self::Online | Self::Paused => "online",
            Self::Offline => "offline",
            Self::Lost => "lost",
        }
    }
}

/// Maximum number of triggers, and of work types, that a presence lists, and of the bytes of the
/// triggers as JSON.
const MAX_LISTED: usize = 100;
const MAX_LISTED_BYTES: usize = 16 * 1024;

/// Returns the triggers for a presence, as many as fit.
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
        if let (Some(absent), Some(map)) = (trigger.absent, map.as_object_mut()) {
            map.insert("absent".to_owned(), json!(absent.as_secs_f64()));
        }
        let requires = trigger.export.required();
        if let (false, Some(map)) = (requires.is_empty(), map.as_object_mut()) {
            map.insert("requires".to_owned(), json!(requires));
        }
        match room.checked_sub(map.to_string().len() + 1) {
            Some(left) => room = left,
            None => break,
        }
        list.push(map);
    }
    list
}

/// Returns the work types for a presence, the first ones if there are too many.
fn listed_work(work: &[WorkType]) -> Vec<Value> {
    let listed = |kind: &WorkType| json!({"type": kind.name, "params": kind.params, "signed": kind.signed.name()});
    work.iter().take(MAX_LISTED).map(listed).collect()
}

/// Returns the presence of a pipeline whose client has run since `since`. The broker publishes
/// `lost`, and gets it with CONNECT, where it may have 65,535 bytes (MQTT 5.0, section 3.1.3.4). So
/// it names no triggers. An `offline` one says that the client was stopped `now`.
#[must_use]
pub fn presence(
    state: Presence,
    who: &str,
    host: &str,
    triggers: &[Trigger],
    work: &[WorkType],
    (since, now): (Timestamp, Timestamp),
) -> Value {
    let mut presence = json!({
        "state": state.name(),
        "who": who,
        "host": host,
        "version": env!("CARGO_PKG_VERSION"),
        "since": since.as_second(),
    });
    let Some(map) = presence.as_object_mut() else {
        return presence;
    };
    if state == Presence::Offline {
        map.insert("until".to_owned(), json!(now.as_second()));
    }
    if state != Presence::Lost {
        map.insert("trigger_count".to_owned(), json!(triggers.len()));
        map.insert("triggers".to_owned(), json!(listed(triggers)));
        if !work.is_empty() {
            map.insert("work".to_owned(), json!(listed_work(work)));
        }
    }
    if state == Presence::Paused {
        map.insert("paused".to_owned(), json!(true));
    }
    presence
}

/// Returns the payload of a beacon, in UTC:
/// `{"date":"YYYYMMDD","status":"finished","time":"HHMMSS"}`.
#[must_use]
pub fn beacon(now: Timestamp) -> String {
    let utc = now.to_zoned(jiff::tz::TimeZone::UTC);
    format!(
        r#"{{"date":"{}","status":"finished","time":"{}"}}"#,
        utc.strftime("%Y%m%d"),
        utc.strftime("%H%M%S")
    )
}

/// Returns the message of a user: `user` first, unless `attributes` replace it, and our own `ts`
/// last.
#[must_use]
pub fn message(user: &str, attributes: Attributes, now: Timestamp) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("user".into(), json!(user));
    map.extend(attributes);
    map.shift_remove("ts");
    map.insert("ts".into(), json!(now.as_second()));
    map
}

/// Key of the user that has sent a message.
pub const USER: &str = "user";

/// Returns whether the payloads `one` and `other` are the same object, apart from the time of sending and the
/// attributes in `ignored`.
#[must_use]
pub fn is_same_message(one: &[u8], other: &[u8], ignored: &[&str]) -> bool {
    let object = |payload| match json::parse(payload) {
        Ok(Value::Object(mut map)) => {
            map.retain(|key, _| key != "ts" && !ignored.contains(&key.as_str()));
            Some(map)
        }
        _ => None,
    };
    object(one).is_some_and(|one| object(other) == Some(one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::command::Command;
    use crate::model::env::Export;
    use crate::model::policy::Policy;
    use crate::model::spec::Spec;
    use crate::model::topic::Filter;
    use std::sync::Arc;

    fn text(map: Map<String, Value>) -> String {
        Value::Object(map).to_string()
    }

    #[test]
    fn messages_are_the_same_at_any_time() {
        let one = br#"{"user":"ann","os":"linux","n":[1,{"a":2}],"ts":1}"#;
        for (other, same) in [
            (
                &br#"{"ts":2,"n":[1,{"a":2}],"os":"linux","user":"ann"}"#[..],
                true,
            ),
            (br#"{"user":"ann","os":"linux","n":[1,{"a":2}]}"#, true),
            (
                br#"{"user":"bob","os":"linux","n":[1,{"a":2}],"ts":1}"#,
                false,
            ),
            (
                br#"{"user":"ann","os":"linux","n":[1,{"a":2,"ts":1}],"ts":1}"#,
                false,
            ),
            (br#"{"user":"ann","os":"linux","ts":1}"#, false),
            (b"", false),
            (b"7", false),
        ] {
            assert_eq!(is_same_message(one, other, &[]), same, "{other:?}");
        }
        assert!(!is_same_message(b"7", b"7", &[]), "no message of ours");
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("timestamp")
    }

    /// Returns `count` triggers of this filter.
    fn triggers(filter: String, count: usize) -> Vec<Trigger> {
        let trigger = Trigger {
            name: "t".into(),
            filters: vec![Filter::new(filter).expect("filter")],
            conditions: Vec::new(),
            export: Export::new(None, Vec::new()).expect("export"),
            passthrough: Vec::new(),
            queue: None,
            accept_retained: false,
            reply: None,
            absent: None,
            policy: Policy::default(),
            spec: Arc::new(Spec::new("t", Command::Direct(vec!["true".into()]))),
        };
        vec![trigger; count]
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
    fn a_presence_names_what_a_trigger_requires() {
        let mut list = triggers("lab/a".to_owned(), 2);
        list[1].export = Export::new(None, vec!["sample".into()]).expect("export");
        let online = presence(Presence::Online, "p", "h", &list, &[], (at(5), at(9)));
        assert_eq!(online["triggers"][0].get("requires"), None);
        assert_eq!(online["triggers"][1]["requires"], json!(["sample"]));
    }

    #[test]
    fn a_presence_is_small_whatever_it_lists() {
        for (filter, listed) in [("lab/a".to_owned(), MAX_LISTED), ("x".repeat(1000), 15)] {
            let triggers = triggers(filter, 10_000);
            let say = |state| presence(state, "p", "h", &triggers, &[], (at(5), at(9)));
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
