//! What is told of the facts that were gathered: nothing that may be secret, nothing that the
//! operator hides, and nothing beyond the bounds.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::model::facts::kind::Kind;
use crate::model::facts::tree::{Facts, dotted, sorted};
use crate::model::near::nearest;
use crate::model::text::printable;

/// Maximum length of the dotted name of a fact, bytes.
pub const MAX_NAME: usize = 256;

/// Maximum size of a value as JSON, bytes; also that of a whole array.
pub const MAX_VALUE: usize = 4 * 1024;

/// Maximum number of values of a kind. Each element of an array counts, and so does an empty one.
pub const MAX_VALUES: usize = 1_000;

/// Maximum number of names in a dotted name; arrays count too.
pub const MAX_DEPTH: usize = 8;

/// Maximum size of the facts of a kind as JSON, bytes. With the rest of its message, it has 64 KiB at
/// most.
pub const MAX_FACTS: usize = 63 * 1024;

/// Maximum size of the message of a kind, bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Words in a name that may mean a secret; `key` too ([`NO_KEYS`]).
const SECRET: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "pwd",
    "secret",
    "token",
    "credential",
];

/// Words with `key` in them that are no secrets, if they are a whole word of a name.
const NO_KEYS: &[&str] = &["keyboard", "keymap", "monkey"];

/// Maximum number of characters of a name in a list of what was left out.
const MAX_SHOWN: usize = 120;

/// What the operator says about the facts to tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Patterns of facts to leave out.
    pub hide: Vec<String>,
    /// Patterns of facts to tell although their names look secret.
    pub allow: Vec<String>,
}

impl Rules {
    fn hides(&self, name: &str) -> bool {
        self.hide.iter().any(|pattern| matches(pattern, name))
    }

    /// Checks that each pattern can match a fact: names of facts begin with their kind.
    ///
    /// # Errors
    /// A text for the user, about the first that cannot.
    pub fn check(&self) -> Result<(), String> {
        let hide = self.hide.iter().map(|pattern| ("hide", pattern));
        let all = hide.chain(self.allow.iter().map(|pattern| ("allow", pattern)));
        for (option, pattern) in all {
            if !Kind::ALL.iter().any(|kind| may_match(pattern, *kind)) {
                return Err(format!(
                    "--{option} '{}' matches no fact: names begin with a kind ({}), such as '{}'",
                    printable(pattern, MAX_SHOWN),
                    Kind::NAMES.join(", "),
                    printable(&meant(pattern), MAX_SHOWN),
                ));
            }
        }
        Ok(())
    }

    /// Returns the patterns of facts to leave out that match none of `kinds`, although they may match
    /// facts of these kinds.
    #[must_use]
    pub fn idle(&self, kinds: &BTreeMap<Kind, Facts>) -> Vec<&str> {
        let hide = self.hide.iter().map(String::as_str);
        let mut idle: Vec<&str> = hide
            .filter(|pattern| kinds.keys().any(|kind| may_match(pattern, *kind)))
            .collect();
        for (kind, facts) in kinds {
            keep_idle(&mut idle, kind.name(), facts);
        }
        idle
    }

    fn allows(&self, name: &str) -> bool {
        self.allow.iter().any(|pattern| matches(pattern, name))
    }
}

/// Returns whether `pattern` may match the name of a fact of `kind`.
fn may_match(pattern: &str, kind: Kind) -> bool {
    let literal = pattern.split('*').next().unwrap_or_default();
    let start = format!("{}.", kind.name());
    let is_long = literal.len() < pattern.len() || literal.chars().count() > start.len();
    let mut pairs = literal.chars().zip(start.chars());
    is_long && pairs.all(|(p, c)| p == '?' || p == c)
}

/// Returns what may have been meant by a `pattern` that begins with no kind.
fn meant(pattern: &str) -> String {
    let (first, rest) = pattern.split_once('.').unwrap_or((pattern, ""));
    let is_kind = Kind::NAMES.contains(&first);
    let near = nearest(first, Kind::NAMES.iter().copied());
    match near.filter(|_| !is_kind) {
        Some(near) if rest.is_empty() => format!("{near}.*"),
        Some(near) => format!("{near}.{rest}"),
        None if is_kind => format!("{first}.*"),
        None if pattern.is_empty() => format!("{}.*", Kind::Static.name()),
        None => format!("{}.{pattern}", Kind::Static.name()),
    }
}

