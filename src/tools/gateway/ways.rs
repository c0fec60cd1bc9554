//! Ways out of the gateway: what callers bring goes to a topic or to a queue, and is confirmed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::model::message::{Message, Properties, Qos};
use crate::net::http::Seat;
use crate::net::mqtt::Audience;
use crate::tools::gateway::metrics::Metrics;
use crate::tools::gateway::outgoing::{Outgoing, Unsent};
use crate::tools::gateway::publisher::{Failed, Job, Link};
use crate::tools::gateway::queue_publisher::Put;
use crate::tools::gateway::replies::Replies;

/// Returns the message for a request.
fn message(topic: String, outgoing: Outgoing) -> Message {
    Message {
        topic,
        qos: Qos::AtLeastOnce,
        retain: false,
        properties: Properties {
            user: outgoing.properties(),
            ..Properties::default()
        },
        payload: outgoing.payload().into(),
    }
}

/// Ways out.
#[derive(Debug)]
pub struct Ways {
    /// Way to the broker of the topics.
    pub jobs: mpsc::Sender<Job>,
    /// Way to the broker of queues, if there is one.
    pub queues: Option<mpsc::Sender<Put>>,
    /// Maximum time until a broker confirms.
    pub limit: Duration,
    /// Whether a message without a subscriber is a failure.
    pub need_listener: bool,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Callers who wait for answers.
    pub replies: Arc<Replies>,
    /// State of the connection to the broker of the topics.
    pub link: Arc<Link>,
    /// Is true when the gateway stops.
    pub stop: watch::Receiver<bool>,
}

impl Ways {
    /// Publishes `outgoing` to `topic`, and returns when the broker has confirmed it.
    ///
    /// # Errors
    /// When the broker does not have it for certain.
    pub async fn publish(&self, topic: String, outgoing: Outgoing) -> Result<(), Unsent> {
        self.confirm(message(topic, outgoing), self.need_listener)
            .await
    }

    /// Publishes `outgoing` to `topic`, and returns the answer to it; `None` if none has come within
    /// `limit` after the broker has confirmed it, or before the gateway stops or others need the `seat`.
    /// The run goes on then.
    ///
    /// # Errors
    /// When the broker does not have it for certain, or knows that no client subscribes.
    pub async fn ask(
        &self,
        topic: String,
        outgoing: Outgoing,
        limit: Duration,
        seat: &Seat,
    ) -> Result<Option<Bytes>, Unsent> {
        let id = outgoing.id.clone();
        let mut message = message(topic, outgoing);
        let reply = self.replies.topic(&message.topic, &id, &message.payload);
        let mut answer = self.replies.expect(seat.caller(), &reply, &id)?;
        message.properties.response_topic = Some(reply);
        message.properties.correlation_data = Some(id.into());
        let mut returns = self.link.returns();
        self.confirm(message.clone(), true).await?;
        let deadline = Instant::now() + limit;
        let mut stop = self.stop.clone();
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return Ok(answer.ok()),
                () = sleep_until(deadline) => return Ok(None),
                _ = stop.wait_for(|stop| *stop) => return Ok(None),
                () = seat.ousted() => return Ok(None),
                () = returns.next() => {}
            }
            // The answer may be lost with the connection. A client knows the event, and answers again.
            let again = self.deliver(message.clone());
            let _ = timeout_at(deadline, again).await;
        }
    }

    /// Publishes `message`, and returns when the broker has confirmed it, to a client that subscribes if
    /// it `needs` one, so far as the broker says.
    async fn confirm(&self, message: Message, needs: bool) -> Result<(), Unsent> {
        let result = match self.deliver(message).await {
            Ok(Audience::None) if needs => {
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
            queues.send(put).await.map_err(|_| gone(()))?;
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
