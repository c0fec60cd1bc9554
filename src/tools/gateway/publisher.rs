//! Messages on their way to the broker, and those who wait for its confirmations.

use std::collections::HashMap;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::Kind;
use crate::model::message::Message;
use crate::net::mqtt::{Audience, Refused, Refuser, Token};
use crate::net::session::{Event, Session};

/// Maximum number of messages that wait to be sent: there are not more requests at a time.
pub const MAX_WAITING: usize = crate::net::http::MAX_CONNECTIONS;

/// What became of a message that the broker does not have for certain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// The broker is away, or went away before it confirmed.
    Away,
    /// Too many other messages wait for the broker.
    Busy,
    /// The broker refuses this message: a text for the caller.
    Refused(String),
    /// The broker takes no message of this size: a text for the caller.
    TooLarge(String),
    /// The broker cannot take it now: a text for the caller.
    Unable(String),
}

/// A message to publish, and who waits for it.
#[derive(Debug)]
pub struct Job {
    /// The message, with QoS 1.
    pub message: Message,
    /// Gets the result; a waiter may have left.
    pub reply: oneshot::Sender<Result<Audience, Failed>>,
}

/// Returns the ends of the queue of messages.
#[must_use]
pub fn jobs() -> (mpsc::Sender<Job>, mpsc::Receiver<Job>) {
    mpsc::channel(MAX_WAITING)
}

/// State of the connection to the broker, for those who ask.
#[derive(Debug)]
pub struct Link(watch::Sender<State>);

#[derive(Debug, Clone)]
struct State {
    is_online: bool,
    since: Timestamp,
}

/// Those who want to know when the broker is there again.
#[derive(Debug)]
pub struct Returns(watch::Receiver<State>);

impl Returns {
    /// Waits until a connection has come after one that is gone. Cancel safe.
    pub async fn next(&mut self) {
        while self.0.changed().await.is_ok() {
            if self.0.borrow_and_update().is_online {
                return;
            }
        }
        // It ends with the process.
        std::future::pending().await
    }
}

impl Link {
    /// Returns that of a gateway that starts.
    #[must_use]
    pub fn new() -> Self {
        let (is_online, since) = (false, Timestamp::now());
        Self(watch::Sender::new(State { is_online, since }))
    }

    /// Returns the connections from now on.
    #[must_use]
    pub fn returns(&self) -> Returns {
        Returns(self.0.subscribe())
    }

    /// Returns whether the broker is connected, and since when that is so.
    #[must_use]
    pub fn state(&self) -> (bool, Timestamp) {
        let state = self.0.borrow();
        (state.is_online, state.since)
    }

    fn set(&self, is_online: bool) {
        self.0.send_if_modified(|state| {
            let changes = state.is_online != is_online;
            if changes {
                let since = Timestamp::now();
                *state = State { is_online, since };
            }
            changes
        });
    }
}

/// Messages in flight.
#[derive(Debug, Default)]
pub struct Publisher {
    waiting: HashMap<Token, oneshot::Sender<Result<Audience, Failed>>>,
}

impl Publisher {
    /// Sends the message of `job`, unless the broker is away.
    pub fn send(&mut self, session: &mut Session, link: &Link, job: Job) {
        let Job { message, reply } = job;
        if !link.state().0 {
            let _ = reply.send(Err(Failed::Away));
            return;
        }
        match session.publish(message) {
            Some(token) => drop(self.waiting.insert(token, reply)),
            None => drop(reply.send(Err(Failed::Busy))),
        }
    }

    /// Tells those who wait what `event` means for them. Messages that were in flight when the
    /// connection ended are unconfirmed: the broker may have them or not.
    pub fn handle(&mut self, link: &Link, event: &Event) {
        match event {
            Event::Online => link.set(true),
            Event::Offline => {
                link.set(false);
                for (_, reply) in self.waiting.drain() {
                    let _ = reply.send(Err(Failed::Away));
                }
            }
            Event::Published(token, result) => {
                let Some(reply) = self.waiting.remove(token) else {
                    return;
                };
                let result = result.as_ref().copied();
                let _ = reply.send(result.map_err(|Refused(e, by)| match (by, e.kind()) {
                    (Refuser::Local, _) => Failed::TooLarge(e.to_string()),
                    (Refuser::Broker, Kind::NotAuthorised | Kind::Data) => {
                        Failed::Refused(e.to_string())
                    }
                    (Refuser::Broker, _) => Failed::Unable(e.to_string()),
                }));
            }
            Event::Received(_) | Event::Subscribed(_) | Event::Holds(_) | Event::Left => {}
        }
    }
}
