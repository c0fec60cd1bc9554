//! How one event becomes one run and one report.

pub mod admit;
mod control;
mod failpoint;
mod outbox;
pub mod pipeline;
mod queue;
mod recovery;
pub mod runner;
mod runners;
mod settle;
