//! Options that name a broker, and us to it.

use std::path::PathBuf;
use std::time::Duration;

use crate::model::queue::QueueUrl;
use crate::model::url::{Authority, Fault, parse_authority};
use crate::net::password::Password;
pub use crate::net::password::Secret;

/// Port of MQTT over TCP (IANA).
pub const PORT: u16 = 1883;
/// Port of MQTT over TLS (IANA).
pub const TLS_PORT: u16 = 8883;
/// Default keep-alive.
pub const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Minimum keep-alive: `rumqttc` panics below 5 s.
pub const MIN_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Maximum keep-alive: 16 bits of seconds on the wire.
pub const MAX_KEEP_ALIVE: Duration = Duration::from_secs(65_535);

/// Files and names for TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// File of certificate authorities, PEM; by default those of the system.
    pub cafile: Option<PathBuf>,
    /// Folder of such files.
    pub capath: Option<PathBuf>,
    /// Our certificate chain and key in PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Protocols to offer to the server (ALPN, RFC 7301), best first.
    pub alpn: Vec<String>,
    /// Name that the certificate of the broker must have; by default the host.
    pub server_name: Option<String>,
}

/// Maximum number of brokers of a cluster.
pub const MAX_BROKERS: usize = 8;

/// A host and a port.
pub type Endpoint = (String, u16);

/// A broker, and our credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerOptions {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Other brokers of the same cluster, which are tried in turn; at most [`MAX_BROKERS`] with the
    /// first.
    pub others: Vec<Endpoint>,
    /// TLS, if the connection is encrypted.
    pub tls: Option<TlsFiles>,
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Password>,
    /// Client identifier.
    pub client_id: String,
    /// Keep-alive interval.
    pub keep_alive: Duration,
}

impl BrokerOptions {
    /// Returns the address of the broker, for people; of a cluster all addresses.
    #[must_use]
    pub fn address(&self) -> String {
        let all = (0..self.count()).map(|turn| self.address_at(turn));
        all.collect::<Vec<_>>().join(",")
    }

    /// Returns the number of brokers.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.others.len() + 1
    }

    /// Returns the host and the port for attempt `turn`: all brokers in a circle.
    #[must_use]
    pub fn at(&self, turn: usize) -> (&str, u16) {
        let place = (turn % self.count()).checked_sub(1);
        let other = place.and_then(|place| self.others.get(place));
        other.map_or((&self.host, self.port), |(host, port)| (host, *port))
    }

    /// Returns the address for attempt `turn`, for people.
    #[must_use]
    pub fn address_at(&self, turn: usize) -> String {
        match self.at(turn) {
            (host, port) if host.contains(':') => format!("[{host}]:{port}"),
            (host, port) => format!("{host}:{port}"),
        }
    }

    /// Returns whether `other` differs in the client identifier at most, which follows from the
    /// identity of a client.
    #[must_use]
    pub fn is_same_broker(&self, other: &Self) -> bool {
        let other = Self {
            client_id: self.client_id.clone(),
            ..other.clone()
        };
        *self == other
    }
}

/// How we log in at the brokers of work queues.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueAccess {
    /// User name where a URL names none.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Password>,
    /// User whose password that is, if it is not for all.
    pub password_of: Option<String>,
    /// Files for TLS, for `amqps`.
    pub tls: TlsFiles,
}

/// User and password that RabbitMQ creates; it accepts them from its own host only
/// (<https://www.rabbitmq.com/docs/access-control>, "default user").
const GUEST: &str = "guest";

impl QueueAccess {
    /// Returns the user and the password for the broker of `url`; without either, a client certificate
    /// must do. RabbitMQ's own user is the default on this host.
    #[must_use]
    pub fn login(&self, url: &QueueUrl) -> Option<(String, Option<Password>)> {
        let user = url.username.clone().or_else(|| self.username.clone());
        let has_certificate = url.tls && self.tls.identity.is_some();
        let guest = (url.is_loopback() && !has_certificate).then(|| GUEST.to_owned());
        let user = user.or(guest)?;
        let usual =
            (user == GUEST && url.is_loopback()).then(|| Password::Text(Secret::new(GUEST)));
        let is_ours = |user: &str| self.password_of.as_ref().is_none_or(|owner| owner == user);
        let password = self.password.clone().filter(|_| is_ours(&user));
        Some((user, password.or(usual)))
    }
}

