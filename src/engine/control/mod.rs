//! Requests of operators: actions, a new configuration, a stop.

pub mod actions;
pub mod call;
pub mod reload;
pub mod retry_socket;
pub mod socket;
pub mod stop;
