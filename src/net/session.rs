//! A session with a broker that outlives its connections: it connects for ever, subscribes,
//! and tells a passing failure from one that will not pass.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{debug, info, warn};

use crate::error::{Error, Kind, Result};
use crate::model::message::{Message, Qos};
use crate::model::topic::{self, Filter};
use crate::net::acks::Acks;
use crate::net::backoff::backoff;
use crate::net::mqtt::{
    Ack, Connection, Event as WireEvent, Failure, Received, Refused, Refuser, Settings, Token,
};

/// The wait when somebody else uses our client identifier, and the first one when that only looks
/// so; it doubles.
const BACKOFF_TAKEN: Duration = Duration::from_secs(60);
const BACKOFF_TAKEN_PERHAPS: Duration = Duration::from_secs(10);
/// So often it doubles at most; the wait has its own limit before.
const MAX_DOUBLINGS: u32 = 16;
/// A connection that lived shorter than this counts as stillborn.
const SHORT_LIFE: Duration = Duration::from_secs(5);
/// So many stillborn connections in a row look like two clients of one identifier.
const SHORT_LIVES: u32 = 3;
/// A broker that cannot be reached for so long deserves a warning, once.
const WARN_AFTER: Duration = Duration::from_secs(60);
/// How long the broker may take to answer a SUBSCRIBE.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a goodbye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a session tells its holder.
#[derive(Debug)]
pub enum Event {
    /// Connected and subscribed: messages come, publishes go out.
    Online,
    /// The connection is gone; publishes without a result must be sent again.
    Offline,
    /// A message has come.
    Received(SessionReceived),
    /// A publish is complete.
    Published(Token, Result<(), Refused>),
    /// What [`Session::subscribe`] asked for is in force, or was refused.
    Subscribed(Result<()>),
}

/// A message, and its acknowledgement on the connection that brought it.
#[derive(Debug)]
pub struct SessionReceived {
    /// The message.
    pub delivery: crate::model::message::Delivery,
    /// To be given back once the message is safe.
    pub ack: SessionAck,
}

/// An acknowledgement that is void once its connection is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionAck {
    connection: u64,
    ack: Ack,
}

/// What a session subscribes to.
#[derive(Debug, Clone)]
pub struct Subscriptions {
    /// Filters without which the session is of no use.
    pub required: Vec<Filter>,
    /// Filters that the broker may refuse.
    pub optional: Vec<Filter>,
    /// Highest QoS of deliveries.
    pub qos: Qos,
}

#[derive(Debug)]
enum State {
    Waiting {
        until: Instant,
    },
    Open {
        connection: Connection,
        online_since: Option<Instant>,
    },
}

/// A session with one broker.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    subscriptions: Subscriptions,
    /// What goes into the SUBSCRIBE: no filter that another one covers.
    filters: Vec<Filter>,
    /// Those of the last SUBSCRIBE.
    asked: Vec<Filter>,
    subscribed: bool,
    /// When the broker has to have answered that at the latest.
    answer_by: Option<Instant>,
    state: State,
    acks: Acks<Ack>,
    connections: u64,
    failures: u32,
    short_lives: u32,
    /// The largest packet that the broker takes, bytes.
    maximum_packet: u32,
    /// Publishes that were not even sent.
    refused: VecDeque<(Token, Refused)>,
    /// Since when there is no connection, and whether that has been warned of.
    away: Option<(Instant, bool)>,
    /// Why there was none the last time.
    cause: Option<String>,
}

impl Session {
    /// A session that starts to connect when [`Session::next`] is first called.
    #[must_use]
    pub fn new(settings: Settings, subscriptions: Subscriptions) -> Self {
        let all = [&subscriptions.required[..], &subscriptions.optional[..]].concat();
        Self {
            settings,
            filters: topic::minimal(&all),
            asked: Vec::new(),
            subscriptions,
            subscribed: false,
            answer_by: None,
            state: State::Waiting {
                until: Instant::now(),
            },
            acks: Acks::default(),
            connections: 0,
            failures: 0,
            short_lives: 0,
            maximum_packet: u32::MAX,
            refused: VecDeque::new(),
            away: None,
            cause: None,
        }
    }

