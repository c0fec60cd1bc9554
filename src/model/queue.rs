//! Work queues: URLs of queues, and how a trigger takes work from one.

use std::fmt;

use crate::model::text::printable;
use crate::model::url::{Authority, Fault, bracketed, parse_authority};
use crate::model::url::{percent_decoded, percent_encoded};

/// Port of AMQP over TCP (IANA).
pub const PORT: u16 = 5672;
/// Port of AMQP over TLS (IANA).
pub const TLS_PORT: u16 = 5671;
/// Default virtual host of RabbitMQ.
pub const DEFAULT_VHOST: &str = "/";

/// Maximum length of the name of a queue or virtual host, bytes (AMQP 0-9-1, type shortstr).
pub const MAX_NAME: usize = 255;

/// Maximum prefetch: quorum queues of RabbitMQ allow no more for a consumer
/// (<https://www.rabbitmq.com/docs/quorum-queues>, "Global QoS", "Prefetch").
pub const MAX_PREFETCH: u16 = 2000;

/// Names of queues that only the broker may declare begin so (AMQP 0-9-1, class queue).
const RESERVED: &str = "amq.";

/// Suffix of the default dead-letter queue.
const DEAD: &str = ".dead";

/// Maximum length of a name in a message, characters.
const MAX_SHOWN: usize = 80;

/// Characters of a path that need no encoding besides the unreserved ones (RFC 3986, section 3.3,
/// without `@`, which we use for the user only).
const IN_PATH: &str = "!$&'()*+,;=:";

/// Kind of URL, for people.
const KIND: &str = "queue URL";

/// How a queue URL is written.
const SHAPE: &str = "write amqp[s]://[USER@]HOST[:PORT]/VHOST/QUEUE, %2f for the default vhost";

/// A virtual host of a broker, and the user for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct QueueBroker {
    /// Whether the connection is encrypted (`amqps`).
    pub tls: bool,
    /// User name.
    pub username: Option<String>,
    /// Name or address, without brackets; in lower case.
    pub host: String,
    /// TCP port, if it is given.
    pub port: Option<u16>,
    /// Virtual host; `/` is the default one.
    pub vhost: String,
}

/// The address of a queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct QueueUrl {
    /// Whether the connection is encrypted (`amqps`).
    pub tls: bool,
    /// User name.
    pub username: Option<String>,
    /// Name or address, without brackets; in lower case.
    pub host: String,
    /// TCP port, if it is given.
    pub port: Option<u16>,
    /// Virtual host; `/` is the default one.
    pub vhost: String,
    /// Name of the queue, 1 to [`MAX_NAME`] bytes.
    pub queue: String,
}

/// Splits a URL into its broker, whose virtual host is not known yet, and its encoded path.
fn split(url: &str) -> Result<(QueueBroker, Option<&str>), String> {
    let (scheme, rest) = url
        .split_once("://")
        .ok_or_else(|| format!("the {KIND} has no scheme: {SHAPE}"))?;
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "amqp" => false,
        "amqps" => true,
        _ => return Err(format!("the scheme of a {KIND} is amqp or amqps: {SHAPE}")),
    };
    let (authority, path) = match rest.split_once('/') {
        Some((authority, path)) => (authority, Some(path)),
        None => (rest, None),
    };
    let password = || {
        format!(
            "a password in the {KIND} would show in ps: use --queue-password-file or TAEL_QUEUE_PASSWORD"
        )
    };
    // A password may hold a slash, and would then be shown as the name of a queue.
    if path.is_some_and(|path| path.contains('@')) && !authority.contains('@') {
        return Err(format!("{}; an @ in a name is written %40", password()));
    }
    if path.is_some_and(|path| path.contains(['@', '?', '#'])) {
        return Err(format!(
            "the {KIND} has parameters: it takes none; in a name @ is written %40, ? %3f, # %23"
        ));
    }
    let wrong = |fault| match fault {
        Fault::Password => password(),
        Fault::Brackets => format!("the brackets of the {KIND} do not fit: {SHAPE}"),
        Fault::Shape => format!("the {KIND} names no host: {SHAPE}"),
        Fault::Other(cause) => cause,
    };
    let Authority {
        username,
        host,
        port,
    } = parse_authority(authority, KIND).map_err(wrong)?;
    let broker = QueueBroker {
        tls,
        username,
        host: host.to_ascii_lowercase(),
        port,
        vhost: DEFAULT_VHOST.to_owned(),
    };
    Ok((broker, path))
}

/// Decodes the name of a virtual host.
fn vhost(part: &str) -> Result<String, String> {
    let name = percent_decoded(part, KIND)?;
    check("vhost", &name)?;
    Ok(name)
}

