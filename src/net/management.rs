//! The management API of RabbitMQ, read only: GET over HTTP/1.1 (RFC 9112), on a connection for each
//! request.
//!
//! Source: <https://www.rabbitmq.com/docs/http-api-reference>.

use std::io;
use std::time::Duration;

use rustls::Error::InvalidMessage;
use rustls::InvalidMessage::InvalidContentType;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::error::{Error, Kind};
use crate::model::queue::QueueUrl;
use crate::model::signature::base64;
use crate::model::url::{Authority, Fault, bracketed, parse_authority, percent_encoded};
use crate::net::dial;
use crate::net::options::{QueueAccess, TlsFiles};
use crate::net::password::Password;
use crate::net::tls;
use crate::net::tls_failure;

/// Port of the API, and over TLS.
const PORT: u16 = 15_672;
const TLS_PORT: u16 = 15_671;

/// Maximum time for an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Maximum size of the head of an answer, bytes.
const MAX_HEAD: usize = 64 * 1024;

/// Maximum size of the body of an answer, bytes.
const MAX_BODY: usize = 4 * 1024 * 1024;

/// Kind of URL, for people.
const KIND: &str = "management URL";

/// Address of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    is_tls: bool,
    host: String,
    port: u16,
    /// Path before `/api`, such as that of a proxy; empty or with a slash first.
    prefix: String,
}

impl Address {
    /// Parses `http[s]://host[:port][/prefix]`.
    ///
    /// # Errors
    /// A text for the user, which never repeats a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        const SHAPE: &str = "write http[s]://HOST[:PORT]";
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| format!("the {KIND} has no scheme: {SHAPE}"))?;
        let is_tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(format!("the scheme of a {KIND} is http or https: {SHAPE}")),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let Authority {
            username,
            host,
            port,
        } = parse_authority(authority, KIND).map_err(|fault| match fault {
            Fault::Password => format!("the {KIND} has a password: leave it out, {SHAPE}"),
            Fault::Brackets | Fault::Shape => format!("the {KIND} names no host: {SHAPE}"),
            Fault::Other(cause) => cause,
        })?;
        let path = path.trim_end_matches('/');
        if username.is_some() || path.contains('@') {
            return Err(format!("the {KIND} takes the user of the queue: {SHAPE}"));
        }
        let is_odd = |c: char| !c.is_ascii_graphic() || "?#".contains(c);
        if path.contains(is_odd) {
            return Err(format!("the path of the {KIND} is not one: {SHAPE}"));
        }
        Ok(Self {
            is_tls,
            host,
            port: port.unwrap_or(if is_tls { TLS_PORT } else { PORT }),
            prefix: match path {
                "" => String::new(),
                path => format!("/{path}"),
            },
        })
    }

    /// Returns the usual address of the broker of a queue: on its host, with TLS if that has it.
    #[must_use]
    pub fn of(url: &QueueUrl) -> Self {
        Self {
            is_tls: url.tls,
            host: url.host.clone(),
            port: if url.tls { TLS_PORT } else { PORT },
            prefix: String::new(),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        let (host, port) = (bracketed(&self.host), self.port);
        write!(f, "{scheme}://{host}:{port}{}", self.prefix)
    }
}

/// The API, and how we log in.
#[derive(Debug, Clone)]
pub struct Management {
    address: Address,
    login: Option<(String, Option<Password>)>,
    tls: TlsFiles,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// It cannot be reached.
    Unreachable(String),
    /// The user may not ask.
    Denied(String),
    /// There is no such thing (404).
    Missing,
    /// The answer is none of this API.
    Odd(String),
    /// The options are wrong.
    Config(Error),
}

impl Trouble {
    /// Returns the error of a command that cannot do without an answer from `management`.
    #[must_use]
    pub fn error(self, management: &Management) -> Error {
        let about = |kind, cause: String| {
            Error::new(
                kind,
                format!("ask the management API at {}: {cause}", management.address),
            )
        };
        match self {
            Self::Unreachable(cause) => about(
                Kind::Unavailable,
                format!(
                    "{cause}; is the plugin rabbitmq_management enabled, or --management wrong?"
                ),
            ),
            Self::Denied(cause) => about(Kind::NotAuthorised, cause),
            Self::Missing => about(Kind::Data, "it does not know that".into()),
            Self::Odd(cause) => about(Kind::Unavailable, cause),
            Self::Config(error) => error,
        }
    }

    /// Returns the cause in a few words, for people.
    #[must_use]
    pub fn cause(&self) -> String {
        match self {
            Self::Unreachable(cause) | Self::Denied(cause) | Self::Odd(cause) => cause.clone(),
            Self::Missing => "it does not know that".to_owned(),
            Self::Config(error) => error.to_string(),
        }
    }
}

