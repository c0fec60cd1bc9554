//! Options that name a broker, and us to it.

use std::path::PathBuf;
use std::time::Duration;

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

/// Decodes `%XX` (RFC 3986, section 2.1).
fn percent_decoded(text: &str) -> Result<String, String> {
    let wrong = || format!("'{text}' in the broker URL is not percent-encoded text");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2).ok_or_else(wrong)?;
        let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

/// Removes the brackets of an address of version 6, and the escape of its scope (RFC 6874).
#[must_use]
pub fn plain_host(host: &str) -> String {
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    match inner {
        Some(inner) => inner.replacen("%25", "%", 1),
        None => host.to_owned(),
    }
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
    let (username, authority) = match rest.rsplit_once('@') {
        None => (None, rest),
        Some((user, _)) if user.contains(':') => {
            return Err(
                "a password in the broker URL would show in ps: use --password-file".into(),
            );
        }
        Some((user, authority)) => (Some(user), authority),
    };
    let (host, port) = match authority.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, port)) if port.starts_with(':') => (host, port.get(1..)),
            _ => {
                return Err(format!(
                    "'{url}' is not a broker URL: its brackets do not fit"
                ));
            }
        },
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let bad_host = |c: char| "/?#[]@ ".contains(c) || c.is_control();
    if host.is_empty() || host.contains(bad_host) || username == Some("") {
        return Err(format!(
            "'{url}' is not a broker URL: write mqtt[s]://[USER@]HOST[:PORT]"
        ));
    }
    let port = port
        .map(|port| match port.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(format!("'{port}' in the broker URL is not a port")),
        })
        .transpose()?;
    Ok(BrokerUrl {
        tls,
        username: username.map(percent_decoded).transpose()?,
        host: match authority.starts_with('[') {
            true => plain_host(&format!("[{host}]")),
            false => host.to_owned(),
        },
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
    fn hosts_without_brackets() {
        for (given, plain) in [
            ("[::1]", "::1"),
            ("::1", "::1"),
            ("[fe80::1%25eth0]", "fe80::1%eth0"),
            ("fe80::1%eth0", "fe80::1%eth0"),
            ("[h", "[h"),
            ("h", "h"),
        ] {
            assert_eq!(plain_host(given), plain);
        }
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