/// Keeps those of `idle` that match nothing of `facts`, which are below `before`.
fn keep_idle(idle: &mut Vec<&str>, before: &str, facts: &Facts) {
    for (name, value) in facts {
        if idle.is_empty() {
            return;
        }
        let full = dotted(before, name);
        idle.retain(|pattern| !matches(pattern, &full));
        keep_idle_value(idle, &full, value);
    }
}

fn keep_idle_value(idle: &mut Vec<&str>, full: &str, value: &Value) {
    match value {
        Value::Object(below) => keep_idle(idle, full, below),
        Value::Array(list) => {
            for value in list {
                keep_idle_value(idle, full, value);
            }
        }
        _ => {}
    }
}

/// Returns whether a name looks like that of a secret.
fn looks_secret(name: &str) -> bool {
    let lower = name.to_lowercase();
    let words = lower.split(|c: char| !c.is_alphanumeric());
    let has_key = |word: &str| word.contains("key") && !NO_KEYS.contains(&word);
    words.into_iter().any(has_key) || SECRET.iter().any(|word| lower.contains(word))
}

/// Facts within the bounds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bounded {
    /// The facts, in order.
    pub facts: Facts,
    /// What was beyond a bound: `static/raid.disks`, and why.
    pub failed: Vec<(String, String)>,
    /// What was left out because its name looks secret: `static.raid.key`.
    pub secret: Vec<String>,
}

/// Returns those of `facts`, of `kind`, that may be told.
#[must_use]
pub fn bound(kind: Kind, facts: Facts, rules: &Rules) -> Bounded {
    let mut walk = Walk {
        kind,
        rules,
        values: 0,
        bounded: Bounded::default(),
    };
    let mut facts = walk.object("", sorted(facts), 1, false);
    let mut size = text_size(&facts);
    while size > MAX_FACTS {
        let largest = facts
            .iter()
            .max_by_key(|(_, value)| value.to_string().len());
        let Some(name) = largest.map(|(name, _)| name.clone()) else {
            break;
        };
        facts.shift_remove(&name);
        walk.fail(&name, "the facts of this kind are too large with it");
        size = text_size(&facts);
    }
    walk.bounded.facts = facts;
    walk.bounded
}

fn text_size(facts: &Facts) -> usize {
    serde_json::to_string(facts).map_or(0, |text| text.len())
}

struct Walk<'a> {
    kind: Kind,
    rules: &'a Rules,
    values: usize,
    bounded: Bounded,
}

