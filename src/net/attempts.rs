//! Attempts to reach a broker: the wait before the next one, and the log lines.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::error::{Error, Kind, Result};
use crate::model::duration;
use crate::model::message::Qos;
use crate::net::backoff::backoff;
use crate::net::mqtt::{Failure, Offer, Settings};
use crate::net::options::BrokerOptions;

/// Wait when another client uses our client identifier. The second value is the first wait when
/// that is only likely; it doubles.
const BACKOFF_TAKEN: Duration = Duration::from_secs(60);
const BACKOFF_TAKEN_PERHAPS: Duration = Duration::from_secs(10);
/// Maximum number of doublings; the wait itself is limited earlier.
const MAX_DOUBLINGS: u32 = 16;
/// A connection that ends sooner than this is short.
const SHORT_LIFE: Duration = Duration::from_secs(5);
/// Number of short connections in a row that look like two clients of one identifier.
const SHORT_LIVES: u32 = 3;
/// Time without a broker after which one warning is logged.
const WARN_AFTER: Duration = Duration::from_secs(60);
/// Maximum number of remembered causes, to warn of each once.
const MAX_CAUSES: usize = 32;
/// Doublings of the first wait after a failure that only a person can correct: it begins at 8 s.
const PATIENT: u32 = 4;

/// The attempts of one session.
#[derive(Debug, Default)]
pub struct Attempts {
    /// Whether the broker cannot end the session after its first connection.
    lasting: bool,
    /// Whether others that use our identifier are expected.
    shared: bool,
    was_online: bool,
    /// Causes that were logged.
    said: Vec<String>,
    /// Whether a packet of ours ended the last connection.
    packet_at_fault: bool,
    /// Whether the other side has cut the last connection after it was online.
    was_cut: bool,
    failures: u32,
    short_lives: u32,
    /// Start of the time without a connection, and whether that was logged.
    away: Option<(Instant, bool)>,
}

impl Attempts {
    /// Makes the session go on after its first connection, for every answer of the broker.
    pub const fn last(&mut self) {
        self.lasting = true;
    }

    /// Makes it no cause of a warning that another client uses our identifier.
    pub const fn share(&mut self) {
        self.shared = true;
    }

    /// Returns whether the session goes on after every answer of the broker.
    pub const fn goes_on(&self) -> bool {
        self.lasting && self.was_online
    }

    /// Returns whether the broker ended the last connection because of a packet of ours.
    pub const fn is_packet_at_fault(&self) -> bool {
        self.packet_at_fault
    }

    /// Returns whether the other side has dropped the last connection without a DISCONNECT.
    pub const fn was_cut(&self) -> bool {
        self.was_cut
    }

    /// Logs the warning `cause`, once.
    pub fn warn_once(&mut self, cause: String) {
        if self.said.contains(&cause) {
            return debug!("{cause}");
        }
        warn!("{cause}");
        if self.said.len() == MAX_CAUSES {
            self.said.remove(0);
        }
        self.said.push(cause);
    }

    /// Warns, once, of what `offer` lacks for a session of `settings` with deliveries at `qos`.
    pub fn compare(&mut self, offer: &Offer, settings: &Settings, qos: Qos) {
        let broker = &settings.broker;
        let list = offer.shortfalls(settings.session_expiry, qos, &broker.client_id);
        // A short-lived command does not need it.
        if !list.is_empty() && self.lasting {
            let list = list.join("; ");
            let address = broker.address();
            self.warn_once(format!("{address} offers less than needed: {list}"));
        }
    }

    /// Warns that the broker whose `turn` it is has lost the session.
    pub fn warn_of_lost_session(broker: &BrokerOptions, turn: usize) {
        let apart = match broker.count() {
            1 => "",
            _ => ", or the brokers do not share sessions: then use one broker without --cluster",
        };
        warn!(
            "{} has lost the session of client identifier '{}': messages that were sent while this \
             client was away are lost; the broker was restarted without its state, the client was \
             away for too long, or another client has used the identifier{apart}",
            broker.address_at(turn),
            broker.client_id
        );
    }

    /// Notes that the connection is online, with all required subscriptions.
    pub const fn came_online(&mut self) {
        self.was_online = true;
        self.failures = 0;
        self.away = None;
    }