/// Checks the length and the characters of the name of a `what`.
fn check(what: &str, name: &str) -> Result<(), String> {
    if !(1..=MAX_NAME).contains(&name.len()) {
        return Err(format!("the name of a {what} has 1 to {MAX_NAME} bytes"));
    }
    match name.contains(char::is_control) {
        true => Err(format!("the name of a {what} has no control characters")),
        false => Ok(()),
    }
}

/// Checks the name of a queue.
///
/// # Errors
/// A text for the user.
pub fn check_name(name: &str) -> Result<(), String> {
    check("queue", name)?;
    match name.starts_with(RESERVED) {
        true => Err(format!(
            "queue '{}' has a reserved name: only the broker makes names that begin with '{RESERVED}'",
            printable(name, MAX_SHOWN)
        )),
        false => Ok(()),
    }
}

impl QueueBroker {
    /// Parses `amqp[s]://[user@]host[:port][/VHOST]`, percent-encoded; without a virtual host it is the
    /// default one.
    ///
    /// # Errors
    /// A text for the user, which never repeats a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (broker, path) = split(text)?;
        match path {
            None | Some("") => Ok(broker),
            Some(path) if path.contains('/') => Err(format!(
                "the URL of a broker ends with its vhost: '{}' is more",
                printable(path, MAX_SHOWN)
            )),
            Some(path) => Ok(Self {
                vhost: vhost(path)?,
                ..broker
            }),
        }
    }

    /// Returns its queue `name`.
    ///
    /// # Errors
    /// A text for the user about a wrong name.
    pub fn queue(&self, name: &str) -> Result<QueueUrl, String> {
        check_name(name)?;
        Ok(QueueUrl {
            tls: self.tls,
            username: self.username.clone(),
            host: self.host.clone(),
            port: self.port,
            vhost: self.vhost.clone(),
            queue: name.to_owned(),
        })
    }
}

impl fmt::Display for QueueBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "amqps://" } else { "amqp://" })?;
        if let Some(user) = &self.username {
            write!(f, "{}@", percent_encoded(user, ""))?;
        }
        let usual = if self.tls { TLS_PORT } else { PORT };
        let port = self.port.unwrap_or(usual);
        let vhost = percent_encoded(&self.vhost, IN_PATH);
        write!(f, "{}:{port}/{vhost}", bracketed(&self.host))
    }
}

impl QueueUrl {
    /// Parses `amqp[s]://[user@]host[:port]/VHOST/QUEUE`, percent-encoded; `/QUEUE` alone is a queue of
    /// the default virtual host.
    ///
    /// # Errors
    /// A text for the user, which never repeats a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (broker, path) = split(text)?;
        let parts: Vec<&str> = path.unwrap_or_default().split('/').collect();
        let (broker, queue) = match parts[..] {
            [""] => return Err(format!("the {KIND} names no queue: {SHAPE}")),
            [queue] => (broker, queue),
            [name, queue] => {
                let vhost = vhost(name)?;
                (QueueBroker { vhost, ..broker }, queue)
            }
            _ => {
                return Err(format!(
                    "the path of the {KIND} has more than a vhost and a queue: a / in a name is \
                     written %2f"
                ));
            }
        };
        broker.queue(&percent_decoded(queue, KIND)?)
    }

    /// Parses a URL, or the name of a queue of `broker`.
    ///
    /// # Errors
    /// A text for the user, which never repeats a password.
    pub fn parse_or_name(text: &str, broker: Option<&QueueBroker>) -> Result<Self, String> {
        match broker {
            _ if text.contains("://") => Self::parse(text),
            Some(broker) => broker.queue(text),
            // It may be a URL without a scheme, with a password.
            None if text.contains(['@', '/', ':']) => Self::parse(text),
            None => Err(format!(
                "'{}' is not a {KIND}: {SHAPE}, or name the broker of queues as 'broker' below \
                 [queue] in the configuration file",
                printable(text, MAX_SHOWN)
            )),
        }
    }

    /// Returns the broker and virtual host, for people and as a key: it always has the port.
    #[must_use]
    pub fn broker(&self) -> String {
        self.queue_broker().to_string()
    }

    /// Returns its broker.
    #[must_use]
    pub fn queue_broker(&self) -> QueueBroker {
        QueueBroker {
            tls: self.tls,
            username: self.username.clone(),
            host: self.host.clone(),
            port: self.port,
            vhost: self.vhost.clone(),
        }
    }

    /// Returns the port, which may be the default one.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(if self.tls { TLS_PORT } else { PORT })
    }

    /// Returns whether the broker is on this host by its name or address.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let address = self.host.parse::<std::net::IpAddr>();
        self.host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }

    /// Returns the name of its default dead-letter queue.
    #[must_use]
    pub fn dead_letter(&self) -> String {
        format!("{}{DEAD}", self.queue)
    }
}

