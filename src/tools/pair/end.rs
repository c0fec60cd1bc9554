//! One end of a pair: the connection that holds a side, and its claim.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use crate::error::{Error, Kind, Result};
use crate::model::message::{Delivery, Message, Properties, Qos};
use crate::model::pair::{Claim, LIFETIME, Letter, Pair, RENEWAL, Side};
use crate::model::topic::Filter;
use crate::net::mqtt::{Refused, Settings, Token};
use crate::net::options::BrokerOptions;
use crate::net::session::{Event, Session, Subscriptions};
use crate::os::host;
use crate::tools::listener;

/// Shortest time between two publishes of our claim, when others write over it.
const REWRITE: Duration = Duration::from_millis(100);

/// Maximum time until the broker has what was published before we leave.
const SETTLE: Duration = Duration::from_secs(5);

/// What an end hears.
#[derive(Debug)]
pub(super) enum Heard {
    /// Connected and subscribed, so the side is ours.
    Online,
    /// The broker has our claim.
    Claimed,
    /// What stands on the claim of the other side.
    Other(Option<Claim>),
    /// A message on the topic of the other side.
    Letter(Letter, Bytes),
    /// The connection is gone, and with it the side.
    Cut(String),
    /// Nothing that matters to a pair.
    Nothing,
}

/// An end that holds a side, or tries to.
pub(super) struct End {
    pair: Pair,
    side: Side,
    /// Our claim.
    pub claim: Claim,
    session: Session,
    /// Publish of our claim that the broker has not confirmed.
    claiming: Option<Token>,
    /// When to publish our claim again; `None` while we are not online.
    claim_at: Option<Instant>,
    claimed_last: Instant,
    /// Number of publishes that the broker has not confirmed.
    unconfirmed: usize,
    /// Whether a message that does not fit was logged.
    warned: bool,
}

impl End {
    /// Returns an end that takes `side` when it connects.
    ///
    /// # Errors
    /// When the topics are too long (64).
    pub fn new(broker: &BrokerOptions, pair: &Pair, side: Side) -> Result<Self> {
        let wrong = |e| Error::usage(format!("pair {}: {e}", pair.name));
        let topics = [
            pair.claim(side),
            pair.claim(side.other()),
            pair.data(side.other()),
        ];
        let filters = topics.into_iter().map(Filter::new);
        let subscriptions = Subscriptions {
            required: filters.collect::<Result<_, _>>().map_err(wrong)?,
            optional: Vec::new(),
            qos: Qos::AtLeastOnce,
        };
        let mut settings = Settings {
            // A broker that ends the connection clears the claim.
            will: Some(claim_message(pair, side, Bytes::new())),
            ..listener(broker)
        };
        settings.broker.client_id = pair.client_id(side);
        let now = Instant::now();
        Ok(Self {
            pair: pair.clone(),
            side,
            claim: Claim {
                id: host::new_id(),
                user: host::username(),
                host: host::hostname(),
                since: Timestamp::now().as_second(),
            },
            session: Session::new(settings, subscriptions),
            claiming: None,
            claim_at: None,
            claimed_last: now,
            unconfirmed: 0,
            warned: false,
        })
    }

    /// Returns the side.
    pub const fn side(&self) -> Side {
        self.side
    }

    /// Waits until the side is ours; `false` if the connection ends first. Cancel safe.
    ///
    /// # Errors
    /// Final failures.
    pub async fn online(&mut self) -> Result<bool> {
        loop {
            match self.next().await? {
                Heard::Online => return Ok(true),
                Heard::Cut(cause) => {
                    debug!("could not take side {}: {cause}", self.side.name());
                    return Ok(false);
                }
                _ => {}
            }
        }
    }

