//! `[[view]]` tables, and the SELECT of `tael facts view`.

use toml::Value;

use crate::cli::config::{Layer, Layers, texts};
use crate::cli::connection::is_shared;
use crate::cli::mistakes::Mistakes;
use crate::error::{Error, Result};
use crate::model::facts::kind::check_node;
use crate::model::near::nearest;
use crate::model::text::printable;
use crate::store::view::compile;

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

/// Returns the view that `text` names, or that it is. The views of the file are all checked first when
/// one is named; `None` when `mistakes` has notes about them.
///
/// # Errors
/// 64 when no view is called so.
pub fn find(layers: &Layers, text: &str, mistakes: &mut Mistakes) -> Result<Option<ViewTable>> {
    if text.trim().contains(char::is_whitespace) {
        return Ok(Some(ViewTable {
            sql: text.to_owned(),
            ..ViewTable::default()
        }));
    }
    let views = all(layers, mistakes);
    if mistakes.count() > 0 {
        return Ok(None);
    }
    let known = || views.iter().filter_map(|view| view.name.as_deref());
    if let Some(at) = known().position(|name| name == text) {
        return Ok(views.into_iter().nth(at));
    }
    let hint = match nearest(text, known()) {
        Some(near) => format!("did you mean {near}?"),
        None if views.is_empty() => {
            let places = "a view is a [[view]] in tael.toml, or a SELECT in one word of the shell";
            format!("{places}; {}", layers.read_for("[[view]]"))
        }
        None => {
            let names: Vec<&str> = known().collect();
            format!("tael.toml has {}", printable(&names.join(", "), 400))
        }
    };
    Err(Error::usage(format!(
        "view {}: there is no such view; {hint}",
        printable(text, 80)
    )))
}

/// Returns the views of the file that are right; notes every mistake in the others. Their SELECTs are
/// compiled, and not run.
pub fn all(layers: &Layers, mistakes: &mut Mistakes) -> Vec<ViewTable> {
    let Some((layer, list)) = layers.views() else {
        return Vec::new();
    };
    let mut views = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for (n, table) in list.iter().enumerate() {
        let noted = mistakes.count();
        let view = read(layer, n, table, mistakes);
        if let Some(name) = &view.name {
            if names.contains(name) {
                let cause = format!("another [[view]] is called '{name}'");
                mistakes.note(layer.wrong_at(&["view", &n.to_string(), "name"], cause));
            }
            names.push(name.clone());
        }
        if mistakes.count() == noted {
            views.push(view);
        }
    }
    views
}

/// Reads the `n`th table; notes every mistake in it.
fn read(layer: &Layer, n: usize, table: &Value, mistakes: &mut Mistakes) -> ViewTable {
    let place = n.to_string();
    let mut wrong =
        |key: &str, cause: String| mistakes.note(layer.wrong_at(&["view", &place, key], cause));
    let mut view = ViewTable::default();
    let Value::Table(table) = table else {
        wrong("", "a view is written [[view]]".to_owned());
        return view;
    };
    for (key, value) in table {
        match (key.as_str(), value) {
            ("name", Value::String(name)) if is_name(name) => view.name = Some(name.clone()),
            ("name", _) => {
                let cause = format!("'name' has 1 to {MAX_NAME} letters, digits, - and _");
                wrong(key, cause);
            }
            ("sql", Value::String(sql)) => match compile(sql) {
                Ok(()) => view.sql.clone_from(sql),
                Err(cause) => wrong(key, format!("'sql' cannot run: {cause}")),
            },
            ("sql", value) => wrong(key, format!("'sql' cannot be {value}")),
            ("nodes", value) => match texts(value) {
                None => wrong(key, format!("'nodes' cannot be {value}")),
                Some(nodes) => {
                    for cause in nodes.iter().filter_map(|node| check_node(node).err()) {
                        wrong(key, cause);
                    }
                    view.nodes = nodes;
                }
            },
            _ => wrong(key, format!("unknown key '{key}'{}", hint(key))),
        }
    }
    // A slip of one of them is told already.
    let is_there = |wanted: &str| {
        let mut keys = table.keys();
        keys.any(|key| key == wanted || nearest(key, names()) == Some(wanted))
    };
    for key in ["name", "sql"].into_iter().filter(|key| !is_there(key)) {
        wrong(
            "",
            format!("a view has 'name' and 'sql': '{key}' is missing"),
        );
    }
    view
}

/// Returns the keys of a view.
fn names() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|(key, _)| *key)
}

/// Returns what may have been meant by an unknown `key` of a view.
fn hint(key: &str) -> String {
    match nearest(key, names()) {
        Some(near) => format!("; did you mean '{near}'?"),
        None if is_shared(key) => {
            ": it stands in a [[view]]; options that all commands share go above the first table"
                .to_owned()
        }
        None => ": [[view]] has name, sql and nodes".to_owned(),
    }
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
