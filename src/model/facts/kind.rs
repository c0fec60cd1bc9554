//! Kinds of facts, and the topics of a node.

use crate::model::text::printable;

/// Maximum length of the name of a node, bytes: that of a host name (`gethostname(2)` allows 64).
const MAX_NODE_BYTES: usize = 128;

/// A kind of facts, by when they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Who the node is.
    Common,
    /// What the node is built of.
    Static,
    /// Numbers that change all the time: at the interval, without change events.
    Dynamic,
    /// Answers to questions, such as whether a reboot is required: a daemon looks more often.
    State,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Common, Self::Static, Self::Dynamic, Self::State];

    /// Their names.
    pub const NAMES: &'static [&'static str] = &["common", "static", "dynamic", "state"];

    /// Returns its name, which is its topic level and its folder.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Common => "common",
            Self::Static => "static",
            Self::Dynamic => "dynamic",
            Self::State => "state",
        }
    }

    /// Returns the kind of this name.
    ///
    /// # Errors
    /// A text for the user, with the names.
    pub fn parse(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| {
            let name = printable(name, 40);
            format!(
                "'{name}' is not a kind of facts: {}",
                Self::NAMES.join(", ")
            )
        })
    }
}

/// Checks the name of a node: one topic level.
///
/// # Errors
/// A text for the user, with the cause.
pub fn check_node(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NODE_BYTES {
        return Err(format!(
            "the name of a node has 1 to {MAX_NODE_BYTES} bytes, this has {}",
            name.len()
        ));
    }
    if name.starts_with('$') || name.contains(|c: char| "/+#".contains(c) || c.is_control()) {
        return Err(format!(
            "'{}' cannot name a node: no /, +, #, control characters or leading $",
            printable(name, 80)
        ));
    }
    Ok(())
}

/// The topics of one node, `<root>/infrastructure/nodes/<node>/…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTopics {
    prefix: String,
}

/// What stands between a root and a node.
const PLACE: &str = "/infrastructure/nodes/";

impl NodeTopics {
    /// Returns the topics of `node` under `root`; both were checked.
    #[must_use]
    pub fn new(root: &str, node: &str) -> Self {
        Self {
            prefix: format!("{root}{PLACE}{node}"),
        }
    }

    /// Returns the topic of the retained facts of `kind`.
    #[must_use]
    pub fn kind(&self, kind: Kind) -> String {
        format!("{}/{}", self.prefix, kind.name())
    }

    /// Returns the topic of the retained presence.
    #[must_use]
    pub fn presence(&self) -> String {
        format!("{}/presence", self.prefix)
    }

    /// Returns the topic of the events about facts that have changed.
    #[must_use]
    pub fn changed(&self) -> String {
        format!("{}/changed", self.prefix)
    }

    /// Returns the topics of everything that the node has retained.
    #[must_use]
    pub fn retained(&self) -> Vec<String> {
        let kinds = Kind::ALL.iter().map(|kind| self.kind(*kind));
        kinds.chain([self.presence()]).collect()
    }
}

/// Returns the filter for the presence of every node under `root`.
#[must_use]
pub fn all_presences(root: &str) -> String {
    format!("{root}{PLACE}+/presence")
}

/// Returns filters for everything that the nodes under `root` have retained.
#[must_use]
pub fn all_facts(root: &str) -> Vec<String> {
    NodeTopics::new(root, "+").retained()
}

/// Returns the node and the last level of `topic`, if it is one of a node under `root`.
#[must_use]
pub fn split<'a>(root: &str, topic: &'a str) -> Option<(&'a str, &'a str)> {
    let rest = topic.strip_prefix(root)?.strip_prefix(PLACE)?;
    rest.split_once('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_one_name() {
        for (kind, name) in Kind::ALL.into_iter().zip(Kind::NAMES) {
            assert_eq!((kind.name(), Kind::parse(name)), (*name, Ok(kind)));
        }
        assert!(Kind::parse("stat").is_err_and(|e| e.contains("dynamic")));
    }

    #[test]
    fn topics_are_taken_apart() {
        let topics = NodeTopics::new("lab/a", "seq1");
        assert_eq!(
            topics.kind(Kind::State),
            "lab/a/infrastructure/nodes/seq1/state"
        );
        let presence = topics.presence();
        assert_eq!(split("lab/a", &presence), Some(("seq1", "presence")));
        assert_eq!(split("lab", &presence), None);
        assert_eq!(topics.retained().len(), 5);
    }

    #[test]
    fn names_that_are_refused() {
        for name in ["", "a/b", "+", "a#", "$x", "a\nb", &"x".repeat(129)] {
            assert!(check_node(name).is_err(), "{name:?}");
        }
        assert!(check_node("seq-1.lab.example").is_ok());
    }
}
