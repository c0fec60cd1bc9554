//! `tael play`: has several nodes do a playbook, in step.

mod heard;
mod report;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::error::{Error, Kind, Result};
use crate::model::control::Action as Control;
use crate::model::duration;
use crate::model::event::attributes;
use crate::model::message::{Delivery, Message, Properties, Qos, property};
use crate::model::node;
use crate::model::playbook::{Action, Playbook, Step};
use crate::model::text::{printable, printable_bytes};
use crate::model::topic::{Filter, PipelineTopics};
use crate::net::mqtt::{Settings, Token};
use crate::net::options::BrokerOptions;
use crate::net::session::{Event, Session, Subscriptions};
use crate::net::transfer;
use crate::os::host;
use crate::os::signals::Stop;
use crate::tools::control;
use heard::{Heard, Verdict};
use report::Outcome;

/// What the command needs.
#[derive(Debug, Clone)]
pub struct Options {
    /// How to reach the broker; its identifier is one of this process alone.
    pub broker: BrokerOptions,
    /// The root of the nodes' topics, and of the pipelines'.
    pub root: String,
    /// What people call the playbook.
    pub name: String,
    /// The playbook.
    pub playbook: Playbook,
    /// How long a wait lasts that does not say so, and a file may be on its way.
    pub timeout: Duration,
    /// Whether what is waited for must be all that is said.
    pub exact: bool,
    /// Folders that files may be put into.
    pub allow: Vec<PathBuf>,
    /// Where a report is written.
    pub report: Option<PathBuf>,
}

/// How long the broker keeps statuses while the connection is away.
const SESSION_EXPIRY: Duration = Duration::from_secs(300);

/// How long the broker may take to confirm a command.
const CONFIRM: Duration = Duration::from_secs(10);

/// How often the live line is drawn.
const DRAW: Duration = Duration::from_millis(500);

/// Why a step does not hold, and the exit code that this means.
#[derive(Debug)]
struct Failure {
    code: u8,
    cause: String,
}

impl Failure {
    fn new(kind: Kind, cause: impl Into<String>) -> Self {
        Self {
            code: kind.exit_code(),
            cause: cause.into(),
        }
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Self::new(e.kind(), e.to_string())
    }
}

