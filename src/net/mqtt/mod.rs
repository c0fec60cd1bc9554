//! One MQTT 5 connection. The only file that knows the client library.
//!
//! The library's event loop runs in a task of its own and is thrown away, with its client,
//! after any error: only this avoids stale events and acknowledgements of other messages.
//! Whoever holds a [`Connection`] never waits for that task; that task may wait for its
//! holder. So neither can block the other for ever.

mod asked;
mod failure;
mod inbox;
mod order;
mod progress;
mod reads;
mod stall;
mod trim;
mod waiting;
mod wire;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PubCompReason, PubRecReason, Publish};
use rumqttc::v5::{AsyncClient, Event as LoopEvent, EventLoop};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::{Error, Kind, Result};
use crate::model::message::{Delivery, Message, Qos};
use crate::model::topic::Filter;
use crate::net::options::{BrokerOptions, MIN_KEEP_ALIVE};
use asked::Asked;
pub use asked::{Number, Subscribe};
use failure::failure;
use order::Order;
use progress::Progress;
use reads::few_reads;
use waiting::Waiting;
use wire::{
    CONNECT_TIMEOUT, options, puback, pubrec, received, refused, subscribed, wire_properties,
    wire_qos,
};

/// Without any progress for so many keep-alives the connection is given up: a write that
/// hangs has no time-out of its own.
const STALL_KEEP_ALIVES: u32 = 3;

/// How long the broker may take to close the connection after a goodbye.
const DRAIN: Duration = Duration::from_millis(500);

/// Requests that wait inside the library.
const REQUEST_QUEUE: usize = 64;

/// Names one publish. No two publishes of this process have the same one, so that an answer is
/// never taken for the answer to another publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u64);

impl Token {
    /// Returns a token that nothing else has.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What a connection is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Broker and credentials.
    pub broker: BrokerOptions,
    /// How long the broker keeps our session after we are gone; zero ends it with us.
    pub session_expiry: Duration,
    /// Whether the broker drops a session that it still has of us. A [`crate::net::session`] that
    /// outlives its connections asks for that once.
    pub clean_start: bool,
    /// What the broker publishes when we vanish.
    pub will: Option<Message>,
    /// The largest packet that the broker may send, in bytes.
    pub max_packet: u32,
    /// Unacknowledged deliveries that the broker may have under way.
    pub receive_maximum: u16,
}

/// Why a publish was refused, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub Error, pub Refuser);

/// Who refused a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refuser {
    /// The broker, in its answer.
    Broker,
    /// This process: the message was not sent. It says nothing about the broker.
    Local,
}

/// What happens on a connection, in order.
#[derive(Debug)]
pub enum Event {
    /// The broker has accepted us.
    Connected {
        /// It still had our session.
        session_present: bool,
        /// The highest QoS it takes.
        maximum_qos: Qos,
        /// The largest packet it takes, bytes.
        maximum_packet: u32,
        /// Whether it tells which subscription brings a message.
        identifies: bool,
    },
    /// One result for each filter of that SUBSCRIBE, in order.
    Subscribed(Number, Vec<Result<()>>),
    /// That UNSUBSCRIBE is answered.
    Unsubscribed(Number),
    /// A message has come.
    Received(Received),
    /// A publish is complete.
    Published(Token, Result<(), Refused>),
    /// We have said goodbye, and that was sent.
    Closed,
    /// The connection is gone.
    Failed(Failure),
}

/// Why a connection is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It may work again later.
    Passing(String),
    /// Another client has connected with our identifier.
    TakenOver,
    /// It will not work before somebody changes something.
    Fatal(Error),
}

/// A message and what is needed to acknowledge it.
#[derive(Debug)]
pub struct Received {
    /// The message.
    pub delivery: Delivery,
    /// Its acknowledgement, to be sent once it is safe.
    pub ack: Ack,
    /// Identifiers of the subscriptions that brought it.
    pub subscriptions: Vec<usize>,
}

/// The acknowledgement of one message, good on the connection that delivered it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    packet: u16,
    qos: QoS,
}

enum Request {
    Publish(Message, Token),
    Acknowledge(Ack),
    Subscribe(Subscribe),
    Unsubscribe(Filter, Number),
    Disconnect,
}

