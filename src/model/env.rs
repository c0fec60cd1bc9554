//! The environment of a command: attributes under safe names.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::model::event::{Attributes, Lacking, attribute_value};
use crate::model::exec;
use crate::model::json;
use crate::model::near::nearest;
use crate::model::text::printable;
use crate::model::variables::{Value, Variables};

/// Maximum size of `NAME=value`, bytes, including the closing NUL.
///
/// Source: Linux, `MAX_ARG_STRLEN` (32 pages of 4 KiB), `execve(2)`.
pub const MAX_VALUE_BYTES: usize = 128 * 1024;

/// Maximum size of all exported attributes together, bytes, including a pointer to each. The system
/// may allow a run less ([`exec`]).
pub const MAX_TOTAL_BYTES: usize = 1024 * 1024;

/// Maximum number of warnings about attributes that are left out; the last one counts the rest.
pub const MAX_WARNINGS: usize = 10;

/// Prefix of attributes, if neither a prefix nor required attributes are given.
pub const DEFAULT_PREFIX: &str = "ATTR";

/// Names that steer a loader, a shell or an interpreter; `*` at the end stands for every ending.
///
/// Source: the variables that sudo removes (sudo 1.9, `plugins/sudoers/env.c`), and those that
/// glibc, bash and the tools of pipelines read.
const STEERING: &[&str] = &[
    "BASH*",
    "CDPATH",
    "DYLD_*",
    "EDITOR",
    "ENV",
    "FPATH",
    "GCONV_PATH",
    "GETCONF_DIR",
    "GIT_*",
    "GLIBC_TUNABLES",
    "GLOBIGNORE",
    "HOME",
    "HOSTALIASES",
    "IFS",
    "JAVA_TOOL_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "KRB5*",
    "LC_*",
    "LANG",
    "LANGUAGE",
    "LD_*",
    "LIBPATH",
    "LOCALDOMAIN",
    "LOCPATH",
    "LOGNAME",
    "MALLOC_*",
    "NLSPATH",
    "NODE_OPTIONS",
    "NODE_PATH",
    "NULLCMD",
    "OPENSSL_CONF",
    "OPENSSL_MODULES",
    "PAGER",
    "PATH",
    "PATH_LOCALE",
    "PERL5DB",
    "PERL5LIB",
    "PERL5OPT",
    "PERLIO_DEBUG",
    "PERLLIB",
    "PROMPT_COMMAND",
    "PS1",
    "PS2",
    "PS3",
    "PS4",
    "PWD",
    "OLDPWD",
    "PYTHON*",
    "READNULLCMD",
    "RESOLV_HOST_CONF",
    "RES_OPTIONS",
    "R_ENVIRON*",
    "R_LIBS*",
    "R_PROFILE*",
    "RUBYLIB",
    "RUBYOPT",
    "SHELL",
    "SHELLOPTS",
    "SHLIB_PATH",
    "SSH_*",
    "SSLKEYLOGFILE",
    "TAEL_*",
    "TERM",
    "TERMCAP",
    "TERMINFO*",
    "TERMPATH",
    "TMPDIR",
    "TMPPREFIX",
    "TZDIR",
    "USER",
    "VISUAL",
    "XDG_*",
    "ZDOTDIR",
    "_JAVA_OPTIONS",
    "_RLD*",
];

/// Returns whether a bare `name` would steer the loader, shell or interpreter of a command.
#[must_use]
pub fn is_steering(name: &str) -> bool {
    STEERING.iter().any(|known| match known.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == *known,
    })
}

/// Returns a key as part of an environment name: in upper case, with `_` for other characters.
#[must_use]
pub fn sanitize(key: &str) -> String {
    key.chars()
        .map(|c| match c.to_ascii_uppercase() {
            c @ ('A'..='Z' | '0'..='9' | '_') => c,
            _ => '_',
        })
        .collect()
}

/// The attributes that a trigger exports, and their names. The ledger holds it as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Export {
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    required: Vec<String>,
}

/// Result of [`Export::apply`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exported {
    /// Names and values for the environment of the command.
    pub variables: Variables,
    /// Attributes that were left out, and why.
    pub warnings: Vec<String>,
}

