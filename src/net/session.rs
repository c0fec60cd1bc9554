//! A session with a broker that outlives its connections: it connects for ever, subscribes,
//! and tells a passing failure from one that will not pass.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{debug, info};

use crate::error::{Error, Result};
use crate::model::message::Message;
use crate::model::topic::Filter;
use crate::net::acks::Acks;
use crate::net::attempts::Attempts;
pub use crate::net::attempts::unreachable;
use crate::net::copies::Copies;
use crate::net::leave::{FENCE, Leave};
use crate::net::mqtt::{
    Ack, Connection, Event as WireEvent, Failure, Offer, Received, Refused, Refuser, Settings,
    Token,
};
use crate::net::subscriber::Subscriber;
pub use crate::net::subscriber::Subscriptions;

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
    /// What [`Session::subscribe`] asked for is in force, was refused, or waits for the next
    /// connection.
    Subscribed(Result<()>),
    /// The broker now holds these filters for the session, and no others.
    Holds(Vec<Filter>),
    /// After [`Session::leave`]: the broker has nothing more for us.
    Left,
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
    subscriber: Subscriber,
    /// Whether the broker should still have our session.
    expected: bool,
    /// Whether the connection is being closed to connect anew with other settings.
    renewing: bool,
    leave: Option<Leave>,
    copies: Copies,
    state: State,
    acks: Acks<Ack>,
    connections: u64,
    attempts: Attempts,
    /// What the broker offers.
    offer: Offer,
    /// Whether the broker refuses a will that is retained or has a QoS.
    plain_will: bool,
    /// Events that wait for the holder, publishes among them that were not even sent.
    ready: VecDeque<Event>,
    /// Why there was none the last time.
    cause: Option<String>,
}

impl Session {
    /// A session that starts to connect when [`Session::next`] is first called.
    #[must_use]
    pub fn new(settings: Settings, subscriptions: Subscriptions) -> Self {
        Self {
            settings,
            subscriber: Subscriber::new(subscriptions),
            expected: false,
            renewing: false,
            leave: None,
            copies: Copies::default(),
            state: State::Waiting {
                until: Instant::now(),
            },
            acks: Acks::default(),
            connections: 0,
            attempts: Attempts::default(),
            offer: Offer::default(),
            plain_will: false,
            ready: VecDeque::new(),
            cause: None,
        }
    }

    /// The same, after an earlier process: the broker may hold `filters` for the identifier, and
    /// it should have the session if that is `expected`.
    #[must_use]
    pub fn resume(mut self, filters: Vec<Filter>, expected: bool) -> Self {
        self.subscriber.know(filters);
        self.expected = expected;
        self
    }

    /// The same, for a daemon: once it was online, neither what the other side says nor a file
    /// that is being replaced ends it. It warns once of each cause, and tries on.
    #[must_use]
    pub fn lasting(mut self) -> Self {
        self.attempts.last();
        self
    }

