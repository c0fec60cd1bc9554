//! JSON as programs write it: RFC 8259, and what Python and PowerShell write in addition.
//!
//! `NaN`, `Infinity` and `-Infinity` are read as strings. A byte order mark is skipped, and selects
//! UTF-8, UTF-16 or UTF-32.
//!
//! Python carries a file name that is not UTF-8 as `"a\udcfcb"`: a lone low surrogate U+DC80 to
//! U+DCFF is the byte 80 to FF (PEP 383). Strings of Rust hold no surrogates. Here such a byte is a
//! private-use character, U+10FF80 to U+10FFFF: a *held byte*. A character of that range in the
//! JSON itself becomes four held bytes, those of its UTF-8. So [`bytes_of`] returns the bytes that
//! the sender meant, and [`to_text`] writes the surrogate again. Other lone surrogates become
//! U+FFFD.

mod decode;
mod parse;

use std::borrow::Cow;
use std::fmt::Write as _;

use serde_json::Value;

pub use parse::parse;

/// The character of a held byte 0; bytes below 80 are never held.
const HELD: u32 = 0x10_ff00;

/// First byte that is held.
const FIRST_HELD: u32 = 0x80;

/// Memory for the digits of a number, bytes.
const NUMBER: usize = 32;

/// Memory for an entry of an object besides its key and value: hash, key and a place in the index, bytes.
const ENTRY: usize = 64;

/// Returns the byte that `c` holds.
fn held(c: char) -> Option<u8> {
    let byte = u32::from(c).checked_sub(HELD)?;
    u8::try_from(byte).ok().filter(|b| !b.is_ascii())
}

/// Adds `byte`, which is not ASCII, as a held byte.
fn hold(text: &mut String, byte: u8) {
    text.extend(char::from_u32(HELD + u32::from(byte)));
}

/// Adds a character of the JSON itself.
fn push(text: &mut String, c: char) {
    if u32::from(c) < HELD + FIRST_HELD {
        return text.push(c);
    }
    for byte in c.encode_utf8(&mut [0; 4]).bytes() {
        hold(text, byte);
    }
}

/// Returns whether `text` holds bytes.
fn has_held(text: &str) -> bool {
    text.contains(|c| held(c).is_some())
}

/// Returns the bytes of a string from [`parse()`].
#[must_use]
pub fn bytes_of(text: &str) -> Cow<'_, [u8]> {
    if !has_held(text) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match held(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Cow::Owned(bytes)
}

/// Returns a string from [`parse()`] for people: bytes that are not UTF-8 become U+FFFD.
#[must_use]
pub fn lossy(text: &str) -> String {
    String::from_utf8_lossy(&bytes_of(text)).into_owned()
}

/// Returns the string for `bytes`, of which [`bytes_of`] returns them again.
#[must_use]
pub fn string_of(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|c| push(&mut text, c));
        chunk.invalid().iter().for_each(|b| hold(&mut text, *b));
    }
    text
}

/// Returns `value` as compact JSON; it is from [`parse()`], or made of strings without held bytes. A
/// byte that is not UTF-8 becomes the surrogate that Python uses for it.
#[must_use]
pub fn to_text(value: &Value) -> String {
    let text = value.to_string();
    if !has_held(&text) {
        return text;
    }
    // Only strings contain held bytes, and none that are UTF-8 needs an escape.
    let mut out = String::with_capacity(text.len());
    for chunk in bytes_of(&text).utf8_chunks() {
        out.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(out, "\\udc{byte:02x}");
        }
    }
    out
}

/// Returns about how many bytes of memory `value` takes: for short items many times its text.
#[must_use]
pub fn memory(value: &Value) -> usize {
    // Lists grow by doubling, from four items.
    let room = |items: usize| items.next_power_of_two().max(4);
    let more = match value {
        Value::Null | Value::Bool(_) => 0,
        Value::Number(_) => NUMBER,
        Value::String(text) => text.len(),
        Value::Array(list) if list.is_empty() => 0,
        Value::Array(list) => {
            let unused = room(list.len()) - list.len();
            list.iter().map(memory).sum::<usize>() + unused * size_of::<Value>()
        }
        Value::Object(map) => {
            let items = map.iter().map(|(key, item)| key.len() + memory(item));
            let entries = if map.is_empty() { 0 } else { room(map.len()) };
            items.sum::<usize>() + entries * ENTRY
        }
    };
    size_of::<Value>() + more
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn parsed(text: &str) -> Value {
        parse(text.as_bytes()).expect(text)
    }

    #[test]
    fn a_file_name_of_pythons_is_bytes_and_python_gets_it_back() {
        let name = parsed(r#""a\udcfcb""#);
        assert_eq!(&*bytes_of(name.as_str().expect("string")), b"a\xfcb");
        assert_eq!(to_text(&name), r#""a\udcfcb""#);
        assert_eq!(lossy(name.as_str().expect("string")), "a\u{fffd}b");
        // Nested, and in a key.
        let nested = parsed(r#"{"k\udcff":["\udc80"]}"#);
        assert_eq!(to_text(&nested), r#"{"k\udcff":["\udc80"]}"#);
        // Bytes that form UTF-8 together are text.
        let umlaut = parsed(r#""\udcc3\udca4""#);
        assert_eq!(&*bytes_of(umlaut.as_str().expect("string")), "ä".as_bytes());
        assert_eq!(to_text(&umlaut), r#""ä""#);
    }

    #[test]
    fn characters_that_could_be_taken_for_bytes_are_not() {
        for text in ["\u{10ff7f}", "\u{10ff80}", "\u{10ffff}", "x\u{10fffc}y"] {
            let value = parsed(&json!(text).to_string());
            assert_eq!(&*bytes_of(value.as_str().expect("string")), text.as_bytes());
            assert_eq!(to_text(&value), json!(text).to_string());
        }
        let pair = parsed(r#""\udbff\udffc""#);
        assert_eq!(to_text(&pair), "\"\u{10fffc}\"");
    }

    #[test]
    fn short_items_take_many_times_their_text() {
        for (item, times) in [("{}", 20), ("[0]", 60), ("{\"\":0}", 40), ("0", 30)] {
            let text = format!("[{}]", vec![item; 1000].join(","));
            let found = memory(&parsed(&text));
            assert!(found > text.len() * times, "{item}: {found}");
        }
        let text = json!("x".repeat(1000));
        assert!((1000..1200).contains(&memory(&text)));
    }

    #[test]
    fn other_lone_surrogates_are_replaced() {
        for text in [r#""\ud800""#, r#""\udbffx""#, r#""\udc7f""#, r#""\udfff""#] {
            let value = parsed(text);
            assert!(value.as_str().expect("string").starts_with('\u{fffd}'));
        }
        assert_eq!(parsed(r#""\ud83d\ud83d\ude00""#), json!("\u{fffd}😀"));
    }

    proptest! {
        #[test]
        fn bytes_come_back(bytes in any::<Vec<u8>>()) {
            let text = string_of(&bytes);
            prop_assert_eq!(&*bytes_of(&text), &bytes[..]);
            let json = to_text(&Value::String(text));
            let again = parse(json.as_bytes()).expect("JSON of our own");
            prop_assert_eq!(&*bytes_of(again.as_str().expect("string")), &bytes[..]);
        }
    }
}
