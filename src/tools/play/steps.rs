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
use crate::tools::play::report::Outcome;

/// Time between TERM and KILL for a command that is interrupted.
const GRACE: Duration = Duration::from_secs(2);

/// Runs a step, shows its result, and returns it.
pub(super) async fn take(player: &mut Player<'_>, step: &Step) -> (Outcome, Result<(), Failure>) {
    let begun = Instant::now();
    let text = step.action.to_string();
    let done = act(player, step, begun, &text).await;
    let took = begun.elapsed();
    let failure = done.as_ref().err().map(|f| f.cause.clone());
    player.show(step.line, &text, took, failure.as_deref());
    let outcome = Outcome {
        line: step.line,
        step: text,
        took,
        failure,
    };
    (outcome, done)
}

async fn act(
    player: &mut Player<'_>,
    step: &Step,
    begun: Instant,
    text: &str,
) -> Result<(), Failure> {
    match &step.action {
        Action::Send { nodes, message, at } => {
            hear(player, nodes, message)?;
            send(player, nodes, message, *at).await?;
            // Its first status comes before the broker confirms the first command.
            hear(player, nodes, message)
        }
        Action::WaitFor {
            nodes,
            status,
            timeout,
        } => {
            let limit = timeout.unwrap_or(player.options.timeout);
            wait_for(player, nodes, status, limit, begun, text).await
        }
        Action::Wait(time) => {
            let end = begun + *time;
            while Instant::now() < end {
                player.draw(text, begun);
                player.step(end.min(Instant::now() + DRAW)).await?;
            }
            Ok(())
        }
        Action::Receive { port, file } => receive(player, step.line, *port, file),
        Action::Raise { who, attributes } => raise(player, who, attributes).await,
        Action::Run(command) => shell(player, command, begun, text).await,
    }
}

/// Fails if one of `nodes` has ended: it does not get `message`. It needs no TERMINATE.
fn hear(player: &Player<'_>, nodes: &[String], message: &str) -> Result<(), Failure> {
    let ended = nodes.iter().find(|name| player.heard.has_ended(name));
    match ended {
        Some(name) if message.split_whitespace().next() != Some(node::TERMINATE) => {
            Err(ended_node(name))
        }
        _ => Ok(()),
    }
}

fn ended_node(name: &str) -> Failure {
    let cause = format!("{name} has ended (its STATUS is TERMINATED): start it with 'tael node'");
    Failure::new(Kind::Unavailable, cause)
}

async fn send(
    player: &mut Player<'_>,
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
        player.heard.told(node);
        player.note_command(node, message);
        if !player.woken.contains(node) {
            player.woken.push(node.clone());
        }
        let mut user = vec![
            (property::ID.to_owned(), host::new_id()),
            (property::HOST.to_owned(), host::hostname()),
        ];
        user.extend(instant.map(|at| (node::AT.to_owned(), at.to_string())));
        let message = Message {
            topic: node::command_topic(&player.options.root, node),
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
            if token.is_none() || !player.online {
                *token = player.session.publish(message.clone());
            }
        }
        if !player.step(deadline).await? {
            let address = player.options.broker.address();
            let cause = format!("{address} did not confirm it in time");
            return Err(Failure::new(Kind::TryAgain, cause));
        }
        let published = std::mem::take(&mut player.published);
        waiting.retain(|(_, token)| token.is_none_or(|token| !published.contains(&token)));
        if waiting.is_empty() {
            return Ok(());
        }
    }
}

async fn wait_for(
    player: &mut Player<'_>,
    names: &[String],
    status: &str,
    limit: Duration,
    begun: Instant,
    text: &str,
) -> Result<(), Failure> {
    let deadline = begun + limit;
    loop {
        let judge = |name: &String| player.heard.judge(name, status, player.options.exact);
        let verdicts: Vec<(&String, Verdict)> = names.iter().map(|n| (n, judge(n))).collect();
        for (name, verdict) in &verdicts {
            match verdict {
                Verdict::Failed(code) => {
                    return Err(Failure {
                        code: u8::try_from(*code).unwrap_or(u8::MAX).max(1),
                        cause: player.heard.last(name),
                    });
                }
                Verdict::Lost => {
                    let cause = format!("{name} is lost: its connection broke");
                    return Err(Failure::new(Kind::Unavailable, cause));
                }
                Verdict::Ended => return Err(ended_node(name)),
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
                names
                    .iter()
                    .for_each(|name| player.heard.took(name, status));
            }
            return Ok(());
        }
        if Instant::now() >= deadline {
            let said: Vec<String> = missing.iter().map(|n| player.heard.last(n)).collect();
            let limit = duration::text(limit);
            let cause = format!("timed out after {limit}: {}", said.join(", "));
            return Err(Failure::new(Kind::TryAgain, cause));
        }
        player.draw(text, begun);
        player.step(deadline.min(Instant::now() + DRAW)).await?;
    }
}

