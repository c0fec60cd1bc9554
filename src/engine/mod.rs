//! How one event becomes one run and one report.

pub mod admit;
pub mod config;
mod connect;
mod control;
mod failpoint;
mod outbox;
pub mod pipeline;
mod queue;
mod recovery;
pub mod runner;
mod runners;
mod settle;
mod stop;
mod units;
