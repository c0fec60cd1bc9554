//! Ways out of the gateway: what callers bring goes to a topic or to a queue, and is confirmed.

use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::model::event::{self, Attributes};
use crate::model::json;
use crate::model::message::{Message, Properties, Qos, property};
use crate::net::http::{Head, Response};
use crate::net::mqtt::Audience;
use crate::os::host;
use crate::tools::gateway::metrics::Metrics;
use crate::tools::gateway::publisher::{Failed, Job};
use crate::tools::gateway::queue_publisher::Put;

/// Time after which callers try again while a broker is away, seconds.
const RETRY_AFTER: &str = "5";

/// Header fields that may hold the id of an event, in the order in which they are looked at.
const ID_FIELDS: [&str; 2] = ["idempotency-key", "x-request-id"];

/// What is published for a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    /// Attributes of the event.
    pub attributes: Attributes,
    /// Id of the event.
    pub id: String,
    /// The caller's `traceparent`, if it is one.
    pub trace: Option<String>,
}

/// Why something is not published for certain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsent {
    /// Status of the answer: 503 if the caller may send again, otherwise 403, 404 or 413.
    pub status: u16,
    /// A text for the caller.
    pub cause: String,
}

impl Unsent {
    /// Returns one that may pass.
    pub fn away(cause: impl Into<String>) -> Self {
        let cause = cause.into();
        Self { status: 503, cause }
    }

    /// Returns one that stays.
    pub fn refused(status: u16, cause: impl Into<String>) -> Self {
        let cause = cause.into();
        Self { status, cause }
    }

    /// Returns the answer.
    #[must_use]
    pub fn response(&self) -> Response {
        let response = Response::error(self.status, &self.cause);
        match self.status {
            503 => response.with("retry-after", RETRY_AFTER),
            _ => response,
        }
    }
}

impl Outgoing {
    /// Returns the event of a request, whose id is that of the caller or a new one.
    ///
    /// # Errors
    /// When the caller has chosen one that cannot be an id.
    pub fn of(head: &Head, attributes: Attributes) -> Result<Self, &'static str> {
        Ok(Self::with_id(head, attributes, id_of(head)?))
    }

    /// Returns the event `id` of a request.
    #[must_use]
    pub fn with_id(head: &Head, attributes: Attributes, id: String) -> Self {
        let trace = head.field(property::TRACEPARENT);
        Self {
            attributes,
            id,
            trace: trace
                .filter(|t| event::is_traceparent(t))
                .map(str::to_owned),
        }
    }

    /// Returns the payload.
    #[must_use]
    pub fn payload(self) -> String {
        json::to_text(&Value::Object(self.attributes))
    }

    /// Returns what is known beside the payload.
    #[must_use]
    pub fn properties(&self) -> Vec<(String, String)> {
        let mut list = vec![
            (property::ID.to_owned(), self.id.clone()),
            (property::HOST.to_owned(), host::hostname()),
        ];
        let trace = self.trace.iter();
        list.extend(trace.map(|trace| (property::TRACEPARENT.to_owned(), trace.clone())));
        list
    }
}

/// Returns the id of the event that a request is: that of the caller, or a new one. The id that a
/// proxy has given is taken only if it can be one.
fn id_of(head: &Head) -> Result<String, &'static str> {
    for name in ID_FIELDS {
        let Some((_, given)) = head.fields.iter().find(|(own, _)| own == name) else {
            continue;
        };
        match std::str::from_utf8(given)
            .ok()
            .filter(|id| event::is_id(id))
        {
            Some(id) => return Ok(id.to_owned()),
            None if name == "idempotency-key" => {
                return Err("an Idempotency-Key has 1 to 64 letters, digits or . _ : -");
            }
            None => {}
        }
    }
    Ok(host::new_id())
}

/// Where callers may put messages in queues.
#[derive(Debug)]
pub struct Queues {
    /// Names that callers may use.
    pub allowed: Vec<String>,
    /// Way to the broker of the queues.
    pub puts: mpsc::Sender<Put>,
}

