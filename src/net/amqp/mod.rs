//! AMQP 0-9-1 as RabbitMQ speaks it: a client for what Tael needs.
//!
//! [`Connection::open`] logs in; [`Connection::channel`] opens channels; [`Channel`] has the calls.
//! Every call can be dropped at any time. A task owns the socket, so that no handle
//! can hold back the heartbeats.
//!
//! The layers, from the ground: [`wire`] and [`value`] (types), [`method`], [`properties`] and
//! [`frame`] (the stream), `content` (messages), `happenings` (what waits for users), `channel_state` and
//! `state` (what frames and calls change; no input or output), `handshake` and `drive` (the socket), [`Channel`] and [`Connection`].

mod call;
mod channel;
mod channel_state;
mod connection;
mod consumer;
pub mod content;
mod drive;
mod failure;
pub mod frame;
mod handshake;
mod happenings;
mod link;
mod load;
mod message;
pub mod method;
mod options;
pub mod properties;
mod publisher;
pub mod queue;
mod received;
pub mod session;
mod share;
mod shared;
mod state;
#[cfg(test)]
mod tests;
mod unconfirmed;
pub mod value;
pub mod wire;

pub use channel::{CLOSE_TIMEOUT, Channel};
pub use connection::Connection;
pub use failure::{Failure, FailureKind, codes};
pub use handshake::{OPEN_TIMEOUT, Server};
pub use message::{Declare, Declared, Delivery, Happening, Publish, Returned};
pub use options::{AmqpOptions, HEARTBEAT, PORT, TLS_PORT, VHOST};
pub use properties::{PERSISTENT, Properties};
pub use received::ROUTES;
pub use unconfirmed::{Confirm, Unconfirmed};
pub use value::{Table, Value};