    /// Notes that a connection to the `broker` whose `turn` it was has ended, after it was online for
    /// `lived`. Returns the wait before the next one, and the cause.
    ///
    /// # Errors
    /// When another attempt would fail too.
    pub fn ended(
        &mut self,
        failure: Failure,
        lived: Option<Duration>,
        broker: &BrokerOptions,
        turn: usize,
    ) -> Result<(Duration, String)> {
        let address = broker.address_at(turn);
        self.packet_at_fault = matches!(failure, Failure::Packet(_));
        if lived.is_some() {
            self.was_cut = matches!(failure, Failure::Cut(_));
        }
        let stillborn = lived.is_some_and(|lived| lived < SHORT_LIFE);
        let mut wait = backoff(self.failures);
        let cause = match failure {
            Failure::Fatal(e) if self.goes_on() => {
                self.short_lives = 0;
                wait = backoff(self.failures.saturating_add(PATIENT));
                self.warn_once(format!("connect to {address}: {e}; trying again"));
                e.to_string()
            }
            Failure::Fatal(e) => {
                return Err(e.context(format_args!("connect to {address}")));
            }
            Failure::TakenOver => {
                // This is certain, so the wait is the longest.
                self.short_lives = SHORT_LIVES + MAX_DOUBLINGS;
                "another client has taken over the session".into()
            }
            Failure::Passing(cause)
            | Failure::Cut(cause)
            | Failure::Packet(cause)
            | Failure::WillRefused(cause) => {
                self.short_lives = if stillborn { self.short_lives + 1 } else { 0 };
                cause
            }
        };
        let tried = usize::try_from(self.failures).unwrap_or(usize::MAX);
        if tried.saturating_add(1) % broker.count() != 0 {
            // Another broker of the cluster has not been tried yet.
            wait = wait.min(backoff(0) / 2);
        }
        if self.packet_at_fault {
            // That is no sign of another client. The next packet may be as wrong.
            wait = backoff(self.short_lives);
        }
        if self.short_lives >= SHORT_LIVES && !self.shared && !self.packet_at_fault {
            let doubled = 1 << (self.short_lives - SHORT_LIVES).min(MAX_DOUBLINGS);
            wait = BACKOFF_TAKEN_PERHAPS
                .saturating_mul(doubled)
                .min(BACKOFF_TAKEN);
            warn!(
                "lost {address} soon after connecting, again: {cause}; does another client use \
                 the identifier '{}'? next try in {}",
                broker.client_id,
                duration::rough(wait)
            );
        } else if lived.is_some() {
            info!("lost {address}: {cause}; reconnecting");
        } else if self.failures == 0 {
            info!("cannot reach {address} yet: {cause}; trying again");
        } else {
            debug!(
                "cannot reach {address}: {cause}; next try in {}",
                duration::rough(wait)
            );
        }
        let (since, warned) = self.away.get_or_insert((Instant::now(), false));
        if !*warned && since.elapsed() >= WARN_AFTER {
            *warned = true;
            warn!(
                "cannot reach {address} for {}: {cause}; trying again",
                duration::text(WARN_AFTER)
            );
        }
        self.failures = self.failures.saturating_add(1);
        Ok((wait, cause))
    }
}

/// Returns the error for a broker that could not be reached in time.
#[must_use]
pub fn unreachable(address: &str, cause: &str) -> Error {
    let hint = if cause.contains('?') {
        ""
    } else if cause.contains("look up") {
        "; is the name right?"
    } else {
        "; is the broker running?"
    };
    Error::new(
        Kind::Unavailable,
        format!("connect to {address}: {cause}{hint}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::options::{KEEP_ALIVE, PORT};

    fn broker() -> BrokerOptions {
        BrokerOptions {
            host: "h".into(),
            port: PORT,
            others: Vec::new(),
            tls: None,
            username: None,
            password: None,
            client_id: "c".into(),
            keep_alive: KEEP_ALIVE,
        }
    }

    fn refused() -> Failure {
        Failure::Fatal(Error::new(Kind::NotAuthorised, "banned"))
    }

    #[test]
    fn a_packet_that_is_refused_is_no_sign_of_another_client() {
        let mut attempts = Attempts::default();
        attempts.last();
        for n in 0..8 {
            attempts.came_online();
            let failure = Failure::Packet("malformed".into());
            let ended = attempts.ended(failure, Some(Duration::ZERO), &broker(), 0);
            let (wait, _) = ended.expect("goes on");
            // A loop of wrong packets slows down, without the wait for another client.
            let full = Duration::from_secs(1 << n).min(Duration::from_secs(30));
            assert!((full / 2..=full).contains(&wait), "{n}: {wait:?}");
        }
    }

    #[test]
    fn nothing_ends_what_lasts_once_it_was_online() {
        let mut attempts = Attempts::default();
        attempts.last();
        assert!(
            attempts.ended(refused(), None, &broker(), 0).is_err(),
            "not yet"
        );
        attempts.came_online();
        for _ in 0..3 {
            let (wait, cause) = attempts
                .ended(refused(), None, &broker(), 0)
                .expect("goes on");
            assert!(wait >= Duration::from_secs(4), "{wait:?}");
            assert_eq!(cause, "banned");
        }
        assert_eq!(attempts.said.len(), 1, "warned of once");
        let mut command = Attempts::default();
        command.came_online();
        assert!(command.ended(refused(), None, &broker(), 0).is_err());
    }
}
