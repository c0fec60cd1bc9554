//! Facts as a node has told them: text that was checked. Trees of the facts of all nodes would take up to
//! seventy times the memory of the messages, and most of the time of a reader.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::model::facts::bounds::{MAX_DEPTH, MAX_MESSAGE, MAX_VALUES};
use crate::model::facts::kind::Kind;
use crate::model::facts::tree::{Facts, digest, digest_of, sorted};

/// Maximum depth of nested objects and arrays: an empty array can be below the last name.
const MAX_NESTING: usize = MAX_DEPTH + 1;

/// Name under which `serde_json` hands numbers to others; as the key of an object it would be taken for one.
const RESERVED: &str = "$serde_json::private";

/// Facts of a kind of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// When they last changed, seconds since 1970.
    pub ts: i64,
    /// A JSON object, on one line and without spaces, within the bounds of facts.
    text: Box<str>,
}

/// What the message of a kind has at least.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    node: Cow<'a, str>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    ts: i64,
    #[serde(rename = "facts")]
    _facts: IgnoredAny,
}

impl Told {
    /// Returns the facts of `kind` of `node` in a payload; `None` if they are none, or beyond what a node of
    /// ours tells: one that lies must not fill the memory of readers.
    #[must_use]
    pub fn parse(node: &str, kind: Kind, payload: &[u8]) -> Option<Self> {
        if payload.len() > MAX_MESSAGE {
            return None;
        }
        let text = str::from_utf8(payload).ok()?;
        let envelope: Envelope<'_> = serde_json::from_str(text).ok()?;
        if envelope.node != node || envelope.kind != kind.name() {
            return None;
        }
        let member = member(text, "\"facts\"")?;
        let is_object = member.text.starts_with('{');
        if !is_object || member.values > MAX_VALUES || member.depth > MAX_NESTING {
            return None;
        }
        let text = match member.is_plain {
            true => member.text.into(),
            false => {
                let facts: Facts = serde_json::from_str(member.text).ok()?;
                let text = serde_json::to_string(&sorted(facts)).ok()?;
                text.into_boxed_str()
            }
        };
        let ts = envelope.ts;
        Some(Self { ts, text })
    }

    /// Returns the facts as a JSON object, on one line.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the facts as a tree, with all names in order.
    #[must_use]
    pub fn facts(&self) -> Facts {
        let facts: Facts = serde_json::from_str(&self.text).unwrap_or_default();
        sorted(facts)
    }

    /// Returns whether `wanted` is the digest of the facts.
    #[must_use]
    pub fn has_digest(&self, wanted: &str) -> bool {
        // Our nodes tell them in order.
        digest_of(&self.text) == wanted || digest(&self.facts()) == wanted
    }
}

/// A member of an object, and its bounds.
struct Member<'a> {
    text: &'a str,
    /// Leaves, elements of arrays, and what is empty.
    values: usize,
    /// Objects and arrays in each other.
    depth: usize,
    /// Whether the text is what a tree of it would be printed as, except for the order of names.
    is_plain: bool,
}

/// Returns the member with the `key`, a whole string, of the JSON object `text`.
fn member<'a>(text: &'a str, key: &str) -> Option<Member<'a>> {
    let mut scan = Scan { text, at: 0 };
    scan.skip_space();
    scan.take(b'{')?;
    loop {
        scan.skip_space();
        let start = scan.at;
        scan.string()?;
        let is_wanted = text.get(start..scan.at)? == key;
        scan.skip_space();
        scan.take(b':')?;
        scan.skip_space();
        let member = scan.value()?;
        if is_wanted {
            return Some(member);
        }
        scan.skip_space();
        scan.take(b',')?;
    }
}

/// A walk over valid JSON.
struct Scan<'a> {
    text: &'a str,
    /// The next byte.
    at: usize,
}