    /// The next event; cancel safe.
    ///
    /// # Errors
    /// Only failures that will not pass.
    pub async fn next(&mut self) -> Result<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            self.ask();
            let connection = match &mut self.state {
                State::Waiting { until } => {
                    sleep_until(*until).await;
                    self.connections += 1;
                    self.acks = Acks::default();
                    match Connection::open(&self.settings, self.plain_will) {
                        Ok(connection) => {
                            self.state = State::Open {
                                connection,
                                online_since: None,
                            };
                            continue;
                        }
                        Err(e) => return self.went_offline(Failure::Fatal(e)),
                    }
                }
                State::Open { connection, .. } => connection,
            };
            let (answer_by, again_at) = (self.subscriber.answer_by(), self.subscriber.again_at());
            let event = match [answer_by, again_at].into_iter().flatten().min() {
                None => connection.next().await,
                Some(by) => match timeout_at(by, connection.next()).await {
                    Ok(event) => event,
                    Err(_) if answer_by != Some(by) => {
                        self.subscriber.ask_again();
                        continue;
                    }
                    Err(_) => WireEvent::Failed(Failure::Passing(
                        "the broker has not answered a subscription in time".into(),
                    )),
                },
            };
            match event {
                WireEvent::Connected(offer) => {
                    self.greeted(offer);
                    self.answered();
                }
                WireEvent::Subscribed(number, results) => {
                    let goes_on = self.attempts.goes_on();
                    for warning in self.subscriber.subscribed(number, results, goes_on)? {
                        self.attempts.warn_once(warning);
                    }
                    self.answered();
                }
                WireEvent::Unsubscribed(FENCE) => {
                    if self.leave.as_mut().is_some_and(Leave::answered) {
                        self.leave = None;
                        return Ok(Event::Left);
                    }
                }
                WireEvent::Unsubscribed(number) => {
                    self.copies.given_up();
                    self.subscriber.unsubscribed(number);
                    self.answered();
                }
                WireEvent::Received(Received {
                    delivery,
                    ack,
                    subscriptions,
                }) => {
                    self.acks.came(ack.clone());
                    self.leave.iter_mut().for_each(Leave::came);
                    let ack = SessionAck {
                        connection: self.connections,
                        ack,
                    };
                    let fresh = |id| self.subscriber.is_fresh(id);
                    let now = Instant::now();
                    if self.copies.is_copy(&delivery, &subscriptions, fresh, now) {
                        debug!("a subscription brings a copy of the message before; not taken");
                        self.acknowledge(&ack);
                        continue;
                    }
                    return Ok(Event::Received(SessionReceived { delivery, ack }));
                }
                WireEvent::Published(token, result) => {
                    return Ok(Event::Published(token, result));
                }
                WireEvent::Closed | WireEvent::Failed(_) if self.renewing => {
                    info!("connecting again, with new settings");
                    self.wait(Duration::ZERO);
                    return Ok(Event::Offline);
                }
                WireEvent::Closed => {
                    let failure = Failure::Passing("the connection was closed".into());
                    return self.went_offline(failure);
                }
                WireEvent::Failed(failure) => {
                    return self.went_offline(failure);
                }
            }
        }
    }

    /// Publishes `message` if the session is online, and returns the token of this publish:
    /// [`Event::Published`] brings it back, or [`Event::Offline`] comes first. A message that is
    /// larger than what the broker takes is refused here: sent, it would cost the connection,
    /// again and again. `None`, and no event, while the session is offline or too many others wait
    /// for the broker.
    pub fn publish(&mut self, mut message: Message) -> Option<Token> {
        let token = Token::new();
        // Retained, it would cost the connection (MQTT 5.0, section 3.2.2.3.5). Whoever listens
        // now hears it at least.
        message.retain &= self.offer.retain;
        match &self.state {
            State::Open {
                connection,
                online_since: Some(_),
            } => {
                let size = Connection::size(&message);
                if u32::try_from(size).is_ok_and(|size| size <= self.offer.maximum_packet) {
                    connection.publish(message, token).then_some(token)
                } else {
                    let limit = self.offer.maximum_packet;
                    let cause = format!("it has {size} bytes, the broker takes {limit}");
                    let refused = Refused(Error::data(cause), Refuser::Local);
                    self.ready.push_back(Event::Published(token, Err(refused)));
                    Some(token)
                }
            }
            _ => None,
        }
    }

    /// Subscribes to other filters than before, in the same session; `true` if an
    /// [`Event::Subscribed`] will tell how that went.
    pub fn subscribe(&mut self, subscriptions: Subscriptions) -> bool {
        self.subscriber.change(subscriptions)
    }

    /// Takes up other settings. If the broker has to be told, the session says goodbye and
    /// connects again at once, unless it would end with that: then the next connection has them.
    pub fn reconfigure(&mut self, settings: Settings) {
        if settings == self.settings {
            return;
        }
        let ends = self.settings.session_expiry.is_zero();
        self.settings = settings;
        if ends {
            return;
        }
        if let State::Open { connection, .. } = &self.state {
            if self.subscriber.is_connected() {
                self.renewing = true;
                connection.disconnect();
            } else {
                self.wait(Duration::ZERO);
            }
        }
    }

    /// Gives up all subscriptions. Messages that the broker has for us still come, and are to be
    /// acknowledged; [`Event::Left`] says that there are no more, if the connection lasts.
    pub fn leave(&mut self) {
        self.leave = self.subscriber.give_up().map(Leave::new);
    }

    /// Why the last connection failed or ended.
    #[must_use]
    pub fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// Whether the broker said that a packet of ours was at fault for the end of the last connection.
    #[must_use]
    pub const fn is_packet_at_fault(&self) -> bool {
        self.attempts.is_packet_at_fault()
    }

    /// Whether the other side has cut the last connection that stood, without a word.
    #[must_use]
    pub const fn was_cut(&self) -> bool {
        self.attempts.was_cut()
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

    /// Asks the broker for what it is not asked for yet.
    fn ask(&mut self) {
        let State::Open { connection, .. } = &self.state else {
            return;
        };
        self.subscriber.ask(connection);
        if let Some(leave) = &mut self.leave
            && self.subscriber.is_settled()
            && self.acks.is_empty()
            && let Some(filter) = leave.ask()
        {
            connection.unsubscribe(filter, FENCE);
        }
    }

    /// Ends the connection; the next one begins after `wait`.
    fn wait(&mut self, wait: Duration) {
        let change = self.subscriber.disconnected();
        self.ready.extend(change.map(Event::Subscribed));
        self.renewing = false;
        self.state = State::Waiting {
            until: Instant::now() + wait,
        };
    }

    /// The broker has accepted the connection.
    fn greeted(&mut self, offer: Offer) {
        let qos = self.subscriber.qos();
        self.attempts.compare(&offer, &self.settings, qos);
        let session_present = offer.session_present;
        self.copies.connected(session_present, Instant::now());
        let identifies = offer.subscription_ids;
        self.offer = offer;
        let forgotten = self.expected && !session_present;
        if forgotten && !self.settings.session_expiry.is_zero() {
            Attempts::warn_of_lost_session(&self.settings.broker);
        }
        self.expected = true;
        // From now on the session is our own.
        self.settings.clean_start &= self.settings.session_expiry.is_zero();
        self.subscriber.connected(session_present, identifies);
    }

    /// The broker has answered something: says what is in force now.
    fn answered(&mut self) {
        if let State::Open {
            online_since: since @ None,
            ..
        } = &mut self.state
            && self.subscriber.is_answered()
        {
            *since = Some(Instant::now());
            self.attempts.came_online();
            info!("connected to {}", self.settings.broker.address());
            self.ready.push_back(Event::Online);
        }
        let changed = self.subscriber.changed();
        self.ready.extend(changed.map(Event::Subscribed));
        let held = self.subscriber.settled();
        self.ready.extend(held.map(Event::Holds));
    }

    fn went_offline(&mut self, failure: Failure) -> Result<Event> {
        if let Failure::WillRefused(cause) = &failure
            && self.settings.will.is_some()
            && !std::mem::replace(&mut self.plain_will, true)
        {
            self.attempts.warn_once(format!(
                "{cause}; sending one that is not retained, at QoS 0"
            ));
            self.wait(Duration::ZERO);
            return Ok(Event::Offline);
        }
        let lived = match &self.state {
            State::Open {
                online_since: Some(since),
                ..
            } => Some(since.elapsed()),
            _ => None,
        };
        let (wait, cause) = self.attempts.ended(failure, lived, &self.settings.broker)?;
        self.cause = Some(cause);
        self.wait(wait);
        Ok(Event::Offline)
    }
}
