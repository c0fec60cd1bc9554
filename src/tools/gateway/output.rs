//! Output of a command as events: text that is whole, whose place is known.

use bytes::Bytes;
use serde_json::json;

use crate::net::http::event;

/// Maximum number of bytes of output in an event.
pub const MAX_TEXT: usize = 8 * 1024;

/// Maximum number of bytes of a character that has not come whole.
const MAX_REST: usize = 3;

/// Makes events of bytes. A character that has come in part waits for its rest.
#[derive(Debug, Default)]
pub struct Pieces {
    /// The part, and the offset of its first byte.
    rest: Vec<u8>,
    from: u64,
}

impl Pieces {
    /// Returns the events of `bytes`, the first of which has the offset `from`.
    pub fn add(&mut self, from: u64, bytes: &[u8]) -> Vec<Bytes> {
        if self.rest.is_empty() {
            self.from = from;
        }
        self.rest.extend_from_slice(bytes);
        self.events(false)
    }

    /// Returns the event of what still waits.
    pub fn flush(&mut self) -> Vec<Bytes> {
        self.events(true)
    }

    fn events(&mut self, is_last: bool) -> Vec<Bytes> {
        let mut events = Vec::new();
        let mut all = std::mem::take(&mut self.rest);
        let mut place = 0;
        while let Some(left) = all.get(place..).filter(|left| !left.is_empty()) {
            let piece = left.get(..MAX_TEXT).unwrap_or(left);
            let whole = match is_last && piece.len() == left.len() {
                true => piece,
                false => whole(piece),
            };
            if whole.is_empty() {
                break;
            }
            let text = String::from_utf8_lossy(whole);
            let data = json!({ "from": self.from, "text": text });
            place += whole.len();
            self.from += whole.len() as u64;
            // Its id is the place of the next byte.
            let event = event::json("output", Some(self.from), &data);
            events.push(event);
        }
        self.rest = all.split_off(place);
        events
    }
}

/// Returns `bytes` without a character at the end of which more bytes may come.
fn whole(bytes: &[u8]) -> &[u8] {
    for back in 1..=MAX_REST.min(bytes.len()) {
        let at = bytes.len() - back;
        let needed = match bytes.get(at) {
            Some(0xc2..=0xdf) => 2,
            Some(0xe0..=0xef) => 3,
            Some(0xf0..=0xf4) => 4,
            Some(0x80..=0xbf) => continue,
            _ => return bytes,
        };
        return match back < needed {
            true => bytes.get(..at).unwrap_or_default(),
            false => bytes,
        };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns offset and text of each event.
    fn read(events: &[Bytes]) -> Vec<(u64, String)> {
        let one = |event: &Bytes| {
            let text = String::from_utf8(event.to_vec()).expect("UTF-8");
            let data = text.lines().find_map(|line| line.strip_prefix("data: "));
            let data: serde_json::Value = serde_json::from_str(data.expect("data")).expect("JSON");
            let id = text.lines().find_map(|line| line.strip_prefix("id: "));
            let from = data["from"].as_u64().expect("from");
            let id: u64 = id.expect("id").parse().expect("number");
            assert!(id > from, "{text}");
            (from, data["text"].as_str().expect("text").to_owned())
        };
        events.iter().map(one).collect()
    }

    #[test]
    fn characters_are_whole_wherever_bytes_are_split() {
        let text = "aäb€c😀\r\nd";
        for at in 0..=text.len() {
            let (first, second) = text.as_bytes().split_at(at);
            let mut pieces = Pieces::default();
            let mut events = read(&pieces.add(7, first));
            events.extend(read(&pieces.add(7 + at as u64, second)));
            assert!(pieces.flush().is_empty(), "{at}");
            let mut next = 7;
            for (from, text) in &events {
                assert_eq!(*from, next, "{at}");
                next += text.len() as u64;
            }
            let all: String = events.into_iter().map(|(_, text)| text).collect();
            assert_eq!(all, text, "{at}");
        }
    }

    #[test]
    fn what_is_no_text_comes_too_and_large_output_in_pieces() {
        let mut pieces = Pieces::default();
        assert_eq!(read(&pieces.add(0, b"\xff\xc3")), [(0, "\u{fffd}".into())]);
        assert_eq!(read(&pieces.flush()), [(1, "\u{fffd}".into())]);
        let events = read(&pieces.add(2, &[b'x'; 3 * MAX_TEXT]));
        assert_eq!(events.len(), 3);
        let large = "€".repeat(MAX_TEXT);
        let events = read(&pieces.add(0, large.as_bytes()));
        let all: String = events.into_iter().map(|(_, text)| text).collect();
        assert_eq!(all, large);
        // Bytes that only look like the rest of a character.
        assert_eq!(read(&pieces.add(0, &[0x80; 9])).len(), 1);
    }
}
