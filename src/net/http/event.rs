//! Server-Sent Events (WHATWG HTML, section 9.2).

use std::fmt::Write as _;

use bytes::Bytes;
use serde_json::Value;

use crate::model::text::escaped_json;

/// Comment that shows that a stream is alive.
pub const ALIVE: &[u8] = b": alive\n\n";

/// Returns the event `name` with `data`, whose lines are told apart in each way that the format
/// knows. A line break in `name` becomes a space.
#[must_use]
pub fn encoded(name: &str, id: Option<u64>, data: &str) -> Bytes {
    let mut text = String::with_capacity(name.len() + data.len() + 40);
    text.push_str("event: ");
    text.extend(name.chars().map(|c| match c {
        '\r' | '\n' => ' ',
        c => c,
    }));
    text.push('\n');
    if let Some(id) = id {
        let _ = writeln!(text, "id: {id}");
    }
    let mut rest = data;
    loop {
        let end = rest.find(['\r', '\n']).unwrap_or(rest.len());
        let (line, after) = rest.split_at(end);
        text.push_str("data: ");
        text.push_str(line);
        text.push('\n');
        match after.strip_prefix("\r\n").or_else(|| after.get(1..)) {
            Some(after) => rest = after,
            None => break,
        }
    }
    text.push('\n');
    text.into()
}

/// Returns the event `name` with a JSON value, in which unseen characters are escapes.
#[must_use]
pub fn json(name: &str, id: Option<u64>, value: &Value) -> Bytes {
    encoded(name, id, &escaped_json(&value.to_string()))
}

/// Returns what stands before and after the data of an event, which has no line break.
#[must_use]
pub fn around(name: &'static str, id: u64) -> (Bytes, Bytes) {
    let head = format!("event: {name}\nid: {id}\ndata: ");
    (head.into(), Bytes::from_static(b"\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_cannot_leave_its_event() {
        for (name, id, data, want) in [
            ("a", None, "b", "event: a\ndata: b\n\n"),
            ("a", Some(7), "{}", "event: a\nid: 7\ndata: {}\n\n"),
            ("a", None, "", "event: a\ndata: \n\n"),
            ("a", None, "b\n", "event: a\ndata: b\ndata: \n\n"),
            (
                "a",
                None,
                "b\r\nc\rd\n\nid: 9",
                "event: a\ndata: b\ndata: c\ndata: d\ndata: \ndata: id: 9\n\n",
            ),
            ("a\ndata: x", None, "ä", "event: a data: x\ndata: ä\n\n"),
        ] {
            assert_eq!(encoded(name, id, data), want, "{data:?}");
        }
    }

    #[test]
    fn unseen_characters_are_escapes() {
        let event = json("a", None, &serde_json::json!("x\u{202e}\u{9b}\n"));
        assert_eq!(event, "event: a\ndata: \"x\\u202e\\u009b\\n\"\n\n");
    }

    #[test]
    fn data_may_come_in_parts() {
        let (head, end) = around("a", 7);
        let event = [&head[..], b"{}", &end].concat();
        assert_eq!(event, encoded("a", Some(7), "{}"));
    }
}
