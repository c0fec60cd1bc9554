//! Roots that the retained messages of a broker show, for commands without `--root`.

use std::collections::BTreeSet;

use crate::model::facts::kind::{NodeTopics, all_presences};
use crate::model::node;
use crate::model::text::printable;
use crate::model::topic::{self, PipelineTopics};

/// Roots of one level, two and three, as the beginning of a filter. Longer ones are not looked for.
const LEVELS: [&str; 3] = ["+", "+/+", "+/+/+"];

/// Maximum number of nodes and of pipelines of a playbook to look for.
const MAX_NAMES: usize = 4;

/// Maximum number of roots to name.
const MAX_NAMED: usize = 5;

/// What a root must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Any pipeline.
    Pipelines,
    /// A pipeline of this name.
    Pipeline(String),
    /// A beacon on its usual topic.
    Beacon,
    /// One of these nodes and pipelines of a playbook.
    Playbook {
        /// Names of nodes.
        nodes: Vec<String>,
        /// Names of pipelines.
        pipelines: Vec<String>,
    },
    /// One of these nodes that tell facts; any if there are none.
    Nodes(Vec<String>),
    /// Any node that tells facts, or any pipeline.
    NodesOrPipelines,
}

impl Content {
    /// Returns the filters of retained messages that show a root, each with its number of levels
    /// after the root.
    #[must_use]
    pub fn filters(&self) -> Vec<(String, usize)> {
        let below = |root: &str| -> Vec<String> {
            let presence = |who: &String| PipelineTopics::new(root, who).presence();
            match self {
                Self::Pipelines => vec![presence(&"+".to_owned())],
                Self::Pipeline(who) => vec![presence(who)],
                Self::Nodes(names) if names.is_empty() => vec![all_presences(root)],
                Self::Nodes(names) => {
                    let names = names.iter().take(MAX_NAMES);
                    names
                        .map(|name| NodeTopics::new(root, name).presence())
                        .collect()
                }
                Self::NodesOrPipelines => vec![all_presences(root), presence(&"+".to_owned())],
                Self::Beacon => vec![topic::last_beat(&topic::beacon(root))],
                Self::Playbook { nodes, pipelines } => {
                    let nodes = nodes.iter().take(MAX_NAMES);
                    let nodes = nodes.map(|name| node::status_topic(root, name));
                    nodes
                        .chain(pipelines.iter().take(MAX_NAMES).map(presence))
                        .collect()
                }
            }
        };
        let mut filters = Vec::new();
        for root in LEVELS {
            let own = levels(root);
            let list = below(root).into_iter();
            filters.extend(list.map(|filter| (levels(&filter) - own, filter)));
        }
        filters.into_iter().map(|(n, filter)| (filter, n)).collect()
    }

    /// Returns what is below a root, as the subject of a sentence with its verb.
    fn subject(&self) -> String {
        match self {
            Self::Pipelines => "pipelines are".to_owned(),
            Self::Pipeline(who) => format!("{} is", printable(who, 80)),
            Self::Beacon => "beacons are".to_owned(),
            Self::Nodes(names) => match names.first() {
                Some(name) => format!("{} is", printable(name, 80)),
                None => "nodes are".to_owned(),
            },
            Self::NodesOrPipelines => "nodes or pipelines are".to_owned(),
            Self::Playbook { .. } => "nodes or pipelines of the playbook are".to_owned(),
        }
    }

    /// Returns what to look for where this is below no root: any node, instead of one that is unknown.
    #[must_use]
    pub fn wider(&self) -> Option<Self> {
        match self {
            Self::Nodes(names) if !names.is_empty() => Some(Self::Nodes(Vec::new())),
            _ => None,
        }
    }

    /// Returns the root to use: the only one of `found`, or `None` if there is none.
    ///
    /// # Errors
    /// A text for the user if there are several.
    pub fn choose(&self, found: &BTreeSet<String>) -> Result<Option<String>, String> {
        match (found.len(), found.first()) {
            (0 | 1, first) => Ok(first.cloned()),
            _ => Err(format!(
                "{} below {}: choose one by --root",
                self.subject(),
                named(found)
            )),
        }
    }

