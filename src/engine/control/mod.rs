//! Requests of operators and other nodes: actions, work, a new configuration, a stop.

pub mod actions;
pub mod call;
pub mod reload;
pub mod remote;
pub mod retry_socket;
pub mod socket;
pub mod stop;