/// Ways out.
#[derive(Debug)]
pub struct Ways {
    /// Way to the broker of the topics.
    pub jobs: mpsc::Sender<Job>,
    /// Queues, if there is a broker for them.
    pub queues: Option<Queues>,
    /// Maximum time until a broker confirms.
    pub limit: Duration,
    /// Whether a message without a subscriber is a failure.
    pub need_listener: bool,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl Ways {
    /// Checks that callers may put messages in `queue`.
    ///
    /// # Errors
    /// When they may not.
    pub fn check_queue(&self, queue: &str) -> Result<(), Unsent> {
        let allowed = self.queues.as_ref().map(|queues| &queues.allowed);
        match allowed.is_some_and(|allowed| allowed.iter().any(|own| own == queue)) {
            true => Ok(()),
            false => Err(Unsent::refused(
                403,
                "the gateway does not allow this queue",
            )),
        }
    }

    /// Publishes `outgoing` to `topic`, and returns when the broker has confirmed it.
    ///
    /// # Errors
    /// When the broker does not have it for certain.
    pub async fn publish(&self, topic: String, outgoing: Outgoing) -> Result<(), Unsent> {
        let message = Message {
            topic,
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: Properties {
                user: outgoing.properties(),
                ..Properties::default()
            },
            payload: outgoing.payload().into(),
        };
        let result = match self.deliver(message).await {
            Ok(Audience::None) if self.need_listener => {
                // The broker has confirmed it, and dropped it.
                self.metrics.confirmed.fetch_add(1, Ordering::Relaxed);
                let cause = "no client subscribes to the topic, so the broker dropped the message";
                return Err(Unsent::away(cause));
            }
            result => result.map(drop),
        };
        self.count(&result);
        result
    }

    /// Publishes `message`, and returns when the broker has confirmed it.
    ///
    /// # Errors
    /// When the broker does not have it for certain.
    pub async fn deliver(&self, message: Message) -> Result<Audience, Unsent> {
        let (reply, result) = oneshot::channel();
        let sent = async {
            // The loop that takes them ends with the process.
            let gone = || Failed::Away;
            let job = Job { message, reply };
            self.jobs.send(job).await.map_err(|_| gone())?;
            result.await.map_err(|_| gone())?
        };
        match timeout(self.limit, sent).await {
            Ok(Ok(audience)) => Ok(audience),
            Ok(Err(Failed::Away)) => Err(Unsent::away(
                "the broker is away, or went away before it confirmed the message",
            )),
            Ok(Err(Failed::Busy)) => Err(Unsent::away("too many messages wait for the broker")),
            Ok(Err(Failed::Unable(cause))) => Err(Unsent::away(cause)),
            Ok(Err(Failed::Refused(cause))) => Err(Unsent::refused(403, cause)),
            Ok(Err(Failed::TooLarge(cause))) => Err(Unsent::refused(413, cause)),
            Err(_) => Err(Unsent::away(
                "the broker has not confirmed the message in time",
            )),
        }
    }

    /// Puts `outgoing` in `queue`, and returns when the broker of queues has confirmed it.
    ///
    /// # Errors
    /// When the broker does not have it for certain.
    pub async fn put(&self, queue: String, outgoing: Outgoing) -> Result<(), Unsent> {
        let (reply, result) = oneshot::channel();
        let Some(queues) = &self.queues else {
            return Err(Unsent::refused(403, "the gateway has no broker of queues"));
        };
        let sent = async {
            let gone = |()| Unsent::away("the gateway stops");
            let put = Put {
                queue,
                outgoing,
                reply,
            };
            queues.puts.send(put).await.map_err(|_| gone(()))?;
            result.await.map_err(|_| gone(()))?
        };
        let late = |_| {
            Err(Unsent::away(
                "the broker of queues has not confirmed the message in time",
            ))
        };
        let result = timeout(self.limit, sent).await.unwrap_or_else(late);
        self.count(&result);
        result
    }

    fn count(&self, result: &Result<(), Unsent>) {
        let counter = match result {
            Ok(()) => &self.metrics.confirmed,
            Err(_) => &self.metrics.unconfirmed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&str, &str)]) -> Head {
        let fields = fields.iter();
        Head {
            method: "POST".into(),
            path: "/".into(),
            query: String::new(),
            fields: fields.map(|(n, v)| ((*n).into(), (*v).into())).collect(),
            peer: None,
        }
    }

    #[test]
    fn callers_may_choose_the_id() {
        let of = |fields: &[(&str, &str)]| id_of(&head(fields));
        assert_eq!(of(&[("idempotency-key", "a-1")]).as_deref(), Ok("a-1"));
        assert_eq!(of(&[("x-request-id", "b")]).as_deref(), Ok("b"));
        let both = [("x-request-id", "b"), ("idempotency-key", "a")];
        assert_eq!(of(&both).as_deref(), Ok("a"));
        for wrong in ["", "a b", "ä", &"a".repeat(event::MAX_ID_BYTES + 1)] {
            assert!(of(&[("idempotency-key", wrong)]).is_err(), "{wrong}");
            let new = of(&[("x-request-id", wrong)]).expect("a new one");
            assert!(event::is_id(&new) && new != wrong);
        }
    }
}