    /// Returns the next thing that is heard. Cancel safe.
    ///
    /// # Errors
    /// Final failures of the connection, and publishes that the broker refuses.
    pub async fn next(&mut self) -> Result<Heard> {
        let event = tokio::select! {
            biased;
            event = self.session.next() => event?,
            () = sleep_until(self.claim_at.unwrap_or_else(Instant::now)), if self.claim_at.is_some() => {
                self.publish_claim()?;
                return Ok(Heard::Nothing);
            }
        };
        Ok(match event {
            Event::Online => {
                self.publish_claim()?;
                Heard::Online
            }
            // The first attempt may have failed for the will only, and is repeated at once.
            Event::Offline if self.session.cause().is_none() => Heard::Nothing,
            Event::Offline => Heard::Cut(self.session.cause().unwrap_or("no answer").to_owned()),
            Event::Published(token, result) => {
                self.unconfirmed = self.unconfirmed.saturating_sub(1);
                if let Err(Refused(e, _)) = result {
                    let claim = self.pair.claim(self.side);
                    return Err(e.context(format_args!("publish to '{claim}' or below it")));
                }
                if self.claiming == Some(token) {
                    self.claiming = None;
                    return Ok(Heard::Claimed);
                }
                Heard::Nothing
            }
            Event::Received(received) => {
                self.session.acknowledge(&received.ack);
                self.heard(received.delivery)
            }
            Event::Subscribed(_) | Event::Holds(_) | Event::Left => Heard::Nothing,
        })
    }

    fn heard(&mut self, delivery: Delivery) -> Heard {
        match self.pair.claim_side(&delivery.topic) {
            Some(side) if side == self.side => {
                let claim = Claim::parse(&delivery.payload);
                if claim.is_none_or(|claim| claim.id != self.claim.id) && self.claim_at.is_some() {
                    // The will of an end that we have cut off, or a client that should not write there.
                    self.claim_at = Some(self.claimed_last + REWRITE);
                }
                Heard::Nothing
            }
            Some(_) => Heard::Other(Claim::parse(&delivery.payload)),
            None if delivery.retained => Heard::Nothing,
            None => match Letter::parse(&delivery.properties) {
                Some(letter) => Heard::Letter(letter, delivery.payload),
                None => {
                    self.stray();
                    Heard::Nothing
                }
            },
        }
    }

    /// Logs, once, that a message does not fit.
    pub fn stray(&mut self) {
        if !std::mem::replace(&mut self.warned, true) {
            let topic = self.pair.data(self.side.other());
            debug!("dropped a message on '{topic}' that is not from the other end to this one");
        }
    }

    fn publish_claim(&mut self) -> Result<()> {
        let mut message = claim_message(&self.pair, self.side, self.claim.payload().into());
        let lifetime = u32::try_from(LIFETIME.as_secs());
        message.properties.message_expiry = Some(lifetime.unwrap_or(u32::MAX));
        self.claimed_last = Instant::now();
        self.claim_at = Some(self.claimed_last + RENEWAL);
        self.claiming = Some(self.publish(message)?);
        Ok(())
    }

    /// Sends `letter` to the other end, with `payload`.
    ///
    /// # Errors
    /// When the connection is gone, or the broker takes nothing (69).
    pub fn send(&mut self, letter: Letter, payload: Bytes) -> Result<()> {
        let message = Message {
            topic: self.pair.data(self.side),
            payload,
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: letter.properties(),
        };
        self.publish(message).map(drop)
    }

    fn publish(&mut self, message: Message) -> Result<Token> {
        let topic = message.topic.clone();
        let token = self.session.publish(message).ok_or_else(|| {
            let cause = "the broker takes no more messages from us";
            Error::new(Kind::Unavailable, format!("publish to '{topic}': {cause}"))
        })?;
        self.unconfirmed += 1;
        Ok(token)
    }

    /// Clears the claim once the broker has everything that was sent, and disconnects; all within a
    /// bounded time.
    pub async fn leave(mut self) {
        let settled = async {
            self.confirmed().await?;
            self.claim_at = None;
            self.publish(claim_message(&self.pair, self.side, Bytes::new()))?;
            self.confirmed().await
        };
        match timeout(SETTLE, settled).await {
            Ok(Ok(())) => self.session.close().await,
            // The will clears the claim.
            Ok(Err(e)) => debug!("could not clear the claim: {e}"),
            Err(_) => debug!("could not clear the claim: the broker does not answer"),
        }
    }

    /// Waits until the broker has confirmed all publishes.
    async fn confirmed(&mut self) -> Result<()> {
        while self.unconfirmed > 0 {
            if let Heard::Cut(cause) = self.next().await? {
                return Err(Error::new(Kind::Unavailable, cause));
            }
        }
        Ok(())
    }
}

/// Returns a retained message on the claim of `side`; without a payload it clears the claim.
fn claim_message(pair: &Pair, side: Side, payload: Bytes) -> Message {
    Message {
        topic: pair.claim(side),
        payload,
        qos: Qos::AtLeastOnce,
        retain: true,
        properties: Properties::default(),
    }
}
