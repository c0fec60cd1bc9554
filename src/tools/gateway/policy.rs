//! What callers may do, which a reload replaces.

use crate::model::gateway::callers::Tokens;
use crate::model::gateway::route::Target;
use crate::model::gateway::topics::{Refusal, Topics};
use crate::model::gateway::work::Kind;
use crate::model::receptor::LOCALHOST;
use crate::model::text::printable;
use crate::net::http::Response;

/// Maximum number of characters of a name in an answer.
const SHOWN: usize = 200;

/// Who may call, and for what.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Tokens, if callers need one.
    pub tokens: Option<Tokens>,
    /// Host names by which callers without a token may reach us, in lower case.
    pub names: Vec<String>,
    /// Topics that callers may publish to.
    pub topics: Topics,
    /// Queues that callers may put messages in; none without a broker for them.
    pub queues: Vec<String>,
    /// Work that callers may submit.
    pub work: Vec<Kind>,
}

impl Policy {
    /// Checks that callers may publish to `topic`.
    ///
    /// # Errors
    /// The answer when they may not.
    pub fn check_topic(&self, topic: &str) -> Result<(), Response> {
        self.topics.check(topic).map_err(|refusal| match refusal {
            Refusal::Wrong(cause) => Response::error(400, &cause),
            Refusal::Forbidden(cause) => Response::error(403, &cause),
        })
    }

    /// Checks that callers may put messages in `queue`.
    ///
    /// # Errors
    /// The answer when they may not.
    pub fn check_queue(&self, queue: &str) -> Result<(), Response> {
        match self.queues.iter().any(|own| own == queue) {
            true => Ok(()),
            false => Err(Response::error(
                403,
                "the gateway does not allow this queue",
            )),
        }
    }

    /// Checks that callers may submit work of this kind.
    ///
    /// # Errors
    /// The answer when they may not.
    pub fn check_work(&self, kind: &Kind) -> Result<(), Response> {
        match self.work.contains(kind) {
            true => Ok(()),
            false => {
                let kind_named = printable(&kind.to_string(), SHOWN);
                let local = match kind.node.as_str() {
                    LOCALHOST => "",
                    _ => "; the client of this host is 'localhost'",
                };
                let cause = format!(
                    "the gateway does not take this work: add --allow-work {kind_named}{local}"
                );
                Err(Response::error(403, &cause))
            }
        }
    }

    /// Checks that a route may lead to `target`. It was checked when it was read; since then a reload may
    /// have taken away what it needs, and have kept the route.
    ///
    /// # Errors
    /// The answer when it may not.
    pub fn check_target(&self, target: &Target) -> Result<(), Response> {
        match target {
            Target::Work(kind) => self.check_work(kind),
            Target::Topic(topic) => {
                let checked = self.topics.check_route(topic);
                checked.map_err(|cause| Response::error(403, &cause))
            }
            Target::Queue(_) => Ok(()),
        }
    }
}