impl fmt::Display for QueueUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = percent_encoded(&self.queue, IN_PATH);
        write!(f, "{}/{queue}", self.queue_broker())
    }
}

/// When a message of a queue is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Settle {
    /// When its event is in the ledger.
    #[default]
    Accept,
    /// When the end of its unit is in the ledger.
    Done,
}

impl Settle {
    /// Names of all.
    pub const NAMES: &[&str] = &["accept", "done"];

    /// Parses a name.
    ///
    /// # Errors
    /// A text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "accept" => Ok(Self::Accept),
            "done" => Ok(Self::Done),
            _ => Err(format!(
                "'{}' does not say when to settle a message: accept or done",
                printable(text, MAX_SHOWN)
            )),
        }
    }

    /// Returns its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Done => "done",
        }
    }
}

/// Type of a queue to declare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueType {
    /// Replicated, written to disk, counts deliveries.
    Quorum,
    /// Durable, on one node.
    Classic,
}

impl QueueType {
    /// Names of all.
    pub const NAMES: &[&str] = &["quorum", "classic"];

    /// Parses a name.
    ///
    /// # Errors
    /// A text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "quorum" => Ok(Self::Quorum),
            "classic" => Ok(Self::Classic),
            _ => Err(format!(
                "'{}' is not a type of a work queue: quorum or classic",
                printable(text, MAX_SHOWN)
            )),
        }
    }

    /// Returns its name, as argument `x-queue-type` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        }
    }
}

/// A queue that a trigger takes work from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSource {
    /// Its address.
    pub url: QueueUrl,
    /// When its messages are acknowledged.
    pub settle: Settle,
    /// Maximum number of messages to hold, 1 to [`MAX_PREFETCH`]; by default the free jobs of the lane.
    pub prefetch: Option<u16>,
    /// Name of its dead-letter queue; by default that of [`QueueUrl::dead_letter`].
    pub dead_letter: Option<String>,
    /// Type to declare it as; by default it must be there.
    pub declare: Option<QueueType>,
}

impl QueueSource {
    /// Returns the name of its dead-letter queue.
    #[must_use]
    pub fn dead_letter(&self) -> String {
        let given = self.dead_letter.clone();
        given.unwrap_or_else(|| self.url.dead_letter())
    }
}

