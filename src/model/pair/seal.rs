//! What shows that a message is from the other end: a key that only the two ends know, and a digest of
//! everything that came before.
//!
//! Each end makes a key of its own (X25519, RFC 7748), and its hello has the public half. A user who may read
//! and write the topics can write messages, but cannot keep those of the ends from each other. So an end
//! that hears two keys of one other end knows that one is forged.

use std::fmt;

use ring::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use ring::hmac;
use ring::rand::SystemRandom;

use crate::model::digest::Sha256;
use crate::model::pair::Kind;
use crate::model::signature::base64;

/// Length of a public key, bytes.
const KEY_BYTES: usize = 32;

/// What separates these keys from those of other protocols.
const PURPOSE: &[u8] = b"tael pair 1";

/// The key of an end, which agrees on one [`Key`] with the other end.
pub struct Secret {
    private: EphemeralPrivateKey,
    /// The public half, as its hello has it.
    public: String,
}

impl Secret {
    /// Makes a key. `None` if the system has no random numbers.
    #[must_use]
    pub fn new() -> Option<Self> {
        let private = EphemeralPrivateKey::generate(&X25519, &SystemRandom::new()).ok()?;
        let public = base64::encode(private.compute_public_key().ok()?.as_ref());
        Some(Self { private, public })
    }

    /// Returns the public half.
    #[must_use]
    pub fn public(&self) -> &str {
        &self.public
    }

    /// Returns the key of this end, `own`, and end `other` with the public half `theirs`. `None` if that is
    /// no key.
    #[must_use]
    pub fn agree(self, own: &str, other: &str, theirs: &str) -> Option<Key> {
        let theirs_bytes = base64::decode(theirs).filter(|key| key.len() == KEY_BYTES)?;
        // Both ends must come to the same key.
        let mut ends = [(own, &*self.public), (other, theirs)];
        ends.sort_unstable();
        let theirs = UnparsedPublicKey::new(&X25519, theirs_bytes);
        agree_ephemeral(self.private, &theirs, |shared| {
            let mut hash = Sha256::default();
            hash.part(PURPOSE);
            hash.part(shared);
            for (id, public) in ends {
                hash.part(id.as_bytes());
                hash.part(public.as_bytes());
            }
            Key::new(&hash.finish())
        })
        .ok()
    }
}

/// The key of a pair.
pub struct Key(hmac::Key);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// Returns the seal of a message from end `from`, where `so_far` is the digest of all messages of that
    /// direction up to `number`.
    #[must_use]
    pub fn seal(&self, from: &str, kind: Kind, number: u64, so_far: &SoFar) -> String {
        base64::encode(hmac::sign(&self.0, &sealed(from, kind, number, so_far)).as_ref())
    }

    /// Returns whether `seal` is the one that [`Self::seal`] returns.
    #[must_use]
    pub fn fits(&self, seal: &str, from: &str, kind: Kind, number: u64, so_far: &SoFar) -> bool {
        base64::decode(seal).is_some_and(|seal| {
            hmac::verify(&self.0, &sealed(from, kind, number, so_far), &seal).is_ok()
        })
    }
}

fn sealed(from: &str, kind: Kind, number: u64, so_far: &SoFar) -> Vec<u8> {
    let mut all = Vec::with_capacity(128);
    all.extend(so_far.0);
    all.extend(number.to_be_bytes());
    all.extend(kind.name().as_bytes());
    all.push(b' ');
    all.extend(from.as_bytes());
    all
}

/// The digest of all messages of one direction so far: of the one before, and of the last message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SoFar([u8; 32]);

impl SoFar {
    /// Returns the digest after one more message.
    #[must_use]
    pub fn and(&self, kind: Kind, payload: &[u8]) -> Self {
        let mut hash = Sha256::default();
        hash.update(&self.0);
        hash.part(kind.name().as_bytes());
        hash.update(payload);
        Self(hash.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ends_agree_and_no_third_does() {
        let [x, y, z] = [(); 3].map(|()| Secret::new().expect("random"));
        let public = [&x, &y, &z].map(|secret| secret.public().to_owned());
        let keys = [
            x.agree("x", "y", &public[1]).expect("key"),
            y.agree("y", "x", &public[0]).expect("key"),
            z.agree("x", "y", &public[1]).expect("key"),
        ];
        let so_far = SoFar::default().and(Kind::Data, b"abc");
        let seals = keys
            .each_ref()
            .map(|key| key.seal("x", Kind::Data, 1, &so_far));
        assert_eq!(seals[0], seals[1]);
        assert_ne!(seals[0], seals[2]);
        let key = &keys[1];
        assert!(key.fits(&seals[0], "x", Kind::Data, 1, &so_far));
        let other = SoFar::default().and(Kind::Data, b"abd");
        for fits in [
            key.fits(&seals[2], "x", Kind::Data, 1, &so_far),
            key.fits(&seals[0], "y", Kind::Data, 1, &so_far),
            key.fits(&seals[0], "x", Kind::End, 1, &so_far),
            key.fits(&seals[0], "x", Kind::Data, 2, &so_far),
            key.fits(&seals[0], "x", Kind::Data, 1, &other),
            key.fits("", "x", Kind::Data, 1, &so_far),
            key.fits("no seal", "x", Kind::Data, 1, &so_far),
        ] {
            assert!(!fits);
        }
    }

    #[test]
    fn what_is_no_key_agrees_with_nothing() {
        let zero = base64::encode(&[0; KEY_BYTES]);
        for theirs in ["", "AAAA", "?", &zero] {
            let own = Secret::new().expect("random");
            assert!(own.agree("x", "y", theirs).is_none(), "{theirs}");
        }
    }

    #[test]
    fn a_digest_knows_where_messages_end() {
        let none = SoFar::default();
        let two = none.and(Kind::Data, b"a").and(Kind::Data, b"b");
        assert_ne!(two, none.and(Kind::Data, b"ab"));
        assert_ne!(none.and(Kind::End, b""), none.and(Kind::Data, b""));
        assert_eq!(two, none.and(Kind::Data, b"a").and(Kind::Data, b"b"));
    }
}
