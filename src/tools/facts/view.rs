//! `tael facts view`: a SELECT over nodes, facts and pipelines.

use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::info;

use crate::error::{Error, Result};
use crate::model::facts::kind::{NodeTopics, all_facts};
use crate::model::json as json_text;
use crate::model::message::{Message, Properties, Qos};
use crate::model::network::Network;
use crate::model::table::{Column, Layout};
use crate::model::text::printable;
use crate::model::topic::{PipelineTopics, all_pipelines};
use crate::net::oneshot;
use crate::os::logging::say;
use crate::os::terminal::Terminal;
use crate::store::view::{MAX_ROWS, Rows, View};
use crate::tools::MAX_PAYLOAD;
pub use crate::tools::facts::collect::Source;
use crate::tools::message::{origin, sender};

/// Maximum number of characters of a cell in a table.
const MAX_SHOWN: usize = 400;

/// Maximum size of a published view, bytes. Brokers refuse larger messages, or their readers do.
const MAX_PUBLISHED: usize = 256 * 1024;

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A table.
    Table,
    /// A JSON array, one object a row.
    Json,
    /// Lines of values, separated by commas (RFC 4180).
    Csv,
    /// The values of the first column as they are, a line each.
    Raw,
}

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where nodes tell their facts.
    pub source: Source,
    /// Name of the view, if it has one.
    pub name: Option<String>,
    /// The SELECT.
    pub sql: String,
    /// Nodes and pipelines to ask for by their names; all if there are none.
    pub nodes: Vec<String>,
    /// Values for the SELECT, by name.
    pub set: Vec<(String, String)>,
    /// Form of the output.
    pub form: Form,
    /// Whether to publish the rows, retained, instead of printing them.
    pub publish: bool,
}

