//! Rules: which requests a route accepts.
//!
//! ```toml
//! [route.rule]
//! and = [
//!   { header = "X-GitHub-Event", value = "push" },
//!   { json = "ref", regex = "^refs/heads/(main|release/.*)$" },
//!   { not = { query = "dry-run", exists = true } },
//!   { or = [{ ip = "192.0.2.0/24" }, { header = "X-Token", value-file = "token" }] },
//! ]
//! ```

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use regex_lite::{Regex, RegexBuilder};
use toml::Value;

use crate::model::gateway::keys::{Keys, Wrong, Wrongs};
use crate::model::gateway::part::{KEYS, Part};
use crate::model::gateway::request::Request;
use crate::model::gateway::secret::Secret;
use crate::model::network_address::Network;

/// Maximum depth of rules in each other.
pub const MAX_DEPTH: usize = 8;

/// Maximum number of rules of a route.
pub const MAX_RULES: usize = 256;

/// Maximum number of values or networks of one rule.
pub const MAX_ALTERNATIVES: usize = 256;

/// Maximum length of a pattern, bytes.
pub const MAX_PATTERN: usize = 1024;

/// Maximum size of a compiled pattern, bytes. With [`MAX_SEARCHED`] it bounds the time of a search,
/// which is their product.
const MAX_COMPILED: usize = 16 * 1024;

/// Maximum depth of groups in a pattern.
const MAX_GROUPS: u32 = 16;

/// Maximum size of a text that a pattern is searched in, bytes. No larger one is judged: the request
/// is refused, also by a rule around it that says `not`.
pub const MAX_SEARCHED: usize = 64 * 1024;

/// Returns the content of a file with a secret, or a text for the user.
pub type ReadFile<'a> = &'a mut dyn FnMut(&Path) -> Result<Vec<u8>, String>;

/// A part was not judged: it has more bytes than [`MAX_SEARCHED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong(pub usize);

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a part that a pattern is searched in has {} bytes, the limit is {MAX_SEARCHED}",
            self.0
        )
    }
}

/// A rule.
#[derive(Debug, Clone)]
pub enum Rule {
    /// All of them hold.
    And(Vec<Rule>),
    /// One of them holds.
    Or(Vec<Rule>),
    /// It does not hold.
    Not(Box<Rule>),
    /// The caller has an address of one of them.
    Address(Vec<Network>),
    /// A part of the request passes a test.
    Part(Part, Test),
}

/// A test of a part. One that is missing passes none but [`Test::Missing`].
#[derive(Debug, Clone)]
pub enum Test {
    /// It is one of these texts. They may be secrets, so all are compared in constant time.
    Value(Vec<Secret>),
    /// The pattern is found in it. Bytes that are not UTF-8 are U+FFFD.
    Regex(Regex),
    /// It is there.
    There,
    /// It is missing.
    Missing,
}

impl Rule {
    /// Reads a rule: a table, or a list of tables that all hold. Notes everything that is wrong.
    pub fn read(
        value: &Value,
        place: Vec<String>,
        file: ReadFile<'_>,
        wrongs: &mut Wrongs,
    ) -> Option<Self> {
        let mut reading = Reading {
            count: 0,
            file,
            wrongs: &mut *wrongs,
        };
        let rule = match value {
            Value::Array(list) => reading.list(list, &place, 1).map(Self::And),
            value => reading.rule(value, place, 0),
        };
        wrongs.keep(rule)
    }

