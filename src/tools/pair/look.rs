//! Looks at the claims of a pair, with an identifier that cuts no end off.

use std::time::Duration;

use bytes::Bytes;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use tokio::time::{Instant, sleep_until};

use crate::error::{Error, Kind, Result};
use crate::model::message::{Delivery, Message, Properties, Qos};
use crate::model::pair::{Claim, Pair, Side};
use crate::model::topic::Filter;
use crate::model::{marker, moment};
use crate::net::options::BrokerOptions;
use crate::net::session::{Event, Session, Subscriptions};
use crate::os::host;
use crate::tools::listener;

/// Silence after which all claims have come, if the broker does not bring our marker back.
const QUIET: Duration = Duration::from_millis(400);

/// Shortest and longest time, milliseconds, for which a free side is watched before it is taken. It is
/// random, so that contestants who come at one instant do not decide at one instant.
const WATCH: (u64, u64) = (50, 150);

/// A connection that hears the claims of a pair.
pub(super) struct Look<'a> {
    pair: &'a Pair,
    session: Session,
    marker: String,
    /// The claims of the sides `a` and `b`.
    claims: [Option<Claim>; 2],
}

impl<'a> Look<'a> {
    /// Returns a look at `pair` below `root`; it begins with [`Self::free_side`].
    ///
    /// # Errors
    /// When the topics are too long (64).
    pub fn new(broker: &BrokerOptions, root: &str, pair: &'a Pair) -> Result<Self> {
        let wrong = |e| Error::usage(format!("pair {}: {e}", pair.name));
        let marker = marker::topic(root, &host::new_id());
        let claims = Side::ALL.map(|side| Filter::new(pair.claim(side)));
        let subscriptions = Subscriptions {
            required: claims
                .into_iter()
                .collect::<Result<_, _>>()
                .map_err(wrong)?,
            optional: vec![Filter::new(&marker).map_err(wrong)?],
            // At a higher QoS the broker would wait for acknowledgements in between.
            qos: Qos::AtMostOnce,
        };
        Ok(Self {
            pair,
            session: Session::new(listener(broker), subscriptions).announced(),
            marker,
            claims: [None, None],
        })
    }

    fn claim(&self, side: Side) -> Option<&Claim> {
        let [a, b] = &self.claims;
        match side {
            Side::A => a.as_ref(),
            Side::B => b.as_ref(),
        }
    }

    /// Returns a side that no end holds, by `deadline`.
    ///
    /// # Errors
    /// 73 when both are held; 69 when no broker answers in time, 77 when it does not authorise us.
    pub async fn free_side(&mut self, deadline: Instant, limit: Duration) -> Result<Side> {
        // Until then the broker may still send claims.
        let mut until: Option<Instant> = None;
        loop {
            if until.is_some() && self.claims.iter().all(Option::is_some) {
                return Err(self.taken_error());
            }
            tokio::select! {
                biased;
                event = self.session.next() => match event? {
                    Event::Online => {
                        until = Some(Instant::now() + QUIET);
                        self.mark();
                    }
                    Event::Offline => {
                        until = None;
                        self.claims = [None, None];
                    }
                    Event::Received(received) => {
                        let marked = self.heard(&received.delivery);
                        if marked {
                            let watch = Duration::from_millis(fastrand::u64(WATCH.0..=WATCH.1));
                            until = Some(Instant::now() + watch);
                        }
                    }
                    _ => {}
                },
                () = sleep_until(until.unwrap_or(deadline).min(deadline)) => {
                    if until.is_none() {
                        return Err(self.session.unreachable(limit));
                    }
                    let free = Side::ALL.map(|side| self.claim(side).is_none());
                    return match free {
                        [true, true] => Ok(fastrand::choice(Side::ALL).unwrap_or(Side::A)),
                        [true, false] => Ok(Side::A),
                        [false, true] => Ok(Side::B),
                        [false, false] => Err(self.taken_error()),
                    };
                }
            }
        }
    }

    /// Returns when an end has claimed `side`. Cancel safe.
    ///
    /// # Errors
    /// Final failures of the connection.
    pub async fn until_claimed(&mut self, side: Side) -> Result<()> {
        while self.claim(side).is_none() {
            if let Event::Received(received) = self.session.next().await? {
                self.heard(&received.delivery);
            }
        }
        Ok(())
    }

    /// Ends the look, beside other work.
    pub fn end(self) {
        tokio::spawn(self.session.close());
    }

    /// Publishes a message to ourselves, which comes back after the claims.
    fn mark(&mut self) {
        let marker = Message {
            topic: self.marker.clone(),
            payload: Bytes::new(),
            qos: Qos::AtMostOnce,
            retain: false,
            properties: Properties::default(),
        };
        self.session.publish(marker);
    }

    /// Notes a message; returns whether it is our marker.
    fn heard(&mut self, delivery: &Delivery) -> bool {
        if let Some(side) = self.pair.claim_side(&delivery.topic) {
            let [a, b] = &mut self.claims;
            let place = match side {
                Side::A => a,
                Side::B => b,
            };
            *place = Claim::parse(&delivery.payload);
        }
        delivery.topic == self.marker.as_bytes()
    }

    fn taken_error(&self) -> Error {
        let holders: Vec<String> = self.claims.iter().flatten().map(Claim::holder).collect();
        let since = self.claims.iter().flatten().map(|claim| claim.since).max();
        let since = since.and_then(|since| Timestamp::from_second(since).ok());
        let since = since.map_or_else(String::new, |since| {
            let since = since.to_zoned(TimeZone::system());
            format!(" since {}", moment::near(&since, &Zoned::now()))
        });
        Error::new(
            Kind::CannotCreate,
            format!(
                "pair {}: taken by {}{since}; use another name, or wait until they have ended",
                self.pair.name,
                holders.join(" and "),
            ),
        )
    }
}
