//! Base64url without padding (RFC 4648, section 5), as JSON Web Signatures use it (RFC 7515).

/// The digits, by value.
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Returns `bytes` as text.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().enumerate().fold(0_u32, |bits, (place, byte)| {
            bits | u32::from(*byte) << (16 - 8 * place)
        });
        for place in 0..=group.len() {
            let digit = bits >> (18 - 6 * place) & 63;
            let digit = DIGITS.get(digit as usize);
            text.extend(digit.map(|digit| char::from(*digit)));
        }
    }
    text
}

/// Returns the bytes of `text`. There is one text for the same bytes: unused bits are 0.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for (place, digit) in group.iter().enumerate() {
            bits |= value(*digit)? << (18 - 6 * place);
        }
        let count = match group.len() {
            1 => return None,
            digits => digits - 1,
        };
        let [_, all @ ..] = bits.to_be_bytes();
        let (used, unused) = all.split_at_checked(count)?;
        if unused.iter().any(|byte| *byte != 0) {
            return None;
        }
        bytes.extend_from_slice(used);
    }
    Some(bytes)
}

/// Returns `bytes` as Base64 with padding (RFC 4648, section 4).
#[must_use]
pub fn encode_padded(bytes: &[u8]) -> String {
    let mut text = encode(bytes).replace('-', "+").replace('_', "/");
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    text
}

/// Returns the bytes of Base64 text of RFC 4648, section 4. The padding may be missing.
#[must_use]
pub fn decode_padded(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let padding = text.len() - digits.len();
    let is_whole = padding == 0 || padding < 3 && text.len().is_multiple_of(4);
    if !is_whole || digits.contains(['-', '_']) {
        return None;
    }
    decode(&digits.replace('+', "-").replace('/', "_"))
}

fn value(digit: u8) -> Option<u32> {
    Some(u32::from(match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'-' => 62,
        b'_' => 63,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_the_standard() {
        let pairs = [
            ("", ""),
            ("f", "Zg"),
            ("fo", "Zm8"),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg"),
            ("fooba", "Zm9vYmE"),
            ("foobar", "Zm9vYmFy"),
        ];
        for (bytes, text) in pairs {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text).as_deref(), Some(bytes.as_bytes()));
        }
        assert_eq!(encode(&[0xfb, 0xff]), "-_8");
    }

    #[test]
    fn one_text_stands_for_the_same_bytes() {
        for text in ["Z", "Zh", "Zm9", "Zg==", "Zm 9v", "Zm9v\n", "+/8", "Zm9vZ"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }

    #[test]
    fn padded_text_has_another_alphabet() {
        for (bytes, text) in [("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("", "")] {
            assert_eq!(encode_padded(bytes.as_bytes()), text);
            assert_eq!(decode_padded(text).as_deref(), Some(bytes.as_bytes()));
        }
        assert_eq!(encode_padded(&[0xfb, 0xff]), "+/8=");
        assert_eq!(decode_padded("+/8").as_deref(), Some(&[0xfb, 0xff][..]));
        for text in [
            "-_8=", "Zg=", "Zg===", "Zm9v=", "====", "=", "Z=g=", "Zm9v====",
        ] {
            assert_eq!(decode_padded(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn padded_bytes_come_back(bytes in any::<Vec<u8>>()) {
            prop_assert_eq!(decode_padded(&encode_padded(&bytes)), Some(bytes));
        }

        #[test]
        fn bytes_come_back(bytes in any::<Vec<u8>>()) {
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }

        #[test]
        fn no_text_is_read_in_two_ways(text in "[A-Za-z0-9_=-]{0,12}") {
            if let Some(bytes) = decode(&text) {
                prop_assert_eq!(encode(&bytes), text);
            }
        }
    }
}
