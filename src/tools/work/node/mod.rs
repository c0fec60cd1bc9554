//! `tael work … --node`: work on another node, over the broker and without a client on this host.
//! The node alone keeps the unit.

mod dialog;
mod follow;
mod list;
mod payload;
mod send;

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};
use crate::model::remote::wire::{self, Answer, Done, Request, StreamName, Target};
use crate::model::text::{escaped_json, printable};
use crate::os::logging::say;
use dialog::Dialog;
use follow::{Show, exit, follow};
use list::list;
use send::submit;

pub use dialog::Node;
pub use send::Submit;

/// Task of the command.
#[derive(Debug)]
pub enum Task {
    /// Run work.
    Submit(Box<Submit>),
    /// Print the output of a unit.
    Results {
        /// The unit.
        unit: String,
        /// Which stream; `None` for both, as they come.
        stream: Option<StreamName>,
        /// Whether to wait for its end.
        follow: bool,
    },
    /// Print the state of a unit.
    Status {
        /// The unit.
        unit: String,
        /// As a JSON object.
        json: bool,
    },
    /// List the units.
    List {
        /// Failed ones only.
        failed: bool,
        /// As a JSON array.
        json: bool,
    },
    /// End a unit.
    Cancel {
        /// The unit.
        unit: String,
    },
    /// End a unit if it still runs, and delete it.
    Release {
        /// The unit.
        unit: String,
    },
}

/// Does what `task` says.
///
/// # Errors
/// 69 when the broker cannot be reached, 75 when the node does not answer in time; otherwise the code
/// that the node answers.
pub fn run(node: &Node, task: &Task) -> Result<ExitCode> {
    crate::tools::runtime()?.block_on(async {
        match task {
            Task::Submit(work) => submit(node, work).await,
            Task::Results {
                unit,
                stream,
                follow,
            } => results(node, unit, *stream, *follow)
                .await
                // Every other code may be that of the command.
                .map_err(|e| e.into_kind(Kind::NoCode)),
            Task::Status { unit, json } => status(node, unit, *json).await,
            Task::List { failed, json } => list(node, *failed, *json).await,
            Task::Cancel { unit } => cancel(node, unit).await,
            Task::Release { unit } => release(node, unit).await,
        }
    })
}

async fn results(
    node: &Node,
    unit: &str,
    stream: Option<StreamName>,
    follows: bool,
) -> Result<ExitCode> {
    let mut dialog = Dialog::open(node, unit)?;
    let state = ask_state(&mut dialog).await?;
    let has_ended = crate::model::unit::State::from_name(&state.state).is_some_and(|s| s.is_end());
    if !follows && !has_ended {
        return Err(Error::new(
            Kind::NoCode,
            format!(
                "unit {unit} on node {} has not ended: it is {}; --follow waits",
                node.name,
                printable(&state.state, 20)
            ),
        ));
    }
    let end = follow(&mut dialog, stream.map_or(Show::Merged, Show::One)).await?;
    dialog.close().await;
    Ok(exit(&end))
}

// --- Asking ---

fn target(unit: &str) -> Target {
    Target {
        unit: unit.to_owned(),
        signature: None,
    }
}

async fn ask_state(dialog: &mut Dialog<'_>) -> Result<wire::State> {
    let request = Request::Status(target(dialog.unit));
    let state = |answer| match answer {
        Answer::State(state) => Some(state),
        _ => None,
    };
    dialog.ask("read status", &request, state).await
}

/// Returns what is reported of a unit.
fn report(node: &Node, state: &wire::State) -> Value {
    json!({
        "id": state.unit,
        "node": node.name,
        "type": state.kind,
        "state": state.state,
        "detail": state.detail,
        "return_code": state.code,
        "submitter": state.submitter,
    })
}

async fn status(node: &Node, unit: &str, as_json: bool) -> Result<ExitCode> {
    let mut dialog = Dialog::open(node, unit)?;
    let state = ask_state(&mut dialog).await?;
    dialog.close().await;
    let shown = |text: &str| printable(text, 500);
    let text = match as_json {
        true => escaped_json(&report(node, &state).to_string()),
        false => format!(
            "unit:      {}\nnode:      {}\ntype:      {}\nstate:     {}\ndetail:    {}\nsubmitter: {}",
            shown(&state.unit),
            node.name,
            shown(&state.kind),
            shown(&state.state),
            shown(&state.detail),
            shown(&state.submitter)
        ),
    };
    crate::tools::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

async fn done(dialog: &mut Dialog<'_>, verb: &str, request: &Request) -> Result<Done> {
    let done = |answer| match answer {
        Answer::Done { result, .. } => Some(result),
        _ => None,
    };
    dialog.ask(verb, request, done).await
}

async fn cancel(node: &Node, unit: &str) -> Result<ExitCode> {
    let mut dialog = Dialog::open(node, unit)?;
    let result = done(&mut dialog, "cancel", &Request::Cancel(target(unit))).await?;
    dialog.close().await;
    let cause = match result {
        Done::Canceled | Done::Released => return Ok(ExitCode::SUCCESS),
        Done::Ended => "it has ended",
        Done::Unknown => "the node knows no such unit",
    };
    let name = &node.name;
    Err(Error::data(format!(
        "cancel unit {unit} on node {name}: {cause}"
    )))
}

async fn release(node: &Node, unit: &str) -> Result<ExitCode> {
    let mut dialog = Dialog::open(node, unit)?;
    let result = done(&mut dialog, "release", &Request::Release(target(unit))).await?;
    dialog.close().await;
    if result == Done::Unknown {
        // What is gone needs no release.
        say(&format!(
            "unit {unit}: node {} knows no such unit",
            node.name
        ));
    }
    Ok(ExitCode::SUCCESS)
}
