//! Webhooks: requests on the routes of the configuration file.

use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::model::event::Attributes;
use crate::model::gateway::request::{Headers, Incoming};
use crate::model::gateway::route::{Accepted, Refused, Route, Target};
use crate::model::gateway::routes::{Found, Routes};
use crate::model::gateway::work::{Key, id_of_key};
use crate::model::json;
use crate::model::text::printable;
use crate::net::http::{Head, MAX_BODY, Response, Seat};
use crate::os::host;
use crate::os::logging::SENDERS;
use crate::tools::gateway::outgoing::Outgoing;
use crate::tools::gateway::policy::Policy;
use crate::tools::gateway::replies;
use crate::tools::gateway::units::Units;
use crate::tools::gateway::ways::Ways;
use crate::tools::gateway::work::{Submissions, accepted as accepted_work, id_of};

/// Maximum number of characters of a cause in the log.
const SHOWN: usize = 300;

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

/// Where routes lead.
#[derive(Debug, Clone, Copy)]
pub struct Ends<'a> {
    /// What callers may do.
    pub policy: &'a Policy,
    /// Ways to the brokers.
    pub ways: &'a Ways,
    /// Work.
    pub work: &'a Submissions,
    /// Units, whose ends may be the answer.
    pub units: &'a Units,
    /// Place of the connection.
    pub seat: &'a Seat,
}

/// Answers a request on `route`.
///
/// # Errors
/// The answer when it is not accepted.
pub async fn answer(
    route: &Route,
    head: &Head,
    body: &[u8],
    ends: Ends<'_>,
) -> Result<Response, Response> {
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
            let (name, cause) = (&route.name, printable(&refused.to_string(), SHOWN));
            let answer = refusal(route, &refused);
            match answer.status {
                // What the sender also sends, as the configuration knows.
                200..300 => info!(target: SENDERS, "route {name}: ignored a request: {cause}"),
                _ => warn!(target: SENDERS, "route {name}: refused a request: {cause}"),
            }
            return Err(answer);
        }
    };
    let Accepted { attributes, id } = accepted;
    let status = route.answer.status;
    let Ends {
        policy,
        ways,
        work,
        units,
        seat,
    } = ends;
    if route.answer.wait.is_some() {
        // Later it is accepted, and must not be refused because no place is free.
        seat.lengthen()?;
    }
    let refused = |cause: &str| {
        let (name, cause) = (&route.name, printable(cause, SHOWN));
        warn!(target: SENDERS, "route {name}: refused a request: {cause}");
    };
    let allowed = policy.check_target(&route.target);
    allowed.inspect_err(|answer| refused(&answer.cause()))?;
    let usual = match &route.target {
        Target::Work(kind) => {
            let unit = match id {
                Some(id) => Some(host::id_from(id_of_key(Key::Delivery(&id)))),
                None => id_of(head)?,
            };
            let payload = json::to_text(&Value::Object(attributes)).into();
            let started = work
                .submit(seat.caller(), kind, Vec::new(), payload, unit)
                .await;
            let started = started.inspect_err(|answer| refused(&answer.cause()))?;
            if let Some(limit) = route.answer.wait {
                return units.ended(&started.unit, limit, seat).await;
            }
            accepted_work(status, &started)
        }
        Target::Topic(to) | Target::Queue(to) => {
            let outgoing = outgoing(head, attributes, id)?;
            let id = outgoing.id.clone();
            let sent = match (&route.target, route.answer.wait) {
                (Target::Queue(_), _) => ways.put(to.clone(), outgoing).await,
                (_, None) => ways.publish(to.clone(), outgoing).await,
                (_, Some(limit)) => match ways.ask(to.clone(), outgoing, limit, seat).await {
                    Ok(answer) => return Ok(replies::response(&id, answer.as_ref())),
                    Err(unsent) => Err(unsent),
                },
            };
            sent.map_err(|unsent| {
                refused(&unsent.cause);
                unsent.response()
            })?;
            Response::json(status, &json!({ "id": id }))
        }
    };
    Ok(match &route.answer.message {
        None => usual,
        Some((text, media)) => Response::new(status, media.as_str(), text.clone()),
    })
}

/// Returns the event of a request, whose id is that of the delivery, if it has one.
fn outgoing(head: &Head, attributes: Attributes, id: Option<String>) -> Result<Outgoing, Response> {
    match id {
        Some(id) => Ok(Outgoing::with_id(head, attributes, id)),
        None => {
            let outgoing = Outgoing::of(head, attributes);
            outgoing.map_err(|cause| Response::error(400, cause))
        }
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