/// The parts of a `--broker` URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// Whether the scheme is `mqtts`.
    pub tls: bool,
    /// User name.
    pub username: Option<String>,
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: Option<u16>,
}

/// Parses `mqtt[s]://[user@]host[:port]`; the user may be percent-encoded.
///
/// # Errors
/// A text for the user, which never repeats a password.
pub fn parse_url(url: &str) -> Result<BrokerUrl, String> {
    let (scheme, rest) = url
        .split_once("://")
        .ok_or("the broker URL has no scheme: write mqtt://HOST or mqtts://HOST")?;
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "mqtt" => false,
        "mqtts" => true,
        "ws" | "wss" => {
            return Err(format!(
                "MQTT over WebSocket ({scheme}://) is not supported: give the port of the broker for \
                 plain MQTT by mqtt://, or for TLS by mqtts://"
            ));
        }
        _ => {
            return Err(format!(
                "broker scheme '{scheme}' is unknown: mqtt or mqtts"
            ));
        }
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let Authority {
        username,
        host,
        port,
    } = parse_authority(rest, "broker URL").map_err(|fault| match fault {
        Fault::Password => {
            "a password in the broker URL would show in ps: use --password-file".into()
        }
        Fault::Brackets => format!("'{url}' is not a broker URL: its brackets do not fit"),
        Fault::Shape => {
            format!("'{url}' is not a broker URL: write mqtt[s]://[USER@]HOST[:PORT]")
        }
        Fault::Other(cause) => cause,
    })?;
    Ok(BrokerUrl {
        tls,
        username,
        host,
        port,
    })
}

