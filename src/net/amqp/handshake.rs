//! Opens a connection: TCP, TLS, login, limits and virtual host (AMQP 0-9-1, section 2.2.4).

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use crate::model::duration;
use crate::model::text::{printable, printable_bytes};
use crate::net::amqp::failure::{Failure, FailureKind, Violation, codes};
use crate::net::amqp::frame::{Frame, Kind, Output};
use crate::net::amqp::method::Method;
use crate::net::amqp::options::AmqpOptions;
use crate::net::amqp::value::{Table, Value};
use crate::net::amqp::wire::{Reader, Unused};
use crate::net::dial;
use crate::net::greeting;
use crate::net::tls;

/// Time limit for the whole way, from the look-up of the name to the open virtual host.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// Maximum size of a frame to agree on, bytes: the default of RabbitMQ.
pub const MAX_FRAME: usize = 128 << 10;

/// Minimum of the maximum size of a frame, bytes (AMQP 0-9-1, section 4.2.3).
const MIN_FRAME: usize = 4096;

/// Maximum number of channels to agree on.
const MAX_CHANNELS: u16 = 255;

/// Size of a read, bytes.
const READ: usize = 64 << 10;

/// Maximum number of characters of the broker's name and version to keep.
const MAX_NAME: usize = 100;

/// Protocol and version that we speak.
const HEADER: &[u8; 8] = b"AMQP\0\0\x09\x01";

/// User and password of every RabbitMQ, on its own host only.
const GUEST: &str = "guest";

/// A TCP connection, with TLS or without.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The bytes from and to the broker.
pub type Stream = Box<dyn Io>;

/// What the broker says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Server {
    /// Name of the product, such as `RabbitMQ`.
    pub product: String,
    /// Version.
    pub version: String,
    /// Extensions of the protocol that it has, such as `consumer_cancel_notify`.
    pub capabilities: Vec<String>,
}

impl Server {
    fn new(properties: &Table) -> Self {
        let text = |name| {
            let value = properties.get(name).and_then(Value::as_text);
            printable(&value.unwrap_or_default(), MAX_NAME)
        };
        let capabilities = match properties.get("capabilities") {
            Some(Value::Table(table)) => table
                .iter()
                .filter(|(_, value)| matches!(value, Value::Bool(true)))
                .map(|(name, _)| name.into_owned())
                .collect(),
            _ => Vec::new(),
        };
        Self {
            product: text("product"),
            version: text("version"),
            capabilities,
        }
    }

    /// Returns the first two numbers of the version, if it begins with two.
    #[must_use]
    pub fn release(&self) -> Option<(u16, u16)> {
        let mut parts = self.version.split(|c: char| !c.is_ascii_digit());
        let mut number = || parts.next()?.parse().ok();
        Some((number()?, number()?))
    }

    /// Returns whether it has this extension of the protocol.
    #[must_use]
    pub fn can(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|known| known == capability)
    }
}

/// An open connection.
pub struct Opened {
    /// The bytes from and to the broker.
    pub stream: Stream,
    /// Bytes that have come already.
    pub input: BytesMut,
    /// What the broker says about itself.
    pub server: Server,
    /// Maximum number of channels.
    pub channel_max: u16,
    /// Maximum size of a frame, bytes.
    pub frame_max: usize,
    /// Interval of heartbeats.
    pub heartbeat: Duration,
}

/// How we log in: mechanism and response (RFC 4616; RFC 4422, appendix A).
struct Login {
    mechanism: &'static str,
    response: Bytes,
    user: String,
}

impl Login {
    fn new(options: &AmqpOptions) -> Result<Self, Failure> {
        let has_certificate = options
            .tls
            .as_ref()
            .is_some_and(|tls| tls.identity.is_some());
        let user = match &options.username {
            Some(user) => user.clone(),
            None if has_certificate => {
                return Ok(Self {
                    mechanism: "EXTERNAL",
                    response: Bytes::new(),
                    user: String::new(),
                });
            }
            None => GUEST.to_owned(),
        };
        let password = match &options.password {
            Some(password) => password
                .reveal()
                .map_err(|e| Failure::new(FailureKind::Config, e.to_string()))?
                .reveal()
                .to_owned(),
            None if user == GUEST => GUEST.to_owned(),
            None => String::new(),
        };
        if user.contains('\0') || password.contains('\0') {
            let cause = "user name and password cannot contain a NUL byte";
            return Err(Failure::new(FailureKind::Config, cause));
        }
        Ok(Self {
            mechanism: "PLAIN",
            response: format!("\0{user}\0{password}").into(),
            user,
        })
    }

