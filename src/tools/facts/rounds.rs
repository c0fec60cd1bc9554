//! The connection of a node that tells its facts: reads what the broker holds, and publishes what
//! differs.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::error::{Error, Kind as ErrorKind, Result};
use crate::model::facts::kind::{Kind, NodeTopics, split};
use crate::model::facts::presence::{Presence, State};
use crate::model::facts::round::{Held, HeldFacts, Node, Plan};
use crate::model::json;
use crate::model::marker;
use crate::model::message::{Delivery, Message, Properties, Qos};
use crate::model::topic::Filter;
use crate::net::mqtt::{Refused, Settings, Token};
use crate::net::options::BrokerOptions;
use crate::net::retained_end::{RetainedEnd, SILENCE};
use crate::net::session::{Event, Session, Subscriptions};
use crate::os::host;
use crate::tools::listener;
use crate::tools::message::origin;

/// The node, and where it tells its facts.
#[derive(Debug, Clone)]
pub struct Place {
    /// Broker, and our credentials.
    pub broker: BrokerOptions,
    /// The root.
    pub root: String,
    /// The node.
    pub node: Node,
}

/// What came of an event of the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Everything that the broker holds has come.
    Read,
    /// The connection is gone: what the broker holds must be read again.
    Gone,
    /// Everything that was published is acknowledged.
    Done,
    /// Nothing of interest.
    Nothing,
}

/// The connection.
pub(super) struct Rounds {
    place: Place,
    topics: NodeTopics,
    marker: String,
    session: Session,
    /// What the broker holds.
    held: Held,
    /// The end of what the broker holds; `None` after it, or without a connection.
    end: Option<RetainedEnd>,
    /// Whether everything has come.
    is_read: bool,
    /// Publishes without an answer, and their topics.
    waiting: HashMap<Token, String>,
    /// Why the broker has refused one of the last round.
    refused: Option<Error>,
}

impl Rounds {
    /// Returns the connection of a command, or of a daemon, whose will says that it is lost.
    pub(super) fn new(place: Place, is_daemon: bool) -> Result<Self> {
        let topics = NodeTopics::new(&place.root, &place.node.name);
        let marker = marker::topic(&place.root, &host::new_id());
        let filter = |topic: String| Filter::new(topic).map_err(Error::usage);
        let subscriptions = Subscriptions {
            required: topics
                .retained()
                .into_iter()
                .map(filter)
                .collect::<Result<_>>()?,
            optional: vec![filter(marker.clone())?],
            qos: Qos::AtMostOnce,
        };
        let now = Timestamp::now().as_second();
        let will = is_daemon.then(|| {
            let lost = place.node.presence(State::Lost, now).payload();
            told(topics.presence(), Some(&lost), place.node.keep)
        });
        let settings = Settings {
            will,
            ..listener(&place.broker)
        };
        let session = Session::new(settings, subscriptions);
        let session = match is_daemon {
            true => session.lasting(),
            false => session.announced(),
        };
        Ok(Self {
            place,
            topics,
            marker,
            session,
            held: Held::default(),
            end: None,
            is_read: false,
            waiting: HashMap::new(),
            refused: None,
        })
    }

    /// Returns when everything that the broker holds has come, if no marker comes before.
    pub(super) fn quiet(&self) -> Option<Instant> {
        self.end.map(|end| end.at())
    }

    /// Returns whether everything that the broker holds has come.
    pub(super) const fn is_read(&self) -> bool {
        self.is_read
    }