    /// The next event; cancel safe.
    ///
    /// # Errors
    /// Only failures that will not pass.
    pub async fn next(&mut self) -> Result<Event> {
        if let Some((token, refused)) = self.refused.pop_front() {
            return Ok(Event::Published(token, Err(refused)));
        }
        loop {
            let (connection, online_since) = match &mut self.state {
                State::Waiting { until } => {
                    sleep_until(*until).await;
                    self.connections += 1;
                    self.acks = Acks::default();
                    self.state = State::Open {
                        connection: Connection::open(&self.settings)?,
                        online_since: None,
                    };
                    continue;
                }
                State::Open {
                    connection,
                    online_since,
                } => (connection, online_since),
            };
            let event = match self.answer_by {
                None => connection.next().await,
                Some(by) => match timeout_at(by, connection.next()).await {
                    Ok(event) => event,
                    Err(_) => WireEvent::Failed(Failure::Passing(
                        "the broker has not answered the subscription in time".into(),
                    )),
                },
            };
            match event {
                WireEvent::Connected {
                    session_present,
                    maximum_qos,
                    maximum_packet,
                } => {
                    if maximum_qos < self.subscriptions.qos {
                        let address = self.settings.broker.address();
                        let cause = "the broker offers QoS 0 only: events would be lost";
                        return Err(Error::new(
                            Kind::Unavailable,
                            format!("connect to {address}: {cause}"),
                        ));
                    }
                    self.maximum_packet = maximum_packet;
                    // What an earlier process subscribed to may differ: subscribe at least once.
                    let known = session_present && self.subscribed;
                    if !known && !self.filters.is_empty() {
                        self.asked.clone_from(&self.filters);
                        self.answer_by = Some(Instant::now() + SUBSCRIBE_TIMEOUT);
                        connection.subscribe(self.filters.clone(), self.subscriptions.qos);
                        continue;
                    }
                    *online_since = Some(Instant::now());
                    self.came_online();
                    return Ok(Event::Online);
                }
                WireEvent::Subscribed(results) if online_since.is_some() => {
                    self.answer_by = None;
                    let checked = self.check_subscribed(results);
                    self.subscribed = checked.is_ok();
                    return Ok(Event::Subscribed(checked));
                }
                WireEvent::Subscribed(results) => {
                    self.answer_by = None;
                    *online_since = Some(Instant::now());
                    self.check_subscribed(results)?;
                    self.came_online();
                    return Ok(Event::Online);
                }
                WireEvent::Received(Received { delivery, ack }) => {
                    self.acks.came(ack.clone());
                    let ack = SessionAck {
                        connection: self.connections,
                        ack,
                    };
                    return Ok(Event::Received(SessionReceived { delivery, ack }));
                }
                WireEvent::Published(token, result) => {
                    return Ok(Event::Published(token, result));
                }
                WireEvent::Closed => {
                    let failure = Failure::Passing("the connection was closed".into());
                    return self.went_offline(failure).map(|()| Event::Offline);
                }
                WireEvent::Failed(failure) => {
                    return self.went_offline(failure).map(|()| Event::Offline);
                }
            }
        }
    }

    /// Publishes `message` if the session is online, and returns the token of this publish:
    /// [`Event::Published`] brings it back, or [`Event::Offline`] comes first. A message that is
    /// larger than what the broker takes is refused here: sent, it would cost the connection,
    /// again and again. `None`, and no event, while the session is offline or too many others wait
    /// for the broker.
    pub fn publish(&mut self, message: Message) -> Option<Token> {
        let token = Token::new();
        match &self.state {
            State::Open {
                connection,
                online_since: Some(_),
            } => {
                let size = Connection::size(&message);
                if u32::try_from(size).is_ok_and(|size| size <= self.maximum_packet) {
                    connection.publish(message, token).then_some(token)
                } else {
                    let limit = self.maximum_packet;
                    let cause = format!("it has {size} bytes, the broker takes {limit}");
                    let refused = Refused(Error::data(cause), Refuser::Local);
                    self.refused.push_back((token, refused));
                    Some(token)
                }
            }
            _ => None,
        }
    }

    /// Subscribes to other filters than before, in the same session; `true` if an
    /// [`Event::Subscribed`] will tell how that went, if there is a connection till then.
    pub fn subscribe(&mut self, subscriptions: Subscriptions) -> bool {
        let all = [&subscriptions.required[..], &subscriptions.optional[..]].concat();
        let filters = topic::minimal(&all);
        let other = |list: &[Filter], than: &[Filter]| -> Vec<Filter> {
            let others = list.iter().filter(|filter| !than.contains(filter));
            others.cloned().collect()
        };
        let (new, gone) = (
            other(&filters, &self.filters),
            other(&self.filters, &filters),
        );
        self.filters = filters;
        self.subscriptions = subscriptions;
        let State::Open {
            connection,
            online_since: Some(_),
        } = &self.state
        else {
            // The next connection subscribes to all.
            self.subscribed = false;
            return false;
        };
        let asks = !new.is_empty();
        if asks {
            self.subscribed = false;
            self.asked.clone_from(&new);
            self.answer_by = Some(Instant::now() + SUBSCRIBE_TIMEOUT);
            connection.subscribe(new, self.subscriptions.qos);
        }
        if !gone.is_empty() {
            // After the others, so that nothing is missed that both stand for.
            connection.unsubscribe(gone);
        }
        asks
    }

