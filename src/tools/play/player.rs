//! The player of a playbook: its connection, the statuses it has received, and its output.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::error::{Error, Kind, Result};
use crate::model::duration;
use crate::model::event::attributes;
use crate::model::message::{Delivery, Qos};
use crate::model::node;
use crate::model::table::{self, Colour};
use crate::model::text::{printable, printable_bytes};
use crate::model::topic::{Filter, PipelineTopics};
use crate::net::mqtt::{Settings, Token};
use crate::net::session::{Event, Session, Subscriptions};
use crate::net::transfer::Target;
use crate::os::signals::Stop;
use crate::os::terminal::Terminal;
use crate::tools::play::heard::Heard;
use crate::tools::play::{Failure, INTERRUPTED, Options};

/// Time that the broker keeps statuses without a connection.
const SESSION_EXPIRY: Duration = Duration::from_secs(300);

/// Maximum time for the broker to acknowledge a command.
pub(super) const CONFIRM: Duration = Duration::from_secs(10);

/// Interval between two updates of the live line.
pub(super) const DRAW: Duration = Duration::from_millis(500);

/// Width of the time of a step, columns: `: 59m 59s`.
const TIME: usize = 10;

pub(super) struct Player<'a> {
    pub options: &'a Options,
    pub session: Session,
    pub online: bool,
    pub stop: Stop,
    pub heard: Heard,
    /// Nodes that got a command.
    pub woken: Vec<String>,
    pub published: Vec<Token>,
    pub receiving: Vec<(usize, JoinHandle<io::Result<u64>>, String)>,
    /// Files that are being received, or were.
    pub targets: Vec<Arc<Target>>,
    /// Nodes on which a START has begun something that no STOP has ended.
    pub running: Vec<String>,
    /// Requests to stop so far.
    pub interrupts: usize,
    terminal: Terminal,
    /// Topics of nodes, and of pipelines, by name.
    nodes: HashMap<String, String>,
    pipelines: HashMap<String, String>,
}

impl<'a> Player<'a> {
    pub fn new(options: &'a Options) -> Result<Self> {
        let wrong = |e| Error::new(Kind::Usage, e);
        let nodes = options.playbook.nodes().into_iter();
        let topics: HashMap<String, String> = nodes
            .map(|name| (node::status_topic(&options.root, &name), name))
            .collect();
        let pipelines = options.playbook.pipelines().into_iter();
        let pipelines: HashMap<String, String> = pipelines
            .map(|who| (PipelineTopics::new(&options.root, &who).status(), who))
            .collect();
        let filters = topics.keys().chain(pipelines.keys());
        let filters = filters.map(|topic| Filter::new(topic.as_str()));
        let filters = filters.collect::<Result<Vec<_>, _>>().map_err(wrong)?;
        let settings = Settings {
            broker: options.broker.clone(),
            session_expiry: SESSION_EXPIRY,
            clean_start: true,
            will: None,
            max_packet: 1024 * 1024,
            receive_maximum: 64,
        };
        let subscriptions = Subscriptions {
            required: filters,
            optional: Vec::new(),
            qos: Qos::AtLeastOnce,
        };
        Ok(Self {
            options,
            session: Session::new(settings, subscriptions).announced(),
            online: false,
            stop: Stop::listen(false)?,
            heard: Heard::default(),
            woken: Vec::new(),
            published: Vec::new(),
            receiving: Vec::new(),
            targets: Vec::new(),
            running: Vec::new(),
            interrupts: 0,
            terminal: Terminal::of_stdout(),
            nodes: topics,
            pipelines,
        })
    }

    /// Waits for the broker.
    pub async fn connect(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + CONFIRM;
        while !self.online {
            if !self.step(deadline).await? {
                return Err(self.session.unreachable(CONFIRM).into());
            }
        }
        Ok(())
    }

    /// Takes one event of the session; `false` when `deadline` has passed.
    pub async fn step(&mut self, deadline: Instant) -> Result<bool, Failure> {
        let event = tokio::select! {
            biased;
            () = self.stop.requested() => {
                return Err(self.interrupted());
            }
            event = self.session.next() => event?,
            () = sleep_until(deadline) => return Ok(false),
        };
        match event {
            Event::Online => self.online = true,
            Event::Offline => self.online = false,
            Event::Published(token, Ok(_)) => self.published.push(token),
            Event::Published(_, Err(refused)) => return Err(refused.0.into()),
            Event::Subscribed(_) | Event::Holds(_) | Event::Left => {}
            Event::Received(received) => {
                self.listen(&received.delivery);
                self.session.acknowledge(&received.ack);
            }
        }
        Ok(true)
    }

