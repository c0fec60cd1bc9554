//! The network: MQTT through one library, AMQP by a client of our own, HTTP, TLS, and a broker of our own for one machine.

mod acks;
pub mod amqp;
pub mod attempts;
pub mod backoff;
#[cfg(feature = "embedded-broker")]
pub mod broker;
mod copies;
mod dial;
mod filter_table;
mod greeting;
pub mod http;
mod identifiers;
mod leave;
pub mod management;
pub mod mqtt;
pub mod notice;
pub mod oneshot;
pub mod options;
pub mod password;
pub mod quick_ack;
pub mod retained;
pub mod retained_end;
pub mod session;
mod subscriber;
pub mod tls;
mod tls_failure;
pub mod transfer;
