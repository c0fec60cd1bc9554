//! What is kept of the retained messages of a pipeline: as much as a page and a drawing show of it.

use serde_json::{Value, json};

use crate::model::event::Attributes;
use crate::model::network::Seen;
use crate::model::page::shown::{MAX_HOST, MAX_TEXT, MAX_TOPIC, MAX_VERSION};

/// Maximum memory of the triggers of a pipeline, bytes.
pub(super) const MAX_MEMORY: usize = 8 * 1024;

/// Memory of a pipeline, of a trigger and of a topic or an attribute beside their texts, bytes, about.
const PIPELINE: usize = 512;
const TRIGGER: usize = 96;
const TOPIC: usize = 48;

/// Returns the first `limit` characters of a text.
fn cut(text: &str, limit: usize) -> &str {
    let end = text.char_indices().nth(limit);
    text.get(..end.map_or(text.len(), |(at, _)| at))
        .unwrap_or_default()
}

/// Copies the beginnings of texts, and returns how many bytes they have.
fn copy_texts(from: &Attributes, to: &mut Attributes, keys: &[(&str, usize)]) -> usize {
    let mut bytes = 0;
    for (key, limit) in keys {
        if let Some(text) = from.get(*key).and_then(Value::as_str) {
            let text = cut(text, *limit);
            bytes += text.len();
            to.insert((*key).to_owned(), text.into());
        }
    }
    bytes
}

/// Copies numbers, truth values and `null`.
fn copy_scalars(from: &Attributes, to: &mut Attributes, keys: &[&str]) {
    for key in keys {
        let value = from.get(*key);
        let is_scalar = |value: &&Value| value.is_number() || value.is_boolean() || value.is_null();
        if let Some(value) = value.filter(is_scalar) {
            to.insert((*key).to_owned(), value.clone());
        }
    }
}

/// Returns a presence with the triggers that its pipeline told last if it tells none and its client is gone. The
/// will of a client names none.
pub(super) fn with_triggers(mut presence: Attributes, last: Option<&Seen>) -> Attributes {
    let state = presence.get("state").and_then(Value::as_str);
    let is_gone = matches!(state, Some("lost" | "offline"));
    if is_gone
        && !presence.contains_key("triggers")
        && let Some(last) = last
    {
        presence.insert("triggers".to_owned(), last.triggers_json());
        presence.insert("trigger_count".to_owned(), last.trigger_count.into());
    }
    presence
}

/// Returns what is kept of a presence, and about how much memory that takes, bytes. Topics and names of
/// attributes that are longer than a page shows are left out, and triggers that take more than `room` bytes, or more than those of a
/// pipeline may; `trigger_count` counts them all.
pub(super) fn presence(presence: &Attributes, room: usize) -> (Attributes, usize) {
    let mut kept = Attributes::new();
    let texts = copy_texts(
        presence,
        &mut kept,
        &[
            ("host", MAX_HOST),
            ("state", MAX_VERSION),
            ("version", MAX_VERSION),
        ],
    );
    let scalars = ["paused", "since", "until", "trigger_count"];
    copy_scalars(presence, &mut kept, &scalars);
    let Some(triggers) = presence.get("triggers").and_then(Value::as_array) else {
        return (kept, PIPELINE + texts);
    };
    let count = kept.get("trigger_count").and_then(Value::as_u64);
    let count = count.unwrap_or_default().max(triggers.len() as u64);
    kept.insert("trigger_count".to_owned(), count.into());
    let mut memory = 0;
    let mut take = |bytes: usize| {
        let has_room = memory + bytes <= room.min(MAX_MEMORY);
        memory += if has_room { bytes } else { 0 };
        has_room
    };
    let mut list = Vec::new();
    for trigger in triggers {
        let name = trigger.get("name").and_then(Value::as_str);
        let name = cut(name.unwrap_or_default(), MAX_TEXT);
        if !take(TRIGGER + name.len()) {
            break;
        }
        let topics = trigger.get("topics").and_then(Value::as_array);
        let topics = topics.into_iter().flatten().filter_map(Value::as_str);
        let topics = topics.filter(|topic| topic.len() <= MAX_TOPIC && take(TOPIC + topic.len()));
        let topics: Vec<&str> = topics.collect();
        let requires = trigger.get("requires").and_then(Value::as_array);
        let requires = requires.into_iter().flatten().filter_map(Value::as_str);
        let requires = requires.filter(|key| key.len() <= MAX_TEXT && take(TOPIC + key.len()));
        let requires: Vec<&str> = requires.collect();
        let absent = trigger.get("absent").and_then(Value::as_f64);
        list.push(
            json!({ "name": name, "topics": topics, "absent": absent, "requires": requires }),
        );
    }
    kept.insert("triggers".to_owned(), list.into());
    (kept, PIPELINE + texts + memory)
}

