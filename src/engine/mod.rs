//! How one event becomes one run and one report. docs/design.md follows an event through the files.
//!
//! Rooms, from the ground: `commit` (the way to the ledger), `work` (units) and `report` (what is
//! published), `intake` (what comes), `observe` (what others see), `control` (what operators ask
//! for), `queue` (queues that work is taken from). `client` holds them, and is the one place that performs what they decide. `chain` leads an
//! event through them, and `service` is the loop.

mod after;
mod calls;
mod chain;
mod client;
mod commit;
pub mod config;
pub mod control;
mod deliveries;
mod intake;
mod link;
mod node;
pub mod observe;
mod opened;
pub mod pipeline;
pub mod preview;
mod queue;
mod repeats;
pub mod report;
mod requests;
pub mod service;
pub mod work;
