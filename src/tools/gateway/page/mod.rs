//! The page: its files, and what it asks for.

mod control;
mod feed;
mod files;
mod hub;
mod ledger;
mod lock;
mod log;
mod requests;
mod snapshots;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::model::topic::check_who;
use crate::model::url;
use crate::net::http::{Head, Response, Seat};
use crate::tools::gateway::units::query;
use crate::tools::gateway::ways::Ways;

pub use files::File;
pub use hub::Hub;

/// Maximum number of runs and of statuses in an answer.
const MAX_LISTED: usize = 100;

/// Where a request of the page goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A file.
    File(File),
    /// Everything, once.
    Network,
    /// Everything, and what changes.
    Stream,
    /// The drawing.
    Graph,
    /// The last runs of a pipeline.
    Runs(String),
    /// The last statuses of a pipeline.
    Statuses(String),
    /// A request to a pipeline.
    Control(String),
}

impl Place {
    /// Parses a path, and returns the place with its methods.
    #[must_use]
    pub fn parse(path: &str) -> Option<(Self, &'static [&'static str])> {
        let place = match path {
            "/api/network" => Self::Network,
            "/api/stream" => Self::Stream,
            "/api/graph.svg" => Self::Graph,
            path => match path.strip_prefix("/api/pipelines/") {
                Some(rest) => {
                    let (who, name) = rest.split_once('/')?;
                    let who = url::decoded(who.as_bytes()).filter(|who| check_who(who).is_ok())?;
                    match name {
                        "runs" => Self::Runs(who),
                        "statuses" => Self::Statuses(who),
                        "control" => Self::Control(who),
                        _ => return None,
                    }
                }
                None => Self::File(File::parse(path)?),
            },
        };
        let methods: &[&str] = match place {
            Self::Control(_) => &["POST"],
            _ => &["GET", "HEAD"],
        };
        Some((place, methods))
    }

    /// Returns whether it needs no token: the files hold nothing of the network.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self, Self::File(_))
    }
}

/// Answers a request that was admitted. Those to pipelines go out by `ways`.
pub async fn answer(
    hub: &Arc<Hub>,
    (head, body): (&Head, &[u8]),
    place: &Place,
    ways: &Ways,
    seat: &Seat,
) -> Response {
    let answered = match place {
        Place::File(file) => Ok(file.answer(head)),
        Place::Network => hub.network().await,
        Place::Stream => stream(hub, head, seat).await,
        Place::Graph => hub.graph(seat.caller()).await,
        Place::Runs(who) => listed(hub, head, who, true, seat).await,
        Place::Statuses(who) => listed(hub, head, who, false, seat).await,
        Place::Control(who) => control::send(hub, who, body, ways, seat.caller()).await,
    };
    answered.unwrap_or_else(|refused| refused)
}

async fn stream(hub: &Arc<Hub>, head: &Head, seat: &Seat) -> Result<Response, Response> {
    let query = query(head)?;
    let messages = query.get("messages").and_then(Value::as_str) != Some("0");
    if head.method == "HEAD" {
        return Ok(Response::new(200, "text/event-stream", ""));
    }
    seat.lengthen()?;
    Ok(Response::events(hub.stream(messages).await?))
}

async fn listed(
    hub: &Arc<Hub>,
    head: &Head,
    who: &str,
    are_runs: bool,
    seat: &Seat,
) -> Result<Response, Response> {
    let query = query(head)?;
    let limit = match query.get("limit").and_then(Value::as_str) {
        None => MAX_LISTED,
        Some(text) => {
            let wrong = || Response::error(400, "'limit' is a number");
            text.parse::<usize>().map_err(|_| wrong())?.min(MAX_LISTED)
        }
    };
    let none = || Response::error(404, "there is no such pipeline");
    let caller = seat.caller();
    let (name, found) = match are_runs {
        true => ("runs", hub.runs(who, limit, caller).await),
        false => ("statuses", hub.statuses(who, limit, caller).await),
    };
    let (source, list) = found.ok_or_else(none)?;
    let answer = json!({ "who": who, "source": source, name: list });
    hub.keep(seat, Response::json(200, &answer)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_places() {
        let parse = |path| Place::parse(path).map(|(place, _)| place);
        assert_eq!(parse("/api/network"), Some(Place::Network));
        assert_eq!(
            parse("/api/pipelines/a%20b/runs"),
            Some(Place::Runs("a b".into()))
        );
        assert!(parse("/").is_some_and(|place| place.is_open()));
        for wrong in [
            "/x",
            "/api",
            "/api/pipelines/a/b",
            "/api/pipelines/a%2Fb/runs",
            "/api/pipelines//runs",
            "//",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
