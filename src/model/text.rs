//! Text from strangers, made fit for a terminal or a log line.

use std::fmt::Write as _;

/// `text` on one line: control characters become escapes, so that a sender cannot move
/// the cursor, forge a log line or change a terminal's title; cut after `limit` characters.
#[must_use]
pub fn printable(text: &str, limit: usize) -> String {
    let mut out = String::with_capacity(text.len().min(limit));
    for (n, c) in text.chars().enumerate() {
        if n == limit {
            out.push('…');
            break;
        }
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if is_odd(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// JSON text whose strings move no cursor: what controls a terminal, or reorders what a reader
/// sees, becomes an escape of JSON's, and means the same.
#[must_use]
pub fn escaped_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if is_odd(c) {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// Whether a terminal would not just show `c`. Bidirectional overrides reorder what a reader sees
/// (Unicode TR 36).
fn is_odd(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Bytes as [`printable`] text; what is not UTF-8 shows as the replacement character.
#[must_use]
pub fn printable_bytes(bytes: &[u8], limit: usize) -> String {
    printable(&String::from_utf8_lossy(bytes), limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escape_sequences_are_shown_not_sent() {
        assert_eq!(
            printable("a\x1b[2Jb\nc\u{202e}", 80),
            "a\\u{1b}[2Jb\\nc\\u{202e}"
        );
        assert_eq!(printable("abcdef", 3), "abc…");
        assert_eq!(
            escaped_json("{\"k\u{9b}\":\"ä\u{202e}\\n\"}"),
            r#"{"k\u009b":"ä\u202e\n"}"#
        );
    }

    proptest! {
        #[test]
        fn never_a_control_character(text in any::<String>()) {
            prop_assert!(!printable(&text, 200).chars().any(char::is_control));
        }
    }
}