impl Export {
    /// Checks the choice of the operator: `prefix` for every attribute, `required` keys by name.
    ///
    /// # Errors
    /// A text for the user if a name could steer the command, or is not a valid name.
    pub fn new(prefix: Option<String>, required: Vec<String>) -> Result<Self, String> {
        if let Some(prefix) = &prefix {
            let mut bytes = prefix.bytes();
            let legal = bytes
                .next()
                .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
                && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if !legal {
                return Err(format!(
                    "'{}' cannot begin an environment name: use letters, digits and _",
                    printable(prefix, 80)
                ));
            }
            let start = format!("{prefix}_");
            let steers = STEERING.iter().any(|known| match known.strip_suffix('*') {
                Some(known) => known.starts_with(&start) || start.starts_with(known),
                None => known.starts_with(&start),
            });
            if steers {
                return Err(format!(
                    "prefix '{prefix}' could make names that steer a loader or a shell: choose another"
                ));
            }
        }
        for key in &required {
            let name = sanitize(key);
            let shown = printable(key, 80);
            // No sender has such a key, so that every message would be refused.
            if key.contains('=') {
                return Err(format!(
                    "'{shown}' is a condition, not the name of an attribute: give it as 'when'"
                ));
            }
            if key.contains(char::is_whitespace) {
                return Err(format!(
                    "'{shown}' has blanks: give each attribute as a word of its own, and one whose \
                     name has blanks as {name}"
                ));
            }
            if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
                return Err(format!(
                    "'{}' is not an environment name",
                    printable(key, 80)
                ));
            }
            if is_steering(&name) {
                return Err(format!(
                    "attribute '{}' would set {name}, which steers a loader or a shell: \
                     use --envprefix to have it under a safe name",
                    printable(key, 80)
                ));
            }
        }
        Ok(Self { prefix, required })
    }

    /// Returns the prefix of attributes that the operator has not listed.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.prefix.as_deref().unwrap_or(DEFAULT_PREFIX)
    }

    /// Returns the required keys.
    #[must_use]
    pub fn required(&self) -> &[String] {
        &self.required
    }

    /// Returns the names under which the required attributes are exported.
    #[must_use]
    pub fn required_names(&self) -> Vec<String> {
        self.required.iter().map(|key| sanitize(key)).collect()
    }

    /// Returns the required keys that `attributes` lacks.
    #[must_use]
    pub fn missing(&self, attributes: &Attributes) -> Vec<Lacking> {
        let lacking = self
            .required
            .iter()
            .filter(|key| find(attributes, key).is_none());
        let lacking = lacking.map(|key| Lacking {
            key: key.clone(),
            near: nearest(key, attributes.keys().map(String::as_str))
                .map(|near| printable(&json::lossy(near), 80)),
        });
        lacking.collect()
    }

    /// Returns the environment for `attributes`.
    #[must_use]
    pub fn apply(&self, attributes: &Attributes) -> Exported {
        let mut list = List::default();
        for key in &self.required {
            if let Some((_, value)) = find(attributes, key) {
                list.add(key, sanitize(key), attribute_value(value));
            }
        }
        let prefix = match &self.prefix {
            Some(prefix) => prefix,
            None if self.required.is_empty() => DEFAULT_PREFIX,
            None => return list.exported(),
        };
        for (key, value) in attributes {
            let name = format!("{prefix}_{}", sanitize(key));
            list.add(key, name, attribute_value(value));
        }
        list.exported()
    }
}

/// Returns the attribute that the operator means by `wanted`: that key, otherwise the first key of
/// the same environment name.
fn find<'a>(
    attributes: &'a Attributes,
    wanted: &str,
) -> Option<(&'a String, &'a serde_json::Value)> {
    attributes.get_key_value(wanted).or_else(|| {
        let name = sanitize(wanted);
        attributes.iter().find(|(key, _)| sanitize(key) == name)
    })
}

/// An environment under construction.
#[derive(Default)]
struct List {
    out: Exported,
    taken: HashSet<String>,
    bytes: usize,
    left_out: usize,
}

impl List {
    fn add(&mut self, key: &str, name: String, value: Value) {
        let bytes = name.len() + value.len() + 2;
        let whole = exec::variable(name.len(), value.len());
        let cause = if value.as_bytes().contains(&0) {
            "its value contains a NUL character".to_owned()
        } else if bytes > MAX_VALUE_BYTES {
            format!("{bytes} bytes are more than the system's {MAX_VALUE_BYTES} for one variable")
        } else if self.bytes + whole > MAX_TOTAL_BYTES {
            format!("all variables together are more than {MAX_TOTAL_BYTES} bytes")
        } else if self.taken.contains(&name) {
            format!("{name} is taken by another attribute")
        } else {
            self.bytes += whole;
            self.taken.insert(name.clone());
            self.out.variables.push((name, value));
            return;
        };
        self.left_out += 1;
        if self.left_out <= MAX_WARNINGS {
            self.out.warnings.push(format!(
                "attribute '{}' is left out of the environment: {cause}",
                printable(&json::lossy(key), 80)
            ));
        }
    }

