//! How one event becomes one run and one report.

pub mod admit;
mod committed;
pub mod config;
mod connect;
mod control;
mod failpoint;
mod health;
mod inbound;
mod job;
mod last;
mod later;
mod metrics;
mod names;
pub mod outbox;
pub mod pipeline;
mod queue;
mod recovery;
mod redelivery;
pub mod reload;
mod reply;
pub mod runner;
mod runners;
mod settle;
mod silence;
mod stop;
mod units;
mod word;
