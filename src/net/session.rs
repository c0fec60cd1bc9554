//! A session with a broker that outlives its connections. It connects without end, subscribes, and
//! distinguishes passing failures from final ones.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{debug, info};

use crate::error::{Error, Result};
use crate::model::duration;
use crate::model::message::Message;
use crate::model::topic::Filter;
use crate::net::acks::{Acks, ConnectionAck};
use crate::net::attempts::Attempts;
use crate::net::attempts::unreachable;
use crate::net::copies::Copies;
use crate::net::leave::{FENCE, Leave};
use crate::net::mqtt::{
    Ack, Audience, Connection, Event as WireEvent, Failure, Offer, Received, Refused, Refuser,
    Settings, Token,
};
use crate::net::notice::Notice;
use crate::net::subscriber::Subscriber;
pub use crate::net::subscriber::Subscriptions;

/// Maximum time of a goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// An event of a session.
#[derive(Debug)]
pub enum Event {
    /// Connected and subscribed: messages come, and publishes go out.
    Online,
    /// The connection is gone. Publishes without a result must be sent again.
    Offline,
    /// A message has come.
    Received(SessionReceived),
    /// A publish is complete.
    Published(Token, Result<Audience, Refused>),
    /// A change by [`Session::subscribe`] is in force, was refused, or waits for the next
    /// connection.
    Subscribed(Result<()>),
    /// The broker now holds these filters for the session, and no others.
    Holds(Vec<Filter>),
    /// After [`Session::leave`]: the broker has no more messages for us.
    Left,
}

/// A message, and its acknowledgement on the connection that brought it.
#[derive(Debug)]
pub struct SessionReceived {
    /// The message.
    pub delivery: crate::model::message::Delivery,
    /// Its acknowledgement, for when the message is safe.
    pub ack: SessionAck,
}

/// An acknowledgement, which is void after its connection.
pub type SessionAck = ConnectionAck<Ack>;

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
    /// Whether the connection is being closed to connect again with other settings.
    renewing: bool,
    leave: Option<Leave>,
    copies: Copies,
    state: State,
    acks: Acks<Ack>,
    /// Which of several brokers the present connection is to, or the next one.
    turn: usize,
    attempts: Attempts,
    /// Offer of the broker.
    offer: Offer,
    /// Whether the broker refuses a will that is retained or has a QoS.
    plain_will: bool,
    /// Events that wait for the holder, such as publishes that could not be sent.
    ready: VecDeque<Event>,
    /// Why the last connection failed.
    cause: Option<String>,
    /// Line that tells a person that there is no connection yet.
    notice: Notice,
}