    /// Returns whether everything that was published is acknowledged.
    pub(super) fn is_done(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Returns the session.
    pub(super) const fn session(&self) -> &Session {
        &self.session
    }

    /// Takes what the broker has sent as everything that it holds.
    pub(super) fn end_of_retained(&mut self) -> Turn {
        self.end = None;
        self.is_read = true;
        Turn::Read
    }

    /// Waits for the next event of the connection. Cancel safe.
    ///
    /// # Errors
    /// Those of [`Session::next`].
    pub(super) async fn next(&mut self) -> Result<Turn> {
        Ok(match self.session.next().await? {
            Event::Online => {
                self.end = Some(RetainedEnd::new(Instant::now(), SILENCE));
                self.session.publish(Message {
                    topic: self.marker.clone(),
                    payload: Bytes::new(),
                    qos: Qos::AtMostOnce,
                    retain: false,
                    properties: Properties::default(),
                });
                Turn::Nothing
            }
            Event::Offline => {
                self.held = Held::default();
                self.end = None;
                self.is_read = false;
                self.waiting.clear();
                Turn::Gone
            }
            Event::Received(received) => {
                let was_done = self.waiting.is_empty();
                // Otherwise the session remembers each message until the connection ends.
                self.session.acknowledge(&received.ack);
                match self.received(&received.delivery) {
                    Turn::Nothing if !was_done && self.waiting.is_empty() => Turn::Done,
                    turn => turn,
                }
            }
            Event::Published(token, Ok(_)) if self.must_come_back(token) => Turn::Nothing,
            Event::Published(token, result) => match self.waiting.remove(&token) {
                Some(topic) => {
                    if let Err(Refused(e, _)) = result {
                        let e = e.context(format_args!("publish to '{topic}'"));
                        warn!("{e}");
                        self.refused.get_or_insert(e);
                    }
                    match self.waiting.is_empty() {
                        true => Turn::Done,
                        false => Turn::Nothing,
                    }
                }
                None => Turn::Nothing,
            },
            Event::Subscribed(_) | Event::Holds(_) | Event::Left => Turn::Nothing,
        })
    }

    fn received(&mut self, delivery: &Delivery) -> Turn {
        let now = Instant::now();
        if delivery.topic == self.marker.as_bytes() {
            return match self.end.as_mut().is_some_and(|end| end.marker(now)) {
                true => self.end_of_retained(),
                false => Turn::Nothing,
            };
        }
        if let Some(end) = &mut self.end {
            end.message(now);
        }
        let topic = String::from_utf8_lossy(&delivery.topic);
        let Some((_, last)) = split(&self.place.root, &topic) else {
            return Turn::Nothing;
        };
        if !delivery.retained && !self.session.offer().acknowledges() {
            self.waiting.retain(|_, waiting| *waiting != topic);
        }
        let is_cleared = delivery.payload.is_empty();
        match Kind::parse(last) {
            Ok(kind) if is_cleared => {
                self.held.kinds.remove(&kind);
            }
            Ok(kind) => {
                let expiry = delivery.properties.message_expiry;
                let name = &self.place.node.name;
                let now = Timestamp::now().as_second();
                let held = HeldFacts::parse(name, kind, &delivery.payload, expiry, now);
                self.held.kinds.insert(kind, held);
            }
            Err(_) if last == "presence" => {
                self.held.presence = Presence::parse(&delivery.payload);
            }
            Err(_) => debug!("a message on '{topic}'"),
        }
        Turn::Nothing
    }

    /// Returns whether a message has arrived when it comes back to us: the broker acknowledges none, and
    /// we subscribe to its topic.
    fn must_come_back(&self, token: Token) -> bool {
        let topic = self.waiting.get(&token);
        let is_retained = |topic| self.topics.retained().contains(topic);
        !self.session.offer().acknowledges() && topic.is_some_and(is_retained)
    }

    /// Returns what the broker holds.
    pub(super) const fn held(&self) -> &Held {
        &self.held
    }

    /// Publishes `plan`, with the presence only if `with_presence` or if facts have changed.
    pub(super) fn publish(&mut self, plan: &Plan, with_presence: bool) {
        self.refused = None;
        let keep = self.place.node.keep;
        for tell in &plan.tell {
            self.send(told(
                self.topics.kind(tell.kind),
                tell.payload.as_ref(),
                keep,
            ));
        }
        for event in &plan.changed {
            let mut message = told(self.topics.changed(), Some(event), keep);
            message.retain = false;
            message.properties.message_expiry = None;
            self.send(message);
        }
        if with_presence || !plan.tell.is_empty() {
            self.tell_presence(&plan.presence);
        }
    }

    /// Publishes `presence`.
    pub(super) fn tell_presence(&mut self, presence: &Presence) {
        let payload = presence.payload();
        self.send(told(
            self.topics.presence(),
            Some(&payload),
            self.place.node.keep,
        ));
    }

    fn send(&mut self, message: Message) {
        let topic = message.topic.clone();
        match self.session.publish(message) {
            Some(token) => {
                self.waiting.insert(token, topic);
            }
            None => {
                let cause =
                    format!("publish to '{topic}': too much waits for the broker; try again");
                self.refused
                    .get_or_insert(Error::new(ErrorKind::TryAgain, cause));
            }
        }
    }

    /// Returns why the broker has refused a message of the last round, if it has.
    pub(super) fn refused(&mut self) -> Result<()> {
        self.refused.take().map_or(Ok(()), Err)
    }

    /// Returns the error of a command whose messages are not acknowledged within `limit`.
    pub(super) fn late(&self, limit: Duration) -> Error {
        if self.waiting.is_empty() {
            return self.session.unreachable(limit);
        }
        let topic = self.waiting.values().next().map_or("", String::as_str);
        let address = self.place.broker.address();
        let cause =
            format!("tell facts: {address} did not acknowledge '{topic}' in time; try again");
        Error::new(ErrorKind::TryAgain, cause)
    }

    /// Ends the connection in good order.
    pub(super) async fn close(self) {
        self.session.close().await;
    }
}

/// Returns a retained message that the broker forgets after `keep` seconds; without a payload it
/// clears one (MQTT 5.0, section 3.3.1.3).
fn told(topic: String, payload: Option<&Value>, keep: u32) -> Message {
    Message {
        topic,
        payload: payload
            .map(|value| Bytes::from(json::to_text(value)))
            .unwrap_or_default(),
        qos: Qos::AtLeastOnce,
        retain: true,
        properties: Properties {
            user: origin(),
            message_expiry: payload.map(|_| keep),
            ..Properties::default()
        },
    }
}
