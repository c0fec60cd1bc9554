//! Makes text from senders safe for terminals, log lines and graphs. Every output uses it.

use std::fmt::Write as _;
use std::ops::RangeInclusive;

/// Byte order mark, which some editors write at the beginning of a file.
pub const BOM: char = '\u{feff}';

/// Characters that are shown as escapes, besides control characters (category Cc) and
/// noncharacters: categories Cf (format), Zl and Zp (line and paragraph separators), and what has
/// no glyph of its own (property `Default_Ignorable_Code_Point`). They reorder or hide text, or end
/// a line (Unicode TR 36).
///
/// Sources: `DerivedGeneralCategory.txt` and `DerivedCoreProperties.txt` of Unicode 17.0.
const HIDDEN: &[RangeInclusive<char>] = &[
    '\u{ad}'..='\u{ad}',
    '\u{34f}'..='\u{34f}',
    '\u{600}'..='\u{605}',
    '\u{61c}'..='\u{61c}',
    '\u{6dd}'..='\u{6dd}',
    '\u{70f}'..='\u{70f}',
    '\u{890}'..='\u{891}',
    '\u{8e2}'..='\u{8e2}',
    '\u{115f}'..='\u{1160}',
    '\u{17b4}'..='\u{17b5}',
    '\u{180b}'..='\u{180f}',
    '\u{200b}'..='\u{200f}',
    '\u{2028}'..='\u{202e}',
    '\u{2060}'..='\u{206f}',
    '\u{3164}'..='\u{3164}',
    '\u{fe00}'..='\u{fe0f}',
    '\u{feff}'..='\u{feff}',
    '\u{ffa0}'..='\u{ffa0}',
    '\u{fff0}'..='\u{fffb}',
    '\u{110bd}'..='\u{110bd}',
    '\u{110cd}'..='\u{110cd}',
    '\u{13430}'..='\u{1343f}',
    '\u{1bca0}'..='\u{1bca3}',
    '\u{1d173}'..='\u{1d17a}',
    '\u{e0000}'..='\u{e0fff}',
];

/// Returns whether `c` is shown as an escape. Text of Rust has no surrogates (category Cs).
fn is_hidden(c: char) -> bool {
    let number = u32::from(c);
    // The last two of every plane, and a block (Unicode, section 23.7).
    let is_noncharacter = number & 0xfffe == 0xfffe || ('\u{fdd0}'..='\u{fdef}').contains(&c);
    // Most characters are none of these.
    number >= 0x7f && (is_noncharacter || c.is_control() || HIDDEN.iter().any(|r| r.contains(&c)))
        || number < 0x20
}

/// Returns `text` on one line of at most `limit` characters. Characters that a terminal would
/// interpret become escapes, so that a sender cannot move the cursor, forge a log line, or reorder
/// or hide text.
#[must_use]
pub fn printable(text: &str, limit: usize) -> String {
    // Most texts are plain.
    if text.len() <= limit && text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return text.to_owned();
    }
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
            c if is_hidden(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// Returns JSON text in which the same characters are escapes of JSON.
#[must_use]
pub fn escaped_json(json: &str) -> String {
    // Most texts are plain.
    if json.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return json.to_owned();
    }
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_hidden(*c)) {
        let (shown, hidden) = rest.split_at(at);
        out.push_str(shown);
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(out, "\\u{unit:04x}");
        }
        rest = hidden.get(c.len_utf8()..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// Returns bytes as text for a screen, whole and on its lines: other characters that a terminal would
/// interpret become escapes, and bytes that are not UTF-8 the replacement character.
#[must_use]
pub fn for_screen(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for c in String::from_utf8_lossy(bytes).chars() {
        match c {
            '\r' => out.push_str("\\r"),
            c if is_hidden(c) && !matches!(c, '\n' | '\t') => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// Returns bytes as [`printable`] text; bytes that are not UTF-8 become the replacement character.
#[must_use]
pub fn printable_bytes(bytes: &[u8], limit: usize) -> String {
    printable(&String::from_utf8_lossy(bytes), limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_for_a_screen_keeps_its_lines() {
        let text = "a\tb\n\u{1b}[2J\rc\u{202e}\n";
        assert_eq!(
            for_screen(text.as_bytes()),
            "a\tb\n\\u{1b}[2J\\rc\\u{202e}\n"
        );
        assert_eq!(for_screen(b"\x9b1m\xff"), "\u{fffd}1m\u{fffd}");
    }

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

    #[test]
    fn what_hides_or_reorders_is_shown() {
        for c in [
            '\u{7f}',
            '\u{85}',
            '\u{ad}',
            '\u{34f}',
            '\u{61c}',
            '\u{115f}',
            '\u{1160}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{2028}',
            '\u{2029}',
            '\u{2066}',
            '\u{fdd0}',
            '\u{3164}',
            '\u{fe0f}',
            '\u{feff}',
            '\u{ffa0}',
            '\u{fffe}',
            '\u{ffff}',
            '\u{1ffff}',
            '\u{e0001}',
            '\u{e0041}',
            '\u{e0100}',
            '\u{10fffe}',
        ] {
            let escape = format!("\\u{{{:x}}}", u32::from(c));
            assert_eq!(printable(&format!("a{c}b"), 80), format!("a{escape}b"));
            let json = serde_json::json!(c.to_string()).to_string();
            let escaped = escaped_json(&json);
            assert!(escaped.is_ascii(), "{escaped}");
            let again: serde_json::Value = serde_json::from_str(&escaped).expect("JSON");
            assert_eq!(again, c.to_string());
        }
        for plain in [
            "é", "日本", "😀", "\u{e000}", "a\u{301}", "\u{fffd}", " ~\u{a0}",
        ] {
            assert_eq!(printable(plain, 80), plain);
        }
    }

    proptest! {
        #[test]
        fn never_a_hidden_character(text in any::<String>()) {
            prop_assert!(!printable(&text, 200).chars().any(is_hidden));
        }
    }
}
