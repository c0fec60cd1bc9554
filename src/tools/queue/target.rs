//! The queue that a command is about, and connections to its broker.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::error::{Error, Kind, Result};
use crate::model::duration;
use crate::model::queue::{QueueType, QueueUrl};
use crate::model::text::printable;
use crate::net::amqp::{
    AmqpOptions, Channel, Connection, Declare, Declared, Failure, FailureKind, Table,
};
use crate::net::attempts::unreachable;
use crate::net::management::{Address, Management};
use crate::net::notice::Notice;
use crate::net::options::QueueAccess;
use crate::os::host;

/// Wait between two attempts to connect within the deadline.
const RETRY: Duration = Duration::from_millis(250);

/// Maximum number of doublings of the wait before a connection is opened again: a person waits.
pub const MAX_DOUBLINGS: u32 = 3;

/// Maximum time of a goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// Prefix of the names of our connections, as the broker shows them.
pub const NAME: &str = "tael queue";

/// Maximum length of a name in a message, characters.
const MAX_SHOWN: usize = 120;

/// A queue, and how to reach its broker.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its address.
    pub url: QueueUrl,
    /// How to log in.
    pub access: QueueAccess,
    /// Address of the management API; by default the usual one.
    pub management: Option<Address>,
    /// Interval in which the broker collects its statistics.
    pub interval: Duration,
}

/// Returns the arguments that declare a work queue of a type.
#[must_use]
pub fn declaration(kind: QueueType) -> Declare {
    let mut arguments = Table::new();
    arguments.push("x-queue-type", kind.name());
    Declare {
        durable: true,
        arguments,
        ..Declare::default()
    }
}

impl Target {
    /// Returns the options of a connection.
    #[must_use]
    pub fn options(&self) -> AmqpOptions {
        let name = format!("{NAME} {}@{}", host::username(), host::hostname());
        AmqpOptions::of(&self.url, &self.access, name)
    }

    /// Returns its management API.
    #[must_use]
    pub fn api(&self) -> Management {
        let address = self.management.clone();
        let address = address.unwrap_or_else(|| Address::of(&self.url));
        Management::new(address, &self.url, &self.access)
    }

    /// Returns the name of the queue, for people.
    #[must_use]
    pub fn shown(&self) -> String {
        shown(&self.url.queue)
    }

    /// Opens a connection within `limit`. A broker that cannot be reached is tried again until then; a
    /// person at a terminal is told so.
    ///
    /// # Errors
    /// 69 when it cannot be reached, 77 when it does not authorise us, 78 for wrong options.
    pub async fn connect(&self, limit: Duration) -> Result<Connection> {
        let deadline = Instant::now() + limit;
        let options = self.options();
        let (mut notice, mut cause) = (Notice::new(), None);
        loop {
            let mut attempt = pin!(timeout_at(deadline, Connection::open(&options)));
            let done = loop {
                tokio::select! {
                    biased;
                    done = &mut attempt => break done,
                    () = notice.wait() => notice.say(&options.address(), cause.as_deref()),
                }
            };
            match done {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(failure)) if failure.is_passing() => cause = Some(failure.text),
                Ok(Err(failure)) => return Err(self.refused(failure)),
                Err(_) => {}
            }
            if Instant::now() + RETRY >= deadline {
                let late = || format!("no answer within {}", duration::text(limit));
                return Err(unreachable(&options.address(), &cause.unwrap_or_else(late)));
            }
            sleep(RETRY).await;
        }
    }

    /// Returns the error for a `failure` to log in or to use the broker.
    #[must_use]
    pub fn refused(&self, failure: Failure) -> Error {
        Error::from(failure).context(format_args!("use {}", self.url.broker()))
    }

    /// Returns the error for a `failure` about the queue `name`.
    #[must_use]
    pub fn failed(&self, name: &str, failure: Failure) -> Error {
        let (broker, name) = (self.url.broker(), shown(name));
        match failure.kind {
            FailureKind::Missing => Error::new(
                Kind::Data,
                match name == self.shown() {
                    true => format!(
                        "use queue '{name}' at {broker}: there is no such queue; is the name right? \
                         tael queue push --declare quorum makes one"
                    ),
                    false => format!(
                        "use queue '{name}' at {broker}: there is no such queue; either no message of \
                         '{}' has died, or --dead-letter names another",
                        self.shown()
                    ),
                },
            ),
            // The text of the broker names the argument.
            FailureKind::Mismatch if failure.text.contains("inequivalent") => {
                let hint = "it is there already, with other settings: leave --declare out to use it as it is";
                Error::from(failure.hinted(hint))
                    .context(format_args!("declare queue '{name}' at {broker}"))
            }
            _ => Error::from(failure).context(format_args!("use queue '{name}' at {broker}")),
        }
    }

    /// Returns the figures of queue `name`, over a channel of its own.
    ///
    /// # Errors
    /// The failure, which does not harm the connection if the queue is missing.
    pub async fn figures(connection: &Connection, name: &str) -> Result<Declared, Failure> {
        let channel = connection.channel().await?;
        let figures = channel.declare_passive(name).await?;
        channel.close().await;
        Ok(figures)
    }

    /// Checks that the queue is there, or declares it as a `kind`.
    ///
    /// # Errors
    /// The failure.
    pub async fn declare(
        &self,
        connection: &Connection,
        kind: Option<QueueType>,
    ) -> Result<(), Failure> {
        let channel: Channel = connection.channel().await?;
        match kind {
            None => channel.declare_passive(&self.url.queue).await.map(drop)?,
            Some(kind) => {
                let declared = channel.declare(&self.url.queue, &declaration(kind)).await;
                declared.map(drop)?;
            }
        }
        channel.close().await;
        Ok(())
    }
}

/// Returns a name for people.
#[must_use]
pub fn shown(name: &str) -> String {
    printable(name, MAX_SHOWN)
}

/// Closes a connection that has done its work.
pub async fn goodbye(connection: Connection) {
    // It is closed on this side in any case.
    let _ = timeout(GOODBYE, connection.close()).await;
}
