//! The two ends of a pair: their identifiers, topics, claims and messages.
//!
//! An end takes a side by a retained claim ([`choose`]), and two ends that have said hello to each other
//! are a pair ([`Meeting`]). MQTT allows one connection for a client identifier and cuts the older one
//! (MQTT 5.0, section 3.1.4). So one identifier for all claims of a pair makes them follow one another.
//! An end itself has an identifier of its own, so that no other end cuts it off. Each message of a pair has
//! a seal, which only the two ends can make ([`Key`]).

mod claim;
mod letter;
mod look;
mod meeting;
mod seal;
mod transfer;

#[cfg(test)]
mod tests;

pub use claim::{Claim, Claims, LIFETIME, RENEWAL};
pub use letter::{End, Kind, Letter};
pub use look::{Choice, choose};
pub use meeting::{MISSING, Meeting};
pub use seal::{Key, Secret, SoFar};
pub use transfer::{Broken, MAX_CHUNK, Received, Transfer, WINDOW};

use std::fmt::Write as _;

use crate::model::digest::Sha256;
use crate::model::text::printable;

/// Bytes of the hash in a client identifier.
const HASH_BYTES: usize = 10;

/// Maximum size of the name of a pair, bytes.
const MAX_NAME_BYTES: usize = 200;

/// Beginning of the client identifiers of pairs.
const CLIENTS: &str = "tael-pair-";

/// Returns whether the ends of a pair claim their sides with client identifier `id`. Ends of several
/// users share it.
#[must_use]
pub fn is_shared_client(id: &str) -> bool {
    let hash = id.strip_prefix(CLIENTS);
    hash.is_some_and(|hash| hash.len() == 2 * HASH_BYTES && !hash.contains('-'))
}

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

    /// Returns the client identifier with which all ends claim their sides.
    #[must_use]
    pub fn claim_client(&self) -> String {
        format!("{CLIENTS}{}", self.hash)
    }

    /// Returns the client identifier of end `id`.
    #[must_use]
    pub fn end_client(&self, id: &str) -> String {
        format!("{CLIENTS}{}-{id}", self.hash)
    }

    /// Returns the topic of the retained claim of `side`.
    #[must_use]
    pub fn claim(&self, side: Side) -> String {
        format!("{}/{}", self.prefix, side.name())
    }

    /// Returns the topic that says whether end `id` is connected; `+` stands for all ends.
    #[must_use]
    pub fn presence(&self, id: &str) -> String {
        format!("{}/ends/{id}", self.prefix)
    }

    /// Returns the topic of the messages to end `id`.
    #[must_use]
    pub fn letters(&self, id: &str) -> String {
        format!("{}/to/{id}", self.prefix)
    }

    /// Returns the end whose presence is on `topic`.
    #[must_use]
    pub fn present_end<'a>(&self, topic: &'a [u8]) -> Option<&'a str> {
        let rest = topic.strip_prefix(self.prefix.as_bytes())?;
        std::str::from_utf8(rest.strip_prefix(b"/ends/")?).ok()
    }

    /// Returns the side whose claim is on `topic`.
    #[must_use]
    pub fn claim_side(&self, topic: &[u8]) -> Option<Side> {
        let is_its = |side: &Side| self.claim(*side).as_bytes() == topic;
        Side::ALL.into_iter().find(is_its)
    }
}
