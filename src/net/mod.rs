//! The network: MQTT through one library, TLS, and a broker of our own for one machine.

mod acks;
mod backoff;
#[cfg(feature = "embedded-broker")]
pub mod broker;
pub mod mqtt;
pub mod oneshot;
pub mod options;
pub mod retained;
pub mod session;
pub mod tls;
pub mod transfer;
