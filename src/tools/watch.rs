//! `tael watch`: shows messages live, one a line.

use std::process::ExitCode;
use std::time::Duration;

use jiff::Zoned;
use serde_json::{Map, json};
use tracing::warn;

use crate::error::Result;
use crate::model::message::{Delivery, Qos};
use crate::model::message_line::MessageLine;
use crate::model::table::{self, Column, Layout};
use crate::model::text::escaped_json;
use crate::model::topic::Filter;
use crate::model::{json, marker, moment};
use crate::net::options::BrokerOptions;
use crate::net::session::{Event, Session, Subscriptions};
use crate::os::logging;
use crate::os::signals::{self, Stop};
use crate::os::terminal::Terminal;
use crate::tools::listener;

/// Maximum time of our end after a signal.
const FAREWELL: Duration = Duration::from_secs(5);

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// Broker, and our credentials.
    pub broker: BrokerOptions,
    /// Filters to subscribe to.
    pub filters: Vec<Filter>,
    /// Highest QoS of deliveries, 1 at most.
    pub qos: Qos,
    /// Texts; messages whose topic or payload contains one are not shown.
    pub drop: Vec<String>,
    /// Whether to show all messages, whole topics and all attributes; JSON always does.
    pub all: bool,
    /// Whether to print one JSON object a line.
    pub json: bool,
    /// Number of lines after which it ends.
    pub count: Option<u64>,
}

/// Prints messages until it is stopped.
///
/// # Errors
/// When the broker refuses us.
pub fn run(options: &Options) -> Result<ExitCode> {
    signals::give_up_after(FAREWELL)?;
    for doubt in options.filters.iter().filter_map(Filter::doubt) {
        warn!("{doubt}");
    }
    super::runtime()?.block_on(watch(options))?;
    Ok(ExitCode::SUCCESS)
}

async fn watch(options: &Options) -> Result<()> {
    let mut stop = Stop::listen(false)?;
    let subscriptions = Subscriptions {
        required: options.filters.clone(),
        optional: Vec::new(),
        qos: options.qos.min(Qos::AtLeastOnce),
    };
    let mut session = Session::new(listener(&options.broker), subscriptions).announced_anywhere();
    if options.count.is_none() {
        session = session.lasting();
    }
    let mut lines = Lines::new(Terminal::of_stdout());
    let mut left = options.count.unwrap_or(u64::MAX);
    let mut early = Early::default();
    while left > 0 {
        let event = tokio::select! {
            () = stop.requested() => break,
            event = session.next() => event?,
        };
        match event {
            Event::Online => {
                // The log has a thread of its own.
                logging::flush();
                early.print()?;
                early.online = true;
            }
            Event::Offline => {
                early.print()?;
                early.online = false;
            }
            Event::Received(received) => {
                let delivery = &received.delivery;
                let line = match is_dropped(delivery, &options.drop) {
                    true => None,
                    false if options.json => Some(json_line(delivery)),
                    false => MessageLine::of(delivery, options.all)
                        .map(|message| lines.line(&clock(), &message)),
                };
                if let Some(line) = line {
                    early.add(line)?;
                    left -= 1;
                }
                session.acknowledge(&received.ack);
            }
            _ => {}
        }
    }
    early.print()?;
    session.close().await;
    Ok(())
}

/// Maximum number of lines that wait for the connection to be complete. More are printed at once.
const MAX_EARLY: usize = 1000;

/// Lines of messages that a broker sends before it has answered the subscription, retained ones as a
/// rule. They follow the log line about the connection.
#[derive(Default)]
struct Early {
    lines: Vec<String>,
    online: bool,
}

impl Early {
    /// Prints a line, now or after the log line.
    fn add(&mut self, line: String) -> Result<()> {
        if self.online {
            return super::print(&line);
        }
        self.lines.push(line);
        match self.lines.len() < MAX_EARLY {
            true => Ok(()),
            false => self.print(),
        }
    }

    /// Prints the lines that wait.
    fn print(&mut self) -> Result<()> {
        self.lines
            .drain(..)
            .try_for_each(|line| super::print(&line))
    }
}

pub(super) fn clock() -> String {
    moment::clock(&Zoned::now())
}

fn is_dropped(delivery: &Delivery, drop: &[String]) -> bool {
    if marker::is_marker(&delivery.topic) {
        return true;
    }
    let topic = String::from_utf8_lossy(&delivery.topic);
    let payload = String::from_utf8_lossy(&delivery.payload);
    drop.iter()
        .any(|text| topic.contains(text.as_str()) || payload.contains(text.as_str()))
}

