//! Topic names, topic filters and pipeline names (MQTT 5.0, section 4.7).

use std::collections::HashSet;
use std::fmt;

use crate::model::filter_index::FilterIndex;
use crate::model::near::nearest;
use crate::model::text::printable;

/// Maximum length of a topic name or filter, bytes (MQTT 5.0, section 1.5.4).
pub const MAX_BYTES: usize = 65_535;

/// Maximum length of a pipeline name, bytes: it is a topic level and a folder name.
pub const MAX_WHO_BYTES: usize = 128;

/// Maximum number of levels of a topic name or filter: mosquitto takes more for a malformed packet, and ends the
/// connection (`TOPIC_HIERARCHY_LIMIT`).
pub const MAX_LEVELS: usize = 200;

/// First levels that begin with `$` and that every user of a broker may mean: shared subscriptions, and
/// what a broker tells about itself (MQTT 5.0, sections 4.8.2 and 4.7.2).
const BROKER_LEVELS: &[&str] = &["$share", "$SYS"];

/// Maximum length of a filter in a doubt, characters.
const MAX_DOUBTED: usize = 200;
/// Beginning of the filter of a shared subscription (MQTT 5.0, section 4.8.2).
const SHARED: &str = "$share/";

/// Maximum length of a root, bytes. Names, identifiers and ids follow it in topics.
pub const MAX_ROOT_BYTES: usize = 32_768;

/// Maximum number of levels of a root; up to eight follow it.
pub const MAX_ROOT_LEVELS: usize = MAX_LEVELS - 8;

/// Default root of pipelines and tools.
pub const DEFAULT_ROOT: &str = "tael";

fn check_utf8_string(text: &str, what: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err(format!("{what} is empty"));
    }
    if text.len() > MAX_BYTES {
        return Err(format!("{what} is longer than {MAX_BYTES} bytes"));
    }
    if text.contains('\0') {
        return Err(format!("{what} contains a NUL character"));
    }
    if text.contains(is_unsent) {
        return Err(format!(
            "{what} contains a control character or a code point that is no character: brokers end the \
             connection for it"
        ));
    }
    if text.split('/').nth(MAX_LEVELS).is_some() {
        return Err(format!(
            "{what} has more than {MAX_LEVELS} levels: brokers end the connection for it"
        ));
    }
    Ok(())
}

