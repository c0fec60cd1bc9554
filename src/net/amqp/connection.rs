//! A connection to a broker.

use std::pin::pin;
use std::sync::Arc;

use tokio::time::timeout;

use crate::net::amqp::channel::{CLOSE_TIMEOUT, Channel};
use crate::net::amqp::drive::drive;
use crate::net::amqp::failure::Failure;
use crate::net::amqp::handshake::{self, OPEN_TIMEOUT, Server};
use crate::net::amqp::options::AmqpOptions;
use crate::net::amqp::shared::{Handles, Shared};
use crate::net::amqp::state::State;

/// A connection, whose task runs until it fails, or until this and all channels are dropped.
pub struct Connection {
    handles: Arc<Handles>,
    server: Server,
}

impl Connection {
    /// Opens a connection, within [`OPEN_TIMEOUT`].
    ///
    /// # Errors
    /// The failure; nothing stays open.
    pub async fn open(options: &AmqpOptions) -> Result<Self, Failure> {
        let opened = handshake::open(options, OPEN_TIMEOUT).await?;
        let server = opened.server.clone();
        let shared = Shared::new(State::new(opened.channel_max, opened.frame_max));
        let handles = Arc::new(Handles(Arc::clone(&shared)));
        tokio::spawn(drive(opened, options.host.clone(), shared));
        Ok(Self { handles, server })
    }

    /// Returns what the broker says about itself.
    #[must_use]
    pub const fn server(&self) -> &Server {
        &self.server
    }

    /// Returns the size of what the broker has said on all channels and no user has taken, bytes,
    /// estimated. At 64 MiB the client stops reading.
    #[must_use]
    pub fn held(&self) -> usize {
        self.handles.0.lock().held()
    }

    /// Opens a channel.
    ///
    /// # Errors
    /// When the connection is closed, or has all the channels that the broker allows.
    pub async fn channel(&self) -> Result<Channel, Failure> {
        Channel::open(&self.handles).await
    }

    /// Returns the reason for which the broker blocks publishers; `None` while it does not.
    #[must_use]
    pub fn blocked(&self) -> Option<String> {
        self.handles.0.lock().blocked().map(str::to_owned)
    }

    /// Waits until the broker blocks publishers, if it did not, or until it does not, if it did.
    /// Returns the reason. A call that is dropped changes nothing. It waits for ever on a connection
    /// that is closed.
    pub async fn changed(&self, was_blocked: bool) -> Option<String> {
        loop {
            let mut news = pin!(self.handles.0.news.notified());
            news.as_mut().enable();
            let now = self.blocked();
            if now.is_some() != was_blocked {
                return now;
            }
            news.await;
        }
    }

    /// Waits until the connection is closed; returns why. A call that is dropped changes nothing.
    pub async fn closed(&self) -> Failure {
        loop {
            let mut news = pin!(self.handles.0.news.notified());
            news.as_mut().enable();
            let closed = self.handles.0.lock().closed().cloned();
            if let Some(failure) = closed {
                return failure;
            }
            news.await;
        }
    }

    /// Closes the connection, and waits for the answer for at most [`CLOSE_TIMEOUT`]. What its
    /// channels have sent before is handled by the broker.
    pub async fn close(self) {
        self.handles.0.change(State::close);
        // It is closed on this side in any case.
        let _ = timeout(CLOSE_TIMEOUT, self.closed()).await;
    }
}
