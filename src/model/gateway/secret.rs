//! Secrets that callers know, compared in constant time.

use std::fmt;

use ring::hmac::{self, Algorithm, HMAC_SHA256, Key, Tag};

use crate::model::signature::base64;
use crate::model::text::BOM;

/// Maximum length of a secret, bytes. Tokens and keys of senders are far shorter.
pub const MAX_BYTES: usize = 4096;

/// A secret. It is never printed.
#[derive(Clone)]
pub struct Secret {
    bytes: Vec<u8>,
    key: Key,
    /// Code of the secret under itself.
    own: Tag,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Two secrets are equal if their bytes are.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.is(&other.bytes)
    }
}

/// Returns the token of an `Authorization` field of scheme `Bearer` (RFC 6750, section 2.1).
#[must_use]
pub fn bearer(field: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = field.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

/// Returns the password of an `Authorization` field of scheme `Basic` (RFC 7617).
#[must_use]
pub fn basic_password(field: &[u8]) -> Option<Vec<u8>> {
    let (scheme, rest) = field.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let text = std::str::from_utf8(rest.trim_ascii()).ok()?;
    let decoded = base64::decode_padded(text)?;
    let colon = decoded.iter().position(|b| *b == b':')?;
    decoded.get(colon + 1..).map(<[u8]>::to_vec)
}

impl Secret {
    /// Takes the content of a file, or a value: a byte order mark, and a line feed at its end, are not part of
    /// the secret.
    ///
    /// # Errors
    /// A text for the user: it is empty, too long, or has several lines.
    pub fn new(bytes: &[u8]) -> Result<Self, String> {
        let bytes = bytes
            .strip_prefix(BOM.encode_utf8(&mut [0; 4]).as_bytes())
            .unwrap_or(bytes);
        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        match bytes {
            b"" => Err("the secret is empty".to_owned()),
            bytes if bytes.contains(&b'\n') => {
                Err("it has several lines: a file holds one secret, on one line".to_owned())
            }
            bytes => Self::exactly(bytes),
        }
    }

    /// Takes `bytes` as they are.
    ///
    /// # Errors
    /// A text for the user: it is too long.
    pub fn exactly(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_BYTES {
            return Err(format!(
                "the secret has {} bytes, the limit is {MAX_BYTES}",
                bytes.len()
            ));
        }
        let key = Key::new(HMAC_SHA256, bytes);
        let own = hmac::sign(&key, bytes);
        let bytes = bytes.to_vec();
        Ok(Self { bytes, key, own })
    }

    /// Returns whether `given` is the secret. The time tells nothing about where they differ: not
    /// they are compared, but their authentication codes.
    #[must_use]
    pub fn is(&self, given: &[u8]) -> bool {
        hmac::verify(&self.key, given, self.own.as_ref()).is_ok()
    }

    /// Returns whether it begins or ends with a blank. No header field carries that.
    #[must_use]
    pub fn has_outer_blanks(&self) -> bool {
        self.bytes.trim_ascii() != self.bytes
    }

    /// Returns the secret as the key of an authentication code.
    #[must_use]
    pub fn key(&self, algorithm: Algorithm) -> Key {
        Key::new(algorithm, &self.bytes)
    }

    /// Returns its text, if it is text.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_feed_at_the_end_is_no_part_of_it() {
        for file in ["secret", "secret\n", "secret\r\n", "\u{feff}secret\n"] {
            assert!(Secret::new(file.as_bytes()).expect("secret").is(b"secret"));
        }
        for two in ["secret\n\n", "new\nold\n", "\nsecret", "new\r\nold"] {
            let wrong = Secret::new(two.as_bytes()).expect_err(two);
            assert!(wrong.contains("several lines"), "{wrong}");
        }
        let own = Secret::exactly(b"a\nb").expect("secret");
        assert!(own.is(b"a\nb") && !own.is(b"a"));
        for empty in ["", "\n", "\r\n", "\u{feff}\n"] {
            assert!(Secret::new(empty.as_bytes()).is_err());
        }
        assert!(Secret::new(&[b'x'; MAX_BYTES]).is_ok());
        assert!(Secret::new(&[b'x'; MAX_BYTES + 1]).is_err());
        assert_eq!(format!("{own:?}"), "Secret");
    }

    proptest! {
        #[test]
        fn only_the_secret_is_the_secret(a in "[ab]{1,6}", b in "[ab]{0,6}") {
            let secret = Secret::new(a.as_bytes()).expect("secret");
            prop_assert_eq!(secret.is(b.as_bytes()), a == b);
        }
    }
}
