//! The connection to the broker of queues: messages are put, and those who wait hear of the confirms.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use crate::model::message::property;
use crate::model::text::printable;
use crate::net::amqp::{
    AmqpOptions, Channel, Confirm, Connection, Failure, FailureKind, PERSISTENT, Properties,
    Publish, Table, Unconfirmed,
};
use crate::tools::gateway::outgoing::{Outgoing, Unsent};

/// Maximum number of messages that wait to be put: there are not more requests at a time.
pub const MAX_WAITING: usize = crate::net::http::MAX_CONNECTIONS;

/// Maximum number of messages that the broker has not confirmed.
const MAX_SENT: usize = 1024;

/// Time after which a connection without work is closed.
const IDLE: Duration = Duration::from_secs(60);

/// Minimum time between two connections: requests that come before are answered at once.
const PAUSE: Duration = Duration::from_secs(1);

/// Maximum time until the broker has let us in.
const OPEN: Duration = Duration::from_secs(10);

/// Maximum time for a goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// Program that has published a message: property `app_id`.
const APP: &str = "tael";

/// Maximum length of a text of the broker, characters.
const MAX_TEXT: usize = 200;

type Reply = oneshot::Sender<Result<(), Unsent>>;

/// A message for a queue, and who waits for its confirm.
#[derive(Debug)]
pub struct Put {
    /// Name of the queue.
    pub queue: String,
    /// The message.
    pub outgoing: Outgoing,
    /// Gets the result; a waiter may have left.
    pub reply: Reply,
}

/// Puts messages until no one can bring more.
pub async fn run(options: AmqpOptions, mut puts: mpsc::Receiver<Put>) {
    let (mut tried, mut cause) = (None::<Instant>, Unsent::away(""));
    while let Some(first) = puts.recv().await {
        if tried.is_some_and(|at| at.elapsed() < PAUSE) {
            let _ = first.reply.send(Err(cause.clone()));
            continue;
        }
        tried = Some(Instant::now());
        let opened = timeout(OPEN, open(&options)).await;
        let opened = opened.unwrap_or_else(|_| Err(format!("no answer in {} s", OPEN.as_secs())));
        cause = match opened {
            Ok((connection, mut channel)) => {
                info!("connected to the broker of queues at {}", options.address());
                match serve(&connection, &mut channel, first, &mut puts).await {
                    Ok(()) => {
                        let _ = timeout(GOODBYE, connection.close()).await;
                        // A connection that was idle may be opened again at once.
                        tried = None;
                        continue;
                    }
                    Err(failure) => lost(&options, &failure.text),
                }
            }
            Err(text) => {
                let cause = lost(&options, &text);
                let _ = first.reply.send(Err(cause.clone()));
                cause
            }
        };
    }
}

/// Returns the answer to those who wait while there is no connection.
fn lost(options: &AmqpOptions, text: &str) -> Unsent {
    let text = printable(text, MAX_TEXT);
    warn!("the broker of queues at {}: {text}", options.address());
    Unsent::away("the broker of queues is away, or went away before it confirmed the message")
}

async fn open(options: &AmqpOptions) -> Result<(Connection, Channel), String> {
    let open = async {
        let connection = Connection::open(options).await?;
        let channel = connection.channel().await?;
        channel.confirm_select().await?;
        Ok((connection, channel))
    };
    open.await.map_err(|failure: Failure| failure.text)
}

/// Puts `first` and what follows, until the connection ends, or is idle.
async fn serve(
    connection: &Connection,
    channel: &mut Channel,
    first: Put,
    puts: &mut mpsc::Receiver<Put>,
) -> Result<(), Failure> {
    let mut sent = Unconfirmed::default();
    let served = exchange(connection, channel, first, puts, &mut sent).await;
    if let Err(failure) = &served {
        for reply in sent.take() {
            // A channel that is closed for one message says so to all that it had.
            let _ = reply.send(Err(match failure.kind {
                FailureKind::Denied => Unsent::refused(
                    403,
                    "the broker of queues does not allow the gateway to put messages there",
                ),
                _ => Unsent::away("the broker of queues went away before it confirmed the message"),
            }));
        }
    }
    served
}

async fn exchange(
    connection: &Connection,
    channel: &mut Channel,
    first: Put,
    puts: &mut mpsc::Receiver<Put>,
    sent: &mut Unconfirmed<Reply>,
) -> Result<(), Failure> {
    let mut next = Some(first);
    let mut idle_since = Instant::now();
    loop {
        if let Some(put) = next.take() {
            if let Some(reason) = connection.blocked() {
                let reason = printable(&reason, MAX_TEXT);
                let cause = format!("the broker of queues takes no messages now ({reason})");
                let _ = put.reply.send(Err(Unsent::away(cause)));
            } else {
                publish(sent, channel, put).await?;
            }
            idle_since = Instant::now();
        }
        tokio::select! {
            biased;
            happening = channel.next() => {
                for (reply, confirm) in sent.happened(happening)? {
                    let _ = reply.send(result(confirm));
                }
            }
            failure = connection.closed() => return Err(failure),
            put = puts.recv() => match put {
                Some(put) => next = Some(put),
                None => return Ok(()),
            },
            () = sleep_until(idle_since + IDLE), if sent.is_empty() => return Ok(()),
        }
    }
}

async fn publish(
    sent: &mut Unconfirmed<Reply>,
    channel: &Channel,
    put: Put,
) -> Result<(), Failure> {
    let Put {
        queue,
        outgoing,
        reply,
    } = put;
    if sent.len() >= MAX_SENT {
        let cause = "too many messages wait for the broker of queues";
        let _ = reply.send(Err(Unsent::away(cause)));
        return Ok(());
    }
    let message = message(queue, outgoing);
    match channel.publish(&message).await {
        Ok(number) => sent.add(number, &message, reply),
        Err(failure) if failure.kind == FailureKind::Invalid => {
            let cause = printable(&failure.text, MAX_TEXT);
            let _ = reply.send(Err(Unsent::refused(413, cause)));
        }
        Err(failure) => {
            let cause = "the broker of queues went away before it had the message";
            let _ = reply.send(Err(Unsent::away(cause)));
            return Err(failure);
        }
    }
    Ok(())
}

/// Returns what the caller hears.
fn result(confirm: Confirm) -> Result<(), Unsent> {
    match confirm {
        Confirm::Kept => Ok(()),
        Confirm::Returned(cause) => Err(Unsent::refused(404, cause)),
        Confirm::Dropped => Err(Unsent::away(
            "the broker of queues does not take the message (is the queue full?)",
        )),
    }
}

fn message(queue: String, outgoing: Outgoing) -> Publish {
    let mut headers = Table::new();
    for (name, value) in outgoing.properties() {
        if name != property::ID {
            headers.push(&name, value.as_str());
        }
    }
    Publish {
        routing_key: queue,
        mandatory: true,
        properties: Properties {
            content_type: Some("application/json".to_owned()),
            delivery_mode: Some(PERSISTENT),
            message_id: Some(outgoing.id.clone()),
            timestamp: u64::try_from(Timestamp::now().as_second()).ok(),
            app_id: Some(APP.to_owned()),
            headers,
            ..Properties::default()
        },
        body: Bytes::from(outgoing.payload()),
        ..Publish::default()
    }
}
