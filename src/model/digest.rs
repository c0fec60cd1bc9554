//! SHA-256 (FIPS 180-4).

use std::fmt;

use ring::digest::{Context, Digest, SHA256, digest};

/// Length of a SHA-256, bytes.
const LENGTH: usize = 32;

/// The SHA-256 of what comes in pieces.
#[derive(Clone)]
pub struct Sha256(Context);

impl Default for Sha256 {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sha256")
    }
}

impl Sha256 {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Takes a part. Its length, which comes first, keeps parts separate.
    pub fn part(&mut self, bytes: &[u8]) {
        self.update(&(bytes.len() as u64).to_be_bytes());
        self.update(bytes);
    }

    /// Returns the digest.
    #[must_use]
    pub fn finish(self) -> [u8; LENGTH] {
        array(&self.0.finish())
    }
}

/// Returns the SHA-256 of `bytes`.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; LENGTH] {
    array(&digest(&SHA256, bytes))
}

fn array(digest: &Digest) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_the_digest_of_the_whole() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(sha256(b"abc")[..4], [0xba, 0x78, 0x16, 0xbf]);
        let mut pieces = Sha256::default();
        pieces.update(b"a");
        pieces.update(b"bc");
        assert_eq!(pieces.finish(), sha256(b"abc"));
    }

    #[test]
    fn parts_are_separate() {
        let of = |parts: &[&[u8]]| {
            let mut digest = Sha256::default();
            parts.iter().for_each(|part| digest.part(part));
            digest.finish()
        };
        assert_ne!(of(&[b"a", b"bc"]), of(&[b"ab", b"c"]));
        assert_eq!(of(&[b"a"]), sha256(b"\0\0\0\0\0\0\0\x01a"));
    }
}
