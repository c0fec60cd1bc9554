//! `[[view]]` tables, and the SELECT of `tael facts view`.

use toml::Value;

use crate::cli::config::{Layer, Layers, texts};
use crate::error::{Error, Result};
use crate::model::facts::kind::check_node;
use crate::model::near::nearest;
use crate::model::text::printable;

/// Keys of a `[[view]]` table, and their meaning.
pub const KEYS: &[(&str, &str)] = &[
    ("name", "Name of the view"),
    ("sql", "Its SELECT"),
    (
        "nodes",
        "Nodes and pipelines to ask for by name, where the broker sends no retained messages to wildcards",
    ),
];

/// Maximum length of the name of a view, bytes.
const MAX_NAME: usize = 64;

/// A view.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ViewTable {
    /// Its name; `None` for a SELECT of the command line.
    pub name: Option<String>,
    /// The SELECT.
    pub sql: String,
    /// Nodes to ask for by name; all if there are none.
    pub nodes: Vec<String>,
}

/// Returns the view that `text` names, or that it is.
///
/// # Errors
/// 64 when no view is called so, 78 when a table is wrong.
pub fn find(layers: &Layers, text: &str) -> Result<ViewTable> {
    if text.trim().contains(char::is_whitespace) {
        return Ok(ViewTable {
            sql: text.to_owned(),
            ..ViewTable::default()
        });
    }
    let mut known = Vec::new();
    if let Some((layer, list)) = layers.views() {
        for (n, table) in list.iter().enumerate() {
            let view = read(layer, n, table)?;
            if view.name.as_deref() == Some(text) {
                return Ok(view);
            }
            known.extend(view.name);
        }
    }
    let hint = match nearest(text, known.iter().map(String::as_str)) {
        Some(near) => format!("did you mean {near}?"),
        None if known.is_empty() => {
            let places = "a view is a [[view]] in tael.toml, or a SELECT in one word of the shell";
            format!("{places}; {}", layers.read_for("[[view]]"))
        }
        None => format!("tael.toml has {}", printable(&known.join(", "), 400)),
    };
    Err(Error::usage(format!(
        "view {}: there is no such view; {hint}",
        printable(text, 80)
    )))
}

fn read(layer: &Layer, n: usize, table: &Value) -> Result<ViewTable> {
    let place = n.to_string();
    let wrong = |key: &str, cause: String| Err(layer.wrong_at(&["view", &place, key], cause));
    let Value::Table(table) = table else {
        return wrong("", "a view is written [[view]]".to_owned());
    };
    let mut view = ViewTable::default();
    for (key, value) in table {
        match (key.as_str(), value) {
            ("name", Value::String(name)) if is_name(name) => view.name = Some(name.clone()),
            ("name", _) => {
                let cause = format!("'name' has 1 to {MAX_NAME} letters, digits, - and _");
                return wrong(key, cause);
            }
            ("sql", Value::String(sql)) => view.sql.clone_from(sql),
            ("nodes", value) => {
                let Some(nodes) = texts(value) else {
                    return wrong(key, format!("'nodes' cannot be {value}"));
                };
                if let Some(cause) = nodes.iter().find_map(|node| check_node(node).err()) {
                    return wrong(key, cause);
                }
                view.nodes = nodes;
            }
            ("sql", value) => return wrong(key, format!("'sql' cannot be {value}")),
            _ => {
                let known = KEYS.iter().map(|(key, _)| *key);
                let hint = match nearest(key, known) {
                    Some(near) => format!("; did you mean '{near}'?"),
                    None => ": [[view]] has name, sql and nodes".to_owned(),
                };
                return wrong(key, format!("unknown key '{key}'{hint}"));
            }
        }
    }
    if view.name.is_none() || view.sql.is_empty() {
        return wrong("name", "a view has 'name' and 'sql'".to_owned());
    }
    Ok(view)
}

fn is_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(is_plain)
}

/// Returns `KEY=VALUE` words as names and values.
///
/// # Errors
/// 64 for a word that is not one.
pub fn pairs(words: Vec<String>) -> Result<Vec<(String, String)>> {
    let pairs = words.into_iter().map(|word| match word.split_once('=') {
        Some((key, value)) if is_name(key) => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Error::usage(format!(
            "--set '{}' is not KEY=VALUE",
            printable(&word, 80)
        ))),
    });
    pairs.collect()
}
