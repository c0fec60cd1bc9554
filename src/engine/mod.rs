//! How one event becomes one run and one report. docs/design.md follows an event through the files.
//!
//! Rooms, from the ground: `commit` (the way to the ledger), `work` (units) and `report` (what is
//! published), `intake` (what comes), `observe` (what others see), `control` (what operators ask
//! for). `client` stands above them: the chain, and the one place that performs what the parts
//! decide. `service` is the loop around it.

mod after;
mod client;
mod commit;
pub mod config;
pub mod control;
mod intake;
mod link;
mod observe;
mod pipeline;
pub mod report;
pub mod service;
pub mod work;
