//! `tael status`: lists every pipeline of a root, and which starts which.

use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::model::duration;
use crate::model::event::attributes;
use crate::model::network::{Network, Seen};
use crate::model::roots::Content;
use crate::model::text::printable;
use crate::model::topic::{self, Filter};
use crate::net::options::BrokerOptions;
use crate::net::retained::{self, Query};
use crate::os::logging::say;
use crate::tools::{MAX_PAYLOAD, forget, listener, roots};

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A table.
    Table,
    /// A JSON array.
    Json,
    /// Which pipeline starts which, as a Mermaid flowchart.
    Mermaid,
    /// The same for Graphviz.
    Dot,
}

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// Broker, and our credentials.
    pub broker: BrokerOptions,
    /// The root of the pipelines.
    pub root: String,
    /// Form of the output.
    pub form: Form,
    /// Forget pipelines that were stopped longer ago than this, and list those, instead of all.
    pub prune: Option<Duration>,
    /// Maximum time for the broker to answer.
    pub timeout: Duration,
}

/// Prints the pipelines in the retained messages of the broker.
///
/// # Errors
/// When the broker does not answer.
pub fn run(options: &Options) -> Result<ExitCode> {
    let filters = topic::all_pipelines(&options.root)
        .map(Filter::new)
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| Error::new(Kind::Usage, e))?;
    let query = Query {
        filters,
        root: options.root.clone(),
        limit: options.timeout,
        patience: options.timeout,
    };
    let runtime = super::runtime()?;
    let found = runtime.block_on(retained::retained(listener(&options.broker), query))?;
    if let Some(cause) = found.cut {
        say(&cause);
    }
    let mut network = Network::default();
    for delivery in found.messages {
        let topic = String::from_utf8_lossy(&delivery.topic);
        if let Ok(payload) = attributes(&delivery.payload, MAX_PAYLOAD) {
            network.add(&options.root, &topic, &payload);
        }
    }
    if let Some(span) = options.prune {
        runtime.block_on(prune(options, &network, span))?;
        return Ok(ExitCode::SUCCESS);
    }
    match options.form {
        Form::Json => {
            let list: Vec<Value> = network.pipelines().map(Seen::json).collect();
            super::print_json(&Value::Array(list))?;
        }
        Form::Mermaid | Form::Dot => {
            let graph = network.graph(&options.root);
            if let Some(cause) = graph.cut() {
                say(&cause);
            }
            let text = match options.form {
                Form::Dot => graph.dot(),
                _ => graph.mermaid(),
            };
            super::print(text.trim_end())?;
        }
        Form::Table => {
            let mut rows: Vec<[String; 7]> = network.pipelines().map(row).collect();
            if rows.is_empty() {
                let hint = roots::hint(&options.broker, &Content::Pipelines, &options.root);
                let hint = super::runtime()?.block_on(hint);
                let root = &options.root;
                say(&format!(
                    "no pipeline has ever been seen below {root}; {hint}"
                ));
            } else {
                let head = [
                    "PIPELINE",
                    "STATE",
                    "HOST",
                    "VERSION",
                    "LAST END",
                    "AGO",
                    "STARTED BY",
                ];
                rows.insert(0, head.map(str::to_owned));
            }
            let mut widths = [0; 7];
            for row in &rows {
                for (cell, width) in row.iter().zip(&mut widths) {
                    *width = cell.chars().count().max(*width);
                }
            }
            for row in &rows {
                let cells = row.iter().zip(&widths);
                let line: Vec<String> = cells
                    .map(|(cell, width)| format!("{cell:<width$}"))
                    .collect();
                super::print(line.join("  ").trim_end())?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Forgets the pipelines that were stopped more than `span` ago, and prints them.
async fn prune(options: &Options, network: &Network, span: Duration) -> Result<()> {
    let span = i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    let (stopped, unknown) = network.gone(Timestamp::now().as_second().saturating_sub(span));
    if !stopped.is_empty() {
        forget::forget(&options.broker, &options.root, &stopped, options.timeout).await?;
    }
    match options.form {
        Form::Json => {
            let list: Vec<Value> = stopped.iter().map(|seen| seen.json()).collect();
            super::print_json(&Value::Array(list))?;
        }
        _ => {
            for seen in &stopped {
                super::print(&format!("forgot {}", forget::shown(seen)))?;
            }
        }
    }
    forget::say_left(&unknown);
    Ok(())
}

fn row(seen: &Seen) -> [String; 7] {
    let last = seen.last.as_ref();
    let field = |key: &str| last.and_then(|last| last.get(key));
    let end = field("status").and_then(Value::as_str).map(|status| {
        let code = field("return_code").and_then(Value::as_i64);
        let code = code.map_or(String::new(), |code| format!(" ({code})"));
        let elapsed = field("time_elapsed").and_then(Value::as_str);
        let elapsed = elapsed.and_then(duration::from_python);
        let elapsed = elapsed.map_or(String::new(), |elapsed| {
            format!(" in {}", duration::text(elapsed))
        });
        format!("{status}{code}{elapsed}")
    });
    let ago = field("ts").and_then(Value::as_i64).map(|at| {
        let seconds = u64::try_from(Timestamp::now().as_second().saturating_sub(at)).unwrap_or(0);
        duration::text(Duration::from_secs(seconds))
    });
    let mut by: Vec<String> = seen
        .triggers
        .iter()
        .map(|waits| match waits.absent {
            Some(_) => format!("silence of {}", waits.topics.join(" ")),
            None => waits.topics.join(" "),
        })
        .collect();
    by.dedup();
    let more = seen
        .trigger_count
        .saturating_sub(seen.triggers.len() as u64);
    if more > 0 {
        by.push(format!("{more} more"));
    }
    let cell = |text: &str| printable(if text.is_empty() { "-" } else { text }, 120);
    [
        cell(&seen.who),
        cell(&seen.state),
        cell(&seen.host),
        cell(&seen.version),
        cell(&end.unwrap_or_default()),
        cell(&ago.unwrap_or_default()),
        cell(&by.join(", ")),
    ]
}