/// Returns whether a receiver may take a string with this code point for a malformed packet (MQTT 5.0,
/// section 1.5.4: control characters and non-characters), as mosquitto does.
fn is_unsent(c: char) -> bool {
    let code = u32::from(c);
    c.is_control() || (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
}

/// Checks a topic name for publishing.
///
/// # Errors
/// A text for the user, with the cause.
pub fn check_name(topic: &str) -> Result<(), String> {
    check_utf8_string(topic, "the topic")?;
    if topic.contains(['+', '#']) {
        return Err(format!(
            "topic '{topic}' has a wildcard (+ or #): a message goes to one topic"
        ));
    }
    if let Some(shared) = topic.strip_prefix(SHARED) {
        let name = shared.split_once('/').map(|(_, name)| name);
        let name = name.filter(|name| !name.is_empty()).unwrap_or("a topic");
        return Err(format!(
            "topic '{}' is a shared subscription, and a message goes to one topic: publish to {}",
            printable(topic, 200),
            printable(name, 200)
        ));
    }
    Ok(())
}

/// Checks the name of a pipeline: one topic level that is also a plain folder name.
///
/// # Errors
/// A text for the user, with the cause.
pub fn check_who(who: &str) -> Result<(), String> {
    if who.is_empty() || who.len() > MAX_WHO_BYTES {
        return Err(format!(
            "a pipeline's name has 1 to {MAX_WHO_BYTES} bytes, this has {}",
            who.len()
        ));
    }
    if who.starts_with('.') || who.contains(|c: char| "/+#".contains(c) || c.is_control()) {
        return Err(format!(
            "'{}' cannot name a pipeline: no /, +, #, control characters or leading dot",
            super::text::printable(who, 80)
        ));
    }
    Ok(())
}

/// Checks a root: a topic prefix of one or more levels.
///
/// # Errors
/// A text for the user, with the cause.
pub fn check_root(root: &str) -> Result<(), String> {
    check_name(root).map_err(|cause| format!("the root cannot be used: {cause}"))?;
    if root.len() > MAX_ROOT_BYTES || root.split('/').nth(MAX_ROOT_LEVELS).is_some() {
        return Err(format!(
            "the root cannot be used: it has more than {MAX_ROOT_BYTES} bytes or {MAX_ROOT_LEVELS} levels, and \
             the topics below it are longer"
        ));
    }
    if root.starts_with('$') || root.ends_with('/') {
        return Err(format!(
            "'{root}' cannot be the root: it starts with $ or ends with /"
        ));
    }
    Ok(())
}

/// A valid topic filter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Filter(String);

impl Filter {
    /// Checks `text` against the rules of MQTT 5.0, sections 4.7.1 and 4.8.2.
    ///
    /// # Errors
    /// A text for the user, with the cause.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        let text = text.into();
        check_utf8_string(&text, "the topic filter")?;
        let filter = match text.strip_prefix(SHARED) {
            None => text.as_str(),
            Some(shared) => match shared.split_once('/') {
                Some((group, filter))
                    if !group.is_empty() && !group.contains(['+', '#']) && !filter.is_empty() =>
                {
                    filter
                }
                _ => {
                    return Err(format!(
                        "'{text}' is not a shared subscription: write $share/GROUP/FILTER"
                    ));
                }
            },
        };
        let mut levels = filter.split('/').peekable();
        while let Some(level) = levels.next() {
            if level.contains('#') && (level != "#" || levels.peek().is_some()) {
                return Err(format!(
                    "topic filter '{text}' is wrong: # stands alone in the last level"
                ));
            }
            if level.contains('+') && level != "+" {
                return Err(format!(
                    "topic filter '{text}' is wrong: + stands alone in its level"
                ));
            }
        }
        Ok(Self(text))
    }

    /// Returns the filter as a SUBSCRIBE contains it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether it is a shared subscription, `$share/GROUP/…`.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.0.starts_with(SHARED)
    }

    /// Returns why topics that this filter matches are hardly meant; `None` if they may be.
    #[must_use]
    pub fn doubt(&self) -> Option<String> {
        let text = printable(&self.0, MAX_DOUBTED);
        if let Some(rest) = self.0.strip_prefix('/') {
            let plain = printable(rest, MAX_DOUBTED);
            let share = match rest.split_once('/') {
                Some((group, _)) if !group.is_empty() && !group.contains(['+', '#']) => {
                    "; was it $share in double quotes? write single quotes: the shell replaces $share"
                }
                _ => "",
            };
            return Some(format!(
                "filter '{text}' begins with / and does not match topics such as '{plain}'{share}"
            ));
        }
        let first = self
            .0
            .split('/')
            .next()
            .filter(|level| level.starts_with('$'))?;
        if BROKER_LEVELS.contains(&first) {
            return None;
        }
        let hint = match nearest(first, BROKER_LEVELS.iter().copied()) {
            Some("$share") => "did you mean $share/GROUP/FILTER?".to_owned(),
            Some(near) => format!("did you mean {near}?"),
            None => {
                "$share/GROUP/FILTER shares messages, and $SYS/# is about the broker".to_owned()
            }
        };
        Some(format!(
            "filter '{text}' begins with $: such topics belong to the broker, and most have none; {hint}"
        ))
    }

    /// Returns the filter without its `$share/GROUP/`.
    #[must_use]
    pub fn unshared(&self) -> &str {
        self.0
            .strip_prefix(SHARED)
            .and_then(|shared| shared.split_once('/'))
            .map_or(&self.0, |(_, filter)| filter)
    }

    /// Returns whether this filter matches `topic`.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        let filter = self.unshared();
        // A filter that starts with a wildcard does not match $-topics (section 4.7.2).
        if topic.starts_with('$') && filter.starts_with(['+', '#']) {
            return false;
        }
        let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
        loop {
            match (filter.next(), topic.next()) {
                (Some("#"), _) | (None, None) => return true,
                (Some("+"), Some(_)) => {}
                (Some(wanted), Some(level)) if wanted == level => {}
                _ => return false,
            }
        }
    }

    /// Returns whether one level of `topic` is a slip of that of this filter ([`nearest`]), and the
    /// others match.
    #[must_use]
    pub fn nearly_matches(&self, topic: &str) -> bool {
        let (mut filter, mut topic) = (self.unshared().split('/'), topic.split('/'));
        let mut slips = 0;
        loop {
            match (filter.next(), topic.next()) {
                (Some("#"), _) | (None, None) => return slips == 1,
                (Some("+"), Some(_)) => {}
                (Some(wanted), Some(level)) if wanted == level => {}
                (Some(wanted), Some(level)) if nearest(wanted, [level]).is_some() => slips += 1,
                _ => return false,
            }
        }
    }

    /// Returns whether this filter matches every topic that `other` matches. A subscription to both
    /// would only bring messages twice.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        if self.is_shared() || other.is_shared() {
            return self == other;
        }
        if other.0.starts_with('$') && self.0.starts_with(['+', '#']) {
            return false;
        }
        let (mut wide, mut narrow) = (self.0.split('/'), other.0.split('/'));
        loop {
            match (wide.next(), narrow.next()) {
                (Some("#"), _) | (None, None) => return true,
                (Some("+"), Some(level)) if level != "#" => {}
                (Some(wanted), Some(level)) if wanted == level && level != "+" => {}
                _ => return false,
            }
        }
    }

    /// Returns the first level, if it is a plain name: the default root of a client.
    #[must_use]
    pub fn first_level(&self) -> Option<&str> {
        let first = self.unshared().split('/').next().unwrap_or_default();
        (!first.is_empty() && !first.starts_with('$') && !first.contains(['+', '#']))
            .then_some(first)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns `filters` without those that another one covers.
#[must_use]
pub fn minimal(filters: &[Filter]) -> Vec<Filter> {
    let mut seen = HashSet::new();
    let different: Vec<&Filter> = filters.iter().filter(|f| seen.insert(*f)).collect();
    let index = index(different.iter().copied());
    let kept = different
        .into_iter()
        .enumerate()
        .filter(|(place, filter)| filter.is_shared() || !index.is_covered(filter.as_str(), *place));
    kept.map(|(_, filter)| filter.clone()).collect()
}

/// Returns those of `filters`, all different, that match a topic which another one matches too. The
/// broker may deliver such a message once for each filter.
#[must_use]
pub fn overlapping(filters: &[Filter]) -> HashSet<Filter> {
    let index = index(filters.iter());
    let overlapping = filters.iter().enumerate().filter(|(place, filter)| {
        !filter.is_shared() && index.is_overlapped(filter.as_str(), *place)
    });
    overlapping.map(|(_, filter)| filter.clone()).collect()
}

/// Indexes `filters` by what they match; shared subscriptions stay separate.
fn index<'a>(filters: impl Iterator<Item = &'a Filter>) -> FilterIndex {
    let mut index = FilterIndex::default();
    for (place, filter) in filters.enumerate() {
        if !filter.is_shared() {
            index.insert(filter.as_str(), place);
        }
    }
    index
}

