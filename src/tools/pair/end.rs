//! One end of a pair: its connection, its presence and its claim.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use crate::error::{Error, Kind, Result};
use crate::model::message::{Delivery, Message, Properties, Qos};
use crate::model::pair::{
    Claim, Claims, Kind as LetterKind, LIFETIME, Letter, MAX_CHUNK, Meeting, Pair, RENEWAL, Secret,
    Side,
};
use crate::model::topic::Filter;
use crate::net::mqtt::{Refused, Settings, Token};
use crate::net::options::BrokerOptions;
use crate::net::session::{Event, Session, Subscriptions};
use crate::os::host;
use crate::tools::listener;

/// Shortest time between two publishes of our claim, when others write over it.
const REWRITE: Duration = Duration::from_millis(100);

/// Longest keep-alive. A broker notices after one and a half that an end is gone. That must be before the
/// presence of that end expires, and long enough for an end that stands still for half a minute.
const MAX_KEEP_ALIVE: Duration = Duration::from_secs(24);

/// Maximum time until the broker has what was published before we leave.
const FAREWELL: Duration = Duration::from_secs(5);

/// Maximum size of what a message has besides a part and its topic, bytes: the properties of a letter.
const ENVELOPE: usize = 512;

/// Smallest part that is worth a message, bytes.
const MIN_PART: usize = 1024;

/// What an end hears.
#[derive(Debug)]
pub(super) enum Heard {
    /// What stands on the claim of the other side.
    Other(Option<Claim>),
    /// Another end has claimed our side.
    Replaced(Claim),
    /// Whether an end is connected.
    Presence(String, bool),
    /// A message to us.
    Letter(Letter, Bytes),
    /// The connection is gone, and with it the side.
    Cut(String),
    /// Nothing that matters to a pair.
    Nothing,
}

/// An end of a pair.
pub(super) struct End {
    pair: Pair,
    /// The side that it holds.
    side: Option<Side>,
    /// Our claim.
    pub claim: Claim,
    /// Our key, until it is agreed with the other end.
    pub secret: Option<Secret>,
    session: Session,
    /// The first publish of our presence, until the broker has confirmed it.
    presenting: Option<Token>,
    /// Whether the broker has our presence.
    present: bool,
    /// When to publish our presence and claim again; `None` while we are not online.
    renew_at: Option<Instant>,
    renewed: Instant,
    /// What stands on the claims of `a` and `b`.
    claims: Claims,
    /// Number of publishes that the broker has not confirmed.
    unconfirmed: usize,
    /// Whether a message that does not fit was logged.
    warned: bool,
}

impl End {
    /// Returns an end without a side, which connects. It says that it waits for the broker; if
    /// `is_machine`, only on a terminal.
    ///
    /// # Errors
    /// When the topics are too long (64), or the system has no random numbers (75).
    pub fn new(broker: &BrokerOptions, pair: &Pair, is_machine: bool) -> Result<Self> {
        let wrong = |e| Error::usage(format!("pair {}: {e}", pair.name));
        let claim = Claim {
            id: host::new_id(),
            user: host::username(),
            host: host::hostname(),
            since: Timestamp::now().as_second(),
        };
        let secret = Secret::new()
            .ok_or_else(|| Error::new(Kind::TryAgain, "the system has no random numbers"))?;
        let topics = [
            pair.claim(Side::A),
            pair.claim(Side::B),
            pair.presence("+"),
            pair.letters(&claim.id),
        ];
        let filters = topics.into_iter().map(Filter::new);
        let subscriptions = Subscriptions {
            required: filters.collect::<Result<_, _>>().map_err(wrong)?,
            optional: Vec::new(),
            qos: Qos::AtLeastOnce,
        };
        let mut settings = Settings {
            // A broker that ends the connection says so to the other end, and to those who look.
            will: Some(retained(pair.presence(&claim.id), None)),
            ..listener(broker)
        };
        settings.broker.client_id = pair.end_client(&claim.id);
        settings.broker.keep_alive = settings.broker.keep_alive.min(MAX_KEEP_ALIVE);
        Ok(Self {
            pair: pair.clone(),
            side: None,
            claim,
            secret: Some(secret),
            session: match is_machine {
                // What reads the states there would stumble over another line.
                true => Session::new(settings, subscriptions).announced(),
                false => Session::new(settings, subscriptions).announced_anywhere(),
            },
            presenting: None,
            present: false,
            renew_at: None,
            renewed: Instant::now(),
            claims: Claims::default(),
            unconfirmed: 0,
            warned: false,
        })
    }

