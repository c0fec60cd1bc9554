//! Facts of the operator: what files and scripts of a facts.d folder say.

use serde_json::Value;

use crate::model::facts::tree::Facts;
use crate::model::text::printable;

/// Maximum size of one file, and of the output of one script, bytes.
pub const MAX_TEXT: usize = 64 * 1024;

/// A form of a file in a facts.d folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A JSON object.
    Json,
    /// An executable, which prints one, or lines `KEY=VALUE`.
    Script,
}

/// Returns what the file `name` is called as a fact, and its form; `None` for backup files and
/// others that editors and package managers leave.
///
/// # Errors
/// A text for the user: why the file cannot be a fact.
pub fn named(name: &str, executable: bool) -> Option<Result<(String, Form), String>> {
    const LEFT_BEHIND: &[&str] = &["~", ".bak", ".swp", ".rpmsave", ".rpmnew", ".rpmorig"];
    let is_left = LEFT_BEHIND.iter().any(|end| name.ends_with(end));
    if name.starts_with(['.', '#']) || is_left || name.contains(".dpkg-") {
        return None;
    }
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    Some(match (executable, extension) {
        (true, _) => Ok((stem.to_owned(), Form::Script)),
        (false, "" | "json" | "fact") => Ok((stem.to_owned(), Form::Json)),
        (false, _) => Err("it is neither executable nor a .json or .fact file".to_owned()),
    })
}

/// Returns the facts in the `text` of a file.
///
/// # Errors
/// A text for the user: why it has none.
pub fn of_file(text: &[u8]) -> Result<Facts, String> {
    match serde_json::from_slice::<Value>(text) {
        Ok(Value::Object(facts)) => Ok(facts),
        Ok(_) => Err("it is not a JSON object".to_owned()),
        Err(_) if is_ini(text) => Err(
            "it is INI, which only Ansible reads: write a JSON object, {\"section\":{\"key\":\"value\"}}"
                .to_owned(),
        ),
        Err(e) => Err(format!(
            "it is not JSON: {e}; a script that prints facts needs chmod +x"
        )),
    }
}

/// Returns whether the first line of `text` that says something is the heading of a section.
fn is_ini(text: &[u8]) -> bool {
    let mut lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let first =
        lines.find(|line| !line.is_empty() && !line.starts_with(b"#") && !line.starts_with(b";"));
    first.is_some_and(|line| line.starts_with(b"[") && line.ends_with(b"]"))
        && lines.any(|line| line.contains(&b'=') || line.contains(&b':'))
}

/// Returns the facts in the output of a script.
///
/// # Errors
/// A text for the user: why it has none.
pub fn of_output(text: &[u8]) -> Result<Facts, String> {
    if text.trim_ascii_start().starts_with(b"{") {
        let facts = serde_json::from_slice(text);
        return facts.map_err(|e| format!("its output is not JSON: {e}"));
    }
    let text = str::from_utf8(text).map_err(|_| "its output is not UTF-8 text".to_owned())?;
    let mut facts = Facts::new();
    for (line, n) in text.lines().zip(1..) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let pair = line.split_once('=').map(|(key, value)| (key.trim(), value));
        let Some((key, value)) = pair.filter(|(key, _)| !key.is_empty()) else {
            let line = printable(line, 40);
            return Err(format!(
                "line {n} of its output is neither JSON nor KEY=VALUE: '{line}'"
            ));
        };
        facts.insert(key.to_owned(), Value::String(value.trim().to_owned()));
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn files_are_named_by_their_stems() {
        let name = |name, executable| named(name, executable).and_then(Result::ok);
        assert_eq!(name("raid.json", false), Some(("raid".into(), Form::Json)));
        assert_eq!(name("raid.fact", false), Some(("raid".into(), Form::Json)));
        assert_eq!(name("raid", false), Some(("raid".into(), Form::Json)));
        assert_eq!(name("raid.sh", true), Some(("raid".into(), Form::Script)));
        assert!(named("raid.yaml", false).is_some_and(|named| named.is_err()));
        for left in [
            ".raid",
            "raid~",
            "raid.json.dpkg-old",
            "#raid#",
            "raid.rpmsave",
        ] {
            assert_eq!(named(left, true), None, "{left}");
        }
    }

    #[test]
    fn scripts_print_json_or_pairs() {
        let of = |text: &str| of_output(text.as_bytes()).map(Value::Object);
        assert_eq!(of(" {\"a\": [1]}\n"), Ok(json!({"a": [1]})));
        assert_eq!(
            of("# x\na=1\n\n b = c=d \n"),
            Ok(json!({"a": "1", "b": "c=d"}))
        );
        assert_eq!(of(""), Ok(json!({})));
        for wrong in ["{\"a\": NaN}", "{", "no pair", "=x", "[1]"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
        assert!(of_output(b"a=\xff").is_err());
        assert!(of_file(b"[1]").is_err() && of_file(b"a=1").is_err());
    }

    proptest! {
        #[test]
        fn any_output_is_judged_without_panic(bytes in any::<Vec<u8>>()) {
            let _ = (of_output(&bytes), of_file(&bytes));
        }
    }
}
