//! How one event becomes one run and one report.
//!
//! Rooms: `commit` (what waits for the ledger), `work` (units), `report` (statuses and replies),
//! `intake` (events), `control` (requests, reload, stop), `observe` (figures for people and
//! programs), and `client`, the loop.

pub mod client;
mod commit;
pub mod config;
mod connect;
pub mod control;
mod intake;
mod observe;
pub mod report;
pub mod work;
