//! Tael: a finished pipeline on one machine starts the next one on another, over MQTT.
//!
//! The house, floor by floor; a file uses lower floors and its own only (`tests/house.rs`
//! holds that):
//!
//! - [`error`]: errors and exit codes
//! - [`model`]: pure: what events, triggers, units and statuses are
//! - [`os`]: processes, locks, signals, folders, logs
//! - [`net`] and [`store`], which do not know each other: MQTT; the ledger and unit folders
//! - [`runner`]: the process that supervises one unit
//! - [`engine`]: how one event becomes one run and one report
//! - [`tools`]: one file per command
//! - [`cli`]: command lines, configuration, dispatch
//!
//! docs/design.md follows one event, one payload byte and one status through the files.

pub mod cli;
pub mod engine;
pub mod error;
pub mod model;
pub mod net;
pub mod os;
pub mod runner;
pub mod store;
pub mod tools;