/// Returns the pipeline whose statuses are published on `topic`, if it is such a topic.
#[must_use]
pub fn pipeline_of_status(topic: &str) -> Option<&str> {
    let (before, who) = topic.strip_suffix("/status")?.rsplit_once('/')?;
    before.ends_with("/infrastructure/pipelines").then_some(who)
}

/// The topics of one pipeline, `<root>/infrastructure/pipelines/<who>/…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PipelineTopics {
    prefix: String,
}

impl PipelineTopics {
    /// Returns the topics of pipeline `who` under `root`; both were checked.
    #[must_use]
    pub fn new(root: &str, who: &str) -> Self {
        Self {
            prefix: format!("{root}/infrastructure/pipelines/{who}"),
        }
    }

    /// Returns whether `topic` is one of the pipeline.
    #[must_use]
    pub fn own(&self, topic: &str) -> bool {
        let rest = topic.strip_prefix(&self.prefix);
        rest.is_some_and(|rest| rest.starts_with('/'))
    }

    /// Returns the topic on which the pipeline publishes the statuses of its runs.
    #[must_use]
    pub fn status(&self) -> String {
        format!("{}/status", self.prefix)
    }

    /// Returns the topic on which the pipeline receives requests.
    #[must_use]
    pub fn control(&self) -> String {
        format!("{}/control", self.prefix)
    }

    /// Returns the topic on which the pipeline receives requests for work.
    #[must_use]
    pub fn work(&self) -> String {
        format!("{}/work", self.prefix)
    }

    /// Returns the topic of its retained presence.
    #[must_use]
    pub fn presence(&self) -> String {
        format!("{}/presence", self.prefix)
    }

    /// Returns the topic of its retained last end.
    #[must_use]
    pub fn last(&self) -> String {
        format!("{}/last", self.prefix)
    }

    /// Returns the topic on which the requester `id` waits for the answer.
    #[must_use]
    pub fn reply(&self, id: &str) -> String {
        format!("{}/reply/{id}", self.prefix)
    }
}