    /// Explains a failure to log in.
    fn explain(&self, failure: Failure) -> Failure {
        match failure.code {
            Some(codes::ACCESS_REFUSED) if self.user == GUEST => failure
                .hinted("guest may log in from the broker's own host only: name another user"),
            _ => failure,
        }
    }
}

/// Opens a connection within `limit`.
///
/// # Errors
/// The failure, which names the step. Nothing stays open.
pub async fn open(options: &AmqpOptions, limit: Duration) -> Result<Opened, Failure> {
    let login = Login::new(options)?;
    let host = options.host.as_str();
    let steps = Steps {
        by: Instant::now() + limit,
        limit,
        host,
    };
    let what = format!("look up '{}'", printable(host, MAX_NAME));
    let addresses = steps.run(&what, dial::lookup(host, options.port)).await?;
    let tcp = steps
        .run("open a TCP connection", dial::connect(addresses))
        .await?;
    let stream: Stream = match &options.tls {
        None => Box::new(tcp),
        Some(files) => {
            let config = tls::client_config(files)
                .map_err(|e| Failure::new(FailureKind::Config, e.to_string()))?;
            let name = tls::server_name(files.server_name.as_deref().unwrap_or(host))
                .map_err(|e| Failure::new(FailureKind::Config, e))?;
            Box::new(
                steps
                    .run("agree on TLS", tls::connect(config, name, tcp))
                    .await?,
            )
        }
    };
    let talk = Talk {
        steps,
        stream,
        input: BytesMut::new(),
        output: Vec::new(),
    };
    talk.open(options, &login).await
}

/// The steps of an attempt, with one limit for all.
struct Steps<'a> {
    by: Instant,
    limit: Duration,
    host: &'a str,
}

impl Steps<'_> {
    /// Runs one step, which `what` names.
    async fn run<T>(
        &self,
        what: &str,
        step: impl Future<Output = io::Result<T>>,
    ) -> Result<T, Failure> {
        match timeout_at(self.by, step).await {
            Ok(done) => done.map_err(|e| Failure::io(&e, self.host)),
            Err(_) => {
                let limit = duration::text(self.limit);
                let text = format!("{what}: no answer within {limit}");
                Err(Failure::new(FailureKind::Unreachable, text))
            }
        }
    }
}

/// The talk about login, limits and virtual host.
struct Talk<'a> {
    steps: Steps<'a>,
    stream: Stream,
    input: BytesMut,
    output: Vec<u8>,
}