/// Checks a prefetch.
///
/// # Errors
/// A text for the user.
pub fn check_prefetch(count: u16) -> Result<(), String> {
    match (1..=MAX_PREFETCH).contains(&count) {
        true => Ok(()),
        false => Err(format!(
            "a prefetch of {count} is out of range: 1 to {MAX_PREFETCH}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> Result<String, String> {
        QueueUrl::parse(text).map(|url| url.to_string())
    }

    #[test]
    fn urls() {
        for (text, want) in [
            ("amqp://h/%2f/q", "amqp://h:5672/%2f/q"),
            ("amqp://h/q", "amqp://h:5672/%2f/q"),
            (
                "AMQPS://ann@H.example/lab/q",
                "amqps://ann@h.example:5671/lab/q",
            ),
            (
                "amqp://ann%40lab@h:99/a%20b/c%2fd",
                "amqp://ann%40lab@h:99/a%20b/c%2fd",
            ),
            (
                "amqp://a%3ab@h/v/celery:x",
                "amqp://a%3ab@h:5672/v/celery:x",
            ),
            ("amqp://[::1]:7/v/q", "amqp://[::1]:7/v/q"),
            (
                "amqp://[fe80::1%25eth0]/v/q",
                "amqp://[fe80::1%25eth0]:5672/v/q",
            ),
            ("amqp://h/v/%c3%a9", "amqp://h:5672/v/%c3%a9"),
            ("amqp://h/v/é", "amqp://h:5672/v/%c3%a9"),
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(want), "{text}");
        }
        let url = QueueUrl::parse("amqps://ann@h/a%2fb/q%20r").expect("URL");
        assert_eq!(
            url,
            QueueUrl {
                tls: true,
                username: Some("ann".into()),
                host: "h".into(),
                port: None,
                vhost: "a/b".into(),
                queue: "q r".into(),
            }
        );
        assert_eq!(url.broker(), "amqps://ann@h:5671/a%2fb");
        assert_eq!((url.port(), url.dead_letter().as_str()), (5671, "q r.dead"));
    }

    #[test]
    fn wrong_urls_are_explained() {
        let long = format!("amqp://h/v/{}", "q".repeat(256));
        for (text, cause) in [
            ("q", "no scheme"),
            ("mqtt://h/q", "amqp or amqps"),
            ("amqp://h", "no queue"),
            ("amqp://h/", "no queue"),
            ("amqp://h/v/", "1 to 255 bytes"),
            ("amqp://h//q", "vhost has 1 to 255"),
            ("amqp://h/v/q/r", "more than a vhost and a queue"),
            ("amqp:///v/q", "no host"),
            ("amqp://@h/v/q", "no host"),
            ("amqp://h:0/q", "not a port"),
            ("amqp://h:70000/q", "not a port"),
            ("amqp://[::1/v/q", "brackets"),
            ("amqp://h/v/amq.x", "reserved"),
            ("amqp://h/v/%61mq.x", "reserved"),
            ("amqp://h/v/a%0ab", "control characters"),
            ("amqp://h/v/%ff", "percent-encoded"),
            ("amqp://h/v/%4", "percent-encoded"),
            ("amqp://u@h/v/q?heartbeat=9", "parameters"),
            (&long, "1 to 255 bytes"),
        ] {
            let error = QueueUrl::parse(text).expect_err(text);
            assert!(error.contains(cause), "{text}: {error}");
        }
        assert!(QueueUrl::parse(&long[..long.len() - 1]).is_ok());
    }

    #[test]
    fn passwords_are_refused_and_never_shown() {
        for text in [
            "amqp://ann:hunter2@h/v/q",
            "amqp://ann:hunter2/hunter2@h/v/q",
            "amqp://ann:12/hunter2@h/q",
            "amqp://:hunter2@h/q",
            "amqp://ann:a@hunter2@h/q",
            "amqp://ann:a#hunter2@h/q",
            "ann:hunter2@h/v/q",
            "hunter2://x:hunter2@h/q",
        ] {
            for error in [
                QueueUrl::parse(text).expect_err(text),
                QueueUrl::parse_or_name(text, None).expect_err(text),
                QueueBroker::parse(text).expect_err(text),
            ] {
                assert!(!error.contains("hunter2"), "{text}: {error}");
            }
        }
        let error = QueueUrl::parse("amqp://ann:x@h/q").expect_err("password");
        assert!(error.contains("--queue-password-file"), "{error}");
    }

    #[test]
    fn a_broker_has_queues() {
        let broker = QueueBroker::parse("amqp://ann@h/lab").expect("broker");
        let named = |text| QueueUrl::parse_or_name(text, Some(&broker)).map(|url| url.to_string());
        assert_eq!(named("a/b").as_deref(), Ok("amqp://ann@h:5672/lab/a%2fb"));
        assert_eq!(named("amqp://i/q").as_deref(), Ok("amqp://i:5672/%2f/q"));
        assert!(named("").is_err() && named("amq.q").is_err());
        for (text, vhost) in [("amqp://h", "/"), ("amqp://h/", "/"), ("amqp://h/%2f", "/")] {
            assert_eq!(QueueBroker::parse(text).expect(text).vhost, vhost);
        }
        assert!(QueueBroker::parse("amqp://h/v/q").is_err());
        let alone = QueueUrl::parse_or_name("jobs", None).expect_err("no broker");
        assert!(alone.contains("[queue]"), "{alone}");
    }

    #[test]
    fn this_host() {
        for (host, is) in [
            ("localhost", true),
            ("127.0.0.2", true),
            ("[::1]", true),
            ("10.0.0.1", false),
            ("h", false),
        ] {
            let url = QueueUrl::parse(&format!("amqp://{host}/q")).expect("URL");
            assert_eq!(url.is_loopback(), is, "{host}");
        }
    }

    #[test]
    fn choices_have_names() {
        for name in Settle::NAMES {
            assert_eq!(Settle::parse(name).map(Settle::name), Ok(*name));
        }
        for name in QueueType::NAMES {
            assert_eq!(QueueType::parse(name).map(QueueType::name), Ok(*name));
        }
        assert!(Settle::parse("ack").is_err() && QueueType::parse("stream").is_err());
        assert!(check_prefetch(1).is_ok() && check_prefetch(MAX_PREFETCH).is_ok());
        assert!(check_prefetch(0).is_err() && check_prefetch(MAX_PREFETCH + 1).is_err());
    }

    proptest! {
        #[test]
        fn no_url_makes_it_panic(url in ".{0,40}") {
            let _ = QueueUrl::parse(&url);
            let _ = QueueUrl::parse(&format!("amqp://{url}"));
            let _ = QueueBroker::parse(&format!("amqp://{url}"));
        }

        #[test]
        fn urls_come_back(
            tls: bool,
            username in proptest::option::of("[^\\x00]{1,10}"),
            port in proptest::option::of(1_u16..),
            vhost in "\\PC{1,20}",
            queue in "\\PC{1,20}",
        ) {
            prop_assume!(!queue.starts_with("amq."));
            let url = QueueUrl { tls, username, host: "h".into(), port, vhost, queue };
            let again = QueueUrl::parse(&url.to_string()).expect("URL");
            prop_assert_eq!(again.to_string(), url.to_string());
            prop_assert_eq!(QueueUrl { port: url.port, ..again }, url);
        }
    }
}
