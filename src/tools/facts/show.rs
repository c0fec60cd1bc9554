//! `tael facts show`: lists nodes, and what they tell.

use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::model::duration;
use crate::model::facts::kind::{NodeTopics, all_facts, all_presences};
use crate::model::facts::nodes::Seen;
use crate::model::facts::presence::{self, Presence, Verdict};
use crate::model::facts::tree::leaves;
use crate::model::near::nearest;
use crate::model::table::{Colour, Column, Layout};
use crate::model::text::printable;
use crate::os::logging::say;
use crate::os::terminal::Terminal;
pub use crate::tools::facts::collect::Source;

/// Maximum number of characters of a value in a table.
const MAX_SHOWN: usize = 400;

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where nodes tell their facts.
    pub source: Source,
    /// The nodes; all if there are none.
    pub nodes: Vec<String>,
    /// Whether to show nodes only whose facts are not fresh.
    pub stale: bool,
    /// Whether to print a JSON array.
    pub json: bool,
}

/// Lists the nodes; for nodes that are named, lists their facts.
///
/// # Errors
/// 65 when a node tells nothing; those of the broker.
pub fn run(options: &Options) -> Result<ExitCode> {
    let named = !options.nodes.is_empty();
    let root = &options.source.root;
    let topics = match named {
        true => {
            let nodes = options.nodes.iter();
            nodes
                .flat_map(|node| NodeTopics::new(root, node).retained())
                .collect()
        }
        false if options.json => all_facts(root),
        // The presences are enough for a list.
        false => vec![all_presences(root)],
    };
    let whole = named || options.json;
    let runtime = crate::tools::runtime()?;
    let nodes = runtime.block_on(options.source.nodes(topics, whole))?;
    let now = Timestamp::now().as_second();
    let lacks = options
        .nodes
        .iter()
        .find(|name| !nodes.seen.contains_key(*name));
    if let Some(name) = lacks {
        let others = options.source.nodes(vec![all_presences(root)], false);
        // The error is about something else than this look.
        let others = runtime.block_on(others).unwrap_or_default();
        let near = nearest(name, others.seen.keys().map(String::as_str));
        let hint = match near {
            Some(near) => format!("did you mean {}?", printable(near, 80)),
            None => "is --root right?".to_owned(),
        };
        return Err(Error::data(format!(
            "show facts of {name}: no such node tells any below {root}; {hint}"
        )));
    }
    if !named && nodes.seen.is_empty() && !options.json {
        options.source.say_empty();
        return Ok(ExitCode::SUCCESS);
    }
    let seen = nodes.seen.iter();
    let seen: Vec<(&String, &Seen)> = seen
        .filter(|(_, seen)| !options.stale || seen.verdict(now) != Verdict::Fresh)
        .collect();
    if options.json {
        crate::tools::print_array(seen.iter().map(|(name, seen)| seen.json(name, now)))?;
    } else if named {
        for (name, seen) in seen {
            facts(name, seen, options.nodes.len() > 1, now)?;
        }
    } else {
        list(&seen, now)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Cells of a table, each printable, and their colours.
type Row = Vec<(String, Option<Colour>)>;

fn print(columns: &[Column], rows: &[Row]) -> Result<()> {
    let terminal = Terminal::of_stdout();
    let texts = rows
        .iter()
        .map(|row| row.iter().map(|(text, _)| text.as_str()));
    let layout = Layout::fit(columns, texts, terminal.width);
    crate::tools::print(&layout.heading())?;
    for row in rows {
        let cells = row.iter();
        let cells = cells.map(|(text, colour)| (text.as_str(), colour.filter(|_| terminal.colour)));
        crate::tools::print(&layout.line(cells))?;
    }
    Ok(())
}

fn cell(text: &str) -> (String, Option<Colour>) {
    (
        printable(if text.is_empty() { "-" } else { text }, MAX_SHOWN),
        None,
    )
}

fn ago(seconds: Option<i64>) -> String {
    let seconds = seconds.map(|seconds| Duration::from_secs(seconds.max(0).unsigned_abs()));
    seconds.map(duration::brief).unwrap_or_default()
}

/// Returns the word for a state, and its colour: that of a pipeline in the same state.
fn state(seen: &Seen, now: i64) -> (String, Option<Colour>) {
    let verdict = seen.verdict(now);
    let like = match verdict {
        Verdict::Fresh => "online",
        Verdict::Stale | Verdict::Lost | Verdict::Skewed => "lost",
        Verdict::Offline => "offline",
    };
    let skew = seen
        .presence
        .as_ref()
        .and_then(|presence| presence.skew(now));
    let word = match skew {
        Some(ahead) => format!("{} (clock {} ahead)", verdict.name(), ago(Some(ahead))),
        None => verdict.name().to_owned(),
    };
    (word, Colour::of_state(like))
}

/// Prints a line for each node.
fn list(all: &[(&String, &Seen)], now: i64) -> Result<()> {
    let columns = [
        Column::text("NODE", 8, 32),
        Column::whole("STATE"),
        Column::number("AGO"),
        Column::text("HOST", 6, 32),
        Column::text("VERSION", 7, 16),
        Column::text("FAILED", 8, usize::MAX),
    ];
    let rows = all.iter().map(|(name, seen)| {
        let presence = seen.presence.as_ref();
        let text = |of: fn(&Presence) -> &str| presence.map_or("", of);
        vec![
            cell(name),
            state(seen, now),
            cell(&ago(seen.age(now))),
            cell(text(|presence| &presence.host)),
            cell(text(|presence| &presence.version)),
            cell(
                &presence
                    .map(|presence| presence.failed.join(" "))
                    .unwrap_or_default(),
            ),
        ]
    });
    print(&columns, &rows.collect::<Vec<_>>())
}

/// Prints a line for each fact of a node.
fn facts(name: &str, seen: &Seen, with_name: bool, now: i64) -> Result<()> {
    if seen.verdict(now) != Verdict::Fresh {
        let (word, _) = state(seen, now);
        let ago = match seen.age(now) {
            Some(seconds) => format!(", {} ago", self::ago(Some(seconds))),
            None => String::new(),
        };
        say(&format!(
            "the facts of {} are not fresh: {word}{ago}",
            printable(name, 80)
        ));
    }
    let node = with_name.then(|| Column::text("NODE", 8, 32));
    let columns = [
        Column::whole("KIND"),
        Column::text("NAME", 8, 60),
        Column::number("AGO"),
        Column::text("VALUE", 8, usize::MAX),
    ];
    let columns: Vec<Column> = node.into_iter().chain(columns).collect();
    let mut rows: Vec<Row> = Vec::new();
    for (kind, told) in &seen.kinds {
        for (fact, value) in leaves(&told.facts()) {
            let value = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let age = ago(presence::age(told.ts, now));
            let cells = [cell(kind.name()), cell(&fact), cell(&age), cell(&value)];
            rows.push(
                with_name
                    .then(|| cell(name))
                    .into_iter()
                    .chain(cells)
                    .collect(),
            );
        }
    }
    print(&columns, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_brief() {
        assert_eq!(ago(Some(90)), duration::brief(Duration::from_secs(90)));
        assert_eq!((ago(None), ago(Some(-5))), (String::new(), ago(Some(0))));
    }
}
