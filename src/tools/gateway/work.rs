//! `/w`: callers submit work as `tael work submit` does.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::model::gateway::work::{Kind, id_of_key};
use crate::model::receptor::LOCALHOST;
use crate::model::unit::is_ulid;
use crate::model::work::OTHER_WORK;
use crate::net::http::{Head, Response, Seat};
use crate::os::host;
use crate::tools::gateway::blocking::{Threads, refused};
use crate::tools::gateway::outgoing::key_of;
use crate::tools::gateway::units::{Units, query, wait};
use crate::tools::work::Scope;
use crate::tools::work::submit::{Away, Payload, Submission, start};

/// Maximum number of submissions that clients have not answered.
const MAX_SUBMISSIONS: usize = 8;

/// Work of callers.
#[derive(Debug)]
pub struct Submissions {
    scope: Scope,
    allowed: Vec<Kind>,
    threads: Threads,
}

impl Submissions {
    /// Submits to the clients of `scope` the work that is `allowed`.
    #[must_use]
    pub fn new(scope: Scope, allowed: Vec<Kind>) -> Self {
        Self {
            scope,
            allowed,
            threads: Threads::new(MAX_SUBMISSIONS),
        }
    }

    /// Looks whether callers may submit work of this kind.
    ///
    /// # Errors
    /// The answer when they may not.
    pub fn check(&self, kind: &Kind) -> Result<(), Response> {
        match self.allowed.contains(kind) {
            true => Ok(()),
            false => Err(Response::error(
                403,
                "the gateway takes no such work: see --allow-work",
            )),
        }
    }

    /// Submits work, and answers when the ledger of a client has it; with its end if the caller waits.
    ///
    /// # Errors
    /// The answer when it is not accepted.
    pub async fn answer(
        &self,
        (head, body): (&Head, Bytes),
        kind: &Kind,
        units: &Units,
        seat: &Seat,
    ) -> Result<Response, Response> {
        let mut parameters = query(head)?;
        let limit = wait(&parameters)?;
        parameters.remove("wait");
        if limit.is_some() {
            // Later the work is accepted, and must not be refused because no place is free.
            seat.lengthen()?;
        }
        let text =
            |(key, value): (String, Value)| (key, value.as_str().unwrap_or_default().to_owned());
        let away = Away {
            node: kind.node.clone(),
            sign: false,
            ttl: None,
        };
        let work = Submission {
            kind: kind.kind.clone(),
            words: Vec::new(),
            named: parameters.into_iter().map(text).collect(),
            payload: Payload::Nothing,
            id: id_of(head)?,
            follow: false,
            release: false,
            json: false,
            away: (kind.node != LOCALHOST).then_some(away),
        };
        let scope = self.scope.clone();
        let submit = move || Ok(start(&scope, &work, &mut body.as_ref()));
        let started = self.threads.run(submit).await?;
        let started = started.map_err(|e| match e.to_string().contains(OTHER_WORK) {
            true => Response::error(409, "the Idempotency-Key belongs to other work"),
            false => refused(&e),
        })?;
        if let Some(limit) = limit {
            return units.ended(&started.unit, limit, seat).await;
        }
        Ok(Response::json(
            202,
            &json!({
                "unit": started.unit,
                "id": started.unit,
                "pipeline": started.who,
                "accepted": started.accepted,
            }),
        ))
    }
}

/// Returns the id of the unit, if the caller has chosen one.
///
/// # Errors
/// The answer to one that is wrong.
fn id_of(head: &Head) -> Result<Option<String>, Response> {
    let key = key_of(head).map_err(|cause| Response::error(400, cause))?;
    Ok(key.map(|key| match is_ulid(key) {
        true => key.to_owned(),
        false => host::id_from(id_of_key(key)),
    }))
}
