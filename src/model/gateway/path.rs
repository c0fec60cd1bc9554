//! Paths into a JSON document: `repository.owner.name`, `commits.0.id`, `labels.app\.kubernetes`.

use serde_json::Value;

use crate::model::json;

/// Maximum length of a path, bytes.
pub const MAX_BYTES: usize = 1024;

/// Maximum number of steps of a path.
pub const MAX_STEPS: usize = 32;

/// A path into a JSON document. In an object a step is a key, in a list a place from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path(Vec<String>);

impl Path {
    /// Parses a path: steps are separated by dots; `\.` is a dot, and `\\` a backslash.
    ///
    /// # Errors
    /// A text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_BYTES {
            return Err(format!("the path has more than {MAX_BYTES} bytes"));
        }
        let (mut steps, mut step) = (Vec::new(), String::new());
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '.' => steps.push(std::mem::take(&mut step)),
                '\\' => match chars.next() {
                    Some(c @ ('.' | '\\')) => step.push(c),
                    _ => return Err("a backslash stands before a dot or a backslash".to_owned()),
                },
                c => step.push(c),
            }
        }
        steps.push(step);
        if steps.iter().any(String::is_empty) {
            return Err("the path has an empty step".to_owned());
        }
        if steps.len() > MAX_STEPS {
            return Err(format!("the path has more than {MAX_STEPS} steps"));
        }
        // Keys of a document are held as its parser holds them.
        let held = |step: String| json::string_of(step.as_bytes());
        Ok(Self(steps.into_iter().map(held).collect()))
    }

    /// Returns the value at the path.
    #[must_use]
    pub fn find<'a>(&self, document: &'a Value) -> Option<&'a Value> {
        let mut steps = self.0.iter();
        steps.try_fold(document, |value, step| match value {
            Value::Object(object) => object.get(step),
            Value::Array(list) => list.get(place(step)?),
            _ => None,
        })
    }
}

/// Returns a place in a list: digits without leading zeros, so that there is one path to a value.
fn place(step: &str) -> Option<usize> {
    let is_plain = step.bytes().all(|b| b.is_ascii_digit());
    let is_short = step == "0" || !step.starts_with('0');
    step.parse().ok().filter(|_| is_plain && is_short)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn steps_are_keys_and_places() {
        let document = json!({
            "a": {"b": [10, {"c": null}], "0": "zero"},
            "x.y": {"\\": true}, "": 1, "ü": 2,
        });
        let find = |path: &str| Path::parse(path).expect(path).find(&document).cloned();
        assert_eq!(find("a.b.0"), Some(json!(10)));
        assert_eq!(find("a.b.1.c"), Some(json!(null)));
        assert_eq!(find("a.0"), Some(json!("zero")));
        assert_eq!(find(r"x\.y.\\"), Some(json!(true)));
        assert_eq!(find("ü"), Some(json!(2)));
        for missing in [
            "b",
            "a.b.2",
            "a.b.00",
            "a.b.+1",
            "a.b.-1",
            "a.b.x",
            "a.b.0.c",
            "x.y",
            "a.b.18446744073709551616",
        ] {
            assert_eq!(find(missing), None, "{missing}");
        }
        for wrong in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            r"a\b",
            "a\\",
            &"a".repeat(MAX_BYTES + 1),
        ] {
            assert!(Path::parse(wrong).is_err(), "{wrong}");
        }
        assert!(Path::parse(&["a"; MAX_STEPS].join(".")).is_ok());
        assert!(Path::parse(&["a"; MAX_STEPS + 1].join(".")).is_err());
    }

    proptest! {
        #[test]
        fn every_key_has_a_path(keys in prop::collection::vec(".{1,6}", 1..5)) {
            let escaped = keys.iter().map(|key| key.replace('\\', "\\\\").replace('.', "\\."));
            let path = Path::parse(&escaped.collect::<Vec<_>>().join(".")).expect("path");
            let mut document = json!("found");
            for key in keys.iter().rev() {
                let key = json::string_of(key.as_bytes());
                document = Value::Object([(key, document)].into_iter().collect());
            }
            prop_assert_eq!(path.find(&document), Some(&json!("found")));
        }

        #[test]
        fn no_path_breaks_it(path in "[a.0\\\\]{0,12}") {
            if let Ok(path) = Path::parse(&path) {
                let _ = path.find(&json!({"a": [{"a": 0}], "0": []}));
            }
        }
    }
}
