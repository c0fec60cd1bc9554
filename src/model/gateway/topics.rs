//! Topics that callers may publish to.

use crate::model::text::printable;
use crate::model::topic::{self, Filter};

/// Maximum number of characters of a topic in an error.
const SHOWN: usize = 100;

/// Why a topic is no topic for a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is no topic name: a text for the caller.
    Wrong(String),
    /// It is none of those that are allowed: a text for the caller.
    Forbidden(String),
}

/// Topics that callers may publish to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    filters: Vec<Filter>,
    root: String,
    /// Start of Tael's own topics, which a filter must name to allow them.
    own: String,
}

impl Topics {
    /// Allows what one of `filters` matches; without any, what is below `root`, which was checked.
    /// Topics of pipelines, nodes and tools below `<root>/infrastructure` need a filter that begins
    /// so.
    ///
    /// # Errors
    /// A text for the user about a filter that is wrong.
    pub fn new(root: &str, filters: &[String]) -> Result<Self, String> {
        let parse = |text: &String| {
            let filter = Filter::new(text.clone())?;
            match filter.is_shared() || text.starts_with('$') {
                true => Err(format!("'{text}' matches no topic that callers may use")),
                false => Ok(filter),
            }
        };
        let usual = [format!("{root}/#")];
        let given = if filters.is_empty() { &usual } else { filters };
        Ok(Self {
            filters: given.iter().map(parse).collect::<Result<_, _>>()?,
            root: root.to_owned(),
            own: format!("{root}/infrastructure"),
        })
    }

    /// Checks that callers may publish to `topic`.
    ///
    /// # Errors
    /// When they may not.
    pub fn check(&self, topic: &str) -> Result<(), Refusal> {
        topic::check_name(topic).map_err(Refusal::Wrong)?;
        // No filter here begins with $, and wildcards do not match such topics.
        match self.is_named(topic) {
            true => Ok(()),
            false => Err(Refusal::Forbidden(format!(
                "'{}' is not below a topic that the gateway allows",
                printable(topic, SHOWN)
            ))),
        }
    }

    /// Checks that a route may lead to `topic`, a topic name. The operator has chosen it, so it may be
    /// anywhere, except among Tael's own topics: these control clients, and need a filter that names them.
    ///
    /// # Errors
    /// A text for the user.
    pub fn check_route(&self, topic: &str) -> Result<(), String> {
        if topic.contains(char::is_control) {
            return Err("the topic contains a control character".to_owned());
        }
        match !is_below(&self.own, topic) || self.is_named(topic) {
            true => Ok(()),
            false => Err(format!(
                "'{}' is a topic of Tael's own, where messages control clients: only an --allow that \
                 names it permits that",
                printable(topic, SHOWN)
            )),
        }
    }

    /// Returns whether `topic` is below the root, or a filter names it that is not the usual one.
    #[must_use]
    pub fn is_expected(&self, topic: &str) -> bool {
        is_below(&self.root, topic) || self.is_named(topic)
    }

    /// Returns whether a filter matches `topic`. Those for Tael's own topics begin so.
    fn is_named(&self, topic: &str) -> bool {
        let is_own = |text: &str| is_below(&self.own, text);
        let may = |filter: &&Filter| !is_own(topic) || is_own(filter.as_str());
        let mut allowed = self.filters.iter().filter(may);
        allowed.any(|filter| filter.matches(topic))
    }
}

/// Returns whether `text` is `start` or below it.
fn is_below(start: &str, text: &str) -> bool {
    let rest = text.strip_prefix(start);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn topics(filters: &[&str]) -> Topics {
        let filters: Vec<String> = filters.iter().map(|f| (*f).to_owned()).collect();
        Topics::new("lab/a", &filters).expect("filters")
    }

    #[track_caller]
    fn forbids(topics: &Topics, list: &[&str]) {
        for topic in list {
            let refused = topics.check(topic);
            assert!(
                matches!(refused, Err(Refusal::Forbidden(_))),
                "{topic}: {refused:?}"
            );
        }
    }

    #[test]
    fn by_default_what_is_below_the_root() {
        let topics = topics(&[]);
        for topic in [
            "lab/a/seq/status",
            "lab/a",
            "lab/a/infrastructures/x",
            "lab/a/ä",
        ] {
            assert_eq!(topics.check(topic), Ok(()), "{topic}");
        }
        let own = "lab/a/infrastructure/pipelines/x/control";
        forbids(
            &topics,
            &[
                "lab/b",
                "lab",
                "$SYS/x",
                own,
                "lab/a/infrastructure",
                "/lab/a",
            ],
        );
        for wrong in [
            "",
            "lab/a/#",
            "lab/+/b",
            "lab/a/\0",
            "lab/a/\n",
            "lab/a/\u{85}",
        ] {
            let refused = topics.check(wrong);
            assert!(
                matches!(refused, Err(Refusal::Wrong(_))),
                "{wrong}: {refused:?}"
            );
        }
    }

    #[test]
    fn own_topics_need_a_filter_of_their_own() {
        let own = "lab/a/infrastructure/pipelines/x/control";
        forbids(&topics(&["#"]), &[own, "$SYS/x"]);
        forbids(&topics(&["lab/+/infrastructure/#", "+/+/+/#"]), &[own]);
        let control = topics(&["lab/a/infrastructure/pipelines/+/control"]);
        assert_eq!(control.check(own), Ok(()));
        forbids(
            &control,
            &[
                "lab/a/seq/status",
                "lab/a/infrastructure/pipelines/x/status",
            ],
        );
        assert_eq!(topics(&["#"]).check("any/thing"), Ok(()));
        for wrong in ["$SYS/#", "$share/g/lab/#", "a/#/b", ""] {
            assert!(Topics::new("lab", &[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_route_leads_anywhere_but_to_our_own_topics() {
        let own = "lab/a/infrastructure/pipelines/x/control";
        let named = topics(&["lab/a/infrastructure/pipelines/+/control", "other/#"]);
        for allow in [topics(&[]), topics(&["#"]), topics(&["lab/a/seq/#"])] {
            for topic in ["lab/a/x", "other", "/lab/a", "lab/a/infrastructures"] {
                assert_eq!(allow.check_route(topic), Ok(()), "{topic}");
            }
            for topic in [own, "lab/a/infrastructure", "lab/a/x\n"] {
                assert!(allow.check_route(topic).is_err(), "{topic}");
            }
        }
        assert_eq!(named.check_route(own), Ok(()));
        let retry = "lab/a/infrastructure/pipelines/x/status";
        assert!(named.check_route(retry).is_err());
        for (topic, is_expected) in [
            ("lab/a", true),
            ("lab/a/x", true),
            ("lab/ab", false),
            ("/lab/a/x", false),
            ("other/x", false),
        ] {
            assert_eq!(topics(&[]).is_expected(topic), is_expected, "{topic}");
        }
        assert!(named.is_expected("other/x") && !named.is_expected("/other/x"));
    }

    proptest! {
        #[test]
        fn no_filter_of_wildcards_opens_what_is_not_of_callers(
            filter in "(\\+|lab|a|x)(/(\\+|lab|a|x|infra)){0,4}(/#)?",
            rest in "[a-z/]{0,10}",
        ) {
            let topics = topics(&[&filter]);
            let own = format!("lab/a/infrastructure/{rest}");
            prop_assert!(topics.check(&own).is_err());
            let system = format!("$SYS/{rest}");
            prop_assert!(topics.check(&system).is_err());
        }
    }
}
