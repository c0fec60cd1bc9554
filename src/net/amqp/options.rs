//! Options that name a broker, and us to it.

use std::time::Duration;

use crate::model::queue::QueueUrl;
use crate::net::options::{QueueAccess, TlsFiles};
use crate::net::password::Password;

/// Port of AMQP (IANA).
pub const PORT: u16 = 5672;

/// Port of AMQP over TLS (IANA).
pub const TLS_PORT: u16 = 5671;

/// Default interval of heartbeats. RabbitMQ advises 5 to 20 s.
pub const HEARTBEAT: Duration = Duration::from_secs(10);

/// Virtual host that every RabbitMQ has.
pub const VHOST: &str = "/";

/// A broker, and our credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmqpOptions {
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// TLS, if the connection is encrypted.
    pub tls: Option<TlsFiles>,
    /// User name. Without one, a client certificate logs in (EXTERNAL), otherwise `guest`.
    pub username: Option<String>,
    /// Password; by default none, and that of RabbitMQ for `guest`.
    pub password: Option<Password>,
    /// Virtual host.
    pub vhost: String,
    /// Interval of heartbeats, whole seconds from 1; a broker that asks for a shorter one gets that.
    pub heartbeat: Duration,
    /// Name of the connection that the broker shows: `who@host`.
    pub name: String,
}

impl AmqpOptions {
    /// Returns the options for a connection called `name` to the broker of `url`.
    #[must_use]
    pub fn of(url: &QueueUrl, access: &QueueAccess, name: String) -> Self {
        let (username, password) = access.login(url).unzip();
        Self {
            host: url.host.clone(),
            port: url.port(),
            tls: url.tls.then(|| access.tls.clone()),
            username,
            password: password.flatten(),
            vhost: url.vhost.clone(),
            heartbeat: HEARTBEAT,
            name,
        }
    }

    /// Returns the options for a broker without TLS, for `guest` and the default virtual host.
    #[must_use]
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
            tls: None,
            username: None,
            password: None,
            vhost: VHOST.into(),
            heartbeat: HEARTBEAT,
            name: "tael".into(),
        }
    }

    /// Returns the address of the broker, for people.
    #[must_use]
    pub fn address(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}