/// Columns of the lines. State, sender and topic grow with what comes, up to a bound, so that lines
/// stand below each other.
const COLUMNS: [Column; 5] = [
    Column::whole("TIME"),
    Column::text("STATE", 8, 12),
    Column::text("WHO", 8, 24),
    Column::text("TOPIC", 12, 40),
    Column::text("ABOUT", 12, usize::MAX),
];

/// Lines of messages, and the width of their columns so far.
pub(super) struct Lines {
    terminal: Terminal,
    /// The widest cell of each column.
    widest: [String; COLUMNS.len()],
}

impl Lines {
    /// Returns lines for this terminal.
    pub fn new(terminal: Terminal) -> Self {
        let blank = |(column, width): (&Column, usize)| " ".repeat(width.max(column.least));
        let mut widest = [const { String::new() }; COLUMNS.len()];
        for (cell, column) in widest
            .iter_mut()
            .zip(COLUMNS.iter().zip([8, 8, 12, 20, 12]))
        {
            *cell = blank(column);
        }
        Self { terminal, widest }
    }

    /// Returns the line of a message, which begins with `time`.
    pub fn line(&mut self, time: &str, message: &MessageLine) -> String {
        let MessageLine {
            state,
            colour,
            who,
            topic,
            about,
        } = message;
        let cells = [time, state, who, topic, about];
        let last = COLUMNS.len() - 1;
        let known = self.widest.iter_mut().zip(cells).zip(&COLUMNS);
        for ((widest, cell), column) in known.take(last) {
            let cell = table::cut(cell, column.most);
            if table::width(&cell) > table::width(widest) {
                *widest = cell;
            }
        }
        let rows = [self.widest.iter().map(String::as_str)];
        let layout = Layout::fit(&COLUMNS, rows, self.terminal.width);
        let colour = colour.filter(|_| self.terminal.colour);
        layout.line(cells.into_iter().zip([None, colour, None, None, None]))
    }
}

fn json_line(delivery: &Delivery) -> String {
    let payload = json::parse(&delivery.payload)
        .unwrap_or_else(|_| json!(String::from_utf8_lossy(&delivery.payload)));
    let mut properties = Map::new();
    for (name, value) in &delivery.properties.user {
        properties.insert(name.clone(), json!(value));
    }
    let line = json!({
        "time": Zoned::now().timestamp().to_string(),
        "topic": String::from_utf8_lossy(&delivery.topic),
        "retained": delivery.retained,
        "payload": payload,
        "properties": properties,
    });
    escaped_json(&json::to_text(&line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::table::Colour;
    use bytes::Bytes;

    fn message(state: &str, topic: &str, about: &str) -> MessageLine {
        MessageLine {
            state: state.to_owned(),
            colour: Some(Colour::Green),
            who: "align@node7".to_owned(),
            topic: topic.to_owned(),
            about: about.to_owned(),
        }
    }

    #[test]
    fn lines_stand_below_each_other_and_fit_the_terminal() {
        let terminal = |width, colour| Terminal { width, colour };
        let mut lines = Lines::new(terminal(Some(70), false));
        let long = "lab/a/topic/that/needs/more/than/the/columns/of/a/topic";
        let mut shown = Vec::new();
        for message in [
            message("finished", "lab/seq/status", "S=1"),
            message("! falsestart", long, "K=日本語 and more that does not fit"),
            message("finished", "lab/seq/status", "S=1"),
        ] {
            shown.push(lines.line("12:00:00", &message));
        }
        assert_eq!(
            shown,
            [
                "12:00:00  finished  align@node7   lab/seq/status        S=1",
                "12:00:00  ! falsestart  align@node7   lab/a/topic/that/…  K=日本語 an…",
                "12:00:00  finished      align@node7   lab/seq/status      S=1",
            ]
        );
        let mut lines = Lines::new(terminal(None, true));
        let line = lines.line("t", &message("ok", long, "S=1"));
        assert_eq!(
            line,
            format!("t         \x1b[32mok\x1b[0m        align@node7   {long}  S=1")
        );
    }

    #[test]
    fn dropped_by_topic_or_payload() {
        let d = Delivery {
            topic: Bytes::from("lab/seq/status"),
            payload: Bytes::from(r#"{"status":"test"}"#),
            retained: false,
            duplicate: false,
            packet: 0,
            properties: crate::model::message::Properties::default(),
        };
        for (text, want) in [("test", true), ("seq", true), ("other", false)] {
            assert_eq!(is_dropped(&d, &[text.to_owned()]), want, "{text}");
        }
    }
}