    /// Returns whether it holds for a request.
    ///
    /// # Errors
    /// A part is too long to be judged.
    pub fn holds(&self, request: &Request<'_>) -> Result<bool, TooLong> {
        match self {
            Self::And(rules) => {
                for rule in rules {
                    if !rule.holds(request)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Self::Or(rules) => {
                for rule in rules {
                    if rule.holds(request)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Self::Not(rule) => Ok(!rule.holds(request)?),
            Self::Address(networks) => Ok(request.peer.is_some_and(|peer| {
                let mut networks = networks.iter();
                networks.any(|network| network.contains(peer))
            })),
            Self::Part(part, test) => test.passes(part.bytes(request)),
        }
    }
}

impl Test {
    fn passes(&self, part: Option<Cow<'_, [u8]>>) -> Result<bool, TooLong> {
        Ok(match (self, part) {
            (Self::There, part) => part.is_some(),
            (Self::Missing, part) => part.is_none(),
            (_, None) => false,
            // All of them, so that the time does not tell which one it is.
            (Self::Value(values), Some(part)) => {
                let matching = values.iter().filter(|value| value.is(&part));
                matching.count() > 0
            }
            (Self::Regex(regex), Some(part)) => {
                if part.len() > MAX_SEARCHED {
                    return Err(TooLong(part.len()));
                }
                regex.is_match(&String::from_utf8_lossy(&part))
            }
        })
    }
}

struct Reading<'a> {
    count: usize,
    file: ReadFile<'a>,
    /// Mistakes in lists, without the last of each, which is returned.
    wrongs: &'a mut Wrongs,
}

impl Reading<'_> {
    fn list(&mut self, list: &[Value], place: &[String], depth: usize) -> Result<Vec<Rule>, Wrong> {
        if list.is_empty() {
            return Err(Wrong {
                place: place.to_vec(),
                cause: "the list of rules is empty".to_owned(),
            });
        }
        let (mut rules, mut last) = (Vec::new(), None);
        for (n, rule) in list.iter().enumerate() {
            let place = [place, &[n.to_string()]].concat();
            match self.rule(rule, place, depth) {
                Ok(rule) => rules.push(rule),
                Err(wrong) => last
                    .replace(wrong)
                    .into_iter()
                    .for_each(|w| self.wrongs.note(w)),
            }
            // One mistake says that there are too many.
            if self.count > MAX_RULES {
                break;
            }
        }
        last.map_or(Ok(rules), Err)
    }

    fn rule(&mut self, value: &Value, place: Vec<String>, depth: usize) -> Result<Rule, Wrong> {
        const LOGIC: &[&str] = &["and", "or", "not", "ip"];
        const TESTS: &[&str] = &["value", "value-file", "regex", "exists"];
        let keys = Keys::of(value, place)?;
        if depth > MAX_DEPTH {
            let cause = format!("rules are nested deeper than {MAX_DEPTH}");
            return Err(keys.wrong_table(cause));
        }
        self.count += 1;
        if self.count > MAX_RULES {
            let cause = format!("there are more than {MAX_RULES} rules");
            return Err(keys.wrong_table(cause));
        }
        keys.only(&[LOGIC, KEYS, TESTS].concat())?;
        let kind = keys.one_of(&[LOGIC, KEYS].concat())?;
        let Some(kind) = kind else {
            return Err(keys
                .wrong_table("a rule has one of and, or, not, ip, header, query, json, request"));
        };
        let test = keys.one_of(TESTS)?;
        if let Some(part) = Part::read(&keys)? {
            let Some(test) = test else {
                let cause = format!("'{kind}' needs one of {}", TESTS.join(", "));
                return Err(keys.wrong_table(cause));
            };
            return Ok(Rule::Part(part, self.test(&keys, test)?));
        }
        if let Some(test) = test {
            return Err(keys.wrong(test, format!("it cannot stand beside '{kind}'")));
        }
        let inner = keys.get(kind);
        match (kind, inner) {
            ("ip", _) => Ok(Rule::Address(networks(&keys)?)),
            ("not", Some(inner)) => {
                let inner = self.rule(inner, keys.place(kind), depth + 1)?;
                Ok(Rule::Not(Box::new(inner)))
            }
            (_, Some(Value::Array(list))) => {
                let rules = self.list(list, &keys.place(kind), depth + 1)?;
                Ok(match kind {
                    "or" => Rule::Or(rules),
                    _ => Rule::And(rules),
                })
            }
            _ => Err(keys.wrong(kind, "it is not a list of rules")),
        }
    }

    fn test(&mut self, keys: &Keys<'_>, test: &str) -> Result<Test, Wrong> {
        let wrong = |cause: String| keys.wrong(test, cause);
        Ok(match test {
            "exists" => match keys.flag(test)? {
                Some(false) => Test::Missing,
                _ => Test::There,
            },
            "regex" => {
                let pattern = keys.text(test)?.unwrap_or_default();
                Test::Regex(compiled(pattern).map_err(wrong)?)
            }
            "value-file" => {
                let path = keys.text(test)?.unwrap_or_default();
                let content = (self.file)(Path::new(path)).map_err(wrong)?;
                Test::Value(vec![Secret::new(&content).map_err(wrong)?])
            }
            _ => {
                let values = match keys.get(test) {
                    Some(Value::Array(list)) if !list.is_empty() => list.as_slice(),
                    Some(value) => std::slice::from_ref(value),
                    None => &[],
                };
                bound(values.len()).map_err(wrong)?;
                let values = values.iter().map(|value| {
                    let text = scalar(value).ok_or("it is not a text, a number, true or false")?;
                    Secret::exactly(text.as_bytes())
                });
                Test::Value(values.collect::<Result<_, _>>().map_err(wrong)?)
            }
        })
    }
}

fn bound(count: usize) -> Result<(), String> {
    match count {
        0..=MAX_ALTERNATIVES => Ok(()),
        _ => Err(format!("there are more than {MAX_ALTERNATIVES} values")),
    }
}

/// Returns a value of a file as the text of the JSON value that is equal to it.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) if number.is_finite() => Some(number.to_string()),
        Value::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    }
}

fn networks(keys: &Keys<'_>) -> Result<Vec<Network>, Wrong> {
    let texts = keys.texts("ip")?;
    let wrong = |cause: String| keys.wrong("ip", cause);
    bound(texts.len()).map_err(wrong)?;
    let networks = texts.into_iter().map(Network::parse);
    networks.collect::<Result<_, _>>().map_err(wrong)
}

/// Compiles a pattern.
fn compiled(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > MAX_PATTERN {
        return Err(format!("the pattern has more than {MAX_PATTERN} bytes"));
    }
    let regex = RegexBuilder::new(pattern)
        .size_limit(MAX_COMPILED)
        .nest_limit(MAX_GROUPS)
        .build();
    regex.map_err(|e| {
        let cause = e.to_string().replace('\n', " ");
        format!("the pattern is wrong: {cause}")
    })
}

#[cfg(test)]
mod tests;
