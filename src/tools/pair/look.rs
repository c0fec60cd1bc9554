//! Claims a side of a pair, over the one connection that all ends use for that, one after another.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use crate::error::{Error, Kind, Result};
use crate::model::message::{Delivery, Message, Properties, Qos};
use crate::model::pair::{Choice, Claim, Claims, Pair, Side, choose};
use crate::model::topic::Filter;
use crate::model::{marker, moment};
use crate::net::mqtt::{Refused, Token};
use crate::net::options::BrokerOptions;
use crate::net::session::{Event, Session, Subscriptions};
use crate::os::host;
use crate::tools::listener;
use crate::tools::pair::end::claim_message;

/// Silence after which all retained messages have come, if the broker does not bring our marker back.
const QUIET: Duration = Duration::from_millis(400);

/// How a look has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looked {
    /// The end holds this side.
    Holds(Side),
    /// Another end looks: the broker has cut us off.
    Cut,
}

/// Where a look is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not connected.
    Connecting,
    /// The claims come, until then.
    Claims(Instant),
    /// The broker is asked who is present.
    Asking,
    /// The presences of those that have claims come, until then.
    Presences(Instant),
    /// This claim is on its way.
    Claiming(Side, Token),
}

/// A connection that looks at the claims of a pair, and claims a side.
pub(super) struct Look<'a> {
    pair: &'a Pair,
    own: &'a Claim,
    session: Session,
    marker: String,
    /// The claims of the sides `a` and `b`.
    claims: Claims,
    /// The ends that are connected, among those that have claims.
    present: HashSet<String>,
    phase: Phase,
}

impl<'a> Look<'a> {
    /// Returns a look at `pair` below `root` for the end with claim `own`, which must be present.
    ///
    /// # Errors
    /// When the topics are too long (64).
    pub fn new(broker: &BrokerOptions, root: &str, pair: &'a Pair, own: &'a Claim) -> Result<Self> {
        let marker = marker::topic(root, &host::new_id());
        let mut settings = listener(broker);
        settings.broker.client_id = pair.claim_client();
        Ok(Self {
            session: Session::new(settings, subscriptions(pair, &marker, &[])?).shared(),
            pair,
            own,
            marker,
            claims: Claims::default(),
            present: HashSet::new(),
            phase: Phase::Connecting,
        })
    }

    /// Claims a side that no end holds, by `deadline`, which is in `limit`.
    ///
    /// # Errors
    /// 73 when both are held; 69 when the broker does not answer in time, 77 when it does not authorise us.
    pub async fn take(&mut self, deadline: Instant, limit: Duration) -> Result<Looked> {
        loop {
            let until = match self.phase {
                Phase::Claims(until) | Phase::Presences(until) => until,
                Phase::Connecting | Phase::Asking | Phase::Claiming(..) => deadline,
            };
            let event = tokio::select! {
                biased;
                event = self.session.next() => event?,
                () = sleep_until(until.min(deadline)) => match self.phase {
                    Phase::Claims(until) | Phase::Presences(until) if until <= deadline => {
                        self.all_came()?;
                        if let Some(side) = self.held() {
                            return Ok(Looked::Holds(side));
                        }
                        continue;
                    }
                    _ => return Err(self.session.unreachable(limit)),
                },
            };
            match event {
                Event::Online => {
                    self.mark();
                    self.phase = Phase::Claims(Instant::now() + QUIET);
                }
                Event::Offline => {
                    debug!(
                        "cut off while it looked: {}",
                        self.session.cause().unwrap_or("?")
                    );
                    return Ok(Looked::Cut);
                }
                Event::Subscribed(result) if self.phase == Phase::Asking => {
                    result?;
                    self.mark();
                    self.phase = Phase::Presences(Instant::now() + QUIET);
                }
                Event::Received(received) => {
                    if self.heard(&received.delivery) {
                        self.all_came()?;
                        if let Some(side) = self.held() {
                            return Ok(Looked::Holds(side));
                        }
                    }
                }
                Event::Published(token, result) => {
                    let Phase::Claiming(side, claim) = self.phase else {
                        continue;
                    };
                    if let Err(Refused(e, _)) = result {
                        let topic = self.pair.claim(side);
                        return Err(e.context(format_args!("publish to '{topic}'")));
                    }
                    if token == claim {
                        return Ok(Looked::Holds(side));
                    }
                }
                Event::Subscribed(_) | Event::Holds(_) | Event::Left => {}
            }
        }
    }

