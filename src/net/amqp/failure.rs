//! Failures of a connection, of a channel, or of one call.

use std::fmt;
use std::io;

use crate::error::{self, Error};
use crate::model::text::printable;
use crate::net::amqp::wire::Unsendable;
use crate::net::dial;
use crate::net::tls_failure;

/// Maximum number of characters to show of what the broker says.
const MAX_TEXT: usize = 300;

/// Reply codes of the broker (AMQP 0-9-1, section 1.2 of its reference).
pub mod codes {
    /// All is well.
    pub const OK: u16 = 200;
    /// An operator or a shutdown has closed the connection.
    pub const CONNECTION_FORCED: u16 = 320;
    /// The user may not do that.
    pub const ACCESS_REFUSED: u16 = 403;
    /// Queue, exchange or virtual host does not exist.
    pub const NOT_FOUND: u16 = 404;
    /// Another connection has the queue for itself.
    pub const RESOURCE_LOCKED: u16 = 405;
    /// A declaration does not fit, an acknowledgement is unknown, or a delivery was held too long.
    pub const PRECONDITION_FAILED: u16 = 406;
    /// A frame is malformed.
    pub const FRAME_ERROR: u16 = 501;
    /// An argument is malformed.
    pub const SYNTAX_ERROR: u16 = 502;
    /// A method is not expected.
    pub const COMMAND_INVALID: u16 = 503;
    /// A channel is not open.
    pub const CHANNEL_ERROR: u16 = 504;
    /// A frame is not expected.
    pub const UNEXPECTED_FRAME: u16 = 505;
    /// The broker lacks a resource.
    pub const RESOURCE_ERROR: u16 = 506;
    /// The broker does not allow that.
    pub const NOT_ALLOWED: u16 = 530;
    /// The broker has not got that feature.
    pub const NOT_IMPLEMENTED: u16 = 540;
    /// The broker has a problem of its own.
    pub const INTERNAL_ERROR: u16 = 541;
}

/// Kind of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The broker is away, silent, shutting down, or breaks the protocol. It may pass.
    Unreachable,
    /// User, password, certificate or permissions are not accepted (403, 530).
    Denied,
    /// Queue, exchange or virtual host does not exist (404).
    Missing,
    /// A queue is declared otherwise, a delivery was held too long, or an acknowledgement is unknown
    /// (406).
    Mismatch,
    /// A limit of this client is reached; the text names it.
    Full,
    /// The broker refuses for another reason.
    Refused,
    /// It cannot be sent: a name, a property or a table does not fit. Nothing was sent.
    Invalid,
    /// A file of ours cannot be used: certificate, key or password.
    Config,
    /// This side has closed the channel or the connection.
    Closed,
}

/// What the broker has done against the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Code for the broker.
    pub code: u16,
    /// Text for people and the broker.
    pub text: String,
}

impl Violation {
    /// Returns a violation.
    pub fn new(code: u16, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }
}

/// A failure: its text is one line for people, and says cause and remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Kind.
    pub kind: FailureKind,
    /// Code of the broker, if it has said so.
    pub code: Option<u16>,
    /// Text, printable.
    pub text: String,
    /// Whether the connection lives on.
    channel_only: bool,
}

impl Failure {
    /// Returns a failure of the connection.
    pub(super) fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            code: None,
            text: text.into(),
            channel_only: false,
        }
    }

    /// Returns a failure of a channel, or of one call on it.
    pub(super) fn of_channel(kind: FailureKind, text: impl Into<String>) -> Self {
        Self {
            channel_only: true,
            ..Self::new(kind, text)
        }
    }

    /// Returns the failure that the broker names when it closes the connection.
    pub(super) fn connection_closed(code: u16, text: &str) -> Self {
        let said = printable(text, MAX_TEXT);
        let text = match code {
            codes::CONNECTION_FORCED => format!("the broker has closed the connection: {said}"),
            _ => format!("the broker refuses: {said}"),
        };
        Self {
            code: Some(code),
            ..Self::new(kind_of(code), text)
        }
    }

    /// Returns the failure that the broker names when it closes a channel.
    pub(super) fn channel_closed(code: u16, text: &str) -> Self {
        let said = printable(text, MAX_TEXT);
        Self {
            code: Some(code),
            ..Self::of_channel(kind_of(code), format!("the broker refuses: {said}"))
        }
    }

    /// Returns the failure of reading or writing; `host` is the other side.
    pub(super) fn io(error: &io::Error, host: &str) -> Self {
        let tls = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            // That text is about ports of MQTT.
            Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
                Self::new(
                    FailureKind::Refused,
                    "the broker does not speak TLS on this port: use amqp://, or the port for TLS, \
                 usually 5671",
                )
            }
            Some(tls) => match tls_failure::explain(tls, host) {
                Some(explained) => {
                    let kind = match explained.kind() {
                        error::Kind::NotAuthorised => FailureKind::Denied,
                        error::Kind::Config => FailureKind::Config,
                        _ => FailureKind::Refused,
                    };
                    Self::new(kind, of_queues(&explained.to_string()))
                }
                None => Self::new(FailureKind::Unreachable, format!("TLS failed: {tls}")),
            },
            None => Self::new(FailureKind::Unreachable, dial::cause(error)),
        }
    }

    /// Returns the failure of a call that cannot be sent.
    pub(super) fn unsendable(cause: Unsendable) -> Self {
        Self::of_channel(FailureKind::Invalid, format!("cannot be sent: {}", cause.0))
    }

    /// Returns the failure of a broker that breaks the protocol.
    pub(super) fn violation(violation: &Violation) -> Self {
        let said = printable(&violation.text, MAX_TEXT);
        let text = format!("the broker breaks the protocol: {said}");
        Self::new(FailureKind::Unreachable, text)
    }

    /// Returns the failure with a hint after its text.
    #[must_use]
    pub fn hinted(self, hint: &str) -> Self {
        Self {
            text: format!("{}; {hint}", self.text),
            ..self
        }
    }

    /// Returns whether the connection lives on: the channel is closed, or the call has failed alone.
    #[must_use]
    pub const fn is_channel_only(&self) -> bool {
        self.channel_only
    }

    /// Returns whether a new connection may help.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        matches!(self.kind, FailureKind::Unreachable)
    }
}

