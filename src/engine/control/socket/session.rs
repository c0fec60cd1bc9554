//! One connection: its requests, and their answers.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::engine::commit::receipt::{Submitted, Submitter};
use crate::engine::control::call::{Answer, Call, Ending, Ticket};
use crate::engine::control::socket::node::{Node, STOPPING};
use crate::engine::control::socket::wire::{Line, Wire};
use crate::engine::control::socket::{bridge, payload, results};
use crate::engine::intake::submission::{Payload, Submission};
use crate::engine::report::followers::Stage;
use crate::engine::work::delegates::offers::Offered;
use crate::model::receptor::{
    self, LOCALHOST, MAX_LINE, NO_ROUTE, Request, SERVICE, STARTED, SUBMITTED, Submit, TRY_AGAIN,
};
use crate::model::text::printable;
use crate::model::work::UNKNOWN_TYPE;
use crate::os::hooks;
use crate::os::host::username_of;
use crate::store::payload_file;
use crate::store::room::{Room, Share};

/// Maximum time for a unit to end before its cancel, or its release, is answered as pending.
const ENDING: Duration = Duration::from_secs(2);

/// Maximum time for another node to accept work, before its submission is answered.
const STARTING: Duration = Duration::from_secs(2);

/// A connection, and its client.
pub struct Session {
    /// The connection.
    wire: Wire,
    /// The client.
    node: Arc<Node>,
    /// The other node that it is connected to, if it is.
    to: Option<String>,
}

impl Session {
    /// Returns that of a new connection to the client `node`.
    pub const fn new(wire: Wire, node: Arc<Node>) -> Self {
        Self {
            wire,
            node,
            to: None,
        }
    }

    /// Answers requests until there are no more.
    ///
    /// # Errors
    /// When the requester has gone, or takes no answer.
    pub async fn converse(mut self) -> io::Result<()> {
        let greeting = receptor::greeting(&self.node.name);
        self.wire.say(&greeting).await?;
        loop {
            let request = match self.wire.line().await? {
                Line::Whole(line) => receptor::parse(&line),
                Line::TooLong => {
                    let cause = format!("the line is longer than {MAX_LINE} bytes");
                    return self.wire.say(&receptor::error(&cause)).await;
                }
                Line::End => return Ok(()),
            };
            let answer = match request {
                Ok(None) => continue,
                Ok(Some(Request::List(None))) => match self.list().await? {
                    Some(refusal) => Err(refusal),
                    None => continue,
                },
                Ok(Some(request)) if self.to.is_some() => {
                    let to = self.to.as_deref().unwrap_or_default();
                    let answer = bridge::answer(&self.node, to, request).await;
                    answer.map(|answer| receptor::line(&answer))
                }
                Ok(Some(Request::Submit(submit))) => match self.submit(*submit).await? {
                    Some(refusal) => Err(refusal),
                    None => return Ok(()),
                },
                Ok(Some(Request::Results { unit, from, output })) => {
                    match results::send(&mut self.wire, &self.node, unit, from, output).await? {
                        Some(refusal) => Err(refusal),
                        None => return Ok(()),
                    }
                }
                Ok(Some(request)) => self.answer(request).await,
                Err(cause) => Err(cause),
            };
            match answer {
                Ok(line) => self.wire.say(&line).await?,
                Err(cause) => self.wire.say(&receptor::error(&cause)).await?,
            }
        }
    }

    // --- Requests with one line for an answer ---

