//! Work that callers may submit: `POST /w/NODE/TYPE`.

use std::fmt;

use crate::model::digest::Sha256;
use crate::model::text::printable;
use crate::model::url;

/// Maximum number of characters of a name in an answer.
const SHOWN: usize = 80;

/// A type of work at a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// The node; `localhost` is this host.
    pub node: String,
    /// Name of the type.
    pub kind: String,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.kind)
    }
}

impl Kind {
    /// Parses `NODE/TYPE`.
    ///
    /// # Errors
    /// A text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{}' is not NODE/TYPE", printable(text, SHOWN));
        let (node, kind) = text.split_once('/').ok_or_else(wrong)?;
        let is_name = |name: &str| {
            !name.is_empty() && !name.contains('/') && !name.contains(char::is_control)
        };
        match is_name(node) && is_name(kind) {
            true => Ok(Self {
                node: node.to_owned(),
                kind: kind.to_owned(),
            }),
            false => Err(wrong()),
        }
    }

    /// Parses the end of a path, behind `/w/`. Each name is decoded for itself.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        let (node, kind) = path.split_once('/')?;
        let node = url::decoded(node.as_bytes())?;
        let kind = url::decoded(kind.as_bytes())?;
        Self::parse(&format!("{node}/{kind}"))
            .ok()
            .filter(|found| found.node == node)
    }
}

/// What chooses the id of work, so that it is submitted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key<'a> {
    /// The `Idempotency-Key` of a caller.
    Caller(&'a str),
    /// The id of a delivery on a route, which begins with the name of the route. A caller cannot choose
    /// it by its key.
    Delivery(&'a str),
}

/// Returns 16 bytes for the id of the work that is sent with `key`: the same for the same key.
#[must_use]
pub fn id_of_key(key: Key<'_>) -> [u8; 16] {
    let (domain, key): (&[u8], _) = match key {
        Key::Caller(key) => (b"work of an idempotency key", key),
        Key::Delivery(key) => (b"work of a delivery", key),
    };
    let mut digest = Sha256::default();
    digest.part(domain);
    digest.part(key.as_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&digest.finish()[..16]);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_two_names() {
        let kind = |node: &str, kind: &str| Kind {
            node: node.into(),
            kind: kind.into(),
        };
        assert_eq!(Kind::parse("n1/align"), Ok(kind("n1", "align")));
        for wrong in ["", "a", "/", "a/", "/b", "a/b/c", "a/b\n", "a\0/b"] {
            assert!(Kind::parse(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(Kind::of_path("n%31/a%20b"), Some(kind("n1", "a b")));
        for wrong in [
            "a", "a/", "a%2Fb/c", "a/b%2Fc", "a/b/c", "a/%", "a/%ff", "a/%0a",
        ] {
            assert_eq!(Kind::of_path(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn keys_make_ids() {
        let caller = |key| id_of_key(Key::Caller(key));
        assert_eq!(caller("a"), caller("a"));
        assert_ne!(caller("a"), caller("b"));
        assert_ne!(caller("a"), id_of_key(Key::Delivery("a")));
    }
}
