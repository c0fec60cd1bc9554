//! Requests of callers that speak HTTP: who may send them, what of them becomes an event, and the
//! answers. Nothing here does I/O; secrets and the time are given.

pub mod rate;
pub mod request;
pub mod secret;
pub mod signature;
pub mod xmlrpc;