fn receive(player: &mut Player<'_>, line: usize, port: u16, file: &str) -> Result<(), Failure> {
    let target = Target::new(Path::new(file), &player.options.allow)
        .map_err(|cause| Failure::new(Kind::CannotCreate, cause))?;
    let listener = transfer::listen(player.options.listen, port)
        .map_err(|e| Failure::new(Kind::CannotCreate, format!("listen on port {port}: {e}")))?;
    let target = Arc::new(target);
    player.targets.push(Arc::clone(&target));
    let limits = Limits {
        time: player.options.timeout,
        bytes: player.options.max_file,
        from: player.options.from.clone(),
    };
    let coming = tokio::spawn(transfer::receive(listener, target, limits));
    player.receiving.push((line, coming, file.to_owned()));
    Ok(())
}

/// Waits for all files that are being received.
pub(super) async fn received(player: &mut Player<'_>) -> Result<(), (usize, Failure)> {
    for (line, mut coming, file) in std::mem::take(&mut player.receiving) {
        let done = loop {
            let soon = Instant::now() + DRAW;
            tokio::select! {
                done = &mut coming => break done,
                stepped = player.step(soon) => stepped.map_err(|f| (line, f))?,
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

async fn raise(
    player: &mut Player<'_>,
    who: &str,
    pairs: &[(String, String)],
) -> Result<(), Failure> {
    player.heard.told(who);
    let attributes = pairs
        .iter()
        .map(|(key, value)| (key.clone(), Value::String(value.clone())))
        .collect();
    let options = control::Options {
        broker: BrokerOptions {
            client_id: format!("tael-{}", host::new_id()),
            ..player.options.broker.clone()
        },
        root: player.options.root.clone(),
        topics: PipelineTopics::new(&player.options.root, who),
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
        () = player.stop.requested() => return Err(player.interrupted()),
    };
    if answer.get("ok") == Some(&Value::Bool(true)) {
        return Ok(());
    }
    let cause = crate::tools::text(&answer, "error").unwrap_or("without a reason");
    Err(Failure::new(Kind::Data, format!("{who} refuses: {cause}")))
}

async fn shell(
    player: &mut Player<'_>,
    command: &str,
    begun: Instant,
    text: &str,
) -> Result<(), Failure> {
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
        player.draw(text, begun);
        tokio::select! {
            status = &mut ended => break status,
            stepped = player.step(Instant::now() + DRAW) => if let Err(f) = stepped {
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

/// Sends STOP to the nodes that a START has begun something on, and waits until they have stopped it.
/// Returns their names.
pub(super) async fn stop_running(player: &mut Player<'_>) -> Result<Vec<String>, Failure> {
    let nodes = player.running.clone();
    if !nodes.is_empty() {
        let text = format!("{} {}", node::STOP, nodes.join(","));
        send(player, &nodes, node::STOP, None).await?;
        let begun = Instant::now();
        wait_for(player, &nodes, node::STOPPED, CONFIRM, begun, &text).await?;
    }
    Ok(nodes)
}

/// Sends TERMINATE to all nodes that got a command. Returns their names.
pub(super) async fn terminate(player: &mut Player<'_>) -> Vec<String> {
    let nodes = player.woken.clone();
    if !nodes.is_empty()
        && let Err(f) = send(player, &nodes, node::TERMINATE, None).await
    {
        say(&format!(
            "{}: {}",
            node::TERMINATE,
            printable(&f.cause, 300)
        ));
    }
    nodes
}
