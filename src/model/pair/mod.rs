//! The two ends of a pair: their identifiers, topics, claims and messages.
//!
//! Each end connects with a client identifier that stands for its side. MQTT allows one connection for
//! an identifier and cuts the older one (MQTT 5.0, section 3.1.4). So a side has one holder at most, and
//! a displaced one cannot publish any more.

mod claim;
mod letter;
mod meeting;
mod transfer;

pub use claim::{Claim, LIFETIME, RENEWAL};
pub use letter::{Kind, Letter};
pub use meeting::{Meeting, SETTLE};
pub use transfer::{Broken, MAX_CHUNK, Received, Transfer, WINDOW};

use std::fmt::Write as _;

use crate::model::digest::Sha256;
use crate::model::text::printable;

/// Bytes of the hash in a client identifier.
const HASH_BYTES: usize = 10;

/// Maximum size of the name of a pair, bytes.
const MAX_NAME_BYTES: usize = 200;

/// Checks the name of a pair, which is one level of a topic.
///
/// # Errors
/// A text for the user, with the cause.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(format!(
            "a pair's name has 1 to {MAX_NAME_BYTES} bytes, this has {}",
            name.len()
        ));
    }
    if name.starts_with('.') || name.contains(|c: char| "/+#".contains(c) || c.is_control()) {
        return Err(format!(
            "'{}' cannot name a pair: no /, +, #, control characters or leading dot",
            printable(name, 80)
        ));
    }
    Ok(())
}

/// A side of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one called `a`.
    A,
    /// The one called `b`.
    B,
}

impl Side {
    /// Both sides.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// Returns its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// Returns the side of the other end.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// A pair: its topics and client identifiers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Its name.
    pub name: String,
    prefix: String,
    hash: String,
}

impl Pair {
    /// Returns the pair `name` under `root`; both were checked.
    #[must_use]
    pub fn new(root: &str, name: &str) -> Self {
        let mut hash = Sha256::default();
        hash.part(root.as_bytes());
        hash.part(name.as_bytes());
        let mut digits = String::new();
        for byte in hash.finish().iter().take(HASH_BYTES) {
            let _ = write!(digits, "{byte:02x}");
        }
        Self {
            name: name.to_owned(),
            prefix: format!("{root}/infrastructure/pairs/{name}"),
            hash: digits,
        }
    }

    /// Returns the client identifier that the holder of `side` connects with.
    #[must_use]
    pub fn client_id(&self, side: Side) -> String {
        format!("tael-pair-{}-{}", self.hash, side.name())
    }

    /// Returns the topic of the retained claim of `side`.
    #[must_use]
    pub fn claim(&self, side: Side) -> String {
        format!("{}/{}", self.prefix, side.name())
    }

    /// Returns the topic that the holder of `side` publishes its messages on.
    #[must_use]
    pub fn data(&self, side: Side) -> String {
        format!("{}/{}/data", self.prefix, side.name())
    }

    /// Returns the side whose claim is on `topic`.
    #[must_use]
    pub fn claim_side(&self, topic: &[u8]) -> Option<Side> {
        let is_its = |side: &Side| self.claim(*side).as_bytes() == topic;
        Side::ALL.into_iter().find(is_its)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_level() {
        assert_eq!(check_name("rescue of seq1"), Ok(()));
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        for name in ["", "a/b", "+", "#", ".x", "a\nb", &long] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_pair_has_topics_and_identifiers_of_its_own() {
        let pair = Pair::new("lab", "rescue");
        assert_eq!(pair.claim(Side::A), "lab/infrastructure/pairs/rescue/a");
        assert_eq!(pair.data(Side::B), "lab/infrastructure/pairs/rescue/b/data");
        let side = |topic: &str| pair.claim_side(topic.as_bytes());
        assert_eq!(side("lab/infrastructure/pairs/rescue/b"), Some(Side::B));
        assert_eq!(side("lab/infrastructure/pairs/rescue/b/data"), None);
        let id = pair.client_id(Side::A);
        assert!(id.starts_with("tael-pair-") && id.ends_with("-a"), "{id}");
        // The same on every host, in every version: it excludes the third end.
        assert_eq!(id, Pair::new("lab", "rescue").client_id(Side::A));
        assert_ne!(id, pair.client_id(Side::B));
        assert_ne!(id, Pair::new("lab/rescue", "x").client_id(Side::A));
        assert_ne!(
            Pair::new("lab/a", "b").client_id(Side::A),
            Pair::new("lab", "ab").client_id(Side::A)
        );
    }
}
