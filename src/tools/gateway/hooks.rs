//! Webhooks: requests on the routes of the configuration file.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use serde_json::json;
use tracing::info;

use crate::error::Result;
use crate::model::gateway::request::{Headers, Incoming};
use crate::model::gateway::route::{Found, Refused, Route, Routes, Target};
use crate::model::text::printable;
use crate::net::http::{Head, MAX_BODY, Response};
use crate::tools::gateway::outgoing::Outgoing;
use crate::tools::gateway::ways::Ways;

/// Maximum number of characters of a cause in the log.
const SHOWN: usize = 300;

/// Reads the routes of the configuration file.
#[derive(Clone)]
pub struct ReadRoutes(pub Arc<dyn Fn() -> Result<Routes> + Send + Sync>);

impl fmt::Debug for ReadRoutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadRoutes")
    }
}

/// The routes, which a reload replaces.
#[derive(Debug, Default)]
pub struct Hooks(RwLock<Arc<Routes>>);

impl Hooks {
    /// Takes the first routes.
    #[must_use]
    pub fn new(routes: Routes) -> Self {
        Self(RwLock::new(Arc::new(routes)))
    }

    /// Replaces the routes. Requests that are being answered keep theirs.
    pub fn renew(&self, routes: Routes) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(routes);
    }

    /// Returns the present routes.
    #[must_use]
    pub fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns whether there is a route for `head` that asks its callers itself who they are.
    #[must_use]
    pub fn has_sender(&self, head: &Head) -> bool {
        match self.routes().find(&head.method, &head.path) {
            Found::Route(route) => route.has_sender(),
            Found::None | Found::Method => false,
        }
    }
}

/// Answers a request on `route`.
pub async fn answer(route: &Route, head: &Head, body: &[u8], ways: &Ways) -> Response {
    let fields = head.fields.iter();
    let headers: Headers = fields.map(|(name, value)| (name, value.clone())).collect();
    let incoming = Incoming {
        method: &head.method,
        path: &head.path,
        query: &head.query,
        headers: &headers,
        peer: head.peer,
        body,
    };
    let accepted = match route.judge(&incoming, Timestamp::now().as_second(), MAX_BODY) {
        Ok(accepted) => accepted,
        Err(refused) => {
            let cause = printable(&refused.to_string(), SHOWN);
            info!("route {}: refused a request: {cause}", route.name);
            return refusal(route, &refused);
        }
    };
    let outgoing = match accepted.id {
        Some(id) => Ok(Outgoing::with_id(head, accepted.attributes, id)),
        None => Outgoing::of(head, accepted.attributes),
    };
    let outgoing = match outgoing {
        Ok(outgoing) => outgoing,
        Err(cause) => return Response::error(400, cause),
    };
    let id = outgoing.id.clone();
    let sent = match &route.target {
        Target::Topic(topic) => ways.publish(topic.clone(), outgoing).await,
        Target::Queue(queue) => ways.put(queue.clone(), outgoing).await,
        // The configuration refuses such routes.
        Target::Work { .. } => return Response::error(501, "routes submit no work"),
    };
    if let Err(unsent) = sent {
        info!("route {}: {}", route.name, printable(&unsent.cause, SHOWN));
        return unsent.response();
    }
    match &route.answer.message {
        None => Response::json(route.answer.status, &json!({ "id": id })),
        Some((text, media)) => Response::new(route.answer.status, media.as_str(), text.clone()),
    }
}

fn refusal(route: &Route, refused: &Refused) -> Response {
    let answer = refused.answer();
    match refused {
        Refused::Rule => match route.answer.mismatch {
            status @ 200..300 => Response::json(status, &json!({ "ignored": answer })),
            status => Response::error(status, &answer),
        },
        Refused::Sender(_) => {
            Response::error(refused.status(), &answer).with("www-authenticate", "Bearer")
        }
        _ => Response::error(refused.status(), &answer),
    }
}