impl Session {
    /// Returns a session that starts to connect at the first call of [`Session::next`].
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
            turn: 0,
            attempts: Attempts::default(),
            offer: Offer::default(),
            plain_will: false,
            ready: VecDeque::new(),
            cause: None,
            notice: Notice::default(),
        }
    }

    /// Makes this the session of a command that may wait for long: it says, once, that there is no
    /// connection, also where stderr is no terminal.
    #[must_use]
    pub fn announced_anywhere(mut self) -> Self {
        self.notice = Notice::anywhere();
        self
    }

    /// Makes this the session of a command that ends soon: a person at a terminal is told, once,
    /// when there is no connection after a second.
    #[must_use]
    pub fn announced(mut self) -> Self {
        self.notice = Notice::new();
        self
    }

    /// Continues the session of an earlier process: the broker may hold `filters` for the
    /// identifier, and should have the session if it is `expected`.
    #[must_use]
    pub fn resume(mut self, filters: Vec<Filter>, expected: bool) -> Self {
        self.subscriber.know(filters);
        self.expected = expected;
        self
    }

    /// Makes this the session of a daemon. After its first connection, neither an answer of the
    /// broker nor a file that is being replaced ends it. It warns once of each cause, and tries
    /// again.
    #[must_use]
    pub fn lasting(mut self) -> Self {
        self.attempts.last();
        self
    }

    /// Makes this a session whose identifier others use too, one after another.
    #[must_use]
    pub fn shared(mut self) -> Self {
        self.attempts.share();
        self
    }

    /// Returns the next event. Cancel safe.
    ///
    /// # Errors
    /// Final failures only.
    pub async fn next(&mut self) -> Result<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            self.ask();
            if let Some(event) = self.next_on_wire().await
                && let Some(event) = self.on_wire(event)?
            {
                return Ok(event);
            }
        }
    }

    /// Returns the next event of the connection, or does what is due before it. Cancel safe.
    async fn next_on_wire(&mut self) -> Option<WireEvent> {
        let connection = match &mut self.state {
            State::Waiting { until } => {
                match self.notice.due().filter(|due| due < until) {
                    Some(due) => {
                        sleep_until(due).await;
                        self.say_that_it_waits();
                        return None;
                    }
                    // A timer takes a millisecond at least.
                    None if *until <= Instant::now() => {}
                    None => sleep_until(*until).await,
                }
                return self.connect();
            }
            State::Open { connection, .. } => connection,
        };
        let (answer_by, again_at) = (self.subscriber.answer_by(), self.subscriber.again_at());
        let due = self.notice.due();
        let Some(by) = [answer_by, again_at, due].into_iter().flatten().min() else {
            return Some(connection.next().await);
        };
        if let Ok(event) = timeout_at(by, connection.next()).await {
            return Some(event);
        }
        if due == Some(by) {
            self.say_that_it_waits();
        } else if answer_by == Some(by) {
            let cause = "the broker has not answered a subscription in time";
            return Some(WireEvent::Failed(Failure::Passing(cause.into())));
        } else {
            self.subscriber.ask_again();
        }
        None
    }

    /// Begins a connection. Returns its failure, if it cannot begin.
    fn connect(&mut self) -> Option<WireEvent> {
        self.acks.reconnect();
        match Connection::open(&self.settings, self.turn, self.plain_will) {
            Ok(connection) => {
                self.state = State::Open {
                    connection,
                    online_since: None,
                };
                None
            }
            Err(e) => Some(WireEvent::Failed(Failure::Fatal(e))),
        }
    }

    /// Handles an event of the connection. Returns what it means for the holder.
    ///
    /// # Errors
    /// Final failures only.
    fn on_wire(&mut self, event: WireEvent) -> Result<Option<Event>> {
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
                    return Ok(Some(Event::Left));
                }
            }
            WireEvent::Unsubscribed(number) => {
                self.copies.given_up();
                self.subscriber.unsubscribed(number);
                self.answered();
            }
            WireEvent::Received(received) => return Ok(self.received(received)),
            WireEvent::Published(token, result) => {
                return Ok(Some(Event::Published(token, result)));
            }
            WireEvent::Closed | WireEvent::Failed(_) if self.renewing => {
                info!("connecting again, with new settings");
                self.wait(Duration::ZERO);
                return Ok(Some(Event::Offline));
            }
            WireEvent::Closed => {
                let failure = Failure::Passing("the connection was closed".into());
                return self.went_offline(failure).map(Some);
            }
            WireEvent::Failed(failure) => return self.went_offline(failure).map(Some),
        }
        Ok(None)
    }

    /// Takes a message. Returns it, unless it is a copy of the one before.
    fn received(&mut self, received: Received) -> Option<Event> {
        let Received {
            delivery,
            ack,
            subscriptions,
        } = received;
        let ack = self.acks.came(ack);
        self.leave.iter_mut().for_each(Leave::came);
        let fresh = |id| self.subscriber.is_fresh(id);
        let now = Instant::now();
        if self.copies.is_copy(&delivery, &subscriptions, fresh, now) {
            debug!("a subscription brings a copy of the message before; not taken");
            self.acknowledge(&ack);
            return None;
        }
        Some(Event::Received(SessionReceived { delivery, ack }))
    }

    /// Connects while `work` goes on, and returns the result of that. The first event ends this, and
    /// stays for [`Session::next`].
    ///
    /// # Errors
    /// Those of the work, and those of [`Session::next`], which end the work.
    pub async fn connect_during<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = pin!(work);
        let first = tokio::select! {
            biased;
            event = self.next() => event?,
            done = &mut work => return done,
        };
        self.ready.push_front(first);
        work.await
    }

    /// Publishes `message` if the session is online, and returns its token. [`Event::Published`]
    /// brings the token back, or [`Event::Offline`] comes first. A message that is too large for
    /// the broker is refused here. Otherwise it would end the connection, again and again. `None`,
    /// and no event, while the session is offline or too many others wait for the broker.
    pub fn publish(&mut self, mut message: Message) -> Option<Token> {
        let token = Token::new();
        // Retained, it would end the connection (MQTT 5.0, section 3.2.2.3.5). Present subscribers
        // get it at least.
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

    /// Changes the subscriptions in the same session. Returns whether an [`Event::Subscribed`] will
    /// report the result.
    pub fn subscribe(&mut self, subscriptions: Subscriptions) -> bool {
        self.subscriber.change(subscriptions)
    }

    /// Returns whether the broker has refused `filter` on this connection, and was not asked again.
    #[must_use]
    pub fn is_refused(&self, filter: &Filter) -> bool {
        self.subscriber.is_refused(filter)
    }

    /// Changes the settings. If the broker needs them, the session says goodbye and connects again
    /// at once. If the session would end with the goodbye, the next connection uses them.
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

    /// Gives up all subscriptions. Messages that the broker still has come and must be
    /// acknowledged. [`Event::Left`] reports their end, if the connection lasts.
    pub fn leave(&mut self) {
        self.leave = self.subscriber.give_up().map(Leave::new);
    }

    /// Returns whether there is a connection. It may not be online yet.
    #[must_use]
    pub const fn has_connection(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Returns whether the broker may still have messages, after [`Session::leave`].
    #[must_use]
    pub const fn is_leaving(&self) -> bool {
        self.leave.is_some()
    }

    /// Returns what the broker has offered when it accepted us.
    #[must_use]
    pub const fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Returns why the last connection failed or ended.
    #[must_use]
    pub fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// Returns the error of a command that has found no broker within `limit`. Its cause is that of
    /// the last attempt.
    #[must_use]
    pub fn unreachable(&self, limit: Duration) -> Error {
        let late = format!("no answer within {}", duration::text(limit));
        let address = self.settings.broker.address();
        unreachable(&address, self.cause().unwrap_or(&late))
    }

    /// Returns whether the broker ended the last connection because of a packet of ours.
    #[must_use]
    pub const fn is_packet_at_fault(&self) -> bool {
        self.attempts.is_packet_at_fault()
    }

    /// Returns whether the other side has dropped the last connection without a DISCONNECT.
    #[must_use]
    pub const fn was_cut(&self) -> bool {
        self.attempts.was_cut()
    }

    /// Returns whether there is a connection whose task makes no progress.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        matches!(&self.state, State::Open { connection, .. } if connection.is_stalled())
    }

    /// Acknowledges a message after all earlier ones, and returns its packet identifier. After the end
    /// of its connection it does nothing: the broker sends the message again.
    pub fn acknowledge(&mut self, ack: &SessionAck) -> Option<u16> {
        let State::Open { connection, .. } = &self.state else {
            return None;
        };
        for ack in self.acks.safe(ack)? {
            connection.acknowledge(ack);
        }
        Some(ack.get().packet())
    }

    /// Says goodbye within a bounded time. Publishes in flight may be lost.
    pub async fn close(self) {
        if let State::Open {
            online_since: Some(_),
            ..
        } = self.state
        {
            self.abandon().await;
        }
    }

    /// Says goodbye within a bounded time, also to a broker that has not answered yet: it publishes no
    /// will then.
    pub async fn abandon(self) {
        if let State::Open { mut connection, .. } = self.state {
            connection.disconnect();
            let closed = async {
                while !matches!(
                    connection.next().await,
                    WireEvent::Closed | WireEvent::Failed(_)
                ) {}
            };
            if timeout(CLOSE_TIMEOUT, closed).await.is_err() {
                debug!("the broker did not accept our goodbye in time");
            }
        }
    }

    /// Sends requests to the broker that it has not got yet.
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

    /// Handles the acceptance of the connection.
    fn greeted(&mut self, offer: Offer) {
        let qos = self.subscriber.qos();
        self.attempts.compare(&offer, &self.settings, qos);
        let session_present = offer.session_present;
        self.copies.connected(session_present, Instant::now());
        let identifies = offer.subscription_ids;
        self.offer = offer;
        let forgotten = self.expected && !session_present;
        if forgotten && !self.settings.session_expiry.is_zero() {
            Attempts::warn_of_lost_session(&self.settings.broker, self.turn);
        }
        self.expected = true;
        // From now on the session is our own.
        self.settings.clean_start &= self.settings.session_expiry.is_zero();
        self.subscriber.connected(session_present, identifies);
    }

    /// Handles an answer: reports what is in force now.
    fn answered(&mut self) {
        if let State::Open {
            online_since: since @ None,
            ..
        } = &mut self.state
            && self.subscriber.is_answered()
        {
            *since = Some(Instant::now());
            self.notice.drop_it();
            self.attempts.came_online();
            info!(
                "connected to {}",
                self.settings.broker.address_at(self.turn)
            );
            self.ready.push_back(Event::Online);
        }
        let changed = self.subscriber.changed();
        self.ready.extend(changed.map(Event::Subscribed));
        let held = self.subscriber.settled();
        self.ready.extend(held.map(Event::Holds));
    }

    /// Tells a person that there is no connection yet.
    fn say_that_it_waits(&mut self) {
        let address = self.settings.broker.address();
        self.notice.say(&address, self.cause.as_deref());
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
        let broker = &self.settings.broker;
        let (wait, cause) = self.attempts.ended(failure, lived, broker, self.turn)?;
        self.turn = self.turn.wrapping_add(1);
        self.cause = Some(cause);
        self.wait(wait);
        Ok(Event::Offline)
    }
}
