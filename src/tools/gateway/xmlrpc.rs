//! XML-RPC: calls of workflow clients become messages.
//!
//! The methods, and the faults of those that are missing, are those of the proxy of OODT.

use tracing::debug;

use crate::model::gateway::rate::Caller;
use crate::model::gateway::topics::Refusal;
use crate::model::gateway::xmlrpc::{self, Call, Value};
use crate::model::text::printable;
use crate::net::http::{Head, Response};
use crate::tools::gateway::outgoing::{Outgoing, Unsent};
use crate::tools::gateway::policy::Policy;
use crate::tools::gateway::ways::Ways;
use crate::tools::gateway::workflows::Workflows;

/// Media type of calls and responses.
const MEDIA: &str = "text/xml";

/// Fault code of what a method says.
const FAILED: i32 = 1;

/// Start of the faults of the proxy of OODT, which clients may look for.
const EXCEPTION: &str = "<type 'exceptions.Exception'>";
const TYPE_ERROR: &str = "<type 'exceptions.TypeError'>";

/// Maximum number of characters of a name in a fault.
const SHOWN: usize = 100;

/// What calls reach.
#[derive(Debug)]
pub struct Rpc {
    /// Topic below which events without a queue are published.
    pub events: String,
    /// Runs to tell of, if a client is named.
    pub workflows: Option<Workflows>,
}

/// Why a method fails: code and text of the fault.
type Fault = (i32, String);

impl Rpc {
    /// Answers a call of `caller`: always with status 200, as the protocol wants it.
    pub async fn answer(
        &self,
        (head, body): (&Head, &[u8]),
        policy: &Policy,
        ways: &Ways,
        caller: Caller,
    ) -> Response {
        let text = match xmlrpc::call(body) {
            Ok(call) => match self.call((head, caller), &call, policy, ways).await {
                Ok(value) => xmlrpc::response(&value),
                Err((code, text)) => {
                    debug!("XML-RPC {}: fault {code}: {text}", call.method);
                    xmlrpc::fault(code, &text)
                }
            },
            Err(flaw) => xmlrpc::fault(flaw.code(), &flaw.to_string()),
        };
        Response::new(200, MEDIA, text)
    }

    async fn call(
        &self,
        (head, caller): (&Head, Caller),
        call: &Call,
        policy: &Policy,
        ways: &Ways,
    ) -> Result<Value, Fault> {
        let method = call.method.strip_prefix("workflowmgr.").unwrap_or_default();
        match (method, &self.workflows) {
            ("handleEvent", _) => {
                let [name, metadata] = parameters(method, call)?;
                let name = text(method, name)?;
                let Some(attributes) = metadata.to_attributes() else {
                    let cause = format!("the metadata is a struct, not a {}", metadata.kind());
                    return Err((FAILED, format!("{TYPE_ERROR}:{cause}")));
                };
                let outgoing = Outgoing::of(head, attributes);
                let outgoing = outgoing.map_err(|cause| (FAILED, cause.to_owned()))?;
                self.event(name, outgoing, policy, ways).await
            }
            ("getNumWorkflowInstancesByStatus", Some(workflows)) => {
                let [status] = parameters(method, call)?;
                let count = workflows.count(caller, text(method, status)?.to_owned());
                count.await.map(Value::Int).map_err(|cause| (FAILED, cause))
            }
            ("getWorkflowInstances", Some(workflows)) => {
                let [] = parameters(method, call)?;
                workflows
                    .list(caller)
                    .await
                    .map_err(|cause| (FAILED, cause))
            }
            _ => {
                let cause = format!("method \"{}\" is not supported", call.method);
                Err((FAILED, format!("{EXCEPTION}:{cause}")))
            }
        }
    }

    /// Hands over an event. Returns whether the broker has confirmed it; it is false only if another
    /// attempt would end in the same way.
    async fn event(
        &self,
        name: &str,
        outgoing: Outgoing,
        policy: &Policy,
        ways: &Ways,
    ) -> Result<Value, Fault> {
        let sent = match policy.check_queue(name) {
            Ok(()) => ways.put(name.to_owned(), outgoing).await,
            Err(_) => {
                let topic = format!("{}/{name}", self.events);
                let allowed = policy
                    .topics
                    .check(&topic)
                    .map_err(|refusal| match refusal {
                        Refusal::Wrong(cause) | Refusal::Forbidden(cause) => cause,
                    });
                allowed.map_err(|cause| (FAILED, format!("{EXCEPTION}:{cause}")))?;
                ways.publish(topic, outgoing).await
            }
        };
        match sent {
            Ok(()) => Ok(Value::Bool(true)),
            Err(Unsent { status: 503, cause }) => Err((FAILED, format!("{EXCEPTION}:{cause}"))),
            Err(Unsent { cause, .. }) => {
                debug!("XML-RPC event {}: {cause}", printable(name, SHOWN));
                Ok(Value::Bool(false))
            }
        }
    }
}

/// Returns the parameters of a call.
fn parameters<'a, const N: usize>(method: &str, call: &'a Call) -> Result<&'a [Value; N], Fault> {
    let given = call.params.as_slice();
    given.try_into().map_err(|_| {
        let cause = format!(
            "{method}() takes exactly {N} arguments ({} given)",
            given.len()
        );
        (FAILED, format!("{TYPE_ERROR}:{cause}"))
    })
}

/// Returns a parameter that is text.
fn text<'a>(method: &str, value: &'a Value) -> Result<&'a str, Fault> {
    match value {
        Value::Text(text) => Ok(text),
        other => {
            let cause = format!("{method}() takes a string, not a {}", other.kind());
            Err((FAILED, format!("{TYPE_ERROR}:{cause}")))
        }
    }
}
