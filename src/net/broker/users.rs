//! Users of the embedded broker.
//!
//! The library hashes passwords with Argon2, 25 ms each, on the only thread: forty guessers would
//! keep all others out. Passwords are in clear text in the users file and in this process, so a
//! slow hash protects nothing here. They are compared in constant time instead, and wrong ones are
//! answered late.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mqtt5::broker::{AuthProvider, AuthResult, DynamicStorage, StorageBackend as _};
use mqtt5::packet::connect::ConnectPacket;
use mqtt5::protocol::v5::reason_codes::ReasonCode;
use ring::hmac;
use tokio::time::sleep_until;
use tracing::warn;

use crate::error::{Error, Result};
use crate::model::pair::is_shared_client;
use crate::model::text::printable;
use crate::net::broker::door::Strangers;
use crate::net::options::Secret;

/// Delay before the answer to a wrong password.
const DELAY: Duration = Duration::from_secs(1);

/// Interval between two such answers to one address: ten guesses a second, over any number of
/// connections.
const SPACING: Duration = Duration::from_millis(100);

/// Maximum delay before the answer to a wrong password. The library allows ten seconds for a whole
/// CONNECT.
const MAX_DELAY: Duration = Duration::from_secs(8);

/// Maximum number of remembered addresses; forgotten ones begin again with [`DELAY`].
const MAX_ADDRESSES: usize = 4096;

/// Interval between two warnings about wrong passwords.
const WARNING_PAUSE: Duration = Duration::from_secs(60);

/// Maximum number of characters of a client identifier in the log.
const MAX_SHOWN: usize = 80;

/// The users, and the wrong passwords of clients.
pub(super) struct Users {
    key: hmac::Key,
    /// Authenticated passwords by name.
    users: HashMap<String, hmac::Tag>,
    /// Compared for unknown names, so that these take as long.
    nobody: hmac::Tag,
    failures: Mutex<Failures>,
    strangers: Arc<Strangers>,
    /// The sessions, with their users.
    sessions: Option<Arc<DynamicStorage>>,
}

#[derive(Default)]
struct Failures {
    /// When the last answer to an address is due.
    due: HashMap<IpAddr, Instant>,
    /// Number of wrong passwords since the last warning, and its time.
    count: u64,
    warned: Option<Instant>,
}

impl Users {
    /// Takes the users; without any, every client may connect.
    ///
    /// # Errors
    /// When the system has no random numbers (70).
    pub fn new(
        users: &[(String, Secret)],
        strangers: Arc<Strangers>,
        sessions: Option<Arc<DynamicStorage>>,
    ) -> Result<Self> {
        let random = ring::rand::SystemRandom::new();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &random)
            .map_err(|_| Error::bug("start broker: the system has no random numbers"))?;
        let tag = |(name, password): &(String, Secret)| {
            (name.clone(), hmac::sign(&key, password.reveal().as_bytes()))
        };
        Ok(Self {
            users: users.iter().map(tag).collect(),
            nobody: hmac::sign(&key, key_for_nobody().as_bytes()),
            failures: Mutex::default(),
            strangers,
            sessions,
            key,
        })
    }

    fn is_right(&self, connect: &ConnectPacket) -> bool {
        if self.users.is_empty() {
            return true;
        }
        let name = connect.username.as_deref().unwrap_or_default();
        let known = self.users.get(name);
        let password = connect.password.as_deref().unwrap_or_default();
        let same = hmac::verify(&self.key, password, known.unwrap_or(&self.nobody).as_ref());
        same.is_ok() && known.is_some()
    }

    /// Returns whether `connect` would take over or throw away the session of another user. The library
    /// lets every user throw away what it finds.
    async fn is_of_another(&self, connect: &ConnectPacket) -> bool {
        let Some(sessions) = &self.sessions else {
            return false;
        };
        if self.users.is_empty() || is_shared_client(&connect.client_id) {
            return false;
        }
        let session = sessions.get_session(&connect.client_id).await;
        session.ok().flatten().is_some_and(|session| {
            let lasts = session.connected || session.expiry_interval != Some(0);
            lasts && session.user_id != connect.username
        })
    }

    /// Returns when to answer a wrong password of `address`.
    fn failed(&self, address: IpAddr, now: Instant) -> Instant {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.due.len() >= MAX_ADDRESSES {
            failures.due.retain(|_, due| *due > now);
        }
        if failures.due.len() >= MAX_ADDRESSES {
            failures.due.clear();
        }
        let last = failures.due.get(&address).map_or(now, |due| *due + SPACING);
        let due = last.max(now + DELAY).min(now + MAX_DELAY);
        failures.due.insert(address, due);
        failures.count += 1;
        let quiet = |at: Instant| now.saturating_duration_since(at) < WARNING_PAUSE;
        if !failures.warned.is_some_and(quiet) {
            let count = std::mem::take(&mut failures.count);
            failures.warned = Some(now);
            warn!("{count} wrong user names or passwords, the last from {address}");
        }
        due
    }
}