/// Shows what a playbook would do.
///
/// # Errors
/// When stdout cannot be written.
pub fn check(playbook: &Playbook) -> Result<ExitCode> {
    for (line, text) in &playbook.ignored {
        super::print(&format!("line {line}: ignored: {}", printable(text, 120)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Plays, and returns 0 if every step held.
///
/// # Errors
/// 69 and 77 when the broker cannot be reached or turns us away.
pub fn run(options: &Options) -> Result<ExitCode> {
    let runtime = super::runtime()?;
    let code = runtime.block_on(play(options));
    // A file that nobody has sent must not hold us up.
    runtime.shutdown_background();
    code.map(ExitCode::from)
}

struct Player<'a> {
    options: &'a Options,
    session: Session,
    online: bool,
    stop: Stop,
    heard: Heard,
    /// Nodes that were told anything.
    woken: Vec<String>,
    published: Vec<Token>,
    tokens: Token,
    receiving: Vec<(usize, JoinHandle<io::Result<u64>>, String)>,
    live: bool,
}

async fn play(options: &Options) -> Result<u8> {
    let mut player = Player::new(options)?;
    player.connect().await?;
    let (mut outcomes, mut failure) = (Vec::new(), None);
    for step in &options.playbook.steps {
        let outcome = player.take(step).await;
        if let Err(f) = &outcome.1 {
            failure = Some(f.code);
        }
        outcomes.push(outcome.0);
        if failure.is_some() {
            break;
        }
    }
    if failure.is_none()
        && let Err((line, f)) = player.received().await
    {
        failure = Some(f.code);
        let step = options.playbook.steps.iter().find(|s| s.line == line);
        let step = step.map(|s| s.action.to_string()).unwrap_or_default();
        player.show(line, &step, Duration::ZERO, Some(&f.cause));
        outcomes.push(Outcome {
            line,
            step,
            took: Duration::ZERO,
            failure: Some(f.cause),
        });
    }
    if let Some(code) = failure {
        for step in &options.playbook.on_failure {
            // All of it is tried: it cleans up.
            outcomes.push(player.take(step).await.0);
        }
        if code == INTERRUPTED {
            player.terminate().await;
        }
    }
    if let Some(path) = &options.report {
        report::write(path, &options.name, &outcomes)?;
    }
    player.session.close().await;
    Ok(failure.unwrap_or(0))
}

/// Ended by Ctrl-C, as a shell tells it: 128 and SIGINT.
const INTERRUPTED: u8 = 130;

impl<'a> Player<'a> {
    fn new(options: &'a Options) -> Result<Self> {
        let wrong = |e| Error::new(Kind::Usage, e);
        let nodes = options.playbook.nodes();
        let mut filters = Vec::new();
        for name in &nodes {
            filters.push(Filter::new(node::status_topic(&options.root, name)).map_err(wrong)?);
        }
        for who in options.playbook.pipelines() {
            let topic = PipelineTopics::new(&options.root, &who).status();
            filters.push(Filter::new(topic).map_err(wrong)?);
        }
        let settings = Settings {
            broker: options.broker.clone(),
            session_expiry: SESSION_EXPIRY,
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
            session: Session::new(settings, subscriptions),
            online: false,
            stop: Stop::listen(false)?,
            heard: Heard::default(),
            woken: Vec::new(),
            published: Vec::new(),
            tokens: 0,
            receiving: Vec::new(),
            live: io::stdout().is_terminal(),
        })
    }

    /// Waits for the broker.
    async fn connect(&mut self) -> Result<()> {
        let deadline = Instant::now() + CONFIRM;
        while !self.online {
            if !self
                .step(deadline)
                .await
                .map_err(|f| Error::new(Kind::Unavailable, f.cause))?
            {
                let address = self.options.broker.address();
                return Err(crate::net::session::unreachable(
                    &address,
                    "no answer in time",
                ));
            }
        }
        Ok(())
    }

    /// Takes one event of the session; `false` when `deadline` has passed.
    async fn step(&mut self, deadline: Instant) -> Result<bool, Failure> {
        let event = tokio::select! {
            biased;
            () = self.stop.requested() => {
                return Err(Failure { code: INTERRUPTED, cause: "interrupted".into() });
            }
            event = self.session.next() => event?,
            () = sleep_until(deadline) => return Ok(false),
        };
        match event {
            Event::Online => self.online = true,
            Event::Offline => self.online = false,
            Event::Published(token, Ok(())) => self.published.push(token),
            Event::Published(_, Err(refused)) => return Err(refused.0.into()),
            Event::Subscribed(_) => {}
            Event::Received(received) => {
                self.listen(&received.delivery);
                self.session.acknowledge(received.ack);
            }
        }
        Ok(true)
    }

    fn listen(&mut self, delivery: &Delivery) {
        let Ok(topic) = std::str::from_utf8(&delivery.topic) else {
            return;
        };
        let root = &self.options.root;
        let playbook = &self.options.playbook;
        if let Some(name) = playbook
            .nodes()
            .iter()
            .find(|n| node::status_topic(root, n) == topic)
        {
            let status = printable_bytes(&delivery.payload, 1000);
            self.heard.node(name, &status, delivery.retained);
            return;
        }
        let mut pipelines = playbook.pipelines().into_iter();
        let who = pipelines.find(|who| PipelineTopics::new(root, who).status() == topic);
        let status = attributes(&delivery.payload, 1 << 20).ok();
        if let (Some(who), Some(status), false) = (who, status, delivery.retained)
            && let Some(word) = status.get("status").and_then(Value::as_str)
        {
            let code = status.get("return_code").and_then(Value::as_i64);
            let code = code.and_then(|code| i32::try_from(code).ok());
            self.heard.pipeline(&who, word, code);
        }
    }

    /// Does a step, shows how that went, and returns it.
    async fn take(&mut self, step: &Step) -> (Outcome, Result<(), Failure>) {
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

    fn show(&self, line: usize, step: &str, took: Duration, failure: Option<&str>) {
        let step = printable(step, 200);
        let end = match failure {
            None => format!("{:.1} s", took.as_secs_f64()),
            Some(cause) => format!("failed: {}", printable(cause, 300)),
        };
        let clear = if self.live { "\r\x1b[K" } else { "" };
        // A reader that has gone away does not stop the nodes.
        let _ = writeln!(io::stdout().lock(), "{clear}line {line}: {step}: {end}");
    }

    fn draw(&self, text: &str, begun: Instant) {
        if self.live {
            let seconds = begun.elapsed().as_secs();
            let mut out = io::stdout().lock();
            let _ = write!(out, "\r\x1b[K{} … {seconds} s", printable(text, 60));
            let _ = out.flush();
        }
    }

    async fn act(&mut self, step: &Step, begun: Instant, text: &str) -> Result<(), Failure> {
        match &step.action {
            Action::Send { nodes, message, at } => self.send(nodes, message, *at).await,
            Action::WaitFor {
                nodes,
                status,
                timeout,
            } => {
                let limit = timeout.unwrap_or(self.options.timeout);
                self.wait_for(nodes, status, limit, begun, text).await
            }
            Action::Wait(time) => {
                let end = begun + *time;
                while Instant::now() < end {
                    self.draw(text, begun);
                    self.step(end.min(Instant::now() + DRAW)).await?;
                }
                Ok(())
            }
            Action::Receive { port, file } => self.receive(step.line, *port, file),
            Action::Raise { who, attributes } => self.raise(who, attributes).await,
            Action::Run(command) => self.shell(command, begun, text).await,
        }
    }

    async fn send(
        &mut self,
        nodes: &[String],
        message: &str,
        at: Option<Duration>,
    ) -> Result<(), Failure> {
        let instant = at.map(|at| {
            let millis = i64::try_from(at.as_millis()).unwrap_or(i64::MAX);
            Timestamp::now().as_millisecond().saturating_add(millis)
        });
        let mut waiting = Vec::new();
        for node in nodes {
            self.heard.told(node);
            if !self.woken.contains(node) {
                self.woken.push(node.clone());
            }
            let mut user = vec![
                (property::ID.to_owned(), host::new_id()),
                (property::HOST.to_owned(), host::hostname()),
            ];
            user.extend(instant.map(|at| (node::AT.to_owned(), at.to_string())));
            let message = Message {
                topic: node::command_topic(&self.options.root, node),
                payload: Bytes::from(message.to_owned()),
                qos: Qos::AtLeastOnce,
                retain: false,
                properties: Properties {
                    user,
                    ..Properties::default()
                },
            };
            self.tokens += 1;
            waiting.push((self.tokens, message, false));
        }
        let deadline = Instant::now() + CONFIRM;
        loop {
            for (token, message, sent) in &mut waiting {
                // After a broken connection it goes out again, under the same id.
                *sent = (*sent && self.online) || self.session.publish(message.clone(), *token);
            }
            if !self.step(deadline).await? {
                let address = self.options.broker.address();
                let cause = format!("{address} did not confirm it in time");
                return Err(Failure::new(Kind::TryAgain, cause));
            }
            let published = std::mem::take(&mut self.published);
            waiting.retain(|(token, _, _)| !published.contains(token));
            if waiting.is_empty() {
                return Ok(());
            }
        }
    }

    async fn wait_for(
        &mut self,
        names: &[String],
        status: &str,
        limit: Duration,
        begun: Instant,
        text: &str,
    ) -> Result<(), Failure> {
        let deadline = begun + limit;
        loop {
            let judge = |name: &String| self.heard.judge(name, status, self.options.exact);
            let verdicts: Vec<(&String, Verdict)> = names.iter().map(|n| (n, judge(n))).collect();
            for (name, verdict) in &verdicts {
                match verdict {
                    Verdict::Failed(code) => {
                        return Err(Failure {
                            code: u8::try_from(*code).unwrap_or(u8::MAX).max(1),
                            cause: format!("{name} said '{}'", self.heard.last(name)),
                        });
                    }
                    Verdict::Lost => {
                        let cause = format!("{name} is lost: its connection broke");
                        return Err(Failure::new(Kind::Unavailable, cause));
                    }
                    Verdict::Held | Verdict::NotYet => {}
                }
            }
            let missing: Vec<&String> = verdicts
                .iter()
                .filter(|(_, verdict)| *verdict == Verdict::NotYet)
                .map(|(name, _)| *name)
                .collect();
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let said: Vec<String> = missing
                    .iter()
                    .map(|name| format!("{name} last said '{}'", self.heard.last(name)))
                    .collect();
                let limit = duration::text(limit);
                let cause = format!("timed out after {limit}: {}", said.join(", "));
                return Err(Failure::new(Kind::TryAgain, cause));
            }
            self.draw(text, begun);
            self.step(deadline.min(Instant::now() + DRAW)).await?;
        }
    }

    fn receive(&mut self, line: usize, port: u16, file: &str) -> Result<(), Failure> {
        let path = transfer::confined(Path::new(file), &self.options.allow)
            .map_err(|cause| Failure::new(Kind::CannotCreate, cause))?;
        let listener = transfer::listen(port)
            .map_err(|e| Failure::new(Kind::CannotCreate, format!("listen on port {port}: {e}")))?;
        let coming = tokio::spawn(transfer::receive(listener, path, self.options.timeout));
        self.receiving.push((line, coming, file.to_owned()));
        Ok(())
    }

    /// Waits for all files that are on their way.
    async fn received(&mut self) -> Result<(), (usize, Failure)> {
        for (line, mut coming, file) in std::mem::take(&mut self.receiving) {
            let done = loop {
                let soon = Instant::now() + DRAW;
                tokio::select! {
                    done = &mut coming => break done,
                    stepped = self.step(soon) => stepped.map_err(|f| (line, f))?,
                };
            };
            let done = done.unwrap_or_else(|e| Err(io::Error::other(e)));
            done.map_err(|e| {
                let kind = match e.kind() {
                    io::ErrorKind::TimedOut => Kind::TryAgain,
                    _ => Kind::CannotCreate,
                };
                (line, Failure::new(kind, format!("receive {file}: {e}")))
            })?;
        }
        Ok(())
    }

    async fn raise(&mut self, who: &str, pairs: &[(String, String)]) -> Result<(), Failure> {
        self.heard.told(who);
        let attributes = pairs
            .iter()
            .map(|(key, value)| (key.clone(), Value::String(value.clone())))
            .collect();
        let options = control::Options {
            broker: BrokerOptions {
                client_id: format!("tael-{}", host::new_id()),
                ..self.options.broker.clone()
            },
            topics: PipelineTopics::new(&self.options.root, who),
            who: who.to_owned(),
            action: Control::Raise {
                trigger: None,
                attributes,
            },
            timeout: CONFIRM,
            json: false,
        };
        let answer = control::ask(&options).await?;
        if answer.get("ok") == Some(&Value::Bool(true)) {
            return Ok(());
        }
        let cause = super::text(&answer, "error").unwrap_or("it did not say why");
        Err(Failure::new(Kind::Data, format!("{who} refuses: {cause}")))
    }

    async fn shell(&mut self, command: &str, begun: Instant, text: &str) -> Result<(), Failure> {
        let cannot = |e: io::Error| Failure::new(Kind::CannotCreate, format!("run it: {e}"));
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", command])
            .stdin(std::process::Stdio::null())
            .spawn()
            .map_err(cannot)?;
        let (tx, mut ended) = oneshot::channel();
        std::thread::spawn(move || {
            // Whoever waited may have gone.
            let _ = tx.send(child.wait());
        });
        let status = loop {
            self.draw(text, begun);
            tokio::select! {
                status = &mut ended => break status,
                stepped = self.step(Instant::now() + DRAW) => stepped?,
            };
        };
        let status = status
            .unwrap_or_else(|e| Err(io::Error::other(e)))
            .map_err(cannot)?;
        if status.success() {
            return Ok(());
        }
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Err(Failure {
            code: code.unwrap_or(u8::MAX),
            cause: status.to_string(),
        })
    }

    /// Has all nodes end that were told anything: whoever interrupts wants rest.
    async fn terminate(&mut self) {
        let woken = std::mem::take(&mut self.woken);
        let pipelines = self.options.playbook.pipelines();
        let nodes: Vec<String> = woken
            .into_iter()
            .filter(|n| !pipelines.contains(n))
            .collect();
        if !nodes.is_empty()
            && let Err(f) = self.send(&nodes, "TERMINATE", None).await
        {
            let _ = writeln!(
                io::stderr().lock(),
                "tael: TERMINATE: {}",
                printable(&f.cause, 300)
            );
        }
    }
}