impl Talk<'_> {
    async fn open(mut self, options: &AmqpOptions, login: &Login) -> Result<Opened, Failure> {
        self.output.extend_from_slice(HEADER);
        self.send("send the protocol header").await?;
        let silent = "the other side has closed the connection: does it speak AMQP 0-9-1 there?";
        let server = match self
            .receive("wait for the broker's greeting", silent)
            .await?
        {
            Method::ConnectionStart {
                properties,
                mechanisms,
                ..
            } => {
                let mut offered = mechanisms.split(|b| *b == b' ');
                if !offered.any(|name| name == login.mechanism.as_bytes()) {
                    return Err(Failure::new(
                        FailureKind::Denied,
                        format!(
                            "the broker does not let us log in by {}, but by {}",
                            login.mechanism,
                            printable_bytes(&mechanisms, MAX_NAME)
                        ),
                    ));
                }
                Server::new(&properties)
            }
            other => return Err(unexpected(&other)),
        };
        self.put(&Method::ConnectionStartOk {
            properties: client(&options.name),
            mechanism: login.mechanism.into(),
            response: login.response.clone(),
            locale: "en_US".into(),
        })?;
        self.send("log in").await?;
        let silent = "the broker has closed the connection during the login: are user name and \
                      password right?";
        let tune = self.receive("wait for the login", silent).await;
        let (channels, frames, seconds) = match tune.map_err(|failure| login.explain(failure))? {
            Method::ConnectionTune {
                channel_max,
                frame_max,
                heartbeat,
            } => (channel_max, frame_max, heartbeat),
            other => return Err(unexpected(&other)),
        };
        let (channel_max, frame_max) = limits(channels, frames)?;
        let heartbeat = heartbeat(options.heartbeat, seconds);
        self.put(&Method::ConnectionTuneOk {
            channel_max,
            frame_max: u32::try_from(frame_max).unwrap_or(u32::MAX),
            heartbeat,
        })?;
        self.put(&Method::ConnectionOpen {
            vhost: options.vhost.clone(),
            capabilities: Unused,
            insist: false,
        })?;
        self.send("open the virtual host").await?;
        let silent = "the broker has closed the connection before it has opened the virtual host";
        match self.receive("wait for the virtual host", silent).await? {
            Method::ConnectionOpenOk { .. } => {}
            other => return Err(unexpected(&other)),
        }
        Ok(Opened {
            stream: self.stream,
            input: self.input,
            server,
            channel_max,
            frame_max,
            heartbeat: Duration::from_secs(heartbeat.into()),
        })
    }

    fn put(&mut self, method: &Method) -> Result<(), Failure> {
        let mut out = Output {
            bytes: &mut self.output,
            max: MAX_FRAME,
        };
        let put = out.method(0, method);
        put.map_err(|e| Failure::new(FailureKind::Invalid, format!("log in: {}", e.0)))
    }

    async fn send(&mut self, what: &str) -> Result<(), Failure> {
        let sent = async {
            self.stream.write_all(&self.output).await?;
            self.stream.flush().await
        };
        self.steps.run(what, sent).await?;
        self.output.clear();
        Ok(())
    }

    /// Returns the next method; `closed` explains the end of the connection.
    async fn receive(&mut self, what: &str, closed: &str) -> Result<Method, Failure> {
        loop {
            if let Some(stranger) = stranger(&self.input) {
                return Err(stranger);
            }
            let read = Frame::read(&self.input, MAX_FRAME);
            let read = read.map_err(|flaw| {
                let violation = Violation::new(codes::FRAME_ERROR, flaw.to_string());
                Failure::violation(&violation)
            })?;
            if let Some((frame, size)) = read {
                let method = match frame.kind {
                    Kind::Heartbeat => None,
                    Kind::Method if frame.channel == 0 => {
                        let method = Method::read(&mut Reader::new(frame.payload));
                        Some(method.map_err(|flaw| {
                            let violation = Violation::new(codes::SYNTAX_ERROR, flaw.to_string());
                            Failure::violation(&violation)
                        })?)
                    }
                    _ => {
                        let cause = "a content comes before the connection is open";
                        let violation = Violation::new(codes::UNEXPECTED_FRAME, cause);
                        return Err(Failure::violation(&violation));
                    }
                };
                self.input.advance(size);
                match method {
                    None => {}
                    Some(Method::ConnectionClose { code, text, .. }) => {
                        // The broker waits for it. Its reason matters more than ours.
                        let _ = self.put(&Method::ConnectionCloseOk {});
                        let _ = self.send("close").await;
                        return Err(Failure::connection_closed(code, &text));
                    }
                    Some(method) => return Ok(method),
                }
                continue;
            }
            self.input.reserve(READ);
            let read = self.stream.read_buf(&mut self.input);
            if self.steps.run(what, read).await? == 0 {
                return Err(Failure::new(FailureKind::Unreachable, closed));
            }
        }
    }
}

/// Returns what we say about ourselves.
fn client(name: &str) -> Table {
    let capabilities = [
        "consumer_cancel_notify",
        "connection.blocked",
        "basic.nack",
        "publisher_confirms",
        "authentication_failure_close",
        "exchange_exchange_bindings",
    ];
    let capabilities = capabilities.map(|name| (name, Value::Bool(true)));
    Table::from([
        ("product", "Tael".into()),
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("platform", "Rust".into()),
        ("connection_name", name.into()),
        ("capabilities", Value::Table(Table::from(capabilities))),
    ])
}

/// Returns the number of channels and the size of frames to agree on; 0 means that the broker has no
/// limit.
fn limits(channels: u16, frames: u32) -> Result<(u16, usize), Failure> {
    let channel_max = match channels {
        0 => MAX_CHANNELS,
        theirs => theirs.min(MAX_CHANNELS),
    };
    let frame_max = match usize::try_from(frames).unwrap_or(usize::MAX) {
        0 => MAX_FRAME,
        theirs => theirs.min(MAX_FRAME),
    };
    if frame_max < MIN_FRAME {
        let cause =
            format!("it allows frames of {frame_max} bytes, and {MIN_FRAME} is the minimum");
        let violation = Violation::new(codes::SYNTAX_ERROR, cause);
        return Err(Failure::violation(&violation));
    }
    Ok((channel_max, frame_max))
}