    fn listen(&mut self, delivery: &Delivery) {
        let Ok(topic) = std::str::from_utf8(&delivery.topic) else {
            return;
        };
        if let Some(name) = self.nodes.get(topic) {
            let status = printable_bytes(&delivery.payload, 1000);
            self.heard.node(name, &status, delivery.retained);
            return;
        }
        let who = self.pipelines.get(topic);
        let status = attributes(&delivery.payload, 1 << 20).ok();
        if let (Some(who), Some(status), false) = (who, status, delivery.retained)
            && let Some(word) = status.get("status").and_then(Value::as_str)
        {
            let code = status.get("return_code").and_then(Value::as_i64);
            let code = code.and_then(|code| i32::try_from(code).ok());
            self.heard.pipeline(who, word, code);
        }
    }

    /// Counts a request to stop, and returns the failure that it is.
    pub fn interrupted(&mut self) -> Failure {
        self.interrupts += 1;
        Failure {
            code: INTERRUPTED,
            cause: "interrupted".into(),
        }
    }

    /// Notes what a command begins or ends on `node`.
    pub fn note_command(&mut self, node: &str, message: &str) {
        let word = message.split_whitespace().next().unwrap_or_default();
        if [node::START, node::STOP, node::TERMINATE].contains(&word) {
            self.running.retain(|running| running != node);
        }
        if word == node::START {
            self.running.push(node.to_owned());
        }
    }

    /// Shows the result of a step. On a terminal the line of one that held fits its width.
    pub fn show(&self, line: usize, step: &str, took: Duration, failure: Option<&str>) {
        let terminal = &self.terminal;
        let colour = |colour: Colour, text: String| match terminal.colour {
            true => colour.paint(&text),
            false => text,
        };
        let begin = format!("line {line}: {}", printable(step, 200));
        let shown = match failure {
            None => {
                let end = format!(": {}", duration::brief(took));
                // The time is as wide as the longest, so that it does not decide where a step is cut.
                let room = terminal
                    .width
                    .map(|w| w.saturating_sub(end.len().max(TIME)));
                let begin = room.map_or(begin.clone(), |room| table::cut(&begin, room));
                format!("{begin}{end}")
            }
            Some(cause) => {
                let failed = colour(Colour::Red, "failed".to_owned());
                let cause = printable(cause, 300);
                let whole = table::width(&begin) + table::width(&cause) + ": failed: ".len();
                match terminal.width.filter(|width| whole > *width) {
                    Some(width) => format!("{begin}: {failed}:{}", below(&cause, width)),
                    None => format!("{begin}: {failed}: {cause}"),
                }
            }
        };
        self.print(&shown);
    }

    /// Prints a line, instead of the live one.
    pub fn print(&self, line: &str) {
        let clear = if self.terminal.is_terminal() {
            "\r\x1b[K"
        } else {
            ""
        };
        // A missing reader must not stop the nodes.
        let _ = writeln!(io::stdout().lock(), "{clear}{line}");
    }

    /// Shows on a terminal that a step is not over.
    pub fn draw(&self, text: &str, begun: Instant) {
        let Some(width) = self.terminal.width else {
            return;
        };
        let elapsed = duration::text(Duration::from_secs(begun.elapsed().as_secs()));
        let end = format!(" … {elapsed}");
        // A full line would wrap, and could not be cleared.
        let room = width.saturating_sub(table::width(&end) + 1);
        let mut out = io::stdout().lock();
        let _ = write!(
            out,
            "\r\x1b[K{}{end}",
            table::cut(&printable(text, 200), room)
        );
        let _ = out.flush();
    }
}

/// Returns `text` on lines of their own, indented, which fit a terminal of `width` columns if its words
/// do.
fn below(text: &str, width: usize) -> String {
    const INDENT: &str = "\n    ";
    let (mut out, mut left) = (String::new(), 0);
    for word in text.split(' ') {
        let wide = table::width(word) + 1;
        if wide > left {
            out += INDENT;
            left = (width + 2).saturating_sub(INDENT.len());
        } else {
            out.push(' ');
        }
        out += word;
        left = left.saturating_sub(wide);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_wrapped_between_words() {
        assert_eq!(below("aaaa bbb c", 12), "\n    aaaa bbb\n    c");
        assert_eq!(below("aaaa bbb c", 14), "\n    aaaa bbb c");
        assert_eq!(
            below("longer than that", 8),
            "\n    longer\n    than\n    that"
        );
    }
}