/// A topic of a pipeline, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PipelineTopic<'a> {
    /// The root.
    pub root: &'a str,
    /// Name of the pipeline.
    pub who: &'a str,
    /// What follows: `status`, `presence`, `last`, `control`, or `reply/<id>`.
    pub name: &'a str,
}

impl<'a> PipelineTopic<'a> {
    /// Takes a topic apart; `None` if it is not one of a pipeline.
    #[must_use]
    pub fn parse(topic: &'a str) -> Option<Self> {
        let (root, rest) = topic.split_once("/infrastructure/pipelines/")?;
        let (who, name) = rest.split_once('/')?;
        Some(Self { root, who, name })
    }

    /// Returns whether it is the topic of the answer to a request, as [`PipelineTopics::reply`] has it.
    #[must_use]
    pub fn is_reply(&self) -> bool {
        self.name.starts_with("reply/")
    }

    /// Returns it as people read it, printable: `lab/…/align/status`.
    #[must_use]
    pub fn short(&self) -> String {
        let Self { root, who, name } = self;
        printable(&format!("{root}/…/{who}/{name}"), 200)
    }
}

/// Returns filters for the presence and the last end of every pipeline under `root`.
#[must_use]
pub fn all_pipelines(root: &str) -> [String; 2] {
    ["presence", "last"].map(|name| format!("{root}/infrastructure/pipelines/+/{name}"))
}

/// Returns the topic of the retained last beat: beside `topic` itself.
#[must_use]
pub fn last_beat(topic: &str) -> String {
    let parent = topic.rsplit_once('/').map_or("", |(parent, _)| parent);
    let slash = if topic.contains('/') { "/" } else { "" };
    format!("{parent}{slash}last")
}