/// Returns the interval of heartbeats to agree on, seconds: the shorter one. 0 means that the broker
/// needs none; it sends them if we ask.
fn heartbeat(ours: Duration, theirs: u16) -> u16 {
    let ours = u16::try_from(ours.as_secs()).unwrap_or(u16::MAX).max(1);
    match theirs {
        0 => ours,
        theirs => theirs.min(ours),
    }
}

fn unexpected(method: &Method) -> Failure {
    let cause = format!("{} comes before the connection is open", method.name());
    Failure::violation(&Violation::new(codes::COMMAND_INVALID, cause))
}

/// Recognises what answers the protocol header by its first bytes, if that is certainly not AMQP.
fn stranger(bytes: &[u8]) -> Option<Failure> {
    let refused = |text: String| Some(Failure::new(FailureKind::Refused, text));
    match bytes {
        // A method frame. The header of the protocol may come in pieces.
        [1, ..] | [] => None,
        // A TLS record: alert or handshake, version 3.x (RFC 8446, section 5.1).
        [0x15 | 0x16, 0x03, ..] => {
            refused("the port speaks TLS: use amqps://, usually port 5671".into())
        }
        [b'A', b'M', b'Q', b'P', _, major, minor, revision, ..] => refused(format!(
            "the broker speaks AMQP {major}.{minor}.{revision}, and not 0-9-1: does RabbitMQ answer \
             there?"
        )),
        [b'A', b'M', b'Q', ..] => None,
        [b'H', b'T', b'T', b'P', b'/', ..] => {
            refused("the port speaks HTTP: use the broker's port for AMQP, usually 5672".into())
        }
        _ => greeting::foreign("AMQP", bytes).and_then(refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::options::TlsFiles;
    use crate::net::password::{Password, Secret};

    fn login(
        user: Option<&str>,
        password: Option<&str>,
        has_certificate: bool,
    ) -> Result<(&'static str, Bytes), Failure> {
        let identity = has_certificate.then(|| ("cert".into(), "key".into()));
        let options = AmqpOptions {
            username: user.map(str::to_owned),
            password: password.map(|text| Password::Text(Secret::new(text))),
            tls: Some(TlsFiles {
                identity,
                ..TlsFiles::default()
            }),
            ..AmqpOptions::new("h", 1)
        };
        Login::new(&options).map(|login| (login.mechanism, login.response))
    }

    #[test]
    fn a_certificate_logs_in_unless_a_user_is_named() {
        for (user, password, has_certificate, mechanism, response) in [
            (None, None, true, "EXTERNAL", ""),
            (None, None, false, "PLAIN", "\0guest\0guest"),
            (Some("guest"), None, true, "PLAIN", "\0guest\0guest"),
            (Some("ann"), None, true, "PLAIN", "\0ann\0"),
            (Some("ann"), Some("p"), false, "PLAIN", "\0ann\0p"),
        ] {
            let made = login(user, password, has_certificate).expect("login");
            assert_eq!(made, (mechanism, Bytes::from(response)));
        }
        let failure = login(Some("ann"), Some("a\0b"), false).expect_err("NUL");
        assert_eq!(failure.kind, FailureKind::Config);
    }

    #[test]
    fn limits_are_the_smaller_ones() {
        assert_eq!(limits(0, 0), Ok((MAX_CHANNELS, MAX_FRAME)));
        assert_eq!(limits(9, 8192), Ok((9, 8192)));
        assert_eq!(limits(2047, 1 << 30), Ok((MAX_CHANNELS, MAX_FRAME)));
        assert!(limits(0, 4095).is_err());
        let seconds = Duration::from_secs;
        for (ours, theirs, agreed) in [
            (seconds(10), 60, 10),
            (seconds(10), 5, 5),
            (seconds(10), 0, 10),
            (Duration::ZERO, 0, 1),
            (seconds(100_000), 0, u16::MAX),
        ] {
            assert_eq!(heartbeat(ours, theirs), agreed);
        }
    }
}