    /// Returns a hint for a command that has found nothing below `root`, and where it is.
    #[must_use]
    pub fn hint(&self, root: &str, found: &BTreeSet<String>) -> Option<String> {
        let others: BTreeSet<String> = found.iter().filter(|r| *r != root).cloned().collect();
        let first = others.first()?;
        Some(match others.len() {
            1 => format!("{} below {}: --root {1}", self.subject(), shown(first)),
            _ => format!(
                "{} below {}: choose one by --root",
                self.subject(),
                named(&others)
            ),
        })
    }
}

/// Returns the number of levels of a topic or filter.
fn levels(topic: &str) -> usize {
    topic.split('/').count()
}

/// Returns the root of `topic`, which has `after` levels more; `None` if it is none that an option
/// may name.
#[must_use]
pub fn root_of(topic: &str, after: usize) -> Option<&str> {
    let mut root = topic;
    for _ in 0..after {
        root = root.rsplit_once('/')?.0;
    }
    topic::check_root(root).is_ok().then_some(root)
}

fn shown(root: &str) -> String {
    printable(root, 80)
}

/// Returns the names of roots, separated by commas.
fn named(roots: &BTreeSet<String>) -> String {
    let mut names: Vec<String> = roots.iter().take(MAX_NAMED).map(|r| shown(r)).collect();
    if let Some(more) = roots.len().checked_sub(MAX_NAMED).filter(|n| *n > 0) {
        names.push(format!("{more} more"));
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::topic::Filter;

    fn roots(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|root| (*root).to_owned()).collect()
    }

    #[test]
    fn filters_find_roots_of_one_to_three_levels() {
        let playbook = Content::Playbook {
            nodes: (0..9).map(|n| format!("n{n}")).collect(),
            pipelines: vec!["p".into()],
        };
        for (wanted, below) in [
            (Content::Pipelines, "infrastructure/pipelines/x/presence"),
            (
                Content::Pipeline("x".into()),
                "infrastructure/pipelines/x/presence",
            ),
            (Content::Beacon, "test/beacon/last"),
            (
                Content::Nodes(Vec::new()),
                "infrastructure/nodes/x/presence",
            ),
            (
                Content::Nodes(vec!["y".into(), "x".into()]),
                "infrastructure/nodes/x/presence",
            ),
            (
                Content::NodesOrPipelines,
                "infrastructure/pipelines/x/presence",
            ),
            (Content::NodesOrPipelines, "infrastructure/nodes/x/presence"),
            (playbook.clone(), "n0/STATUS"),
            (playbook.clone(), "infrastructure/pipelines/p/presence"),
        ] {
            for (root, is_found) in [
                ("a", true),
                ("a/b", true),
                ("a/b/c", true),
                ("a/b/c/d", false),
            ] {
                let topic = format!("{root}/{below}");
                let found = wanted.filters().into_iter().find_map(|(filter, after)| {
                    let filter = Filter::new(filter).expect("filter");
                    filter
                        .matches(&topic)
                        .then(|| root_of(&topic, after))
                        .flatten()
                });
                assert_eq!(found, is_found.then_some(root), "{topic}");
            }
        }
        assert_eq!(playbook.filters().len(), 3 * (MAX_NAMES + 1));
        assert_eq!(root_of("$SYS/test/beacon/last", 3), None);
        assert_eq!(root_of("/test", 3), None);
    }

    #[test]
    fn one_root_is_used_and_several_are_named() {
        let align = Content::Pipeline("align".into());
        let nodes = Content::Nodes(vec!["x".into()]).wider();
        assert_eq!(nodes, Some(Content::Nodes(Vec::new())));
        assert_eq!(
            (nodes.and_then(|any| any.wider()), align.wider()),
            (None, None)
        );
        assert_eq!(align.choose(&roots(&[])), Ok(None));
        assert_eq!(align.choose(&roots(&["lab"])), Ok(Some("lab".into())));
        let error = align.choose(&roots(&["lab", "test"])).expect_err("two");
        assert_eq!(error, "align is below lab, test: choose one by --root");
        assert_eq!(align.hint("lab", &roots(&["lab"])), None);
        let hint = align.hint("tael", &roots(&["lab"]));
        assert_eq!(hint.as_deref(), Some("align is below lab: --root lab"));
        let many = roots(&["a", "b", "c", "d", "e", "f", "x\u{1b}"]);
        let hint = Content::Pipelines.hint("a", &many).expect("others");
        assert_eq!(
            hint,
            "pipelines are below b, c, d, e, f, 1 more: choose one by --root"
        );
    }
}