    async fn answer(&mut self, request: Request) -> Answer<String> {
        let node = &self.node;
        let answer = match request {
            Request::Status { fields } => {
                let mut status = node.ask(Call::Status).await?;
                if let Value::Object(status) = &mut status
                    && !fields.is_empty()
                {
                    status.retain(|key, _| fields.contains(key));
                }
                status
            }
            Request::Ping(target) => match self.ping(&target).await {
                Ok((name, time)) => receptor::pong(&name, time),
                Err(cause) => json!({"Success": false, "Error": cause}),
            },
            Request::Traceroute(target) => {
                let hop = |name: &str, time| {
                    let mut hop = receptor::pong(name, time);
                    if let Value::Object(hop) = &mut hop {
                        hop.remove("Success");
                    }
                    hop
                };
                let (name, time) = self.ping(LOCALHOST).await?;
                let mut first = hop(&name, time);
                match self.ping(&target).await {
                    Ok(_) if node.is(&target) => json!({"0": first}),
                    Ok((name, time)) => json!({"0": first, "1": hop(&name, time)}),
                    Err(cause) => {
                        if let Value::Object(first) = &mut first {
                            first.insert("Error".to_owned(), cause.into());
                        }
                        json!({"0": first})
                    }
                }
            }
            Request::Connect { node: to, service } => {
                if service != SERVICE && node.is(&to) {
                    let service = printable(&service, 80);
                    return Err(format!("there is no service '{service}' on this node"));
                }
                let route = |cause| match cause == NO_ROUTE {
                    true => no_route(&to),
                    false => cause,
                };
                let (name, _) = self.ping(&to).await.map_err(route)?;
                if service != SERVICE {
                    let service = printable(&service, 80);
                    return Err(format!("there is no way to service '{service}' of a node"));
                }
                let greeting = receptor::greeting(&name);
                self.to = (!node.is(&to)).then_some(name);
                return Ok(format!("Connecting\n{greeting}"));
            }
            Request::Reload => match node.ask(Call::Reload).await {
                Ok(()) => json!({"Success": true}),
                // The client exits with this code.
                Err(cause) => json!({"Success": false, "Error": format!("{cause} ERRORCODE 3")}),
            },
            Request::List(Some(unit)) | Request::UnitStatus(unit) if unit.len() > MAX_LINE => {
                return Err(receptor::unknown_unit(&unit));
            }
            Request::List(Some(unit)) => {
                let status = node.ask(|answer| Call::Unit(unit.clone(), answer)).await?;
                json!({unit: status})
            }
            Request::UnitStatus(unit) => node.ask(|answer| Call::Unit(unit, answer)).await?,
            Request::Cancel(unit) => {
                let ending = node
                    .ask(|answer| Call::Cancel(unit.clone(), answer))
                    .await?;
                let done = match ending {
                    Ending::Already => "already finished",
                    Ending::Waits(stage) => match ended(stage, Stage::Ended).await {
                        true => "cancelled",
                        false => "cancel pending",
                    },
                };
                json!({done: unit})
            }
            Request::Release { unit, force } => {
                let mut done = release(node, &unit, false).await?;
                if force && !done {
                    // Its runner knows by now that it must end.
                    done = release(node, &unit, true).await?;
                }
                let done = if done { "released" } else { "release pending" };
                json!({done: unit})
            }
            // They have answers of their own.
            Request::Submit(_) | Request::Results { .. } | Request::List(None) => {
                return Err("bad command".to_owned());
            }
        };
        Ok(receptor::line(&answer))
    }

    /// Returns the name of the node `target`, and how long it takes to answer.
    async fn ping(&self, target: &str) -> Answer<(String, Duration)> {
        if !self.node.is(target) {
            let time = bridge::ping(&self.node, target).await?;
            return Ok((target.to_owned(), time));
        }
        let asked = Instant::now();
        self.node.ask(Call::Status).await?;
        Ok((self.node.name.clone(), asked.elapsed()))
    }

    /// Sends all units on one line, a page at a time. Returns why not, if it cannot.
    async fn list(&mut self) -> io::Result<Option<String>> {
        let node = Arc::clone(&self.node);
        let (mut after, mut text) = (0, String::from("{"));
        loop {
            let page = match &self.to {
                Some(to) => bridge::page(&node, to, after).await,
                None => node.ask(|answer| Call::List(after, answer)).await,
            };
            let page = match page {
                Ok(page) => page,
                Err(cause) if after == 0 => return Ok(Some(cause)),
                // An end in the middle is an error for every JSON parser.
                Err(cause) => return Err(io::Error::other(cause)),
            };
            for (unit, status) in page.units {
                if text.len() > 1 || after > 0 {
                    text.push(',');
                }
                let name = Value::from(unit);
                text += &format!("{name}:{status}");
            }
            match page.next {
                Some(next) => after = next,
                None => break,
            }
            self.wire.say(&text).await?;
            text.clear();
        }
        text += "}\n";
        self.wire.say(&text).await?;
        Ok(None)
    }

    // --- Submissions ---

