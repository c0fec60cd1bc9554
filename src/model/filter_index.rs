//! An index of topic filters (MQTT 5.0, section 4.7). It finds the filters that match a topic,
//! cover a filter or overlap with it. The cost depends on the levels of the topic and on the number
//! of filters that share them, not on the number of all filters.

use std::collections::HashMap;

/// One level: the levels below it, and the values of the filters that end here.
#[derive(Debug, Clone, Default)]
struct Node {
    /// Places of the nodes below, by level; wildcards are among them.
    next: HashMap<Box<str>, usize>,
    values: Vec<usize>,
}

/// Values by topic filter.
#[derive(Debug, Clone)]
pub struct FilterIndex {
    /// All nodes, the root first. They are in a list, because a filter may have thousands of
    /// levels, and dropping a tree takes stack for each.
    nodes: Vec<Node>,
}

impl Default for FilterIndex {
    fn default() -> Self {
        Self {
            nodes: vec![Node::default()],
        }
    }
}

/// How to read the levels of the text that is looked up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// A topic: each level is a name.
    Topic,
    /// A filter: find what matches all of its topics.
    Cover,
    /// A filter: find what matches some of its topics.
    Overlap,
}

impl FilterIndex {
    /// Adds `value` for `filter`, which is valid and not shared.
    pub fn insert(&mut self, filter: &str, value: usize) {
        let mut at = 0;
        for level in filter.split('/') {
            at = match self.node(at).next.get(level) {
                Some(next) => *next,
                None => {
                    let new = self.nodes.len();
                    self.nodes.push(Node::default());
                    self.node_mut(at).next.insert(level.into(), new);
                    new
                }
            };
        }
        self.node_mut(at).values.push(value);
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "0 and the places in `next` are those of nodes, and no node is ever removed"
    )]
    fn node(&self, place: usize) -> &Node {
        &self.nodes[place]
    }

    #[expect(clippy::indexing_slicing, reason = "as for `node`")]
    fn node_mut(&mut self, place: usize) -> &mut Node {
        &mut self.nodes[place]
    }

    /// Returns the values of the filters that match `topic`, each once, in ascending order.
    #[must_use]
    pub fn matching(&self, topic: &str) -> Vec<usize> {
        let mut found = Vec::new();
        self.visit(topic, Look::Topic, |values| {
            found.extend(values);
            true
        });
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Returns whether a filter with another value than `own` matches all topics that `filter`
    /// matches.
    #[must_use]
    pub fn is_covered(&self, filter: &str, own: usize) -> bool {
        self.finds(filter, own, Look::Cover)
    }

    /// Returns whether a filter with another value than `own` matches a topic that `filter` matches.
    #[must_use]
    pub fn is_overlapped(&self, filter: &str, own: usize) -> bool {
        self.finds(filter, own, Look::Overlap)
    }

    fn finds(&self, filter: &str, own: usize, look: Look) -> bool {
        let mut other = false;
        self.visit(filter, look, |values| {
            other = values.iter().any(|value| *value != own);
            !other
        });
        other
    }

    /// Calls `found` with the values of each filter that is found, until it returns `false`.
    fn visit(&self, text: &str, look: Look, mut found: impl FnMut(&[usize]) -> bool) {
        // A filter that starts with a wildcard does not match $-topics (section 4.7.2).
        let (hidden, wild) = (text.starts_with('$'), text.starts_with(['+', '#']));
        // Nodes to visit, and the rest of the text there; `None` after its last level.
        let mut open: Vec<(usize, Option<&str>)> = vec![(0, Some(text))];
        while let Some((at, rest)) = open.pop() {
            let node = self.node(at);
            let first = at == 0;
            if let Some(all) = node.next.get("#")
                && !(first && hidden)
                && !found(&self.node(*all).values)
            {
                return;
            }
            let Some(rest) = rest else {
                if !found(&node.values) {
                    return;
                }
                continue;
            };
            let (level, rest) = match rest.split_once('/') {
                Some((level, rest)) => (level, Some(rest)),
                None => (rest, None),
            };
            match (look, level) {
                // Only "#" covers it, and that was handled above.
                (Look::Cover, "#") => continue,
                // Every filter that begins like this one matches some of its topics.
                (Look::Overlap, "#") => {
                    if !self.visit_below(at, first && wild, &mut found) {
                        return;
                    }
                    continue;
                }
                (Look::Overlap, "+") => {
                    let next = node.next.iter();
                    let seen = next
                        .filter(|(name, _)| &***name != "#" && !(first && name.starts_with('$')));
                    open.extend(seen.map(|(_, next)| (*next, rest)));
                    continue;
                }
                _ => {}
            }
            if let Some(any) = node.next.get("+")
                && !(first && hidden)
            {
                open.push((*any, rest));
            }
            if level != "+"
                && let Some(same) = node.next.get(level)
            {
                open.push((*same, rest));
            }
        }
    }

    /// Calls `found` for all filters at and below a node, until it returns `false`.
    fn visit_below(
        &self,
        at: usize,
        without_hidden: bool,
        found: &mut impl FnMut(&[usize]) -> bool,
    ) -> bool {
        let node = self.node(at);
        if !found(&node.values) {
            return false;
        }
        let next = node.next.iter();
        let mut open: Vec<usize> = next
            .filter(|(name, _)| !(without_hidden && name.starts_with('$')))
            .map(|(_, next)| *next)
            .collect();
        while let Some(at) = open.pop() {
            let node = self.node(at);
            if !found(&node.values) {
                return false;
            }
            open.extend(node.next.values());
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn levels(wild: &'static str) -> impl Strategy<Value = String> {
        let level = proptest::string::string_regex(wild).expect("pattern");
        proptest::collection::vec(level, 1..5).prop_map(|levels| levels.join("/"))
    }

    /// Valid filters, some of them equal.
    fn filters() -> impl Strategy<Value = Vec<String>> {
        let one = (levels("[$ab]?|[+]|[+]"), any::<bool>()).prop_map(|(mut filter, all)| {
            if all {
                filter.push_str("/#");
            }
            filter
        });
        let valid = one.prop_filter("empty", |filter| !filter.is_empty());
        proptest::collection::vec(prop_oneof![8 => valid, 1 => Just("#".to_owned())], 1..12)
    }

    fn index(filters: &[String]) -> FilterIndex {
        let mut index = FilterIndex::default();
        for (place, filter) in filters.iter().enumerate() {
            index.insert(filter, place);
        }
        index
    }

    /// The rules of section 4.7, by recursion on the levels; `+` and `#` in the second list are
    /// wildcards.
    fn matches(filter: &[&str], other: &[&str], look: Look) -> bool {
        match (filter, other) {
            ([], []) | (["#"], _) => true,
            (_, ["#"]) => look == Look::Overlap,
            ([f, filter @ ..], [o, other @ ..]) => {
                let level = match look {
                    Look::Topic | Look::Cover => *f == "+" || f == o,
                    Look::Overlap => *f == "+" || *o == "+" || f == o,
                };
                level && matches(filter, other, look)
            }
            _ => false,
        }
    }

    fn expected(filter: &str, other: &str, look: Look) -> bool {
        let wild = |text: &str| text.starts_with(['+', '#']);
        let hidden = (other.starts_with('$') && wild(filter))
            || (look == Look::Overlap && filter.starts_with('$') && wild(other));
        let split = |text| str::split(text, '/').collect::<Vec<_>>();
        !hidden && matches(&split(filter), &split(other), look)
    }

    proptest! {
        #[test]
        fn it_finds_what_a_look_at_each_filter_finds(
            filters in filters(), topic in levels("[$ab]?"),
        ) {
            let index = index(&filters);
            let all = 0..filters.len();
            let want: Vec<usize> = all
                .clone()
                .filter(|n| expected(&filters[*n], &topic, Look::Topic))
                .collect();
            prop_assert_eq!(index.matching(&topic), want);
            for own in all.clone() {
                let others = |look| {
                    all.clone().any(|n| n != own && expected(&filters[n], &filters[own], look))
                };
                prop_assert_eq!(
                    (index.is_covered(&filters[own], own), index.is_overlapped(&filters[own], own)),
                    (others(Look::Cover), others(Look::Overlap)),
                    "{}", filters[own]
                );
            }
        }
    }

    #[test]
    fn thousands_of_levels_take_no_stack() {
        let deep = vec!["+"; 30_000].join("/");
        let index = index(&[deep.clone(), format!("{deep}/#")]);
        let topic = vec!["a"; 30_000].join("/");
        assert_eq!(index.matching(&topic), [0, 1]);
        assert!(index.is_covered(&deep, 0));
    }
}
