//! `tael status`: lists every pipeline of a root, and which starts which.

use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::model::drawing::svg;
use crate::model::duration;
use crate::model::event::attributes;
use crate::model::json;
use crate::model::message::property;
use crate::model::network::{Network, Seen, Waits};
use crate::model::roots::Content;
use crate::model::table::{Colour, Column, Layout};
use crate::model::text::printable;
use crate::model::topic::{self, Filter, PipelineTopic};
use crate::net::options::BrokerOptions;
use crate::net::retained::{self, Query};
use crate::os::logging::say;
use crate::os::terminal::Terminal;
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
    /// The same as a drawing.
    Svg,
}

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// Broker, and our credentials.
    pub broker: BrokerOptions,
    /// The root of the pipelines.
    pub root: String,
    /// One pipeline; by default all.
    pub who: Option<String>,
    /// Form of the output.
    pub form: Form,
    /// Whether the table has versions, and whole topics instead of the names of pipelines.
    pub all: bool,
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
    // The connection ends with its runtime. A broker that sends on must not wait for our reader.
    let asked = retained::retained(listener(&options.broker), query);
    let found = super::runtime()?.block_on(asked)?;
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
    if let Some(cause) = network.cut() {
        say(&cause);
    }
    let shown = |seen: &&Seen| options.who.as_ref().is_none_or(|who| *who == seen.who);
    if let Some(who) = &options.who
        && !network.pipelines().any(|seen| seen.who == *who)
    {
        let root = &options.root;
        let content = Content::Pipeline(who.clone());
        let hint = super::runtime()?.block_on(roots::hint(&options.broker, &content, root));
        return Err(Error::data(format!(
            "status {who}: nothing is retained about it below {root}; {hint}"
        )));
    }
    if let Some(span) = options.prune {
        super::runtime()?.block_on(prune(options, &network, span))?;
        return Ok(ExitCode::SUCCESS);
    }
    match options.form {
        Form::Json => {
            let seen = network.pipelines().filter(shown);
            super::print_array(seen.map(|seen| json::to_text(&seen.json())))?;
        }
        Form::Mermaid | Form::Dot | Form::Svg => {
            let graph = network.graph(&options.root);
            if let Some(cause) = graph.cut() {
                say(&cause);
            }
            let text = match options.form {
                Form::Dot => graph.dot(),
                Form::Svg => {
                    let (drawing, cut) = svg(&graph);
                    cut.iter().for_each(|cause| say(cause));
                    drawing
                }
                _ => graph.mermaid(),
            };
            super::print(text.trim_end())?;
        }
        Form::Table => {
            if network.pipelines().next().is_none() {
                let root = &options.root;
                let hint = roots::hint(&options.broker, &Content::Pipelines, root);
                let hint = super::runtime()?.block_on(hint);
                say(&format!(
                    "no pipeline is seen below {root}: nothing is retained there, or the access \
                     rules of the broker hide it; {hint}"
                ));
                return Ok(ExitCode::SUCCESS);
            }
            let rows = network
                .pipelines()
                .filter(shown)
                .map(|seen| row(options, seen));
            for line in table(options, rows.collect()) {
                super::print(&line)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the lines of the table.
fn table(options: &Options, rows: Vec<Row>) -> Vec<String> {
    let version = Column::text("VERSION", 7, 16);
    let columns: Vec<Column> = [
        Column::text("PIPELINE", 8, 24),
        Column::text("STATE", 7, 10),
        Column::text("LAST END", 10, 24),
        Column::number("AGO"),
        Column::text("HOST", 6, 20),
        version,
        Column::text("STARTED BY", 12, usize::MAX),
    ]
    .into_iter()
    .filter(|column| options.all || column.head != version.head)
    .collect();
    let terminal = Terminal::of_stdout();
    let texts = rows
        .iter()
        .map(|row| row.iter().map(|(text, _)| text.as_str()));
    let layout = Layout::fit(&columns, texts, terminal.width);
    let lines = rows.iter().map(|row| {
        let cells = row.iter();
        layout.line(cells.map(|(text, colour)| (text.as_str(), colour.filter(|_| terminal.colour))))
    });
    std::iter::once(layout.heading()).chain(lines).collect()
}

/// Forgets the pipelines that were stopped more than `span` ago, and prints them.
async fn prune(options: &Options, network: &Network, span: Duration) -> Result<()> {
    super::check_stdout()?;
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

/// The cells of a row, each printable, and their colours.
type Row = Vec<(String, Option<Colour>)>;

fn row(options: &Options, seen: &Seen) -> Row {
    let last = seen.last.as_ref();
    let field = |key: &str| last.and_then(|last| last.get(key));
    let status = match seen.last_canceled {
        true => Some(property::CANCELED),
        false => field("status").and_then(Value::as_str),
    };
    let end = status.map(|status| {
        let code = field("return_code").and_then(Value::as_i64);
        let code = code.filter(|code| *code != 0 && !seen.last_canceled);
        let code = code.map_or(String::new(), |code| format!(" ({code})"));
        let elapsed = field("time_elapsed").and_then(Value::as_str);
        let elapsed = elapsed.and_then(duration::from_python);
        let elapsed = elapsed.map_or(String::new(), |elapsed| {
            format!(" in {}", duration::brief(elapsed))
        });
        format!("{status}{code}{elapsed}")
    });
    let ago = field("ts").and_then(Value::as_i64).map(|at| {
        let seconds = u64::try_from(Timestamp::now().as_second().saturating_sub(at)).unwrap_or(0);
        duration::brief(Duration::from_secs(seconds))
    });
    let mut by: Vec<String> = seen.triggers.iter().map(|t| waits(options, t)).collect();
    by.dedup();
    let more = seen
        .trigger_count
        .saturating_sub(seen.triggers.len() as u64);
    if more > 0 {
        by.push(format!("{more} more"));
    }
    let cell = |text: &str, colour| {
        let text = printable(if text.is_empty() { "-" } else { text }, 120);
        (text, colour)
    };
    let mut row = vec![
        cell(&seen.who, None),
        cell(&seen.state, Colour::of_state(&seen.state)),
        cell(&end.unwrap_or_default(), status.and_then(Colour::of_state)),
        cell(&ago.unwrap_or_default(), None),
        cell(&seen.host, None),
    ];
    row.extend(options.all.then(|| cell(&seen.version, None)));
    row.push(cell(&by.join(", "), None));
    row
}

/// Returns what starts a trigger: topics, and the names of pipelines below the same root instead of
/// the topics of their statuses.
fn waits(options: &Options, waits: &Waits) -> String {
    let topics = waits.topics.iter().map(|topic| {
        let own = PipelineTopic::parse(topic).filter(|own| {
            own.root == options.root && own.name == "status" && own.who != "+" && !options.all
        });
        own.map_or(topic.as_str(), |own| own.who)
    });
    let topics = topics.collect::<Vec<_>>().join(" ");
    match waits.absent {
        Some(_) => format!("silence of {topics}"),
        None => topics,
    }
}
