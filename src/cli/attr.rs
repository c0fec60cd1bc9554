//! Attributes of the command line: `--attr KEY VALUE`.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::model::event::Attributes;
use crate::model::text::printable;

/// Hint for a pair that is written as one word.
pub const HINT: &str = "the name and its value are two words: --attr sample S1";

/// Adds the pairs in `list` to `attributes`. `reserved` has names that are not allowed, and why.
///
/// # Errors
/// When a name is reserved, or is a whole `KEY=VALUE`: its value would be the next word of the command
/// line.
pub fn add(
    attributes: &mut Attributes,
    list: Vec<String>,
    reserved: &[(&str, &str)],
) -> Result<()> {
    let mut list = list.into_iter();
    while let (Some(key), Some(value)) = (list.next(), list.next()) {
        let name = printable(&key, 80);
        if let Some((_, by)) = reserved.iter().find(|(name, _)| *name == key) {
            return Err(Error::usage(format!(
                "attribute '{name}' is {by}: choose another name"
            )));
        }
        if key.is_empty() {
            return Err(Error::usage("an attribute needs a name: --attr sample S1"));
        }
        if key.contains('=') {
            return Err(Error::usage(format!("attribute '{name}': {HINT}")));
        }
        attributes.insert(key, Value::String(value));
    }
    Ok(())
}