impl<'a> Scan<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Skips a string.
    fn string(&mut self) -> Option<()> {
        self.take(b'"')?;
        loop {
            let byte = self.peek()?;
            self.at += 1;
            match byte {
                b'"' => return Some(()),
                // The next byte is no end, and the rest of an escape looks like text.
                b'\\' => self.at += 1,
                _ => {}
            }
        }
    }

    /// Skips a value, and returns it.
    fn value(&mut self) -> Option<Member<'a>> {
        let start = self.at;
        let (mut values, mut colons) = (0_usize, 0);
        let (mut depth, mut deepest) = (0_usize, 0);
        let mut has_space = false;
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                    values += 1;
                }
                b'{' | b'[' => {
                    self.at += 1;
                    depth += 1;
                    deepest = deepest.max(depth);
                    let before = self.at;
                    self.skip_space();
                    has_space |= self.at > before;
                    if matches!(self.peek()?, b'}' | b']') {
                        values += 1;
                    }
                    // Its end, or what is in it.
                    continue;
                }
                b'}' | b']' => {
                    self.at += 1;
                    depth = depth.checked_sub(1)?;
                }
                b',' => self.at += 1,
                b':' => {
                    self.at += 1;
                    colons += 1;
                }
                b' ' | b'\t' | b'\n' | b'\r' => {
                    self.skip_space();
                    has_space = true;
                }
                _ => {
                    while !matches!(
                        self.peek(),
                        None | Some(b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r')
                    ) {
                        self.at += 1;
                    }
                    values += 1;
                }
            }
            if depth == 0 {
                break;
            }
        }
        let text = self.text.get(start..self.at)?;
        Some(Member {
            text,
            // Keys are strings before a colon.
            values: values.checked_sub(colons)?,
            depth: deepest,
            // An escape may be one of no character, or of one that needs none.
            is_plain: !has_space && !text.contains("\\u") && !text.contains(RESERVED),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::facts::tree::tests::{facts, value};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn told(payload: &str) -> Option<Told> {
        Told::parse("a", Kind::State, payload.as_bytes())
    }

    fn of_facts(facts: &str) -> Option<Told> {
        told(&format!(
            r#"{{"node":"a","kind":"state","ts":5,"facts":{facts}}}"#
        ))
    }

    #[test]
    fn facts_are_taken_as_they_are() {
        let text = r#"{"a":{"b":[1,-2.50,{"c":null}]},"d":"x\"}\\","e":true}"#;
        let told = of_facts(text).expect("facts");
        assert_eq!((told.ts, told.text()), (5, text));
        assert_eq!(Value::Object(told.facts()).to_string(), text);
        assert!(told.has_digest(&digest(&told.facts())) && !told.has_digest("0123456789ab"));
    }

    #[test]
    fn facts_of_others_become_a_line() {
        let text = "{ \"b\" : [ ] ,\n\"a\":\"\\u00e9\\u0007\" }";
        let told = of_facts(text).expect("facts");
        assert_eq!(told.text(), r#"{"a":"é\u0007","b":[]}"#);
        assert!(told.has_digest(&digest(&told.facts())));
        // In another order they have the same digest.
        let other = of_facts(r#"{"b":1,"a":2}"#).expect("facts");
        assert!(other.has_digest(&digest(&facts(json!({"a": 2, "b": 1})))));
    }

    #[test]
    fn what_is_no_message_of_the_node_is_none() {
        for payload in [
            "",
            "{}",
            r#"["a","state",5,{}]"#,
            r#"{"node":"b","kind":"state","ts":5,"facts":{}}"#,
            r#"{"node":"a","kind":"static","ts":5,"facts":{}}"#,
            r#"{"node":"a","kind":"state","ts":5.5,"facts":{}}"#,
            r#"{"node":"a","kind":"state","ts":"5","facts":{}}"#,
            r#"{"node":"a","kind":"state","ts":5,"facts":[]}"#,
            r#"{"node":"a","kind":"state","ts":5,"facts":"{}"}"#,
            r#"{"node":"a","kind":"state","ts":5,"facts":{}} x"#,
            r#"{"node":"a","kind":"state","ts":5,"facts":{"a":"\ud800"}}"#,
            r#"{"node":"a","kind":"state","ts":5,"facts":{"a":{"$serde_json::private::Number":"x"}}}"#,
            r#"{"node":"a","kind":"state","ts":5,"facts":{"a":01}}"#,
        ] {
            assert_eq!(told(payload), None, "{payload}");
        }
        // An escaped name is one all the same, but none of ours.
        assert_eq!(
            told(r#"{"node":"a","kind":"state","ts":5,"f\u0061cts":{}}"#),
            None
        );
        let spaced = "\n{ \"ts\" : 5 , \"x\" : [ {} , 1 ] , \"kind\":\"state\",\"facts\" : {} ,\"node\":\"\\u0061\"}\n";
        assert!(told(spaced).is_some());
    }

    #[test]
    fn values_and_depth_are_bounded_in_arrays_too() {
        let list = |item: &str, count: usize| {
            let items = vec![item; count].join(",");
            of_facts(&format!("{{\"a\":[{items}]}}")).is_some()
        };
        for item in ["1", "[]", "{}", "\"\"", "null", "{\"a\":1}", "[[]]"] {
            assert!(list(item, MAX_VALUES), "{item}");
            assert!(!list(item, MAX_VALUES + 1), "{item}");
        }
        let nested = |depth: usize| {
            let (open, close) = ("[".repeat(depth - 1), "]".repeat(depth - 1));
            of_facts(&format!("{{\"a\":{open}{close}}}")).is_some()
        };
        assert!(nested(MAX_NESTING) && !nested(MAX_NESTING + 1) && !nested(20_000));
    }

    proptest! {
        #[test]
        fn any_facts_are_those_of_a_tree(value in value(), pretty in any::<bool>()) {
            let all = sorted(facts(json!({"x": value})));
            let text = match pretty {
                true => serde_json::to_string_pretty(&all),
                false => serde_json::to_string(&all),
            };
            if let Some(told) = of_facts(&text.expect("text")) {
                prop_assert_eq!(told.facts(), all.clone());
                prop_assert_eq!(told.text(), serde_json::to_string(&all).expect("text"));
                prop_assert!(told.has_digest(&digest(&all)));
            }
        }

        #[test]
        fn what_is_taken_can_be_read(text in "[\\[\\]{}\",:0-9a\\\\ue.+ $-]{0,24}") {
            if let Some(told) = of_facts(&format!("{{\"a\":{text}}}")) {
                let tree: Result<Facts, _> = serde_json::from_str(told.text());
                prop_assert!(tree.is_ok(), "{}", told.text());
            }
        }
    }
}
