//! Attributes of the command line: `--attr KEY VALUE`, `--attr KEY=VALUE` or `KEY=VALUE`.

use serde_json::Value;
use tracing::warn;

use crate::error::{Error, Result};
use crate::model::env::sanitize;
use crate::model::event::Attributes;
use crate::model::text::printable;

/// Hint for a pair that lacks a part.
pub const HINT: &str = "an attribute is sample=S1, or --attr sample S1";

/// Adds the words of the command line, each a `KEY=VALUE`, to the pairs of `--attr`.
///
/// # Errors
/// When a word has no `=`.
pub fn pairs(mut pairs: Vec<String>, words: Vec<String>) -> Result<Vec<String>> {
    for word in words {
        let (key, value) = word.split_once('=').ok_or_else(|| {
            let word = printable(&word, 80);
            Error::usage(format!(
                "unexpected argument '{word}': {HINT}; a value with blanks needs quotes"
            ))
        })?;
        pairs.extend([key.to_owned(), value.to_owned()]);
    }
    Ok(pairs)
}

/// Adds the pairs in `list` to `attributes`. `reserved` has names that are not allowed, and why.
///
/// # Errors
/// When a name is empty, reserved or given twice.
pub fn add(
    attributes: &mut Attributes,
    list: Vec<String>,
    reserved: &[(&str, &str)],
) -> Result<()> {
    let mut list = list.into_iter();
    let mut given: Vec<String> = Vec::new();
    while let (Some(key), Some(value)) = (list.next(), list.next()) {
        let name = printable(&key, 80);
        if let Some((_, by)) = reserved.iter().find(|(name, _)| *name == key) {
            return Err(Error::usage(format!(
                "attribute '{name}' is {by}: choose another name"
            )));
        }
        if key.is_empty() {
            return Err(Error::usage(format!("an attribute needs a name: {HINT}")));
        }
        if given.contains(&key) {
            return Err(Error::usage(format!("attribute '{name}' is given twice")));
        }
        if let Some(other) = given.iter().find(|other| sanitize(other) == sanitize(&key)) {
            let other = printable(other, 80);
            warn!("'{other}' and '{name}' are one variable for a command: it gets one of them");
        }
        given.push(key.clone());
        attributes.insert(key, Value::String(value));
    }
    Ok(())
}
