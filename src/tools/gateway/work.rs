//! `/w`: callers submit work as `tael work submit` does.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::model::gateway::rate::Caller;
use crate::model::gateway::work::{Key, Kind, id_of_key};
use crate::model::receptor::{LOCALHOST, Refusal};
use crate::model::text::printable;
use crate::model::unit::is_ulid;
use crate::net::http::{Head, Response, Seat};
use crate::os::host;
use crate::tools::gateway::blocking::{Threads, refused};
use crate::tools::gateway::outgoing::key_of;
use crate::tools::gateway::units::{Units, query, wait};
use crate::tools::work::Scope;
use crate::tools::work::submit::{Away, Payload, Started, Submission, start};

/// Maximum number of submissions that clients have not answered.
const MAX_SUBMISSIONS: usize = 8;

/// Maximum number of characters of a cause in an answer.
const SHOWN_CAUSE: usize = 500;

/// Work of callers.
#[derive(Debug)]
pub struct Submissions {
    scope: Scope,
    sign: bool,
    threads: Threads,
}

impl Submissions {
    /// Submits to the clients of `scope`. They `sign` work for other nodes.
    #[must_use]
    pub fn new(scope: Scope, sign: bool) -> Self {
        Self {
            scope,
            sign,
            threads: Threads::new(MAX_SUBMISSIONS),
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
        let named = parameters.into_iter().map(text).collect();
        let started = self
            .submit(seat.caller(), kind, named, body, id_of(head)?)
            .await?;
        match limit {
            Some(limit) => units.ended(&started.unit, limit, seat).await,
            None => Ok(accepted(202, &started)),
        }
    }

    /// Submits work of `caller` with these parameters and this payload, and returns when the ledger of a
    /// client has it. `id` is that of its unit, if it is chosen.
    ///
    /// # Errors
    /// The answer when it is not accepted.
    pub async fn submit(
        &self,
        caller: Caller,
        kind: &Kind,
        named: Vec<(String, String)>,
        payload: Bytes,
        id: Option<String>,
    ) -> Result<Started, Response> {
        let away = Away {
            node: kind.node.clone(),
            sign: self.sign,
            ttl: None,
        };
        let work = Submission {
            kind: kind.kind.clone(),
            words: Vec::new(),
            named,
            payload: Payload::Nothing,
            id,
            follow: false,
            release: false,
            json: false,
            away: (kind.node != LOCALHOST).then_some(away),
        };
        let scope = self.scope.clone();
        let submit = move || Ok(start(&scope, &work, &mut payload.as_ref()));
        let started = self.threads.run(Some(caller), submit).await?;
        started.map_err(|e| match e.refusal {
            Refusal::OtherWork => {
                let cause = "other work was sent with this Idempotency-Key or delivery before";
                Response::error(409, cause)
            }
            // The gateway takes this work: its client may be starting, or be reloaded.
            Refusal::UnknownType => {
                let cause = printable(&e.error.to_string(), SHOWN_CAUSE);
                Response::error(503, &cause).with("retry-after", "1")
            }
            Refusal::TryAgain | Refusal::NoParams | Refusal::Other => refused(&e.error),
        })
    }
}

/// Returns the answer about work that a client has accepted.
#[must_use]
pub fn accepted(status: u16, started: &Started) -> Response {
    Response::json(
        status,
        &json!({
            "unit": started.unit,
            "id": started.unit,
            "pipeline": started.who,
            "accepted": started.accepted,
        }),
    )
}

/// Returns the id of the unit, if the caller has chosen one.
///
/// # Errors
/// The answer to one that is wrong.
pub fn id_of(head: &Head) -> Result<Option<String>, Response> {
    let key = key_of(head).map_err(|cause| Response::error(400, cause))?;
    Ok(key.map(|key| match is_ulid(key) {
        true => key.to_owned(),
        false => host::id_from(id_of_key(Key::Caller(key))),
    }))
}
