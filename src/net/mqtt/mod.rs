//! One MQTT 5 connection. Only this folder names the client library, and it uses only the packets
//! of that library. The event loop of the library drops the connection at unknown reason codes,
//! forgets why a broker refused us, and resolves, connects and names a TLS server in its own way.
//!
//! A task drives each connection, which is never used again after an error. The holder never waits
//! for that task. The task may wait for its holder. So neither can block the other without end.

mod answer;
mod drive;
mod failure;
mod inbox;
mod offer;
mod progress;
mod protocol;
mod trim;
mod waiting;
mod wire;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::{Error, Result};
use crate::model::message::{Delivery, Message, Qos};
use crate::model::topic::Filter;
use crate::net::options::{BrokerOptions, MIN_KEEP_ALIVE};
use crate::net::tls;
pub use offer::Offer;
use progress::Progress;
use waiting::Waiting;

/// Maximum time until a connection stands: name, TCP, TLS and CONNACK.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// The same for each broker of a cluster, so that one that does not answer delays the next a little
/// only.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// Identifies one publish. No two publishes of this process have the same token, so an answer is
/// never taken for that to another publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u64);

impl Token {
    /// Returns a new token.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Settings of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Broker and credentials.
    pub broker: BrokerOptions,
    /// Time that the broker keeps our session without a connection; zero ends it with the
    /// connection.
    pub session_expiry: Duration,
    /// Whether the broker must drop an existing session. A [`crate::net::session`] that outlives
    /// its connections asks for that once.
    pub clean_start: bool,
    /// Message that the broker publishes when the connection breaks.
    pub will: Option<Message>,
    /// Maximum size of a packet from the broker, bytes.
    pub max_packet: u32,
    /// Maximum number of unacknowledged deliveries from the broker.
    pub receive_maximum: u16,
}

/// Why a publish was refused, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub Error, pub Refuser);

/// Subscribers of a publish, as far as the broker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Audience {
    /// There are some, or the broker does not say.
    #[default]
    Possible,
    /// There are none (reason code 0x10; MQTT 5.0, sections 3.4.2.1 and 3.5.2.1).
    None,
}

/// Origin of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refuser {
    /// The broker, in its answer.
    Broker,
    /// This process: the message was not sent. That says nothing about the broker.
    Local,
}

/// An event of a connection; events come in order.
#[derive(Debug)]
pub enum Event {
    /// The broker has accepted us, with this offer.
    Connected(Offer),
    /// The QoS granted for each filter of that SUBSCRIBE, in order.
    Subscribed(Number, Vec<Result<Qos>>),
    /// That UNSUBSCRIBE is answered.
    Unsubscribed(Number),
    /// A message has come.
    Received(Received),
    /// A publish is complete.
    Published(Token, Result<Audience, Refused>),
    /// Our goodbye was sent.
    Closed,
    /// The connection is gone.
    Failed(Failure),
}

/// Cause of the end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It may work later.
    Passing(String),
    /// The same: the other side has dropped the connection.
    Cut(String),
    /// Another client has connected with our identifier.
    TakenOver,
    /// The broker did not accept a packet of ours.
    Packet(String),
    /// The broker refuses the will as it is: retained, or its QoS.
    WillRefused(String),
    /// It will not work until a person changes something.
    Fatal(Error),
}

/// Identifies one SUBSCRIBE or UNSUBSCRIBE of a connection.
pub type Number = u32;

/// A SUBSCRIBE.
#[derive(Debug, Clone)]
pub struct Subscribe {
    /// Number of its answer.
    pub number: Number,
    /// At least one.
    pub filters: Vec<Filter>,
    /// Highest QoS of deliveries.
    pub qos: Qos,
    /// Identifier that messages for these filters carry, from 1.
    pub identifier: Option<Number>,
    /// Whether retained messages come even if the subscription exists already.
    pub retained: bool,
}

/// A message, and its acknowledgement.
#[derive(Debug)]
pub struct Received {
    /// The message.
    pub delivery: Delivery,
    /// Its acknowledgement, for when the message is safe.
    pub ack: Ack,
    /// Identifiers of the subscriptions that brought it.
    pub subscriptions: Vec<usize>,
}

/// The acknowledgement of one message, valid on the connection that delivered it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    packet: u16,
    qos: QoS,
}

impl Ack {
    /// Returns the packet identifier of the message; 0 at QoS 0.
    pub const fn packet(&self) -> u16 {
        self.packet
    }
}

enum Request {
    Publish(Message, Token),
    Acknowledge(Ack),
    Subscribe(Subscribe),
    Unsubscribe(Filter, Number),
    Disconnect,
}

/// A connection. When dropped, it ends without a DISCONNECT.
#[derive(Debug)]
pub struct Connection {
    requests: mpsc::UnboundedSender<Request>,
    events: inbox::Receiver,
    progress: Progress,
    waiting: Waiting,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    /// Starts to connect to the broker whose `turn` it is; the first event is the result. A will that is `plain` is neither retained
    /// nor at a QoS above 0.
    ///
    /// # Errors
    /// When the TLS files are wrong, or the password cannot be read (78).
    pub fn open(settings: &Settings, turn: usize, plain: bool) -> Result<Self> {
        let broker = &settings.broker;
        let (host, port) = broker.at(turn);
        let encrypted = |files| {
            let config = tls::client_config(files)?;
            let name = files.server_name.as_deref().unwrap_or(host);
            let name = tls::server_name(name).map_err(Error::config)?;
            Ok::<_, Error>((config, name))
        };
        let plan = drive::Plan {
            host: host.to_owned(),
            port,
            limit: match broker.count() {
                1 => CONNECT_TIMEOUT,
                _ => TURN_TIMEOUT,
            },
            tls: broker.tls.as_ref().map(encrypted).transpose()?,
            connect: wire::connect(settings, plain)?,
            nameless: broker.password.is_some() && broker.username.is_none(),
            anonymous: broker.password.is_none()
                && broker.username.is_none()
                && broker
                    .tls
                    .as_ref()
                    .is_none_or(|files| files.identity.is_none()),
            keep_alive: broker.keep_alive.max(MIN_KEEP_ALIVE),
            max_packet: settings.max_packet,
        };
        let (event_tx, events) = inbox::inbox();
        // Bounded: acknowledgements by what was delivered, publishes by `waiting`.
        let (requests, request_rx) = mpsc::unbounded_channel();
        let progress = Progress::new(CONNECT_TIMEOUT * 2);
        let waiting = Waiting::default();
        let task = tokio::spawn(drive::drive(
            plan,
            request_rx,
            event_tx,
            progress.clone(),
            waiting.clone(),
        ));
        Ok(Self {
            requests,
            events,
            progress,
            waiting,
            task,
        })
    }

    /// Returns whether the task that reads the network has made no progress for two keep-alives.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.progress.is_missing()
    }

    /// Returns the next event; none follows `Closed` or `Failed`. Cancel safe.
    pub async fn next(&mut self) -> Event {
        self.events
            .recv()
            .await
            .unwrap_or_else(|| Event::Failed(Failure::Passing("the connection has ended".into())))
    }

    // A request after the end of the connection is dropped: its sender learns of the end
    // from `next`, and starts over.

    /// Returns the bytes of `message` on the wire.
    #[must_use]
    pub fn size(message: &Message) -> usize {
        wire::size(message)
    }

    /// Publishes `message`; [`Event::Published`] brings `token` back. `false`, and no event, if too
    /// many others wait for a broker that does not answer.
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