    /// Ends the look, beside other work.
    pub fn end(self) {
        tokio::spawn(self.session.close());
    }

    /// Goes on when the retained messages have come.
    fn all_came(&mut self) -> Result<()> {
        let claimed: Vec<String> = self.claims.all().map(|c| c.id.clone()).collect();
        if matches!(self.phase, Phase::Claims(_)) && !claimed.is_empty() {
            let wanted = subscriptions(self.pair, &self.marker, &claimed)?;
            self.session.subscribe(wanted);
            self.phase = Phase::Asking;
            return Ok(());
        }
        let is_present = |id: &str| self.present.contains(id);
        match choose(&self.own.id, &self.claims, is_present) {
            Choice::Taken => Err(self.taken_error()),
            Choice::Holds(_) => Ok(()),
            Choice::Take { side, clear_other } => {
                if clear_other {
                    let other = side.other();
                    debug!("side {} is left over by an end that is gone", other.name());
                    self.session.publish(claim_message(self.pair, other, None));
                }
                let claim = claim_message(self.pair, side, Some(self.own));
                // Without room it is offline, which the next event says.
                if let Some(token) = self.session.publish(claim) {
                    self.phase = Phase::Claiming(side, token);
                }
                Ok(())
            }
        }
    }

    /// Returns the side on which our own claim stands.
    fn held(&self) -> Option<Side> {
        let is_own = |side: &Side| self.claims.of(*side).is_some_and(|c| c.id == self.own.id);
        Side::ALL.into_iter().find(is_own)
    }

    /// Publishes a message to ourselves, which comes back after the retained ones.
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
        let claim = Claim::parse(&delivery.payload);
        if let Some(side) = self.pair.claim_side(&delivery.topic) {
            self.claims.set(side, claim);
        } else if let Some(id) = self.pair.present_end(&delivery.topic) {
            if claim.is_some_and(|claim| claim.id == id) {
                self.present.insert(id.to_owned());
            } else {
                self.present.remove(id);
            }
        }
        delivery.topic == self.marker.as_bytes()
    }

    fn taken_error(&self) -> Error {
        let holders: Vec<String> = self.claims.all().map(Claim::holder).collect();
        let since = self.claims.all().map(|claim| claim.since).max();
        let since = since.and_then(|since| Timestamp::from_second(since).ok());
        let since = since.map_or_else(String::new, |since| {
            let since = since.to_zoned(TimeZone::system());
            format!(" since {}", moment::near(&since, &Zoned::now()))
        });
        Error::new(
            Kind::CannotCreate,
            format!(
                "pair {}: taken by {}{since}; give another name, or wait until they have ended",
                self.pair.name,
                holders.join(" and "),
            ),
        )
    }
}

/// Returns what a look subscribes to: the claims of `pair`, and the presences of the ends `ids`.
fn subscriptions(pair: &Pair, marker: &str, ids: &[String]) -> Result<Subscriptions> {
    let wrong = |e| Error::usage(format!("pair {}: {e}", pair.name));
    let claims = Side::ALL.into_iter().map(|side| pair.claim(side));
    // Exact topics: some brokers send no retained messages for wildcards.
    let presences = ids.iter().map(|id| pair.presence(id));
    let required = claims.chain(presences).map(Filter::new);
    Ok(Subscriptions {
        required: required.collect::<Result<_, _>>().map_err(wrong)?,
        optional: vec![Filter::new(marker).map_err(wrong)?],
        // At a higher QoS the broker would wait for acknowledgements in between.
        qos: Qos::AtMostOnce,
    })
}