    /// Returns the name of its side.
    pub fn side(&self) -> &'static str {
        self.side.map_or("", Side::name)
    }

    /// Waits until the broker has our presence, by `deadline`, which is in `limit`.
    ///
    /// # Errors
    /// 69 when no broker answers in time, 77 when it does not authorise us.
    pub async fn present(&mut self, deadline: Instant, limit: Duration) -> Result<()> {
        while !self.present {
            tokio::select! {
                biased;
                // A connection that fails is tried again.
                heard = self.next() => heard.map(drop)?,
                () = sleep_until(deadline) => return Err(self.session.unreachable(limit)),
            }
        }
        if !self.session.offer().retain {
            let cause = "the broker retains no messages, which a pair needs";
            return Err(Error::new(Kind::Unavailable, cause));
        }
        Ok(())
    }

    /// Waits until the connection ends, and returns the cause. Notes in `meeting` who says hello. Cancel safe.
    ///
    /// # Errors
    /// Those of [`Self::next`].
    pub async fn cut(&mut self, meeting: &mut Meeting) -> Result<String> {
        loop {
            match self.next().await? {
                Heard::Cut(cause) => return Ok(cause),
                Heard::Letter(letter, _) => self.met(letter, meeting),
                _ => {}
            }
        }
    }

    /// Notes `letter` in `meeting`, if it is to us and of those before a pair stands.
    pub fn met(&mut self, letter: Letter, meeting: &mut Meeting) {
        match letter.kind {
            LetterKind::Hello if letter.to == self.claim.id && !letter.proof.is_empty() => {
                meeting.hello(letter.from, letter.proof);
            }
            LetterKind::Leave if letter.to == self.claim.id => meeting.left(&letter.from),
            _ => self.stray(),
        }
    }

    /// Notes that the broker has our claim of `side`. Returns what stands on that of the other side.
    pub fn holds(&mut self, side: Side) -> Option<Claim> {
        self.side = Some(side);
        self.claims.of(side.other()).cloned()
    }

    /// Returns the next thing that is heard. Cancel safe.
    ///
    /// # Errors
    /// Final failures of the connection, and publishes that the broker refuses.
    pub async fn next(&mut self) -> Result<Heard> {
        let event = tokio::select! {
            biased;
            event = self.session.next() => event?,
            () = sleep_until(self.renew_at.unwrap_or_else(Instant::now)), if self.renew_at.is_some() => {
                self.renew()?;
                return Ok(Heard::Nothing);
            }
        };
        Ok(match event {
            Event::Online => {
                let limit = self.session.offer().maximum_packet;
                if self.max_part() < MIN_PART {
                    let cause = format!(
                        "the broker takes packets of {limit} bytes at most, which are too small for a pair"
                    );
                    return Err(Error::new(Kind::Unavailable, cause));
                }
                self.presenting = Some(self.renew()?);
                Heard::Nothing
            }
            // The first attempt may have failed for the will only, and is repeated at once.
            Event::Offline if self.session.cause().is_none() => Heard::Nothing,
            Event::Offline => {
                self.renew_at = None;
                self.unconfirmed = 0;
                Heard::Cut(self.session.cause().unwrap_or("no answer").to_owned())
            }
            Event::Published(token, result) => {
                self.unconfirmed = self.unconfirmed.saturating_sub(1);
                if let Err(Refused(e, _)) = result {
                    let place = self.pair.presence(&self.claim.id);
                    return Err(e.context(format_args!("publish to '{place}' or beside it")));
                }
                self.present |= self.presenting.take_if(|one| *one == token).is_some();
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
        let claim = Claim::parse(&delivery.payload);
        if let Some(side) = self.pair.claim_side(&delivery.topic) {
            let is_own = claim
                .as_ref()
                .is_some_and(|claim| claim.id == self.claim.id);
            self.claims.set(side, claim.clone());
            if self.side != Some(side) {
                return Heard::Other(claim);
            }
            if is_own {
                return Heard::Nothing;
            }
            self.rewrite();
            return claim.map_or(Heard::Nothing, Heard::Replaced);
        }
        if let Some(id) = self.pair.present_end(&delivery.topic) {
            let present = claim.is_some_and(|claim| claim.id == id);
            if id != self.claim.id {
                return Heard::Presence(id.to_owned(), present);
            }
            if !present {
                self.rewrite();
            }
            return Heard::Nothing;
        }
        if delivery.retained {
            return Heard::Nothing;
        }
        match Letter::parse(&delivery.properties) {
            Some(letter) => Heard::Letter(letter, delivery.payload),
            None => {
                self.stray();
                Heard::Nothing
            }
        }
    }

    /// Another client has written over what is ours.
    fn rewrite(&mut self) {
        if self.renew_at.is_some() {
            self.renew_at = Some(self.renewed + REWRITE);
        }
    }

    /// Logs, once, that a message does not fit.
    pub fn stray(&mut self) {
        if !std::mem::replace(&mut self.warned, true) {
            let topic = self.pair.letters(&self.claim.id);
            debug!("dropped a message on '{topic}' that is not from the other end to this one");
        }
    }

    /// Publishes our presence, and our claim. Returns the publish of the presence.
    fn renew(&mut self) -> Result<Token> {
        self.renewed = Instant::now();
        self.renew_at = Some(self.renewed + RENEWAL);
        let presence = retained(self.pair.presence(&self.claim.id), Some(&self.claim));
        let token = self.publish(presence)?;
        if let Some(side) = self.side {
            self.publish(claim_message(&self.pair, side, Some(&self.claim)))?;
        }
        Ok(token)
    }

    /// Returns the maximum size of a part in one message to the broker, bytes.
    pub fn max_part(&self) -> usize {
        // All ids are of one length.
        let envelope = self.pair.letters(&self.claim.id).len() + ENVELOPE;
        let limit = usize::try_from(self.session.offer().maximum_packet).unwrap_or(usize::MAX);
        limit.saturating_sub(envelope).min(MAX_CHUNK)
    }

    /// Sends `letter` to the other end, with `payload`.
    ///
    /// # Errors
    /// When the connection is gone, or the broker takes nothing (69).
    pub fn send(&mut self, letter: Letter, payload: Bytes) -> Result<()> {
        let message = Message {
            topic: self.pair.letters(&letter.to),
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

    /// Clears claim and presence once the broker has everything that was sent, and disconnects; all within
    /// a bounded time.
    pub async fn leave(mut self) {
        let left = async {
            self.confirmed().await?;
            self.renew_at = None;
            // The presence comes last: until then no other end takes the side, whose claim would be cleared.
            if let Some(side) = self.side.take()
                && self
                    .claims
                    .of(side)
                    .is_none_or(|claim| claim.id == self.claim.id)
            {
                self.publish(claim_message(&self.pair, side, None))?;
                self.confirmed().await?;
            }
            self.publish(retained(self.pair.presence(&self.claim.id), None))?;
            self.confirmed().await
        };
        match timeout(FAREWELL, left).await {
            Ok(Ok(())) => self.session.close().await,
            // The will clears the presence, without which a claim means nothing.
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

/// Returns a retained message on the claim of `side`; without a claim it clears that.
pub(super) fn claim_message(pair: &Pair, side: Side, claim: Option<&Claim>) -> Message {
    retained(pair.claim(side), claim)
}

/// Returns a retained message with `claim`, which the broker forgets if it is not renewed. Without a claim it
/// clears the topic.
fn retained(topic: String, claim: Option<&Claim>) -> Message {
    let lifetime = u32::try_from(LIFETIME.as_secs()).unwrap_or(u32::MAX);
    Message {
        topic,
        payload: claim.map(Claim::payload).unwrap_or_default().into(),
        qos: Qos::AtLeastOnce,
        retain: true,
        properties: Properties {
            message_expiry: claim.map(|_| lifetime),
            ..Properties::default()
        },
    }
}
