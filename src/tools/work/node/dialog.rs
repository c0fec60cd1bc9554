//! A dialog with a node about one unit, which outlives connections.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Kind, Result};
use crate::model::message::{Delivery, Message, Properties, Qos};
use crate::model::remote::wire::{self, Answer, Request};
use crate::model::remote::{MAX_HEADER, MAX_PIECE};
use crate::model::signature::{Keys, Signer};
use crate::model::status::Presence;
use crate::model::text::printable;
use crate::model::topic::{Filter, PipelineTopics};
use crate::model::{duration, json};
use crate::net::mqtt::{Audience, Refused, Settings};
use crate::net::options::BrokerOptions;
use crate::net::session::{Event, Session, SessionAck, Subscriptions};
use crate::os::host;
use crate::os::logging::say;
use crate::tools::message::sender;

/// Maximum number of answers that are not acknowledged.
const RECEIVE_MAXIMUM: u16 = 64;

/// A node, and how it is reached.
#[derive(Debug)]
pub struct Node {
    /// Broker, and our credentials.
    pub broker: BrokerOptions,
    /// Topics of the node.
    pub topics: PipelineTopics,
    /// Its name.
    pub name: String,
    /// Key that signs the requests.
    pub signer: Option<Signer>,
    /// Keys of which one must have signed the end of a unit.
    pub verify: Option<Keys>,
    /// Maximum time to wait for an answer.
    pub timeout: Duration,
}

/// What comes next.
#[allow(
    clippy::large_enum_variant,
    reason = "an answer is the rule, and costs no allocation"
)]
pub enum Heard {
    /// Requests go out now; earlier ones may be lost.
    Online,
    /// The node is back.
    Back,
    /// An answer.
    Answer(Answer, Bytes),
    /// The time is up.
    Late,
}

/// A dialog with a node about one unit, or about its list of units.
pub struct Dialog<'a> {
    /// The node.
    pub node: &'a Node,
    /// The unit; empty for a list.
    pub unit: &'a str,
    session: Session,
    reply: String,
    /// Acknowledgement of the last answer, for when it was used.
    ack: Option<SessionAck>,
    /// Whether the broker was reached, and the node was seen.
    reached: bool,
    is_away: bool,
}

impl<'a> Dialog<'a> {
    /// Returns the dialog. It begins when something is waited for.
    ///
    /// # Errors
    /// When a topic is too long.
    pub fn open(node: &'a Node, unit: &'a str) -> Result<Self> {
        let reply = node.topics.reply(&host::new_id());
        let wrong = |e| Error::usage(format!("ask node {}: {e}", node.name));
        let subscriptions = Subscriptions {
            required: vec![Filter::new(&reply).map_err(wrong)?],
            optional: vec![Filter::new(node.topics.presence()).map_err(wrong)?],
            qos: Qos::AtLeastOnce,
        };
        let max_packet = u32::try_from(MAX_HEADER + MAX_PIECE).unwrap_or(u32::MAX);
        let settings = Settings {
            max_packet: max_packet.saturating_mul(2),
            receive_maximum: RECEIVE_MAXIMUM,
            ..sender(&node.broker)
        };
        Ok(Self {
            session: Session::new(settings, subscriptions).announced(),
            node,
            unit,
            reply,
            ack: None,
            reached: false,
            is_away: false,
        })
    }

    /// Sends a request, which expires after `ttl`. Without a connection it is not sent, and
    /// [`Heard::Online`] follows. Returns whether it was sent.
    pub fn send(
        &mut self,
        mut request: Request,
        body: &[u8],
        ttl: Option<Duration>,
    ) -> Result<bool> {
        if let Some(key) = &self.node.signer {
            let way = (&*self.node.name, &*self.reply);
            let now = Timestamp::now().as_second();
            let signed = request.sign_with(key, way, (now, ttl), host::new_id());
            signed.map_err(|e| Error::bug(format!("sign the request: {e}")))?;
        }
        let message = Message {
            topic: self.node.topics.work(),
            payload: wire::write(&request, body),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: Properties {
                response_topic: Some(self.reply.clone()),
                message_expiry: ttl
                    .map(|ttl| u32::try_from(ttl.as_secs().max(1)).unwrap_or(u32::MAX)),
                ..Properties::default()
            },
        };
        Ok(self.session.publish(message).is_some())
    }