    fn exported(mut self) -> Exported {
        if let Some(more) = self.left_out.checked_sub(MAX_WARNINGS).filter(|n| *n > 0) {
            self.out
                .warnings
                .push(format!("and {more} more attributes are left out"));
        }
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::Refusal;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn attributes(value: Value) -> Attributes {
        match value {
            Value::Object(map) => map,
            other => panic!("{other}"),
        }
    }

    fn export(prefix: Option<&str>, required: &[&str]) -> Export {
        Export::new(
            prefix.map(str::to_owned),
            required.iter().map(|s| (*s).to_owned()).collect(),
        )
        .expect("export")
    }

    fn pairs(exported: &Exported) -> Vec<String> {
        exported
            .variables
            .iter()
            .map(|(k, v)| format!("{k}={}", v.to_text()))
            .collect()
    }

    #[test]
    fn every_attribute_by_default_under_attr() {
        let e = export(None, &[]).apply(&attributes(
            json!({"status": "finished", "run-id": 7, "ok": true, "none": null, "list": [1, "a b"], "ä": "x"}),
        ));
        assert_eq!(
            pairs(&e),
            [
                "ATTR_STATUS=finished",
                "ATTR_RUN_ID=7",
                "ATTR_OK=true",
                "ATTR_NONE=",
                "ATTR_LIST=[1,\"a b\"]",
                "ATTR__=x"
            ]
        );
        assert!(e.warnings.is_empty());
    }

    #[test]
    fn bare_names_only_for_required_keys() {
        let a = attributes(json!({"sample": "S1", "LD_PRELOAD": "/x.so", "PATH": "/x"}));
        assert_eq!(pairs(&export(None, &["SAMPLE"]).apply(&a)), ["SAMPLE=S1"]);
        assert_eq!(
            pairs(&export(Some("job"), &["sample"]).apply(&a)),
            [
                "SAMPLE=S1",
                "job_SAMPLE=S1",
                "job_LD_PRELOAD=/x.so",
                "job_PATH=/x"
            ]
        );
        let missing = export(None, &["sample", "lane", "pth", "host"]).missing(&a);
        let refusal = Refusal::Missing(missing).to_string();
        assert_eq!(
            refusal,
            "it lacks the required attributes lane, host; it has PATH, not pth"
        );
    }

    #[test]
    fn names_that_steer_are_refused_at_start() {
        for key in [
            "PATH",
            "path",
            "IFS",
            "ENV",
            "BASH_ENV",
            "BASH_FUNC_x",
            "SHELLOPTS",
            "LD_PRELOAD",
            "ld-preload",
            "LD_LIBRARY_PATH",
            "TAEL_UNIT",
            "PS4",
            "PYTHONPATH",
            "GIT_DIR",
            "1st",
            "",
        ] {
            assert!(Export::new(None, vec![key.into()]).is_err(), "{key}");
        }
        for prefix in [
            "LD", "TAEL", "BASH", "GIT", "R", "", "1", "A-B", "A=B", "_JAVA", "PYTHON",
        ] {
            assert!(
                Export::new(Some(prefix.into()), vec![]).is_err(),
                "{prefix}"
            );
        }
        for prefix in ["ATTR", "job", "_x", "L", "SEQ_RUN"] {
            assert!(Export::new(Some(prefix.into()), vec![]).is_ok(), "{prefix}");
        }
    }

    #[test]
    fn values_that_no_environment_holds_are_left_out() {
        let a = attributes(json!({
            "nul": "a\0b", "long": "x".repeat(MAX_VALUE_BYTES), "key": "first", "KEY": "second", "ok": "1",
        }));
        let e = export(None, &[]).apply(&a);
        assert_eq!(pairs(&e), ["ATTR_KEY=first", "ATTR_OK=1"]);
        assert_eq!(e.warnings.len(), 3);
    }

    #[test]
    fn all_together_have_a_limit() {
        let mut a = Attributes::new();
        for n in 0..20 {
            a.insert(format!("k{n}"), json!("x".repeat(100_000)));
        }
        let e = export(None, &[]).apply(&a);
        assert_eq!(e.variables.len(), 10);
        assert_eq!(e.warnings.len(), 10);
        for n in 20..50 {
            a.insert(format!("k{n}"), json!("x".repeat(100_000)));
        }
        let e = export(None, &[]).apply(&a);
        assert_eq!(e.warnings.len(), MAX_WARNINGS + 1);
        assert_eq!(
            e.warnings[MAX_WARNINGS],
            "and 30 more attributes are left out"
        );
    }

    proptest! {
        #[test]
        fn names_are_always_legal_and_prefixed(
            keys in proptest::collection::vec(any::<String>(), 0..8), value in any::<String>(),
            prefix in "[A-Za-z_][A-Za-z0-9_]{0,6}",
        ) {
            let a: Attributes = keys.into_iter().map(|k| (k, json!(value))).collect();
            for (export, prefix) in [
                (Export::new(None, vec![]), DEFAULT_PREFIX.to_owned()),
                (Export::new(Some(prefix.clone()), vec![]), prefix),
            ] {
                let Ok(export) = export else { continue };
                for (name, value) in export.apply(&a).variables {
                    let start = format!("{prefix}_");
                    prop_assert!(name.starts_with(&start));
                    prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
                    prop_assert!(!name.as_bytes()[0].is_ascii_digit());
                    prop_assert!(!is_steering(&name), "{}", name);
                    prop_assert!(!value.as_bytes().contains(&0));
                }
            }
        }
    }
}