/// Returns the topic of the beacon under `root`.
#[must_use]
pub fn beacon(root: &str) -> String {
    format!("{root}/test/beacon/status")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_that_are_hardly_meant_are_doubted() {
        let doubt = |text: &str| Filter::new(text).expect("filter").doubt();
        for right in [
            "lab/#",
            "#",
            "+/a",
            "$share/g/lab/#",
            "$SYS/broker/#",
            "lab//x",
        ] {
            assert_eq!(doubt(right), None, "{right}");
        }
        for (wrong, cause, quotes) in [
            ("/g/lab/seq", "such as 'g/lab/seq'", true),
            ("/lab", "such as 'lab'", false),
            ("/#", "begins with /", false),
            ("/+/lab", "begins with /", false),
            ("$shared/g/lab", "did you mean $share/GROUP/FILTER?", false),
            ("$sys/broker", "did you mean $SYS?", false),
            ("$queue/lab", "belong to the broker", false),
        ] {
            let doubt = doubt(wrong).expect(wrong);
            assert!(doubt.contains(cause), "{wrong}: {doubt}");
            assert_eq!(doubt.contains("double quotes"), quotes, "{wrong}: {doubt}");
        }
    }
    use proptest::prelude::*;

    fn filter(text: &str) -> Filter {
        Filter::new(text).expect(text)
    }

    #[test]
    fn no_broker_ends_the_connection_for_a_topic() {
        let levels = |count: usize| vec!["x"; count].join("/");
        for good in [
            "lab/\u{e000}/\u{fdcf}",
            "lab/\u{feff}\u{10fffd}",
            &levels(MAX_LEVELS),
        ] {
            assert_eq!(check_name(good), Ok(()));
            assert!(Filter::new(good.to_owned()).is_ok());
        }
        let more = levels(MAX_LEVELS + 1);
        for wrong in [
            "",
            "\0",
            "a\u{1}",
            "a\n",
            "a\u{7f}",
            "\u{9f}",
            "\u{fdd0}",
            "\u{fdef}",
            "\u{fffe}",
            "\u{ffff}",
            "\u{1ffff}",
            "\u{10fffe}",
            &more,
        ] {
            assert!(check_name(wrong).is_err(), "{wrong:?}");
            assert!(Filter::new(wrong.to_owned()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_examples_of_the_standard() {
        // MQTT 5.0, sections 4.7.1.2, 4.7.1.3 and 4.7.2.
        for (f, topic, want) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            (
                "sport/tennis/player1/#",
                "sport/tennis/player1/ranking",
                true,
            ),
            (
                "sport/tennis/player1/#",
                "sport/tennis/player1/score/wimbledon",
                true,
            ),
            ("sport/#", "sport", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/uptime", false),
            ("+/monitor/Clients", "$SYS/monitor/Clients", false),
            ("$SYS/#", "$SYS/uptime", true),
            ("$share/g/a/+", "a/b", true),
        ] {
            assert_eq!(filter(f).matches(topic), want, "{f} on {topic}");
        }
        for bad in [
            "",
            "a#",
            "sport/tennis#",
            "sport/tennis/#/ranking",
            "sport+",
            "a/+b/c",
            "a\0b",
            "$share/g",
            "$share//a",
            "$share/+/a",
        ] {
            assert!(Filter::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn one_of_two_overlapping_filters_is_enough() {
        let all = [
            "lab/a/status",
            "lab/+/status",
            "lab/#",
            "x/y",
            "$SYS/#",
            "#",
        ];
        let kept = |list: &[&str]| {
            minimal(&list.iter().map(|f| filter(f)).collect::<Vec<_>>())
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(kept(&all[..2]), ["lab/+/status"]);
        assert_eq!(kept(&all[..4]), ["lab/#", "x/y"]);
        assert_eq!(kept(&all), ["$SYS/#", "#"]);
        assert_eq!(kept(&["a/b", "a/b"]), ["a/b"]);
    }

    #[test]
    fn names_that_are_refused() {
        for who in ["", ".", "..", ".hidden", "a/b", "a+", "#", "a\nb"] {
            assert!(check_who(who).is_err(), "{who:?}");
        }
        assert!(check_who("seq-1.b αβ").is_ok());
        assert!(check_name("lab/+/status").is_err());
        for (topic, named) in [
            ("$share/pool/lab/tasks", "publish to lab/tasks"),
            ("$share/pool/", "publish to a topic"),
            ("$share/", "publish to a topic"),
        ] {
            let refused = check_name(topic).expect_err(topic);
            assert!(refused.ends_with(named), "{refused}");
        }
        assert_eq!(check_name("$SYS/x"), Ok(()));
        assert_eq!(check_name("lab/$share/x"), Ok(()));
        assert!(check_root("lab/").is_err() && check_root("lab/berlin").is_ok());
        let deep = |levels: usize| vec!["x"; levels].join("/");
        for (root, is_good) in [
            ("x".repeat(MAX_ROOT_BYTES), true),
            ("x".repeat(MAX_ROOT_BYTES + 1), false),
            (deep(MAX_ROOT_LEVELS), true),
            (deep(MAX_ROOT_LEVELS + 1), false),
        ] {
            assert_eq!(check_root(&root).is_ok(), is_good, "{}", root.len());
        }
    }

    /// The matching rules of section 4.7 again, by recursion on the levels.
    fn by_the_book(filter: &[&str], topic: &[&str]) -> bool {
        match (filter, topic) {
            ([], []) | (["#"], _) => true,
            ([f, filter @ ..], [t, topic @ ..]) => {
                (*f == "+" || f == t) && by_the_book(filter, topic)
            }
            _ => false,
        }
    }

    fn levels(wild: &'static str) -> impl Strategy<Value = String> {
        proptest::collection::vec(proptest::string::string_regex(wild).expect("pattern"), 1..5)
            .prop_map(|levels| levels.join("/"))
    }

    proptest! {
        #[test]
        fn matching_follows_the_rules(f in levels("[ab]?|[+]|#"), t in levels("[$ab]?")) {
            prop_assume!(!t.is_empty());
            if let Ok(filter) = Filter::new(f.clone()) {
                let dollar = t.starts_with('$') && f.starts_with(['+', '#']);
                let want = !dollar
                    && by_the_book(&f.split('/').collect::<Vec<_>>(), &t.split('/').collect::<Vec<_>>());
                prop_assert_eq!(filter.matches(&t), want);
            }
        }

        #[test]
        fn what_is_covered_is_matched(
            wide in levels("[ab]?|[+]|#"), narrow in levels("[ab]?|[+]|#"), t in levels("[$ab]?"),
        ) {
            if let (Ok(wide), Ok(narrow)) = (Filter::new(wide), Filter::new(narrow))
                && wide.covers(&narrow) && narrow.matches(&t) {
                    prop_assert!(wide.matches(&t));
                }
        }

        #[test]
        fn any_text_is_judged_without_panic(text in any::<String>()) {
            let _ = (Filter::new(text.clone()), check_name(&text), check_who(&text), check_root(&text));
        }
    }
}