/// A password that no user has: those of a users file contain no line break.
fn key_for_nobody() -> String {
    format!("\n{}", crate::os::host::new_id())
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl AuthProvider for Users {
    fn authenticate<'a>(
        &'a self,
        connect: &'a ConnectPacket,
        client: SocketAddr,
    ) -> Answer<'a, mqtt5::Result<AuthResult>> {
        Box::pin(async move {
            if self.is_right(connect) {
                self.strangers.known(client);
                if self.is_of_another(connect).await {
                    let id = printable(&connect.client_id, MAX_SHOWN);
                    warn!("refused client identifier '{id}' from {client}: it is another user's");
                    return Ok(AuthResult::fail(ReasonCode::NotAuthorized));
                }
                return Ok(match &connect.username {
                    Some(name) if !self.users.is_empty() => AuthResult::success_with_user(name),
                    _ => AuthResult::success(),
                });
            }
            sleep_until(self.failed(client.ip(), Instant::now()).into()).await;
            Ok(AuthResult::fail(ReasonCode::BadUsernameOrPassword))
        })
    }

    fn authorize_publish<'a>(
        &'a self,
        _client: &str,
        _user: Option<&'a str>,
        _topic: &'a str,
    ) -> Answer<'a, bool> {
        Box::pin(async { true })
    }

    fn authorize_subscribe<'a>(
        &'a self,
        _client: &str,
        _user: Option<&'a str>,
        _filter: &'a str,
    ) -> Answer<'a, bool> {
        Box::pin(async { true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(list: &[(&str, &str)]) -> Users {
        let list: Vec<_> = list
            .iter()
            .map(|(name, password)| ((*name).to_owned(), Secret::new(*password)))
            .collect();
        Users::new(&list, Arc::new(Strangers::new(10, 10)), None).expect("users")
    }

    fn is_right(users: &Users, name: Option<&str>, password: Option<&str>) -> bool {
        let options = mqtt5::ConnectOptions::new("c");
        let mut connect = ConnectPacket::new(options.protocol_options);
        connect.username = name.map(str::to_owned);
        connect.password = password.map(|password| password.as_bytes().to_vec());
        users.is_right(&connect)
    }

    #[test]
    fn only_the_right_password_of_a_known_name_is_right() {
        let some = users(&[("ann", "secret"), ("bob", "other")]);
        assert!(is_right(&some, Some("ann"), Some("secret")));
        for (name, password) in [
            (Some("ann"), Some("other")),
            (Some("ann"), Some("")),
            (Some("ann"), None),
            (Some("eve"), Some("secret")),
            (Some(""), Some("")),
            (None, Some("secret")),
            (None, None),
        ] {
            assert!(!is_right(&some, name, password), "{name:?} {password:?}");
        }
        assert!(is_right(&users(&[]), None, None));
    }

    #[test]
    fn guesses_of_one_address_are_spaced_and_those_of_others_are_not() {
        let users = users(&[("ann", "secret")]);
        let now = Instant::now();
        let [one, two] = [[127, 0, 0, 1], [127, 0, 0, 2]].map(IpAddr::from);
        assert_eq!(users.failed(one, now), now + DELAY);
        assert_eq!(users.failed(one, now), now + DELAY + SPACING);
        assert_eq!(users.failed(two, now), now + DELAY);
        let latest = (0..1000).map(|_| users.failed(one, now)).max();
        assert_eq!(latest, Some(now + MAX_DELAY));
    }
}