impl Management {
    /// Returns the API at `address`; the user is that of the queue.
    #[must_use]
    pub fn new(address: Address, url: &QueueUrl, access: &QueueAccess) -> Self {
        Self {
            address,
            login: access.login(url),
            tls: access.tls.clone(),
        }
    }

    /// Returns what the API says about a queue.
    ///
    /// # Errors
    /// When there is no answer; [`Trouble::Missing`] when there is no such queue.
    pub async fn queue(&self, vhost: &str, queue: &str) -> Result<Value, Trouble> {
        let (vhost, queue) = (percent_encoded(vhost, ""), percent_encoded(queue, ""));
        self.get(&format!("/api/queues/{vhost}/{queue}")).await
    }

    /// Returns the answer to GET for a `path` that is encoded already.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn get(&self, path: &str) -> Result<Value, Trouble> {
        let request = self.request(path)?;
        let asked = timeout(ANSWER, self.ask(&request)).await;
        let late = || Trouble::Unreachable(format!("no answer within {} s", ANSWER.as_secs()));
        let answer = asked.map_err(|_| late())??;
        match answer.status {
            200 => serde_json::from_slice(&answer.body)
                .map_err(|_| Trouble::Odd("its answer is no JSON".into())),
            401 => Err(Trouble::Denied(
                // It says the same of all these.
                "it refuses the user (401): the password is wrong, or the user has not got the tag \
                 'management'"
                    .into(),
            )),
            403 => Err(Trouble::Denied(
                "it does not allow that (403): the user has no rights on the virtual host".into(),
            )),
            404 => Err(Trouble::Missing),
            // A proxy, or a broker that starts.
            500.. => Err(Trouble::Unreachable(format!(
                "it answers {}",
                answer.status
            ))),
            other => Err(Trouble::Odd(format!("it answers {other}"))),
        }
    }

    fn request(&self, path: &str) -> Result<String, Trouble> {
        let Some((user, password)) = &self.login else {
            return Err(Trouble::Denied("it needs a user and a password".into()));
        };
        let password = password.as_ref().map(Password::reveal).transpose();
        let password = password.map_err(Trouble::Config)?;
        let password = password.as_ref().map_or("", |secret| secret.reveal());
        let login = basic(&format!("{user}:{password}"));
        let Address {
            host, port, prefix, ..
        } = &self.address;
        // A scope is of no use to the other side (RFC 6874, section 4).
        let host = bracketed(host.split('%').next().unwrap_or_default());
        Ok(format!(
            "GET {prefix}{path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Basic {login}\r\n\
             Accept: application/json\r\nUser-Agent: tael\r\nConnection: close\r\n\r\n"
        ))
    }

    async fn ask(&self, request: &str) -> Result<Answer, Trouble> {
        let Address { host, port, .. } = &self.address;
        let unreachable = |e: io::Error| {
            let tls = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
            if matches!(tls, Some(InvalidMessage(InvalidContentType))) {
                let cause =
                    "it does not speak TLS on this port: write http://, or the port for TLS";
                return Trouble::Odd(cause.into());
            }
            let cause = tls.and_then(|e| tls_failure::explain(e, host));
            Trouble::Unreachable(cause.map_or_else(|| dial::cause(&e), |e| e.to_string()))
        };
        let addresses = dial::lookup(host, *port).await.map_err(unreachable)?;
        let mut tcp = dial::connect(addresses).await.map_err(unreachable)?;
        if !self.address.is_tls {
            return read(exchange(&mut tcp, request).await.map_err(unreachable)?);
        }
        let config = tls::client_config(&self.tls).map_err(Trouble::Config)?;
        let name = tls::server_name(host).map_err(|e| Trouble::Config(Error::config(e)))?;
        let mut stream = tls::connect(config, name, tcp).await.map_err(unreachable)?;
        read(exchange(&mut stream, request).await.map_err(unreachable)?)
    }
}

/// Returns the value of a header for user and password (RFC 7617).
fn basic(login: &str) -> String {
    let digits = base64::encode(login.as_bytes());
    let digits = digits.replace('-', "+").replace('_', "/");
    let padding = digits.len().next_multiple_of(4) - digits.len();
    digits + &"=".repeat(padding)
}

/// Sends a request, and returns all that comes back, up to the maximum.
async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &str,
) -> io::Result<Vec<u8>> {
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut all = Vec::new();
    let limit = u64::try_from(MAX_HEAD + 2 * MAX_BODY).unwrap_or(u64::MAX);
    match stream.take(limit).read_to_end(&mut all).await {
        Ok(_) => Ok(all),
        // A peer may close TLS without saying so.
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(all),
        Err(e) => Err(e),
    }
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    body: Vec<u8>,
}