impl Walk<'_> {
    fn fail(&mut self, name: &str, why: &str) {
        let name = printable(name, MAX_SHOWN);
        let name = format!("{}/{name}", self.kind.name());
        self.bounded.failed.push((name, why.to_owned()));
    }

    fn object(&mut self, before: &str, facts: Facts, depth: usize, allowed: bool) -> Facts {
        let mut kept = Facts::new();
        for (name, value) in facts {
            let dotted = dotted(before, &name);
            let full = dotted_in(self.kind, &dotted);
            if self.rules.hides(&full) {
                continue;
            }
            let allowed = allowed || self.rules.allows(&full);
            if !allowed && looks_secret(&name) {
                // One pattern may allow what is below it.
                if !self.allows_below(&full) || !value.is_object() {
                    self.bounded.secret.push(printable(&full, MAX_SHOWN));
                    continue;
                }
            }
            if dotted.len() > MAX_NAME {
                self.fail(&dotted, "its name is too long");
            } else if let Some(value) = self.value(&dotted, value, depth, allowed) {
                kept.insert(name, value);
            }
        }
        kept
    }

    /// Returns whether some pattern allows facts below `full`.
    fn allows_below(&self, full: &str) -> bool {
        let start = format!("{full}.");
        let patterns = self.rules.allow.iter();
        patterns.map(String::as_str).any(|p| p.starts_with(&start))
    }

    /// Returns what is kept of `value`; `None` if nothing is.
    fn value(&mut self, name: &str, value: Value, depth: usize, allowed: bool) -> Option<Value> {
        if depth > MAX_DEPTH {
            self.fail(name, "it is too deep");
            return None;
        }
        match value {
            Value::Object(below) => {
                let kept = self.object(name, below, depth + 1, allowed);
                (!kept.is_empty()).then_some(Value::Object(kept))
            }
            Value::Array(list) => {
                if Value::Array(list.clone()).to_string().len() > MAX_VALUE {
                    self.fail(name, "its value is too long");
                    return None;
                }
                let list = list.into_iter();
                let kept = list.filter_map(|value| self.value(name, value, depth + 1, allowed));
                let kept: Vec<Value> = kept.collect();
                if kept.is_empty() {
                    self.count(name)?;
                }
                Some(Value::Array(kept))
            }
            leaf => {
                if leaf.to_string().len() > MAX_VALUE {
                    self.fail(name, "its value is too long");
                    return None;
                }
                self.count(name)?;
                Some(leaf)
            }
        }
    }

    /// Counts a value; `None` if there are too many.
    fn count(&mut self, name: &str) -> Option<()> {
        self.values += 1;
        if self.values > MAX_VALUES {
            self.fail(name, "there are too many values");
            return None;
        }
        Some(())
    }
}

fn dotted_in(kind: Kind, name: &str) -> String {
    format!("{}.{name}", kind.name())
}