/// Returns what is kept of a retained end, and about how much memory that takes, bytes.
pub(super) fn last(message: &Attributes) -> (Attributes, usize) {
    let mut kept = Attributes::new();
    let mut texts = copy_texts(
        message,
        &mut kept,
        &[("reason", MAX_TEXT), ("end", MAX_VERSION)],
    );
    if let Some(last) = message.get("last").and_then(Value::as_object) {
        let mut end = Attributes::new();
        texts += copy_texts(
            last,
            &mut end,
            &[("status", MAX_TEXT), ("time_elapsed", MAX_TEXT)],
        );
        copy_scalars(last, &mut end, &["return_code", "ts"]);
        kept.insert("last".to_owned(), end.into());
    }
    (kept, PIPELINE + texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(presence: Value) -> (Attributes, usize) {
        let Value::Object(presence) = presence else {
            panic!("an object");
        };
        super::presence(&presence, usize::MAX)
    }

    #[test]
    fn a_usual_presence_is_kept_as_it_is() {
        let presence = json!({
            "state": "online", "paused": false, "host": "h", "version": "1", "since": 5,
            "trigger_count": 1,
            "triggers": [{ "name": "t", "topics": ["lab/x", "lab/y"], "absent": 2.0, "requires": ["a"] }],
        });
        assert_eq!(Value::Object(kept(presence.clone()).0), presence);
    }

    #[test]
    fn a_large_presence_is_cut() {
        let topics: Vec<String> = (0..5_000).map(|n| format!("t/{n}")).collect();
        let long = "ä".repeat(30_000);
        let presence = json!({
            "state": long, "host": long, "x": long, "since": [[[]]],
            "triggers": [
                { "name": long, "topics": [long, "lab/x"], "when": topics },
                { "name": "second", "topics": topics },
                { "name": "third", "topics": [] },
            ],
        });
        let (kept, memory) = kept(presence);
        assert_eq!(kept["host"].as_str().map(str::len), Some(2 * MAX_HOST));
        assert!(!kept.contains_key("x") && !kept.contains_key("since"));
        assert_eq!(kept["trigger_count"], 3);
        assert_eq!(kept["triggers"][0]["topics"], json!(["lab/x"]));
        let second = kept["triggers"][1]["topics"].as_array().map(Vec::len);
        assert!(second.is_some_and(|count| (100..200).contains(&count)));
        assert!(memory <= PIPELINE + MAX_MEMORY + 4 * MAX_TEXT, "{memory}");
    }

    #[test]
    fn without_room_a_presence_has_no_triggers() {
        let presence = json!({ "state": "online", "triggers": [{ "name": "t", "topics": [] }] });
        let (kept, memory) = super::presence(presence.as_object().expect("object"), 0);
        let want = json!({ "state": "online", "trigger_count": 1, "triggers": [] });
        assert_eq!(Value::Object(kept), want);
        assert_eq!(memory, PIPELINE + 6);
    }

    #[test]
    fn an_end_is_kept_without_what_no_page_shows() {
        let message = json!({
            "last": { "status": "failed", "return_code": 3, "ts": [7], "x": [[]] },
            "reason": "a", "end": "canceled", "y": 1,
        });
        let (kept, _) = last(message.as_object().expect("object"));
        let want = json!({
            "last": { "status": "failed", "return_code": 3 }, "reason": "a", "end": "canceled",
        });
        assert_eq!(Value::Object(kept), want);
    }
}
