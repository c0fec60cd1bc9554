//! Requests of callers that speak HTTP: who may send them, what of them becomes an event, and the
//! answers. Nothing here does I/O; secrets and the time are given.

pub mod answer;
pub mod callers;
pub mod keys;
pub mod mapping;
pub mod parameters;
pub mod part;
pub mod path;
pub mod rate;
pub mod request;
pub mod route;
pub mod routes;
pub mod rules;
pub mod secret;
pub mod signature;
pub mod topics;
pub mod work;
pub mod xmlrpc;
