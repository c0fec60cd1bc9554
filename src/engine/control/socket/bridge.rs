//! What a connection asks other nodes, through its client.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::engine::control::call::{Answer, Call, Page};
use crate::engine::control::socket::node::Node;
use crate::engine::work::delegates::ends;
use crate::error::Kind;
use crate::model::receptor::{self, NO_ROUTE, Request, TRY_AGAIN, go};
use crate::model::remote::wire::{self, Done, Target};
use crate::model::text::printable;
use crate::model::topic::check_who;
use crate::model::unit::State;
use crate::os::host::is_id;

/// Maximum time for another node to answer.
const ASKING: Duration = Duration::from_secs(5);

/// Asks the node `to`, over the broker; with a signature if that is `signed` and the client has a key.
async fn ask(node: &Node, to: &str, request: wire::Request, signed: bool) -> Answer<wire::Answer> {
    check_who(to).map_err(|_| NO_ROUTE.to_owned())?;
    let asked = node.ask(|answer| Call::Ask {
        node: to.to_owned(),
        request,
        signed,
        answer,
    });
    let answer = timeout(ASKING, asked).await;
    answer.unwrap_or_else(|_| Err(NO_ROUTE.to_owned()))
}

/// Asks the node `to` about its units, with a signature if that helps.
async fn ask_allowed(node: &Node, to: &str, request: wire::Request) -> Answer<wire::Answer> {
    match ask(node, to, request, true).await? {
        wire::Answer::Refused { code, error, .. } => {
            let again = if code == Kind::TryAgain.exit_code() {
                TRY_AGAIN
            } else {
                ""
            };
            Err(format!("{again}{}", printable(&error, 500)))
        }
        answer => Ok(answer),
    }
}

fn odd(to: &str) -> String {
    format!("node {to} sent another answer")
}

/// Returns how long the node `to` takes to answer.
///
/// # Errors
/// That there is no way to it.
pub async fn ping(node: &Node, to: &str) -> Answer<Duration> {
    let asked = Instant::now();
    // No unit is behind this place.
    let request = wire::Request::List {
        after: i64::MAX,
        signature: None,
    };
    ask(node, to, request, false).await?;
    Ok(asked.elapsed())
}

/// Returns units of the node `to`, behind the place `after`.
///
/// # Errors
/// For the requester.
pub async fn page(node: &Node, to: &str, after: i64) -> Answer<Page> {
    let request = wire::Request::List {
        after,
        signature: None,
    };
    match ask_allowed(node, to, request).await? {
        wire::Answer::Units { units, next, .. } if next.is_none_or(|next| next > after) => {
            Ok(Page {
                units: units
                    .iter()
                    .map(|unit| (unit.unit.clone(), status(unit)))
                    .collect(),
                next,
            })
        }
        _ => Err(odd(to)),
    }
}

/// Returns what the node `to` answers to a request of a connection.
///
/// # Errors
/// For the requester.
pub async fn answer(node: &Node, to: &str, request: Request) -> Answer<Value> {
    let target = |unit: &str| match is_id(unit) {
        true => Ok(Target {
            unit: unit.to_ascii_uppercase(),
            signature: None,
        }),
        false => Err(receptor::unknown_unit(unit)),
    };
    match request {
        Request::UnitStatus(unit) => state(node, to, target(&unit)?).await,
        Request::List(Some(unit)) => {
            let state = state(node, to, target(&unit)?).await?;
            Ok(json!({unit: state}))
        }
        Request::Cancel(unit) => {
            let request = wire::Request::Cancel(target(&unit)?);
            done(node, to, &unit, request).await
        }
        Request::Release { unit, .. } => {
            let request = wire::Request::Release(target(&unit)?);
            done(node, to, &unit, request).await
        }
        _ => Err(format!(
            "node {to} is asked over the broker: work list, status, cancel and release only"
        )),
    }
}

async fn state(node: &Node, to: &str, target: Target) -> Answer<Value> {
    match ask_allowed(node, to, wire::Request::Status(target)).await? {
        wire::Answer::State(state) => Ok(status(&state)),
        _ => Err(odd(to)),
    }
}

async fn done(node: &Node, to: &str, unit: &str, request: wire::Request) -> Answer<Value> {
    let wire::Answer::Done { result, .. } = ask_allowed(node, to, request).await? else {
        return Err(odd(to));
    };
    let done = match result {
        Done::Canceled => "cancelled",
        Done::Ended => "already finished",
        Done::Released => "released",
        Done::Unknown => return Err(receptor::unknown_unit(unit)),
    };
    Ok(json!({done: unit}))
}

/// Returns the state of a unit of another node, with the keys that Receptor has. The node does not say
/// how much output there is.
fn status(state: &wire::State) -> Value {
    let known = State::from_name(&state.state).unwrap_or(State::Pending);
    let (number, name) = go::state(known);
    let outcome = known.is_end().then(|| ends::outcome(state, None));
    let note = (state.detail != state.state).then_some(state.detail.as_str());
    json!({
        "State": number,
        "StateName": name,
        "Detail": go::detail(known, outcome.as_ref(), note),
        "StdoutSize": null,
        "WorkType": state.kind,
        "ExtraData": null,
        "ExitCode": state.code,
        "Submitter": state.submitter,
    })
}