/// Returns `text` with the options for queues instead of those for MQTT.
fn of_queues(text: &str) -> String {
    let text = text.replace(", or give that name by --tls-server-name", "");
    let options = ["--cafile", "--cert", "--key"];
    options.iter().fold(text, |text, option| {
        text.replace(option, &option.replacen("--", "--queue-", 1))
    })
}

const fn kind_of(code: u16) -> FailureKind {
    match code {
        codes::ACCESS_REFUSED | codes::NOT_ALLOWED => FailureKind::Denied,
        codes::NOT_FOUND => FailureKind::Missing,
        codes::PRECONDITION_FAILED => FailureKind::Mismatch,
        codes::CONNECTION_FORCED | codes::INTERNAL_ERROR | codes::RESOURCE_ERROR => {
            FailureKind::Unreachable
        }
        _ => FailureKind::Refused,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let kind = match failure.kind {
            FailureKind::Unreachable
            | FailureKind::Full
            | FailureKind::Refused
            | FailureKind::Closed => error::Kind::Unavailable,
            FailureKind::Denied => error::Kind::NotAuthorised,
            FailureKind::Missing | FailureKind::Mismatch | FailureKind::Config => {
                error::Kind::Config
            }
            FailureKind::Invalid => error::Kind::Data,
        };
        Self::new(kind, failure.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::ServerName;
    use rustls::{AlertDescription, CertificateError};

    fn io_failure(error: impl Into<rustls::Error>) -> Failure {
        Failure::io(&io::Error::other(error.into()), "h")
    }

    #[test]
    fn tls_that_fails_names_the_options_for_queues() {
        let unknown = io_failure(CertificateError::UnknownIssuer);
        assert_eq!(unknown.kind, FailureKind::Refused);
        assert!(unknown.text.ends_with("by --queue-cafile"), "{unknown}");
        let other = io_failure(CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("h").expect("name"),
            presented: vec!["DnsName(\"a\")".into()],
        });
        assert!(other.text.ends_with("a name that it is for"), "{other}");
        let asked = io_failure(rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired,
        ));
        assert_eq!(asked.kind, FailureKind::Denied);
        assert!(
            asked.text.ends_with("give --queue-cert and --queue-key"),
            "{asked}"
        );
        let passing = io_failure(rustls::Error::AlertReceived(
            AlertDescription::InternalError,
        ));
        assert!(passing.is_passing());
    }

    #[test]
    fn codes_have_their_kinds_and_exit_codes() {
        for (code, kind, exit) in [
            (320, FailureKind::Unreachable, 69),
            (403, FailureKind::Denied, 77),
            (404, FailureKind::Missing, 78),
            (405, FailureKind::Refused, 69),
            (406, FailureKind::Mismatch, 78),
            (504, FailureKind::Refused, 69),
            (506, FailureKind::Unreachable, 69),
            (530, FailureKind::Denied, 77),
            (540, FailureKind::Refused, 69),
            (541, FailureKind::Unreachable, 69),
        ] {
            let failure = Failure::connection_closed(code, "x\n");
            assert_eq!(failure.kind, kind, "{code}");
            assert!(!failure.is_channel_only() && failure.text.ends_with(": x\\n"));
            assert_eq!(Error::from(failure).exit_code(), exit, "{code}");
        }
    }
}