/// Prints or publishes the rows.
///
/// # Errors
/// 64 when the SELECT is wrong or not allowed, 65 when it exceeds a limit; those of the broker.
pub fn run(options: &Options) -> Result<ExitCode> {
    let runtime = crate::tools::runtime()?;
    let rows = runtime.block_on(rows(options))?;
    if rows.truncated {
        say(&format!(
            "the view has more than {MAX_ROWS} rows: the others are left out"
        ));
    }
    match (&options.name, options.publish) {
        (Some(name), true) => runtime.block_on(publish(options, name, &rows))?,
        _ => print(options.form, rows)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the rows of the view.
async fn rows(options: &Options) -> Result<Rows> {
    let (source, root) = (&options.source, &options.source.root);
    let (mut facts, mut pipelines) = (all_facts(root), all_pipelines(root).to_vec());
    if !options.nodes.is_empty() {
        let nodes = options.nodes.iter();
        facts = nodes
            .clone()
            .flat_map(|node| NodeTopics::new(root, node).retained())
            .collect();
        let topics = nodes.map(|node| PipelineTopics::new(root, node));
        pipelines = topics
            .flat_map(|topics| [topics.presence(), topics.last()])
            .collect();
    }
    let (nodes, found) = source.nodes_and(facts, pipelines).await?;
    let mut network = Network::default();
    for delivery in &found.messages {
        network.add_message(root, delivery, MAX_PAYLOAD);
    }
    let is_empty = nodes.seen.is_empty() && network.pipelines().next().is_none();
    // Programs that read JSON see it: `show --json` is silent too.
    if is_empty && (options.publish || options.form != Form::Json) {
        source.say_empty();
    }
    let lacks = network.cut();
    if let Some(cause) = &lacks {
        say(cause);
    }
    if options.publish
        && let Some(cause) = found.cut.or(lacks)
    {
        return Err(Error::data(format!(
            "publish a view: {cause}; nothing is published"
        )));
    }
    let view = View::limited(&nodes, &network, Timestamp::now().as_second())?;
    view.query_once(options.sql.clone(), options.set.clone())
}

/// Publishes the rows, unless the broker holds them already.
async fn publish(options: &Options, name: &str, rows: &Rows) -> Result<()> {
    let source = &options.source;
    let topic = format!("{}/infrastructure/views/{name}", source.root);
    let list = list(name, rows)?;
    let held = source.messages(vec![topic.clone()]).await?;
    let is_held = held.messages.iter().any(|delivery| {
        // One of ours, and no tree of a larger one.
        let text = (delivery.payload.len() <= MAX_PUBLISHED).then_some(&delivery.payload);
        let value: Option<Value> = text.and_then(|text| serde_json::from_slice(text).ok());
        value.is_some_and(|value| {
            value.get("rows") == Some(&list)
                && value.get("truncated") == Some(&json!(rows.truncated))
        })
    });
    if is_held {
        info!("view {name}: the broker holds its rows");
        return Ok(());
    }
    let ts = Timestamp::now().as_second();
    let payload = json!({"view": name, "ts": ts, "rows": list, "truncated": rows.truncated});
    let payload = json_text::to_text(&payload);
    if payload.len() > MAX_PUBLISHED {
        return Err(too_large(name));
    }
    let message = Message {
        topic,
        payload: Bytes::from(payload),
        qos: Qos::AtLeastOnce,
        retain: true,
        properties: Properties {
            user: origin(),
            ..Properties::default()
        },
    };
    let limit: Duration = source.timeout;
    oneshot::publish(&sender(&source.broker), &message, None, limit).await?;
    info!("view {name}: published");
    Ok(())
}

/// Returns the rows as an array, if they may be published.
fn list(name: &str, rows: &Rows) -> Result<Value> {
    let mut room = MAX_PUBLISHED;
    let mut list = Vec::new();
    for object in rows.objects() {
        let size = json_text::to_text(&object).len();
        room = room.checked_sub(size).ok_or_else(|| too_large(name))?;
        list.push(object);
    }
    Ok(Value::Array(list))
}

fn too_large(name: &str) -> Error {
    Error::data(format!(
        "publish view {name}: its rows have more than {} KiB; narrow the SELECT",
        MAX_PUBLISHED >> 10
    ))
}

fn print(form: Form, rows: Rows) -> Result<()> {
    let is_terminal = Terminal::of_stdout().is_terminal();
    // A program gets values as they are. On a terminal they must not control it, nor look like two.
    let shown = |text: &str| match is_terminal {
        true => printable(text, usize::MAX),
        false => text.to_owned(),
    };
    match form {
        Form::Json => {
            let objects = rows.objects();
            crate::tools::print_array(objects.map(|object| json_text::to_text(&object)))
        }
        Form::Csv => {
            let heads = rows.columns.iter().map(|name| quoted(&shown(name)));
            crate::tools::print(&heads.collect::<Vec<_>>().join(","))?;
            for row in rows.rows {
                let cells = row.iter().map(|value| quoted(&shown(&text(value))));
                crate::tools::print(&cells.collect::<Vec<_>>().join(","))?;
            }
            Ok(())
        }
        Form::Raw => {
            for value in rows.rows.iter().filter_map(|row| row.first()) {
                crate::tools::print(&shown(&text(value)))?;
            }
            Ok(())
        }
        Form::Table => table(rows),
    }
}

fn table(rows: Rows) -> Result<()> {
    let terminal = Terminal::of_stdout();
    let heads: Vec<String> = rows
        .columns
        .iter()
        .map(|name| printable(&name.to_uppercase(), 60))
        .collect();
    let count = rows.columns.len();
    let cells = rows.rows.into_iter().map(|row| {
        let cells = row.iter().map(|value| match value {
            Value::Null => "-".to_owned(),
            value => printable(&text(value), MAX_SHOWN),
        });
        cells.collect()
    });
    let lines: Vec<Vec<String>> = std::iter::once(heads).chain(cells).collect();
    // The headings are texts of the SELECT, and so the first row.
    let columns = vec![Column::text("", 8, 60); count];
    let texts = lines.iter().map(|row| row.iter().map(String::as_str));
    let layout = Layout::fit(&columns, texts, terminal.width);
    for row in &lines {
        let cells = row.iter().map(|text| (text.as_str(), None));
        crate::tools::print(&layout.line(cells))?;
    }
    Ok(())
}

/// Returns a value as text.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Returns a value for a line of CSV.
fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_csv_are_quoted_where_they_must_be() {
        for (text, want) in [
            ("a b", "a b"),
            ("a,b", "\"a,b\""),
            ("say \"x\"\n", "\"say \"\"x\"\"\n\""),
        ] {
            assert_eq!(quoted(text), want);
        }
    }
}