    /// Why the last connection failed or ended.
    #[must_use]
    pub fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// Whether there is a connection whose task has not been heard of for too long.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        matches!(&self.state, State::Open { connection, .. } if connection.is_stalled())
    }

    /// Acknowledges a message as soon as all that came before it are, unless its connection is
    /// gone: then the broker sends it again.
    pub fn acknowledge(&mut self, ack: &SessionAck) {
        if let State::Open { connection, .. } = &self.state
            && ack.connection == self.connections
        {
            for ack in self.acks.safe(&ack.ack) {
                connection.acknowledge(ack);
            }
        }
    }

    /// Says goodbye within a bounded time. What is still under way may be lost.
    pub async fn close(self) {
        if let State::Open {
            mut connection,
            online_since: Some(_),
        } = self.state
        {
            connection.disconnect();
            let closed = async {
                while !matches!(
                    connection.next().await,
                    WireEvent::Closed | WireEvent::Failed(_)
                ) {}
            };
            if timeout(CLOSE_TIMEOUT, closed).await.is_err() {
                debug!("the broker did not take our goodbye in time");
            }
        }
    }

    fn came_online(&mut self) {
        self.failures = 0;
        self.away = None;
        self.subscribed = true;
        info!("connected to {}", self.settings.broker.address());
    }

    fn check_subscribed(&self, results: Vec<Result<()>>) -> Result<()> {
        for (filter, result) in self.asked.iter().zip(results) {
            let Err(e) = result else { continue };
            let e = e.context(format_args!("subscribe to '{filter}'"));
            // A wide filter may stand for several; it may fail only if all of them may.
            let needed = |required: &Filter| filter.covers(required);
            if self.subscriptions.required.iter().any(needed) {
                return Err(e);
            }
            warn!("{e}; going on without");
        }
        Ok(())
    }

    fn went_offline(&mut self, failure: Failure) -> Result<()> {
        let address = self.settings.broker.address();
        self.answer_by = None;
        let lived = match &self.state {
            State::Open {
                online_since: Some(since),
                ..
            } => Some(since.elapsed()),
            _ => None,
        };
        let stillborn = lived.is_some_and(|lived| lived < SHORT_LIFE);
        let mut wait = backoff(self.failures);
        let cause = match failure {
            Failure::Fatal(e) => {
                return Err(e.context(format_args!("connect to {address}")));
            }
            Failure::TakenOver => {
                // There is no doubt about it: the longest wait.
                self.short_lives = SHORT_LIVES + MAX_DOUBLINGS;
                "another client has taken over the session".into()
            }
            Failure::Passing(cause) => {
                self.short_lives = if stillborn { self.short_lives + 1 } else { 0 };
                cause
            }
        };
        if self.short_lives >= SHORT_LIVES {
            let doubled = 1 << (self.short_lives - SHORT_LIVES).min(MAX_DOUBLINGS);
            wait = BACKOFF_TAKEN_PERHAPS
                .saturating_mul(doubled)
                .min(BACKOFF_TAKEN);
            warn!(
                "lost {address} soon after connecting, again: {cause}; does another client use \
                 the identifier '{}'? next try in {} s",
                self.settings.broker.client_id,
                wait.as_secs()
            );
        } else if lived.is_some() {
            info!("lost {address}: {cause}; reconnecting");
        } else if self.failures == 0 {
            info!("cannot reach {address} yet: {cause}; trying on");
        } else {
            debug!("cannot reach {address}: {cause}; next try in {wait:?}");
        }
        let (since, warned) = self.away.get_or_insert((Instant::now(), false));
        if !*warned && since.elapsed() >= WARN_AFTER {
            *warned = true;
            warn!(
                "cannot reach {address} for {} s: {cause}; trying on",
                WARN_AFTER.as_secs()
            );
        }
        self.cause = Some(cause);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waiting {
            until: Instant::now() + wait,
        };
        Ok(())
    }
}

/// The error for a broker that could not be reached before a deadline.
#[must_use]
pub fn unreachable(address: &str, cause: &str) -> Error {
    let hint = if cause.contains("lookup") || cause.contains("resolve") {
        "is the name right?"
    } else if cause.contains("tls") {
        "does that port speak TLS?"
    } else {
        "is the broker running?"
    };
    Error::new(
        Kind::Unavailable,
        format!("connect to {address}: {cause}; {hint}"),
    )
}
