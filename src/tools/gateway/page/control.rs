//! Requests of the page to a pipeline, as `tael control` sends them.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::model::control::{Action, RESERVED};
use crate::model::event::attributes;
use crate::model::gateway::rate::Caller;
use crate::model::message::{Message, Properties, Qos};
use crate::model::topic::PipelineTopics;
use crate::net::http::Response;
use crate::net::mqtt::Audience;
use crate::os::host;
use crate::tools::control::envelope;
use crate::tools::gateway::page::hub::Hub;
use crate::tools::gateway::ways::Ways;
use crate::tools::message::origin;

/// Maximum size of a request, bytes.
const MAX_REQUEST: usize = 64 * 1024;

/// Returns the action in the body of a request.
fn action(body: &[u8]) -> Result<Action, Response> {
    let wrong = |cause: &str| Response::error(400, cause);
    let asked = attributes(&Bytes::copy_from_slice(body), MAX_REQUEST);
    let asked = asked.map_err(|refusal| wrong(&format!("the request is refused: {refusal}")))?;
    let unit = match asked.get("unit") {
        None | Some(Value::Null) => None,
        Some(Value::String(unit)) => Some(unit.clone()),
        Some(_) => return Err(wrong("'unit' is a text")),
    };
    match asked.get("action").and_then(Value::as_str) {
        Some("raise") => {
            let attributes = match asked.get("attributes") {
                None => serde_json::Map::new(),
                Some(Value::Object(map)) => map.clone(),
                Some(_) => return Err(wrong("'attributes' is an object")),
            };
            if attributes.contains_key("") {
                return Err(wrong("an attribute needs a name"));
            }
            if let Some(name) = RESERVED.iter().find(|name| attributes.contains_key(**name)) {
                let cause = format!("attribute '{name}' is part of the request");
                return Err(wrong(&cause));
            }
            let trigger = match asked.get("trigger") {
                None | Some(Value::Null) => None,
                Some(Value::String(trigger)) => Some(trigger.clone()),
                Some(_) => return Err(wrong("'trigger' is a text")),
            };
            Ok(Action::Raise {
                trigger,
                attributes,
            })
        }
        Some("retry") => Ok(Action::Retry {
            unit,
            again: asked.get("again") == Some(&Value::Bool(true)),
        }),
        Some("cancel") => Ok(Action::Cancel { unit }),
        Some("pause") => Ok(Action::Pause),
        Some("resume") => Ok(Action::Resume),
        _ => Err(wrong("'action' is raise, retry, cancel, pause or resume")),
    }
}

/// Sends the request of `caller` in `body` to pipeline `who`, and returns its answer.
///
/// # Errors
/// The answer when the request is wrong, or the pipeline does not answer.
pub(super) async fn send(
    hub: &Hub,
    who: &str,
    body: &[u8],
    ways: &Ways,
    caller: Caller,
) -> Result<Response, Response> {
    let (message, topic) = request(&hub.root(), who, body, ways.limit)?;
    if hub.is_unknown(who) {
        return Err(Response::error(404, "there is no such pipeline"));
    }
    let busy = || Response::error(503, "too many requests wait for pipelines");
    let reply = hub.expect(caller, &topic).ok_or_else(busy)?;
    let silent = || Response::error(504, "the pipeline has not answered: does its client run?");
    let sent = ways.deliver(message).await;
    if sent.map_err(|unsent| unsent.response())? == Audience::None {
        return Err(silent());
    }
    match timeout(ways.limit, reply).await {
        Ok(Ok(reply)) => Ok(Response::json(200, &json!({ "reply": reply }))),
        Ok(Err(_)) | Err(_) => Err(silent()),
    }
}

/// Returns the message for the request in `body` to pipeline `who` below `root`, and the topic of its
/// answer. After `limit` it expires.
///
/// # Errors
/// The answer to a request that is wrong.
fn request(
    root: &str,
    who: &str,
    body: &[u8],
    limit: Duration,
) -> Result<(Message, String), Response> {
    let action = action(body)?;
    let topics = PipelineTopics::new(root, who);
    let reply = topics.reply(&host::new_id());
    let properties = Properties {
        user: origin(),
        response_topic: Some(reply.clone()),
        correlation_data: Some(Bytes::from(host::new_id())),
        message_expiry: Some(crate::model::duration::whole_seconds(limit)),
    };
    let message = Message {
        topic: topics.control(),
        payload: Bytes::from(action.payload(&envelope(&properties, limit))),
        qos: Qos::AtLeastOnce,
        retain: false,
        properties,
    };
    Ok((message, reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_those_of_control() {
        let of = |body: &str| request("lab", "seq", body.as_bytes(), Duration::from_secs(5));
        let (message, reply) = of(r#"{"action":"cancel","unit":"U1"}"#).expect("request");
        assert_eq!(message.topic, "lab/infrastructure/pipelines/seq/control");
        assert_eq!(message.properties.response_topic, Some(reply));
        let payload = String::from_utf8_lossy(&message.payload).into_owned();
        assert!(
            payload.starts_with(r#"{"action":"cancel","unit":"U1""#),
            "{payload}"
        );
        let raise = r#"{"action":"raise","trigger":"t","attributes":{"sample":"S=1"}}"#;
        let (message, _) = of(raise).expect("request");
        let payload = String::from_utf8_lossy(&message.payload).into_owned();
        assert!(
            payload.starts_with(r#"{"action":"raise","trigger":"t","sample":"S=1""#),
            "{payload}"
        );
        for wrong in [
            "",
            "[]",
            "{}",
            r#"{"action":"stop"}"#,
            r#"{"action":"raise","trigger":1}"#,
            r#"{"action":"raise","attributes":"sample=S1"}"#,
            r#"{"action":"raise","attributes":{"":"S1"}}"#,
            // These are parts of the request: it would ask for something else.
            r#"{"action":"raise","attributes":{"action":"cancel"}}"#,
            r#"{"action":"raise","attributes":{"trigger":"other"}}"#,
            r#"{"action":"raise","attributes":{"tael-request":{}}}"#,
            r#"{"action":"cancel","unit":1}"#,
        ] {
            assert_eq!(of(wrong).expect_err(wrong).status, 400);
        }
    }
}