/// Reads an answer after which the connection was closed.
fn read(all: Vec<u8>) -> Result<Answer, Trouble> {
    let odd = |cause: &str| Trouble::Odd(format!("its answer {cause}"));
    if all.is_empty() {
        return Err(Trouble::Unreachable("it closes the connection".into()));
    }
    let end = find(
        all.get(..MAX_HEAD.min(all.len())).unwrap_or_default(),
        b"\r\n\r\n",
    );
    let end = end.ok_or_else(|| odd("is not HTTP, or its head is too large"))?;
    let (head, rest) = all.split_at(end);
    let rest = rest.get(4..).unwrap_or_default();
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| {
        let (version, rest) = line.split_once(' ')?;
        let status = rest.get(..3)?.parse::<u16>().ok()?;
        version.starts_with("HTTP/1.").then_some(status)
    });
    let status = status.ok_or_else(|| odd("is not HTTP/1"))?;
    let (mut length, mut is_chunked) = (None, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse::<usize>().ok(),
            "transfer-encoding" => is_chunked = value.trim().eq_ignore_ascii_case("chunked"),
            _ => {}
        }
    }
    let body = match (is_chunked, length) {
        (true, _) => chunks(rest).ok_or_else(|| odd("breaks off, or is too large"))?,
        (false, Some(length)) => match rest.get(..length) {
            Some(body) if length <= MAX_BODY => body.to_vec(),
            _ => return Err(odd("breaks off, or is too large")),
        },
        (false, None) => rest.to_vec(),
    };
    match body.len() > MAX_BODY {
        true => Err(odd("is too large")),
        false => Ok(Answer { status, body }),
    }
}

/// Returns the place of `part` in `bytes`.
fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// Joins the chunks of a body (RFC 9112, section 7.1); `None` if they break off or are too large.
fn chunks(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = find(rest, b"\r\n")?;
        let line = std::str::from_utf8(rest.get(..end)?).ok()?;
        let size = line.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = rest.get(end + 2..)?;
        if size == 0 {
            return Some(body);
        }
        if size > MAX_BODY - body.len() {
            return None;
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses() {
        for (text, want) in [
            ("http://h", "http://h:15672"),
            ("https://h/", "https://h:15671"),
            ("HTTP://[::1]:80/mq/", "http://[::1]:80/mq"),
        ] {
            let address = Address::parse(text).expect(text);
            assert_eq!(address.to_string(), want);
        }
        for (text, cause) in [
            ("h:15672", "no scheme"),
            ("amqp://h", "http or https"),
            ("http://", "no host"),
            ("http://ann@h", "user of the queue"),
            ("http://ann:s3cret@h", "password"),
            ("http://h:x", "not a port"),
            ("http://h/a b", "path"),
            ("http://h/a?b", "path"),
        ] {
            let error = Address::parse(text).expect_err(text);
            assert!(
                error.contains(cause) && !error.contains("s3cret"),
                "{error}"
            );
        }
        let of = |url| Address::of(&QueueUrl::parse(url).expect("URL")).to_string();
        assert_eq!(of("amqp://h:7/q"), "http://h:15672");
        assert_eq!(of("amqps://[::1]/q"), "https://[::1]:15671");
    }

    #[test]
    fn a_login_is_base64_with_padding() {
        // RFC 7617, section 2.
        assert_eq!(basic("Aladdin:open sesame"), "QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(basic("\u{fb}\u{ff}~?"), "w7vDv34/");
    }

    fn body(text: &str) -> Result<(u16, String), Trouble> {
        let answer = read(text.as_bytes().to_vec())?;
        Ok((answer.status, String::from_utf8(answer.body).expect("text")))
    }

    #[test]
    fn answers_are_read() {
        for (text, want) in [
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}x",
                (200, "{}"),
            ),
            ("HTTP/1.0 404 Not Found\r\n\r\nno", (404, "no")),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
                (200, "abc0123456789"),
            ),
            ("HTTP/1.1 204 \r\n\r\n", (204, "")),
        ] {
            assert_eq!(body(text), Ok((want.0, want.1.to_owned())), "{text}");
        }
        for odd in [
            "SSH-2.0-x\r\n\r\n",
            "HTTP/2 200\r\n\r\n",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nab",
        ] {
            assert!(matches!(body(odd), Err(Trouble::Odd(_))), "{odd}");
        }
        assert!(matches!(body(""), Err(Trouble::Unreachable(_))));
        let large = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(MAX_BODY + 1));
        assert!(matches!(body(&large), Err(Trouble::Odd(_))));
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(text in "(HTTP/1.1 200 OK\r\n(transfer-encoding: chunked\r\n)?\r\n)?.{0,60}") {
            let _ = read(text.into_bytes());
        }
    }
}
