//! A pipeline and a message as a page shows them: names of senders are escaped, and every text is cut.

use serde_json::{Value, json};

use crate::model::message::{Delivery, property};
use crate::model::network::Seen;
use crate::model::page::heard::Heard;
use crate::model::text::{printable, printable_bytes};

/// Maximum number of characters of a payload and of a topic that are shown.
const MAX_PAYLOAD: usize = 2 * 1024;
pub(super) const MAX_TOPIC: usize = 512;

/// Maximum number of triggers, of topics and required attributes of each, and of characters of a text of a
/// pipeline.
const MAX_TRIGGERS: usize = 32;
const MAX_TOPICS: usize = 16;
const MAX_REQUIRED: usize = 16;
pub(super) const MAX_TEXT: usize = 300;

/// Maximum number of characters of a host and of a version of a pipeline.
pub(super) const MAX_HOST: usize = 100;
pub(super) const MAX_VERSION: usize = 40;

/// Maximum size of what is shown of the triggers of a pipeline, and of the reasons of what it runs, bytes.
const MAX_TRIGGER_BYTES: usize = 4 * 1024;
const MAX_REASON_BYTES: usize = 2 * 1024;

/// Maximum number of characters of each text of a pipeline without triggers and runs.
const MAX_BARE: usize = 40;

