//! The steps of a playbook, and how each is run.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::Kind;
use crate::model::control::Action as Control;
use crate::model::duration;
use crate::model::message::{Message, Properties, Qos, property};
use crate::model::node;
use crate::model::playbook::{Action, Step, is_pipeline_state};
use crate::model::text::printable;
use crate::model::topic::PipelineTopics;
use crate::net::options::BrokerOptions;
use crate::net::transfer::{self, Limits, Target};
use crate::os::host;
use crate::os::logging::say;
use crate::os::process::end_group;
use crate::tools::control;
use crate::tools::play::Failure;
use crate::tools::play::heard::Verdict;
use crate::tools::play::player::{CONFIRM, DRAW, Player};

/// Time between TERM and KILL for a command that is interrupted.
const GRACE: Duration = Duration::from_secs(2);

impl Player<'_> {
    pub async fn act(&mut self, step: &Step, begun: Instant, text: &str) -> Result<(), Failure> {
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
            waiting.push((message, None));
        }
        let deadline = Instant::now() + CONFIRM;
        loop {
            for (message, token) in &mut waiting {
                // After a broken connection it is sent again, under the same id.
                if token.is_none() || !self.online {
                    *token = self.session.publish(message.clone());
                }
            }
            if !self.step(deadline).await? {
                let address = self.options.broker.address();
                let cause = format!("{address} did not confirm it in time");
                return Err(Failure::new(Kind::TryAgain, cause));
            }
            let published = std::mem::take(&mut self.published);
            waiting.retain(|(_, token)| token.is_none_or(|token| !published.contains(&token)));
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
                            cause: self.heard.last(name),
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
                if is_pipeline_state(status) {
                    names.iter().for_each(|name| self.heard.took(name, status));
                }
                return Ok(());
            }
            if Instant::now() >= deadline {
                let said: Vec<String> = missing.iter().map(|n| self.heard.last(n)).collect();
                let limit = duration::text(limit);
                let cause = format!("timed out after {limit}: {}", said.join(", "));
                return Err(Failure::new(Kind::TryAgain, cause));
            }
            self.draw(text, begun);
            self.step(deadline.min(Instant::now() + DRAW)).await?;
        }
    }

    fn receive(&mut self, line: usize, port: u16, file: &str) -> Result<(), Failure> {
        let target = Target::new(Path::new(file), &self.options.allow)
            .map_err(|cause| Failure::new(Kind::CannotCreate, cause))?;
        let listener = transfer::listen(self.options.listen, port)
            .map_err(|e| Failure::new(Kind::CannotCreate, format!("listen on port {port}: {e}")))?;
        let target = Arc::new(target);
        self.targets.push(Arc::clone(&target));
        let limits = Limits {
            time: self.options.timeout,
            bytes: self.options.max_file,
            from: self.options.from.clone(),
        };
        let coming = tokio::spawn(transfer::receive(listener, target, limits));
        self.receiving.push((line, coming, file.to_owned()));
        Ok(())
    }

    /// Waits for all files that are being received.
    pub async fn received(&mut self) -> Result<(), (usize, Failure)> {
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
                    io::ErrorKind::FileTooLarge => Kind::Data,
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
            root: self.options.root.clone(),
            topics: PipelineTopics::new(&self.options.root, who),
            who: who.to_owned(),
            action: Control::Raise {
                trigger: None,
                attributes,
            },
            timeout: CONFIRM,
            json: false,
        };
        let answer = tokio::select! {
            answer = control::ask(&options) => answer?,
            () = self.stop.requested() => return Err(Failure::interrupted()),
        };
        if answer.get("ok") == Some(&Value::Bool(true)) {
            return Ok(());
        }
        let cause = crate::tools::text(&answer, "error").unwrap_or("without a reason");
        Err(Failure::new(Kind::Data, format!("{who} refuses: {cause}")))
    }

    async fn shell(&mut self, command: &str, begun: Instant, text: &str) -> Result<(), Failure> {
        let cannot = |e: io::Error| Failure::new(Kind::CannotCreate, format!("run it: {e}"));
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", command])
            .stdin(std::process::Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(cannot)?;
        let group = child.id();
        let (tx, mut ended) = oneshot::channel();
        std::thread::spawn(move || {
            // The caller may be gone.
            let _ = tx.send(child.wait());
        });
        let status = loop {
            self.draw(text, begun);
            tokio::select! {
                status = &mut ended => break status,
                stepped = self.step(Instant::now() + DRAW) => if let Err(f) = stepped {
                    end_group(group, GRACE);
                    return Err(f);
                },
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

    /// Sends TERMINATE to all nodes that got a command.
    pub async fn terminate(&mut self) {
        let nodes = std::mem::take(&mut self.woken);
        if !nodes.is_empty()
            && let Err(f) = self.send(&nodes, node::TERMINATE, None).await
        {
            say(&format!(
                "{}: {}",
                node::TERMINATE,
                printable(&f.cause, 300)
            ));
        }
    }
}