/// Parses the value of `--broker`: one URL, or several brokers of a cluster, separated by commas. A
/// scheme and a user are those of the first; `HOST[:PORT]` alone is `mqtt://HOST[:PORT]`.
///
/// # Errors
/// A text for the user, which never repeats a password.
pub fn parse_brokers(text: &str) -> Result<Vec<BrokerUrl>, String> {
    let mut list: Vec<BrokerUrl> = Vec::new();
    for part in text.split(',').map(str::trim) {
        let scheme = match list.first() {
            Some(first) if first.tls => "mqtts",
            _ => "mqtt",
        };
        let url = match part.contains("://") {
            true => parse_url(part)?,
            false => parse_url(&format!("{scheme}://{part}"))?,
        };
        if let Some(first) = list.first() {
            if url.tls != first.tls {
                return Err("the brokers of a cluster all have TLS, or none has".into());
            }
            if url.username.is_some() && url.username != first.username {
                return Err("the brokers of a cluster have one user: name it with -u".into());
            }
        }
        if !list
            .iter()
            .any(|known| (&known.host, known.port) == (&url.host, url.port))
        {
            list.push(url);
        }
    }
    if list.len() > MAX_BROKERS {
        return Err(format!(
            "{} brokers are too many: {MAX_BROKERS} at most",
            list.len()
        ));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls() {
        let url = |tls, username: Option<&str>, host: &str, port| {
            Ok(BrokerUrl {
                tls,
                username: username.map(str::to_owned),
                host: host.into(),
                port,
            })
        };
        assert_eq!(parse_url("mqtt://h"), url(false, None, "h", None));
        assert_eq!(
            parse_url("MQTTS://ann@h.example:99/"),
            url(true, Some("ann"), "h.example", Some(99))
        );
        assert_eq!(
            parse_url("mqtt://[::1]:1884"),
            url(false, None, "::1", Some(1884))
        );
        assert_eq!(
            parse_url("mqtt://ann%40lab%2fx@h"),
            url(false, Some("ann@lab/x"), "h", None)
        );
        for scope in [
            "mqtts://[fe80::1%eth0]:8883",
            "mqtts://[fe80::1%25eth0]:8883",
        ] {
            assert_eq!(
                parse_url(scope),
                url(true, None, "fe80::1%eth0", Some(8883))
            );
        }
        assert!(
            parse_url("ws://h:8080/mqtt")
                .expect_err("no")
                .contains("WebSocket")
        );
        for bad in [
            "h",
            "mqtt://a%4@h",
            "mqtt://a%+1@h",
            "mqtt://a%ff@h",
            "mqtt://[::1",
            "mqtt://[::1]x",
            "http://h",
            "mqtt://",
            "mqtt://@h",
            "mqtt://h:0",
            "mqtt://h:70000",
            "mqtt://h:x",
            "mqtt://h/path",
            "mqtt://u@",
            "mqtt://h h",
        ] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
        let secret = parse_url("mqtt://ann:hunter2@h").expect_err("password");
        assert!(!secret.contains("hunter2"));
    }

    #[test]
    fn brokers_of_a_cluster() {
        let hosts = |text: &str| {
            let list = parse_brokers(text)?;
            let hosts = list.iter().map(|url| (url.tls, url.host.clone(), url.port));
            Ok::<_, String>(hosts.collect::<Vec<_>>())
        };
        let plain = |host: &str, port| (false, host.to_owned(), port);
        assert_eq!(hosts("a"), Ok(vec![plain("a", None)]));
        assert_eq!(
            hosts("a, b:1884,[::1]:7,a"),
            Ok(vec![
                plain("a", None),
                plain("b", Some(1884)),
                plain("::1", Some(7))
            ])
        );
        let list = parse_brokers("mqtts://ann@a,b").expect("list");
        assert!(list.iter().all(|url| url.tls));
        assert_eq!(list[0].username.as_deref(), Some("ann"));
        let many: Vec<String> = (0..=MAX_BROKERS).map(|n| format!("h{n}")).collect();
        for bad in [
            "a,",
            "",
            "a,mqtts://b",
            "mqtt://a,mqtt://x@b",
            "a,http://b",
            &many.join(","),
        ] {
            assert!(parse_brokers(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn brokers_take_turns() {
        let mut broker = BrokerOptions {
            host: "a".into(),
            port: 1,
            others: vec![("::1".into(), 2)],
            tls: None,
            username: None,
            password: None,
            client_id: "i".into(),
            keep_alive: KEEP_ALIVE,
        };
        assert_eq!(broker.address(), "a:1,[::1]:2");
        let turns: Vec<_> = (0..3).map(|turn| broker.address_at(turn)).collect();
        assert_eq!(turns, ["a:1", "[::1]:2", "a:1"]);
        broker.others.clear();
        assert_eq!(broker.address_at(7), "a:1");
    }

    #[test]
    fn queues_have_a_default_user_on_this_host_only() {
        let login = |access: &QueueAccess, url: &str| {
            let url = QueueUrl::parse(url).expect("URL");
            let (user, password) = access.login(&url)?;
            let secret = password.map(|password| password.reveal().expect("password"));
            Some((user, secret.map(|secret| secret.reveal().to_owned())))
        };
        let pair = |user: &str, password: &str| Some((user.into(), Some(password.into())));
        let nothing = QueueAccess::default();
        assert_eq!(
            login(&nothing, "amqp://localhost/q"),
            pair("guest", "guest")
        );
        assert_eq!(
            login(&nothing, "amqp://guest@[::1]/q"),
            pair("guest", "guest")
        );
        assert_eq!(login(&nothing, "amqp://h/q"), None);
        let alone = Some(("ann".to_owned(), None));
        assert_eq!(login(&nothing, "amqp://ann@localhost/q"), alone);
        let given = QueueAccess {
            username: Some("bob".into()),
            password: Some(Password::Text(Secret::new("s"))),
            ..QueueAccess::default()
        };
        assert_eq!(login(&given, "amqp://localhost/q"), pair("bob", "s"));
        assert_eq!(login(&given, "amqp://ann@h/q"), pair("ann", "s"));
        let of_bob = QueueAccess {
            password_of: Some("bob".into()),
            ..given
        };
        assert_eq!(login(&of_bob, "amqp://h/q"), pair("bob", "s"));
        let alone = Some(("ann".to_owned(), None));
        assert_eq!(login(&of_bob, "amqp://ann@h/q"), alone);
        let guest = pair("guest", "guest");
        assert_eq!(login(&of_bob, "amqp://guest@localhost/q"), guest);
        let certificate = QueueAccess {
            tls: TlsFiles {
                identity: Some(("c".into(), "k".into())),
                ..TlsFiles::default()
            },
            ..nothing
        };
        assert_eq!(login(&certificate, "amqps://localhost/q"), None);
        assert_eq!(
            login(&certificate, "amqp://localhost/q"),
            pair("guest", "guest")
        );
    }

    #[test]
    fn secrets_do_not_show_themselves() {
        assert_eq!(format!("{:?}", Secret::new("x")), "***");
    }

    proptest! {
        #[test]
        fn no_url_makes_it_panic(url in ".{0,40}") {
            let _ = parse_url(&url);
            let _ = parse_url(&format!("mqtt://{url}"));
        }
    }
}