/// Something that has changed: the name of its event and its data.
pub type Change = (&'static str, Value);

/// Returns a message for a page; its payload is text, and cut.
#[must_use]
pub fn message(delivery: &Delivery, now: f64) -> Change {
    let user = |name| delivery.properties.user(name).unwrap_or_default();
    let most = delivery.payload.len().min(4 * MAX_PAYLOAD);
    let beginning = delivery.payload.get(..most).unwrap_or_default();
    (
        "message",
        json!({
            "ts": now,
            "topic": printable_bytes(&delivery.topic, MAX_TOPIC),
            "id": printable(user(property::ID), MAX_TEXT),
            "from": printable(user(property::WHO), MAX_TEXT),
            "retained": delivery.retained,
            "size": delivery.payload.len(),
            "payload": printable_bytes(beginning, MAX_PAYLOAD),
        }),
    )
}

/// Returns the last end of a pipeline as the broker retains it.
pub(super) fn last_json(seen: &Seen) -> Option<Value> {
    last_of(seen, MAX_TEXT)
}

/// Returns it with texts of at most `limit` characters.
fn last_of(seen: &Seen, limit: usize) -> Option<Value> {
    let last = seen.last.as_ref()?;
    let text = |text: &str| printable(text, limit);
    let field = |key: &str| last.get(key).and_then(Value::as_str).map(text);
    let status = match seen.last_canceled {
        true => Some(property::CANCELED.to_owned()),
        false => field("status"),
    };
    Some(json!({
        "status": status,
        "return_code": last.get("return_code").and_then(Value::as_i64),
        "ts": last.get("ts").and_then(Value::as_i64),
        "time_elapsed": field("time_elapsed"),
        "reason": seen.last_reason.as_deref().map(text),
    }))
}

/// Returns the triggers of a pipeline as far as there is room.
fn triggers_json(seen: &Seen) -> Vec<Value> {
    let mut room = MAX_TRIGGER_BYTES;
    let mut text = |text: &str| {
        let text = json!(printable(text, MAX_TEXT));
        // Quotes and backslashes take two bytes each.
        let bytes = text.to_string().len();
        let has_room = bytes <= room;
        room -= if has_room { bytes } else { 0 };
        has_room.then_some(text)
    };
    let mut triggers = Vec::new();
    for trigger in seen.triggers.iter().take(MAX_TRIGGERS) {
        let Some(name) = text(&trigger.name) else {
            break;
        };
        let topics = trigger.topics.iter().take(MAX_TOPICS);
        let topics: Vec<Value> = topics.map_while(|topic| text(topic)).collect();
        let requires = trigger.requires.iter().take(MAX_REQUIRED);
        let requires: Vec<Value> = requires.map_while(|key| text(key)).collect();
        triggers.push(match requires.is_empty() {
            true => json!({ "name": name, "topics": topics }),
            false => json!({ "name": name, "topics": topics, "requires": requires }),
        });
    }
    triggers
}

/// Returns a pipeline; a bare one without its triggers and what it runs.
pub(super) fn pipeline_json(seen: &Seen, heard: &Heard, is_bare: bool) -> Value {
    let known = ["online", "paused", "offline", "lost"];
    let state = known.iter().find(|known| **known == seen.state);
    // A retained end comes after its status, and may come much later.
    let last = match heard.is_ahead() {
        true => heard.last_json(),
        false => last_json(seen).map(|last| heard.explained(last)),
    };
    let (running, triggers, last, host) = match is_bare {
        true => (Vec::new(), Vec::new(), last_of(seen, MAX_BARE), MAX_BARE),
        false => {
            let running = heard.running(MAX_REASON_BYTES);
            (running, triggers_json(seen), last, MAX_HOST)
        }
    };
    json!({
        "who": seen.who,
        "host": printable(&seen.host, host),
        "state": state.unwrap_or(&"unknown"),
        "version": printable(&seen.version, MAX_VERSION),
        "since": seen.since,
        "until": seen.until,
        "running": running,
        "waiting": heard.waiting(),
        "last": last,
        "triggers": triggers,
        "trigger_count": seen.trigger_count,
        "local": heard.is_local(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::Attributes;
    use crate::model::message::Properties;
    use crate::model::network::Network;
    use bytes::Bytes;

    #[test]
    fn a_message_is_cut_and_says_its_size() {
        let user = |name: &str, text: String| (name.to_owned(), text);
        let message = Delivery {
            topic: Bytes::from("t".repeat(MAX_TOPIC + 1)),
            payload: Bytes::from("x".repeat(5 * MAX_PAYLOAD)),
            retained: true,
            duplicate: false,
            packet: 0,
            properties: Properties {
                user: vec![
                    user(property::ID, "i".repeat(MAX_TEXT + 1)),
                    user(property::WHO, "seq\u{202e}".to_owned()),
                ],
                ..Properties::default()
            },
        };
        let (name, shown) = super::message(&message, 1.5);
        assert_eq!((name, &shown["ts"]), ("message", &json!(1.5)));
        assert_eq!(shown["size"], 5 * MAX_PAYLOAD);
        assert_eq!(shown["retained"], true);
        for (key, most) in [
            ("topic", MAX_TOPIC),
            ("id", MAX_TEXT),
            ("payload", MAX_PAYLOAD),
        ] {
            let text = shown[key].as_str().expect("text");
            assert!(text.ends_with('…'), "{key}");
            assert_eq!(text.chars().count(), most + 1, "{key}");
        }
        assert!(!shown["from"].as_str().expect("text").contains('\u{202e}'));
    }

    #[test]
    fn a_bare_pipeline_has_no_triggers_and_shorter_texts() {
        let mut network = Network::default();
        let presence = json!({
            "state": "elsewhere", "host": "h".repeat(300),
            "triggers": [{ "name": "t", "topics": ["lab/in"], "requires": ["SAMPLE"] }],
        });
        let presence: Attributes = presence.as_object().expect("object").clone();
        let topic = "lab/infrastructure/pipelines/seq/presence";
        network.add("lab", topic, &presence);
        let seen = network.pipeline("seq").expect("pipeline");
        let heard = Heard::default();
        let whole = pipeline_json(seen, &heard, false);
        let want = json!([{ "name": "t", "topics": ["lab/in"], "requires": ["SAMPLE"] }]);
        assert_eq!(whole["triggers"], want);
        assert_eq!(whole["state"], "unknown", "no state that a page knows");
        let bare = pipeline_json(seen, &heard, true);
        assert_eq!(bare["triggers"], json!([]));
        assert_eq!(bare["trigger_count"], 1);
        let length = |shown: &Value| shown["host"].as_str().map(|host| host.chars().count());
        assert_eq!(length(&whole), Some(MAX_HOST + 1));
        assert_eq!(length(&bare), Some(MAX_BARE + 1));
    }
}
