//! Greetings of servers that are no brokers, and that answer on the port of one.

use crate::model::text::printable;

/// Maximum length of a greeting in a message, characters.
const MAX_GREETING: usize = 60;

/// Recognises a server that greets with text by the first `bytes` of its answer: a broker that speaks
/// `protocol` sends other ones. Returns the message for people.
pub fn foreign(protocol: &str, bytes: &[u8]) -> Option<String> {
    match bytes {
        [b'S', b'S', b'H', b'-', ..] => {
            Some("an SSH server answers there: is the port right?".into())
        }
        [first, second, ..] if is_text(*first) && is_text(*second) => {
            let text = String::from_utf8_lossy(bytes);
            let line = text.lines().next().unwrap_or_default();
            Some(format!(
                "what answers there does not speak {protocol}: '{}'; is the port right?",
                printable(line, MAX_GREETING)
            ))
        }
        _ => None,
    }
}

const fn is_text(byte: u8) -> bool {
    byte.is_ascii_graphic() || matches!(byte, b' ' | b'\r' | b'\n')
}