    /// Returns what comes next, until `until`. The last answer was used.
    pub async fn next(&mut self, until: Instant) -> Result<Heard> {
        if let Some(ack) = self.ack.take() {
            self.session.acknowledge(&ack);
        }
        loop {
            let Ok(event) = timeout_at(until, self.session.next()).await else {
                return Ok(Heard::Late);
            };
            let received = match event? {
                Event::Online => {
                    self.reached = true;
                    return Ok(Heard::Online);
                }
                Event::Published(_, Err(Refused(e, _))) => {
                    let topic = self.node.topics.work();
                    return Err(e.context(format_args!("publish to '{topic}'")));
                }
                Event::Published(_, Ok(Audience::None)) => {
                    let (name, topic) = (&self.node.name, self.node.topics.work());
                    return Err(Error::new(
                        Kind::Unavailable,
                        format!("ask node {name}: no client with work types listens on {topic}"),
                    ));
                }
                Event::Received(received) => received,
                Event::Published(..)
                | Event::Subscribed(_)
                | Event::Holds(_)
                | Event::Left
                | Event::Offline => continue,
            };
            if received.delivery.topic != self.reply.as_bytes() {
                self.session.acknowledge(&received.ack);
                if self.saw(&received.delivery) {
                    return Ok(Heard::Back);
                }
                continue;
            }
            match wire::read_answer(&received.delivery.payload) {
                Ok((answer, body)) if [self.unit, ""].contains(&answer.unit()) => {
                    self.ack = Some(received.ack);
                    return Ok(Heard::Answer(answer, body));
                }
                Ok(_) => {
                    self.session.acknowledge(&received.ack);
                }
                Err(e) => {
                    let name = &self.node.name;
                    return Err(Error::data(format!("read the answer of node {name}: {e}")));
                }
            }
        }
    }

    /// Takes a presence of the node. Returns whether it is back: what was sent to it before may be
    /// lost. A broker that was restarted does not say that it was away.
    fn saw(&mut self, delivery: &Delivery) -> bool {
        let presence = json::parse(&delivery.payload).unwrap_or_default();
        let state = crate::tools::text(&presence, "state").unwrap_or_default();
        let was_away = self.is_away;
        self.is_away = Presence::is_away(state);
        if self.is_away && !was_away {
            say(&format!(
                "node {} is {state}: waiting for it",
                self.node.name
            ));
        }
        !self.is_away && (was_away || !delivery.retained)
    }

    /// Returns the error for a node that does not answer in time.
    pub fn late(&self, verb: &str) -> Error {
        let (name, unit, limit) = (&self.node.name, self.unit, self.node.timeout);
        if !self.reached {
            return self.session.unreachable(limit);
        }
        let cause = match self.is_away {
            true => "its client is away; the broker may keep the request for it",
            false => "does its client run, with work types?",
        };
        // A list is about no unit.
        let what = match unit {
            "" => verb.to_owned(),
            unit => format!("{verb} unit {unit}"),
        };
        Error::new(
            Kind::TryAgain,
            format!(
                "{what} on node {name}: no answer within {}; {cause}",
                duration::text(limit)
            ),
        )
    }

    /// Sends `request` until an answer comes that `is_it`.
    pub async fn ask<T>(
        &mut self,
        verb: &str,
        request: &Request,
        is_it: impl Fn(Answer) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + self.node.timeout;
        let mut sent = self.send(request.clone(), b"", None)?;
        loop {
            match self.next(deadline).await? {
                Heard::Online | Heard::Back => sent = self.send(request.clone(), b"", None)?,
                Heard::Late => return Err(self.late(verb)),
                Heard::Answer(answer, _) if sent => {
                    if let Answer::Refused { code, error, .. } = answer {
                        return Err(self.refused(verb, code, &error));
                    }
                    if let Some(found) = is_it(answer) {
                        return Ok(found);
                    }
                }
                Heard::Answer(..) => {}
            }
        }
    }

    /// Returns the error for a request that the node refuses.
    pub fn refused(&self, verb: &str, code: u8, cause: &str) -> Error {
        let kind = Kind::from_exit_code(code).unwrap_or(Kind::Data);
        let (name, cause) = (&self.node.name, printable(cause, 500));
        Error::new(kind, format!("{verb} on node {name}: {cause}"))
    }

    /// Ends the dialog.
    pub async fn close(mut self) {
        if let Some(ack) = self.ack.take() {
            self.session.acknowledge(&ack);
        }
        self.session.close().await;
    }
}
