//! `tael queue status`: shows what is in a queue, who takes from it, and what died.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tracing::warn;

use crate::error::Result;
use crate::model::text::printable;
use crate::net::amqp::FailureKind;
use crate::net::management::Trouble;
use crate::tools::queue::target::{Target, goodbye};
use crate::tools::{print, print_json, runtime};

/// Maximum length of a value, characters.
const MAX_SHOWN: usize = 200;

/// Fields of the management API that are shown, and their names there.
const FIELDS: &[(&str, &str)] = &[
    ("type", "type"),
    ("policy", "policy"),
    ("state", "state"),
    ("unacked", "messages_unacknowledged"),
    ("node", "node"),
];

/// Options of the command.
#[derive(Debug)]
pub struct Options {
    /// The queue.
    pub target: Target,
    /// Name of its dead-letter queue.
    pub dead_letter: String,
    /// Maximum time to connect.
    pub timeout: Duration,
    /// Whether to print a JSON object.
    pub json: bool,
}

/// Prints the state of the queue.
///
/// # Errors
/// 65 when it does not exist, 69 and 77 when the broker does not answer.
pub fn run(options: &Options) -> Result<ExitCode> {
    runtime()?.block_on(status(options))
}

async fn status(options: &Options) -> Result<ExitCode> {
    let target = &options.target;
    let connection = target.connect(options.timeout).await?;
    let queue = &target.url.queue;
    let figures = Target::figures(&connection, queue).await;
    let figures = figures.map_err(|failure| target.failed(queue, failure))?;
    let dead = match Target::figures(&connection, &options.dead_letter).await {
        Ok(figures) => Some(figures.messages),
        Err(failure) if failure.kind == FailureKind::Missing => None,
        Err(failure) => return Err(target.failed(&options.dead_letter, failure)),
    };
    let server = connection.server();
    let broker = printable(&format!("{} {}", server.product, server.version), MAX_SHOWN);
    goodbye(connection).await;
    let mut state = Map::new();
    let mut set = |name: &str, value: Value| drop(state.insert(name.to_owned(), value));
    set("queue", json!(queue));
    set("broker", json!(target.url.broker()));
    set("server", json!(broker));
    set("ready", json!(figures.messages));
    set("consumers", json!(figures.consumers));
    set("dead_letter", json!(options.dead_letter));
    set("dead", json!(dead));
    match target.api().queue(&target.url.vhost, queue).await {
        Ok(answer) => {
            for (name, field) in FIELDS {
                set(name, answer.get(field).cloned().unwrap_or(Value::Null));
            }
            // The count of the API is late; that of consumers of a quorum queue is right only there.
            if let Some(consumers) = answer.get("consumers").filter(|n| n.is_u64()) {
                set("consumers", consumers.clone());
            }
            set(
                "arguments",
                answer.get("arguments").cloned().unwrap_or(Value::Null),
            );
        }
        // It was there a moment ago: the API is late.
        Err(Trouble::Missing) => {}
        Err(trouble) => warn!(
            "unacked, type and policy are not known: the management API does not answer: {}",
            trouble.cause()
        ),
    }
    match options.json {
        true => print_json(&Value::Object(state))?,
        false => {
            for line in lines(&state) {
                print(&line)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the state in lines for people.
fn lines(state: &Map<String, Value>) -> Vec<String> {
    let names = [
        ("queue", "queue"),
        ("broker", "broker"),
        ("server", "server"),
        ("type", "type"),
        ("ready", "ready"),
        ("unacked", "unacked"),
        ("consumers", "consumers"),
        ("policy", "policy"),
        ("arguments", "arguments"),
        ("state", "state"),
        ("node", "node"),
        ("dead_letter", "dead letters"),
    ];
    let mut lines = Vec::new();
    for (key, name) in names {
        let text = match state.get(key) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Object(map)) if map.is_empty() => continue,
            None | Some(Value::Null) => continue,
            Some(value) => value.to_string(),
        };
        let text = printable(&text, MAX_SHOWN);
        let text = match (key, state.get("dead").and_then(Value::as_u64)) {
            ("dead_letter", Some(count)) => format!("{count} in {text}"),
            ("dead_letter", None) => format!("none: there is no queue {text}"),
            _ => text,
        };
        lines.push(format!("{name:<13} {text}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_things_are_left_out() {
        let state = json!({
            "queue": "a\u{1b}b", "ready": 3, "policy": null, "arguments": {}, "dead": 2,
            "dead_letter": "q.dead"
        });
        let lines = lines(state.as_object().expect("object"));
        let want = [
            "queue         a\\u{1b}b",
            "ready         3",
            "dead letters  2 in q.dead",
        ];
        assert_eq!(lines, want);
    }
}
