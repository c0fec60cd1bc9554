//! Decodes the bytes of a payload into text.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Returns the text of `bytes` in the encoding that its byte order mark names, by default UTF-8.
/// The mark is removed. A lone surrogate of UTF-16 becomes an escape of JSON.
///
/// # Errors
/// A text for the user.
pub fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, String> {
    // The mark of UTF-32, little endian, begins like that of UTF-16; JSON has no NUL character.
    match bytes {
        [0xff, 0xfe, 0, 0, rest @ ..] => utf32(rest, u32::from_le_bytes),
        [0, 0, 0xfe, 0xff, rest @ ..] => utf32(rest, u32::from_be_bytes),
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => utf8(rest),
        all => utf8(all),
    }
}

fn utf8(bytes: &[u8]) -> Result<Cow<'_, str>, String> {
    let text = std::str::from_utf8(bytes);
    text.map(Cow::Borrowed)
        .map_err(|e| format!("it is not UTF-8 from byte {} on", e.valid_up_to()))
}

fn utf16<'a>(bytes: &[u8], read: fn([u8; 2]) -> u16) -> Result<Cow<'a, str>, String> {
    let (units, rest) = bytes.as_chunks();
    if !rest.is_empty() {
        return Err("its UTF-16 ends within a character".into());
    }
    let mut text = String::with_capacity(units.len());
    for c in char::decode_utf16(units.iter().map(|unit| read(*unit))) {
        match c {
            Ok(c) => text.push(c),
            Err(e) => {
                let _ = write!(text, "\\u{:04x}", e.unpaired_surrogate());
            }
        }
    }
    Ok(text.into())
}

fn utf32<'a>(bytes: &[u8], read: fn([u8; 4]) -> u32) -> Result<Cow<'a, str>, String> {
    let (units, rest) = bytes.as_chunks();
    let text: Option<String> = units
        .iter()
        .map(|unit| char::from_u32(read(*unit)))
        .collect();
    text.filter(|_| rest.is_empty())
        .map(Cow::Owned)
        .ok_or_else(|| "it is not UTF-32".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_by_their_byte_order_mark() {
        let text = "{\"a\":\"é😀\"}";
        let utf16: Vec<u16> = text.encode_utf16().collect();
        let marked = |mark: &[u8], units: Vec<u8>| [mark, &units].concat();
        let all = [
            text.as_bytes().to_vec(),
            marked(b"\xef\xbb\xbf", text.into()),
            marked(
                b"\xff\xfe",
                utf16.iter().flat_map(|u| u.to_le_bytes()).collect(),
            ),
            marked(
                b"\xfe\xff",
                utf16.iter().flat_map(|u| u.to_be_bytes()).collect(),
            ),
            marked(
                b"\xff\xfe\0\0",
                text.chars()
                    .flat_map(|c| u32::from(c).to_le_bytes())
                    .collect(),
            ),
            marked(
                b"\0\0\xfe\xff",
                text.chars()
                    .flat_map(|c| u32::from(c).to_be_bytes())
                    .collect(),
            ),
        ];
        for bytes in all {
            assert_eq!(decode(&bytes).expect("text"), text);
        }
        assert_eq!(decode(b"\xff\xfe\xfc\xdc").expect("text"), "\\udcfc");
        for bad in [&b"\xff\xfea"[..], b"\0\0\xfe\xff\0\0\xd8\0", b"a\xff"] {
            assert!(decode(bad).is_err(), "{bad:?}");
        }
    }
}
