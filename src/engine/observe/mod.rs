//! The state of a client for others: one snapshot, for people, monitoring systems and the service
//! manager.

mod ends;
pub mod event_socket;
mod health;
mod metrics;
mod observer;
mod output_view;
pub mod snapshot;

pub use health::Signs;
pub use observer::Observer;
