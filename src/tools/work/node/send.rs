//! Submits work to a node.

use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokio::time::Instant;

use crate::error::{Error, Kind, Result};
use crate::model::remote::wire::{self, Answer, Manifest, Request};
use crate::model::remote::{MAX_HEADER, WINDOW};
use crate::model::text::escaped_json;
use crate::os::host;
use crate::os::logging::say;
use crate::os::terminal::Terminal;
use crate::tools::work::node::dialog::{Dialog, Heard, Node};
use crate::tools::work::node::follow::{Show, exit, follow};
use crate::tools::work::node::payload::Payload;
use crate::tools::work::node::{done, target};
use crate::tools::work::submit::Submission;

/// Time without progress after which a manifest is sent again.
const AGAIN: Duration = Duration::from_secs(10);

/// Work to submit.
#[derive(Debug)]
pub struct Submit {
    /// The work.
    pub work: Submission,
    /// Id of the unit.
    pub unit: String,
    /// Time after which the node does not accept it any more.
    pub ttl: Option<Duration>,
}

/// Submits work, and follows it if that is wanted.
///
/// # Errors
/// 75 when the node does not answer in time; otherwise the code that it answers. While the work is
/// followed, every error is 125.
pub async fn submit(node: &Node, submit: &Submit) -> Result<ExitCode> {
    let work = &submit.work;
    let payload = Payload::read(&work.payload)?;
    let user = format!("{}@{}", host::username(), host::hostname());
    let seconds = |ttl: Duration| i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
    let expires = submit
        .ttl
        .map(|ttl| Timestamp::now().as_second().saturating_add(seconds(ttl)));
    let manifest = Manifest {
        unit: submit.unit.clone(),
        kind: work.kind.clone(),
        params: work.words.clone(),
        variables: work.named.clone(),
        submitter: user,
        length: payload.length,
        sha256: payload.sha256.clone(),
        expires,
        signature: None,
    };
    let request = Request::Submit(manifest);
    if wire::write(&request, b"").len() > MAX_HEADER / 2 {
        let limit = MAX_HEADER / 2;
        return Err(Error::data(format!(
            "submit to node {}: the parameters have more than {limit} bytes; use the payload",
            node.name
        )));
    }
    let mut dialog = Dialog::open(node, &submit.unit)?;
    offer(&mut dialog, submit.ttl, &request, &payload).await?;
    if !work.follow {
        dialog.close().await;
        let shown = json!({"unit": submit.unit, "node": node.name, "type": work.kind});
        crate::tools::print(&match work.json {
            true => escaped_json(&shown.to_string()),
            false => submit.unit.clone(),
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    if Terminal::of_stderr().is_terminal() {
        say(&format!("unit {} on node {}", submit.unit, node.name));
    }
    let end = follow(&mut dialog, Show::Both).await;
    let end = end.map_err(|e| e.into_kind(Kind::NoCode))?;
    // The code of the command comes first.
    if work.release
        && let Err(e) = done(
            &mut dialog,
            "release",
            &Request::Release(target(&submit.unit)),
        )
        .await
    {
        say(&e.to_string());
    }
    dialog.close().await;
    Ok(exit(&end))
}

/// Sends the manifest and its payload, until the work is accepted.
async fn offer(
    dialog: &mut Dialog<'_>,
    ttl: Option<Duration>,
    request: &Request,
    payload: &Payload,
) -> Result<()> {
    let limit = dialog.node.timeout;
    let mut deadline = Instant::now() + limit;
    // Whether the next offset is the answer to a manifest; then the payload goes on from there.
    let (mut fresh, mut sent, mut acked) = (true, 0, 0);
    let mut again = deadline;
    loop {
        let offers = match dialog.next(again.min(deadline)).await? {
            Heard::Online | Heard::Back | Heard::Answer(Answer::Lost { .. }, _) => true,
            Heard::Late if Instant::now() >= deadline => {
                return Err(dialog.late("submit"));
            }
            Heard::Late => true,
            Heard::Answer(Answer::Accepted { .. }, _) => return Ok(()),
            Heard::Answer(Answer::Refused { code, error, .. }, _) => {
                return Err(dialog.refused("submit", code, &error));
            }
            Heard::Answer(Answer::Want { offset, .. }, _) => {
                if std::mem::take(&mut fresh) {
                    (sent, acked) = (offset, offset);
                }
                acked = offset.max(acked);
                while sent < payload.length && sent < acked.saturating_add(WINDOW) {
                    let piece = payload.piece(sent)?;
                    let size = piece.len() as u64;
                    let request = Request::Payload {
                        unit: request.unit().to_owned(),
                        offset: sent,
                    };
                    if !dialog.send(request, &piece, None)? {
                        break;
                    }
                    sent += size;
                }
                deadline = Instant::now() + limit;
                again = Instant::now() + AGAIN;
                false
            }
            Heard::Answer(..) => false,
        };
        if offers {
            fresh = true;
            again = deadline;
            dialog.send(request.clone(), &payload.inline, ttl)?;
        }
    }
}