    /// Takes work, and answers when it is on disk. Returns why not, if it was not asked for a payload.
    async fn submit(&mut self, submit: Submit) -> io::Result<Option<String>> {
        let node = Arc::clone(&self.node);
        let ticket = node
            .ask(|answer| Call::Offer(Box::new(submit), answer))
            .await;
        let ticket = match ticket {
            Ok(ticket) => ticket,
            Err(cause) => return Ok(Some(cause)),
        };
        self.wire.say(&receptor::send_payload(&ticket.id)).await?;
        // What is known already takes no room.
        let room = match ticket.is_known {
            true => Room::new(0),
            false => Arc::clone(&node.room),
        };
        let mut share = room.reserve();
        let limit = ticket.max_stdin;
        let line = match payload::read(&mut self.wire, &node.home, limit, &mut share).await? {
            Ok(payload) => {
                let (id, is_away) = (ticket.id.clone(), ticket.node.is_some());
                let accepted = match self.accept(ticket, payload, share).await {
                    Ok(()) if is_away => self.offered(&id).await,
                    other => other.map(|()| STARTED),
                };
                match accepted {
                    Ok(result) => receptor::line(&json!({"result": result, "unitid": id})),
                    Err(cause) => receptor::error(&cause),
                }
            }
            Err(cause) => {
                if room.is_wanted() {
                    // One that has stopped does not look for room.
                    let _ = node.calls.send(Call::NoRoom).await;
                }
                receptor::error(&cause)
            }
        };
        self.wire.say(&line).await?;
        Ok(None)
    }

    /// Waits until another node has answered the offer of `unit`, for a bounded time.
    async fn offered(&self, unit: &str) -> Answer<&'static str> {
        let call = |answer| Call::Offered(unit.to_owned(), answer);
        let Some(mut offered) = self.node.ask(call).await? else {
            return Ok(STARTED);
        };
        let answered = offered.wait_for(|offered| *offered != Offered::Waits);
        match timeout(STARTING, answered).await {
            Ok(Ok(offered)) => match &*offered {
                Offered::Refused(cause) => Err(format!("unit {unit}: {cause}")),
                Offered::Accepted | Offered::Waits => Ok(STARTED),
            },
            Ok(Err(_)) | Err(_) => Ok(SUBMITTED),
        }
    }

    /// Gives the client the work, and waits until it is on disk. The payload has its `share` of the
    /// room there.
    async fn accept(&mut self, ticket: Ticket, payload: Payload, share: Share) -> Answer<()> {
        let uid = self.wire.stream().peer_cred();
        let uid = uid
            .map_err(|e| format!("find the user of the connection: {e}"))?
            .uid();
        let name = spawn_blocking(move || username_of(uid)).await;
        let name = name.unwrap_or_else(|_| uid.to_string());
        let (sender, answer) = oneshot::channel();
        let file = match &payload {
            Payload::Inline(_) => None,
            Payload::File(file, _) => Some(file.name.clone()),
        };
        hooks::failpoint("payload.after");
        let kind = ticket.kind.clone();
        let id = ticket.id.clone();
        let submission = Submission {
            id: ticket.id,
            is_new: ticket.is_new,
            kind: ticket.kind,
            params: ticket.params,
            submitter: format!("{name}@{}", self.node.host),
            signed: ticket.signed,
            payload,
            node: ticket.node,
        };
        let call = Call::Submit(Box::new(submission), Submitter(sender));
        if self.node.calls.send(call).await.is_err() {
            return Err(STOPPING.to_owned());
        }
        // Without an answer the ledger may have the work, and the next start knows.
        let unknown =
            |_| format!("{STOPPING}, and may have the work: submit it again as unit {id}");
        let answer = answer.await.map_err(unknown)?;
        match (&answer, file) {
            (Submitted::Accepted, _) => share.keep(),
            // The next start removes one that stays.
            (_, Some(file)) => drop(payload_file::remove(&self.node.home, &file)),
            (_, None) => {}
        }
        match answer {
            Submitted::Accepted | Submitted::Known => Ok(()),
            Submitted::Taken => Err(receptor::other_work(&id)),
            Submitted::Gone => Err(format!("{UNKNOWN_TYPE} {kind}")),
            Submitted::Full => Err(format!("{TRY_AGAIN}too many units of type '{kind}' wait")),
        }
    }
}

fn no_route(node: &str) -> String {
    format!("{NO_ROUTE} '{}'", printable(node, 80))
}

/// Releases `unit` when it has ended; with `now`, at once. Returns whether it is gone.
async fn release(node: &Node, unit: &str, now: bool) -> Answer<bool> {
    let call = |answer| Call::Release {
        unit: unit.to_owned(),
        force: now,
        answer,
    };
    Ok(match node.ask(call).await? {
        Ending::Already => true,
        Ending::Waits(stage) => ended(stage, Stage::Released).await,
    })
}

/// Waits until a unit is at `stage`, for a bounded time. Returns whether it is.
async fn ended(mut now: watch::Receiver<Stage>, stage: Stage) -> bool {
    let reached = now.wait_for(|now| *now == stage || *now == Stage::Released);
    matches!(timeout(ENDING, reached).await, Ok(Ok(_)))
}