/// Returns whether `name` matches `pattern`, in which `*` stands for any characters and `?` for one.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // The last star, and how much of the name it has taken.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        let same = match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
                continue;
            }
            Some('?') => true,
            wanted => wanted == name.get(n),
        };
        if same {
            (p, n) = (p + 1, n + 1);
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            (p, n) = (at + 1, taken + 1);
        } else {
            return false;
        }
    }
    pattern.iter().skip(p).all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::facts::tree::leaves;
    use crate::model::facts::tree::tests::{facts, value};
    use proptest::prelude::*;
    use serde_json::json;

    fn bounded(value: Value, hide: &[&str], allow: &[&str]) -> Bounded {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        let rules = Rules {
            hide: texts(hide),
            allow: texts(allow),
        };
        bound(Kind::Static, facts(value), &rules)
    }

    fn failed(value: Value) -> Vec<String> {
        let failed = bounded(value, &[], &[]).failed;
        failed.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn secrets_are_left_out_unless_they_are_allowed() {
        let all = json!({"db": {"Password": "x", "name": "y"}, "list": [{"apiToken": 1, "n": 2}],
            "keyboard": "de", "host_keys": {"a": 1, "b": 2}});
        let found = bounded(all.clone(), &[], &["static.host_keys.a"]);
        let want = json!({"db": {"name": "y"}, "host_keys": {"a": 1, "b": 2}, "keyboard": "de", "list": [{"n": 2}]});
        assert_eq!(Value::Object(found.facts), want);
        assert_eq!(found.secret, ["static.db.Password", "static.list.apiToken"]);
        assert_eq!(found.failed, []);
        let found = bounded(all, &[], &[]);
        assert!(!found.facts.contains_key("host_keys"));
    }

    #[test]
    fn words_with_key_are_secrets_unless_they_are_known() {
        for name in [
            "api_key",
            "apikey",
            "keys",
            "ssh-keys",
            "simonkey",
            "keyboard_key",
            "Key",
        ] {
            assert!(looks_secret(name), "{name}");
        }
        for name in ["keyboard", "keyboard.layout", "monkey_3", "Keymap"] {
            assert!(!looks_secret(name), "{name}");
        }
        assert!(looks_secret("keyboard_password"));
    }

    #[test]
    fn patterns_that_can_match_nothing_are_refused() {
        let check = |pattern: &str| {
            let hide = vec![pattern.to_owned()];
            let (hidden, allowed) = (
                Rules {
                    hide: hide.clone(),
                    allow: Vec::new(),
                }
                .check(),
                Rules {
                    hide: Vec::new(),
                    allow: hide,
                }
                .check(),
            );
            assert_eq!(hidden.is_ok(), allowed.is_ok(), "{pattern}");
            hidden
        };
        for good in [
            "static.interfaces.*",
            "static.*",
            "*",
            "*.disk.*",
            "stat*",
            "????ic.a",
            "st*.x",
            "state.a",
            "*ip*",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (wrong, meant) in [
            ("interfaces.*", "static.interfaces.*"),
            ("statik.interfaces.eth0", "static.interfaces.eth0"),
            ("static", "static.*"),
            ("state.", "state.*"),
            ("interface*", "static.interface*"),
            ("", "static.*"),
        ] {
            let error = check(wrong).expect_err(wrong);
            assert!(error.ends_with(&format!("such as '{meant}'")), "{error}");
        }
    }

    #[test]
    fn patterns_that_match_no_fact_are_found() {
        let rules = Rules {
            hide: [
                "static.a",
                "static.a.b",
                "static.l.n",
                "static.x.*",
                "state.y",
                "*.b",
                "*.z",
            ]
            .map(str::to_owned)
            .to_vec(),
            allow: Vec::new(),
        };
        let all = facts(json!({"a": {"b": 1}, "l": [{"n": 1}]}));
        let kinds = BTreeMap::from([(Kind::Static, all)]);
        // That of a kind that is not shared hides all there is.
        assert_eq!(rules.idle(&kinds), ["static.x.*", "*.z"]);
    }

    #[test]
    fn hidden_facts_are_left_out_with_what_is_below() {
        let all =
            json!({"interfaces": {"eth0": {"addresses": ["a"]}}, "disk": {"root": 1, "home": 2}});
        let found = bounded(
            all,
            &["static.interfaces.*", "static.disk.h*", "state.*"],
            &[],
        );
        assert_eq!(Value::Object(found.facts), json!({"disk": {"root": 1}}));
    }

    #[test]
    fn what_is_beyond_a_bound_is_named() {
        assert_eq!(
            failed(json!({"a": "x".repeat(MAX_VALUE), "b": 1})),
            ["static/a"]
        );
        let long = "n".repeat(MAX_NAME + 1);
        let shown = format!("static/{}…", "n".repeat(MAX_SHOWN));
        assert_eq!(failed(json!({long: 1, "b": 1})), [shown]);
        let deep = (0..MAX_DEPTH).fold(json!(1), |below, _| json!({"d": below}));
        assert_eq!(failed(deep.clone()), [""; 0]);
        assert_eq!(failed(json!({"d": deep})).len(), 1);
        let many: Vec<(String, Value)> = (0..MAX_VALUES + 3)
            .map(|n| (format!("{n:04}"), json!(n)))
            .collect();
        let found = bounded(Value::Object(many.into_iter().collect()), &[], &[]);
        assert_eq!((found.facts.len(), found.failed.len()), (MAX_VALUES, 3));
        let large: Vec<(String, Value)> = (0..20)
            .map(|n| (format!("{n:02}"), json!("x".repeat(4000))))
            .collect();
        let found = bounded(Value::Object(large.into_iter().collect()), &[], &[]);
        assert!(!found.failed.is_empty() && text_size(&found.facts) <= MAX_FACTS);
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, name, want) in [
            ("static.*", "static.a.b", true),
            ("static.?", "static.a", true),
            ("static.?", "static.ab", false),
            ("*.disk.*.size", "static.disk.root.size", true),
            ("*a*b", "xaxbxb", true),
            ("*a*b", "xaxbxc", false),
            ("", "", true),
            ("*", "", true),
            ("static", "static.a", false),
        ] {
            assert_eq!(matches(pattern, name), want, "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn what_is_told_is_within_the_bounds(value in value()) {
            let found = bounded(json!({"x": value}), &[], &[]);
            let leaves = leaves(&found.facts);
            prop_assert!(leaves.len() <= MAX_VALUES);
            for (name, leaf) in leaves {
                prop_assert!(name.len() <= MAX_NAME && leaf.to_string().len() <= MAX_VALUE);
            }
            prop_assert!(text_size(&found.facts) <= MAX_FACTS);
        }
    }
}
