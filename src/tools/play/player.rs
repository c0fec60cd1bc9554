//! The player of a playbook: its connection, the statuses it has received, and its output.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
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
use crate::model::playbook::Step;
use crate::model::text::{printable, printable_bytes};
use crate::model::topic::{Filter, PipelineTopics};
use crate::net::mqtt::{Settings, Token};
use crate::net::session::{Event, Session, Subscriptions};
use crate::net::transfer::Target;
use crate::os::signals::Stop;
use crate::tools::play::heard::Heard;
use crate::tools::play::report::Outcome;
use crate::tools::play::{Failure, Options};

/// Time that the broker keeps statuses without a connection.
const SESSION_EXPIRY: Duration = Duration::from_secs(300);

/// Maximum time for the broker to acknowledge a command.
pub(super) const CONFIRM: Duration = Duration::from_secs(10);

/// Interval between two updates of the live line.
pub(super) const DRAW: Duration = Duration::from_millis(500);

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
    pub live: bool,
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
            live: io::stdout().is_terminal(),
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
                return Err(Failure::interrupted());
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

    /// Runs a step, shows its result, and returns it.
    pub async fn take(&mut self, step: &Step) -> (Outcome, Result<(), Failure>) {
        let begun = Instant::now();
        let text = step.action.to_string();
        let done = self.act(step, begun, &text).await;
        let took = begun.elapsed();
        let failure = done.as_ref().err().map(|f| f.cause.clone());
        self.show(step.line, &text, took, failure.as_deref());
        let outcome = Outcome {
            line: step.line,
            step: text,
            took,
            failure,
        };
        (outcome, done)
    }

    pub fn show(&self, line: usize, step: &str, took: Duration, failure: Option<&str>) {
        let step = printable(step, 200);
        let end = match failure {
            None => duration::rough(took),
            Some(cause) => format!("failed: {}", printable(cause, 300)),
        };
        let clear = if self.live { "\r\x1b[K" } else { "" };
        // A missing reader must not stop the nodes.
        let _ = writeln!(io::stdout().lock(), "{clear}line {line}: {step}: {end}");
    }

    pub fn draw(&self, text: &str, begun: Instant) {
        if self.live {
            let elapsed = duration::text(Duration::from_secs(begun.elapsed().as_secs()));
            let mut out = io::stdout().lock();
            let _ = write!(out, "\r\x1b[K{} … {elapsed}", printable(text, 60));
            let _ = out.flush();
        }
    }
}