/// A connection; dropped, it is cut without goodbye.
#[derive(Debug)]
pub struct Connection {
    requests: mpsc::UnboundedSender<Request>,
    events: inbox::Receiver,
    progress: Progress,
    waiting: Waiting,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Connection {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Connection {
    /// Starts to connect; the outcome is the first event.
    ///
    /// # Errors
    /// When the TLS files are wrong (78).
    pub fn open(settings: &Settings) -> Result<Self> {
        let options = options(settings)?;
        let (client, eventloop) = AsyncClient::new(options, REQUEST_QUEUE);
        let (event_tx, events) = inbox::inbox();
        // Bounded: acknowledgements by what was delivered, publishes by `waiting`.
        let (requests, request_rx) = mpsc::unbounded_channel();
        let order = Order::default();
        let asked = Asked::default();
        let progress = Progress::new(CONNECT_TIMEOUT * 2);
        let waiting = Waiting::default();
        let tasks = [
            tokio::spawn(poll(
                eventloop,
                event_tx,
                order.clone(),
                asked.clone(),
                settings.broker.keep_alive,
                progress.clone(),
            )),
            tokio::spawn(send(client, request_rx, order, asked, waiting.clone())),
        ];
        Ok(Self {
            requests,
            events,
            progress,
            waiting,
            tasks,
        })
    }

    /// Whether the task that reads the network has not been heard of for two keep-alives.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.progress.is_missing()
    }

    /// The next event; cancel safe. After `Closed` or `Failed` there is none.
    pub async fn next(&mut self) -> Event {
        self.events
            .recv()
            .await
            .unwrap_or_else(|| Event::Failed(Failure::Passing("the connection has ended".into())))
    }

    // A request after the end of the connection is dropped: its sender learns of the end
    // from `next`, and starts over.

    /// The bytes that `message` takes on the wire.
    #[must_use]
    pub fn size(message: &Message) -> usize {
        wire::size(message)
    }

    /// Publishes `message`; [`Event::Published`] brings `token` back. `false`, and nothing more,
    /// if too many others wait for a broker that does not answer.
    pub fn publish(&self, message: Message, token: Token) -> bool {
        let room = self.waiting.enter(message.memory());
        if room {
            let _ = self.requests.send(Request::Publish(message, token));
        }
        room
    }

    /// Acknowledges a message that came over this connection.
    pub fn acknowledge(&self, ack: Ack) {
        let _ = self.requests.send(Request::Acknowledge(ack));
    }

    /// Subscribes; [`Event::Subscribed`] brings the number back.
    pub fn subscribe(&self, subscribe: Subscribe) {
        let _ = self.requests.send(Request::Subscribe(subscribe));
    }

    /// Unsubscribes from `filter`; [`Event::Unsubscribed`] brings `number` back.
    pub fn unsubscribe(&self, filter: Filter, number: Number) {
        let _ = self.requests.send(Request::Unsubscribe(filter, number));
    }

    /// Says goodbye; [`Event::Closed`] follows.
    pub fn disconnect(&self) {
        let _ = self.requests.send(Request::Disconnect);
    }
}

/// Hands requests to the library, waiting where it does.
async fn send(
    client: AsyncClient,
    mut requests: mpsc::UnboundedReceiver<Request>,
    order: Order,
    asked: Asked,
    waiting: Waiting,
) {
    while let Some(request) = requests.recv().await {
        let handed_over = match request {
            Request::Publish(message, token) => {
                order.push(token);
                let bytes = message.memory();
                let done = client
                    .publish_with_properties(
                        message.topic,
                        wire_qos(message.qos),
                        message.retain,
                        message.payload,
                        wire_properties(message.properties),
                    )
                    .await;
                waiting.leave(bytes);
                done
            }
            Request::Acknowledge(ack) => {
                let publish = Publish {
                    pkid: ack.packet,
                    qos: ack.qos,
                    ..Publish::default()
                };
                client.ack(&publish).await
            }
            Request::Subscribe(subscribe) => {
                asked.hand_over(subscribe.number);
                let (filters, properties) = wire::subscribe(&subscribe);
                client
                    .subscribe_many_with_properties(filters, properties)
                    .await
            }
            Request::Unsubscribe(filter, number) => {
                asked.hand_over(number);
                // The library has no call for several filters.
                client.unsubscribe(filter.as_str()).await
            }
            Request::Disconnect => client.disconnect().await,
        };
        if handed_over.is_err() {
            return;
        }
    }
}

/// Drives the library and tells what happens, until the connection ends.
async fn poll(
    mut eventloop: EventLoop,
    events: inbox::Sender,
    order: Order,
    asked: Asked,
    keep_alive: Duration,
    progress: Progress,
) {
    let limit =
        |keep_alive: Duration| keep_alive.max(MIN_KEEP_ALIVE) * STALL_KEEP_ALIVES + CONNECT_TIMEOUT;
    let mut stall = limit(keep_alive);
    let mut inflight: HashMap<u16, Token> = HashMap::new();
    let mut ahead = 0;
    loop {
        let event = match tokio::time::timeout(stall, few_reads(eventloop.poll())).await {
            Err(_) => Some(Event::Failed(Failure::Passing(format!(
                "no progress for {} s",
                stall.as_secs()
            )))),
            Ok(Err(e)) => Some(Event::Failed(failure(&e))),
            Ok(Ok(LoopEvent::Incoming(packet))) => {
                incoming(packet, &mut eventloop, &mut inflight, &asked)
            }
            Ok(Ok(LoopEvent::Outgoing(Outgoing::Publish(packet)))) => match order.pop() {
                Some(token) if packet == 0 => Some(Event::Published(token, Ok(()))),
                Some(token) => {
                    inflight.insert(packet, token);
                    None
                }
                None => None,
            },
            Ok(Ok(LoopEvent::Outgoing(
                Outgoing::Subscribe(packet) | Outgoing::Unsubscribe(packet),
            ))) => {
                asked.sent(packet);
                None
            }
            Ok(Ok(LoopEvent::Outgoing(Outgoing::Disconnect))) => {
                // A socket that is closed with something unread is reset, and our goodbye may
                // go with it. The broker closes it when it has read that.
                let drained = async { while eventloop.poll().await.is_ok() {} };
                let _ = tokio::time::timeout(DRAIN, drained).await;
                Some(Event::Closed)
            }
            Ok(Ok(LoopEvent::Outgoing(_))) => None,
        };
        // Decoded together, they wait for their turn inside the library.
        if eventloop.state.events.len() > ahead {
            trim::trim_waiting(&mut eventloop.state.events);
        }
        ahead = eventloop.state.events.len();
        stall::while_wanted().await;
        progress.made();
        if let Some(event) = event {
            if matches!(event, Event::Connected { .. }) {
                // The broker may have set a longer one.
                stall = limit(eventloop.options.keep_alive());
                progress.allow(eventloop.options.keep_alive() * 2);
            }
            let last = matches!(event, Event::Closed | Event::Failed(_));
            progress.waits_for_holder();
            if !events.send(event).await || last {
                return;
            }
            progress.made();
        }
    }
}

fn incoming(
    packet: Packet,
    eventloop: &mut EventLoop,
    inflight: &mut HashMap<u16, Token>,
    asked: &Asked,
) -> Option<Event> {
    match packet {
        Packet::ConnAck(connack) => {
            // A broker may set a keep-alive of its own, and the library would spin on zero.
            let keep_alive = eventloop.options.keep_alive().max(MIN_KEEP_ALIVE);
            eventloop.options.set_keep_alive(keep_alive);
            let properties = connack.properties;
            let maximum = properties.as_ref().and_then(|p| p.max_qos);
            let packet = properties.as_ref().and_then(|p| p.max_packet_size);
            let identifies =
                properties.and_then(|p| p.subscription_identifiers_available) != Some(0);
            Some(Event::Connected {
                session_present: connack.session_present,
                maximum_qos: maximum
                    .and_then(Qos::from_number)
                    .unwrap_or(Qos::ExactlyOnce),
                maximum_packet: packet.unwrap_or(u32::MAX),
                identifies,
            })
        }
        Packet::Publish(publish) => Some(received(publish)),
        Packet::SubAck(suback) => asked.answered(suback.pkid).map(|number| {
            Event::Subscribed(number, suback.return_codes.iter().map(subscribed).collect())
        }),
        Packet::UnsubAck(unsuback) => asked.answered(unsuback.pkid).map(Event::Unsubscribed),
        Packet::PubAck(ack) => inflight
            .remove(&ack.pkid)
            .map(|token| Event::Published(token, puback(ack.reason))),
        // A successful PUBREC is half the way; one that fails is the end of it.
        Packet::PubRec(rec)
            if !matches!(
                rec.reason,
                PubRecReason::Success | PubRecReason::NoMatchingSubscribers
            ) =>
        {
            inflight
                .remove(&rec.pkid)
                .map(|token| Event::Published(token, pubrec(rec.reason)))
        }
        Packet::PubComp(comp) => inflight.remove(&comp.pkid).map(|token| {
            let done = match comp.reason {
                PubCompReason::Success => Ok(()),
                reason => Err(refused(Kind::Unavailable, &format!("{reason:?}"))),
            };
            Event::Published(token, done)
        }),
        _ => None,
    }
}
