//! Facts as a tree: JSON objects in objects. Everything else is a leaf, arrays too.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::model::digest::sha256;

/// Facts by name.
pub type Facts = Map<String, Value>;

/// Bytes of a digest that are shown, as two hexadecimal digits each.
const DIGEST_BYTES: usize = 6;

/// Merges `from` into `into`: objects level by level, everything else is replaced.
pub fn merge(into: &mut Facts, from: Facts) {
    for (name, value) in from {
        match (into.get_mut(&name), value) {
            (Some(Value::Object(below)), Value::Object(more)) => merge(below, more),
            (_, value) => {
                into.insert(name, value);
            }
        }
    }
}

/// Returns `facts` with the names of all objects in order, so that equal facts are equal texts.
#[must_use]
pub fn sorted(facts: Facts) -> Facts {
    // Those of our nodes are.
    if is_sorted(&facts) {
        return facts;
    }
    let mut pairs: Vec<(String, Value)> = facts.into_iter().collect();
    pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
    let pairs = pairs.into_iter();
    pairs
        .map(|(name, value)| (name, sorted_value(value)))
        .collect()
}

fn is_sorted(facts: &Facts) -> bool {
    facts.keys().is_sorted() && facts.values().all(is_sorted_value)
}

fn is_sorted_value(value: &Value) -> bool {
    match value {
        Value::Object(below) => is_sorted(below),
        Value::Array(list) => list.iter().all(is_sorted_value),
        _ => true,
    }
}

fn sorted_value(value: Value) -> Value {
    match value {
        Value::Object(below) => Value::Object(sorted(below)),
        Value::Array(list) => Value::Array(list.into_iter().map(sorted_value).collect()),
        other => other,
    }
}

/// Returns the first 12 hexadecimal digits of the SHA-256 of `facts`, which are [`sorted`].
#[must_use]
pub fn digest(facts: &Facts) -> String {
    digest_of(&serde_json::to_string(facts).unwrap_or_default())
}

/// Returns the digest of the facts that are this text.
#[must_use]
pub(super) fn digest_of(text: &str) -> String {
    let mut digest = String::with_capacity(2 * DIGEST_BYTES);
    for byte in sha256(text.as_bytes()).iter().take(DIGEST_BYTES) {
        let _ = write!(digest, "{byte:02x}");
    }
    digest
}

/// Returns the leaves of `facts` with their dotted names, in the order of the tree. An empty object
/// has none.
#[must_use]
pub fn leaves(facts: &Facts) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    collect("", facts, &mut found);
    found
}

fn collect<'a>(before: &str, facts: &'a Facts, found: &mut Vec<(String, &'a Value)>) {
    for (name, value) in facts {
        let name = dotted(before, name);
        match value {
            Value::Object(below) => collect(&name, below, found),
            leaf => found.push((name, leaf)),
        }
    }
}

/// Returns the name of `name` below `before`.
#[must_use]
pub fn dotted(before: &str, name: &str) -> String {
    match before {
        "" => name.to_owned(),
        before => format!("{before}.{name}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    pub fn facts(value: Value) -> Facts {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn objects_merge_and_the_rest_is_replaced() {
        let mut all = facts(json!({"disk": {"root": {"size_gb": 4}}, "x": [1]}));
        merge(
            &mut all,
            facts(json!({"disk": {"root": {"free_percent": 9}, "home": 1}, "x": {"y": 2}})),
        );
        let want =
            json!({"disk": {"root": {"size_gb": 4, "free_percent": 9}, "home": 1}, "x": {"y": 2}});
        assert_eq!(Value::Object(all), want);
    }

    #[test]
    fn order_does_not_matter_to_a_digest() {
        let a = sorted(facts(
            json!({"b": {"y": 1, "x": [{"d": 1, "c": 2}]}, "a": 2}),
        ));
        let b = sorted(facts(
            json!({"a": 2, "b": {"x": [{"c": 2, "d": 1}], "y": 1}}),
        ));
        assert_eq!(digest(&a), digest(&b));
        assert_eq!(digest(&a).len(), 12);
        let c = sorted(facts(
            json!({"a": 2, "b": {"x": [{"c": 2, "d": 1}], "y": 3}}),
        ));
        assert_ne!(digest(&a), digest(&c));
    }

    #[test]
    fn leaves_have_dotted_names() {
        let all = facts(json!({"a": {"b": 1, "c": {"d": [1, 2]}, "e": {}}, "f": null}));
        let found = leaves(&all);
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a.b", "a.c.d", "f"]);
    }

    /// Any JSON value of some size.
    pub fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(|n| json!(n)),
            ".{0,8}".prop_map(Value::String),
        ];
        leaf.prop_recursive(12, 64, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
                proptest::collection::vec((".{0,6}", inner), 0..6)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn merging_with_itself_changes_nothing(value in value()) {
            let mut all = facts(json!({"x": value}));
            let same = all.clone();
            merge(&mut all, same.clone());
            prop_assert_eq!(&all, &same);
            prop_assert_eq!(digest(&sorted(all)), digest(&sorted(sorted(same))));
        }
    }
}
