//! Intake: sources, the meaning of events to triggers, and limits of waiting events.

pub mod backlog;
mod bridge;
mod door;
pub mod judge;
mod names;
pub mod offer;
mod pace;
mod pressure;
pub mod queued;
pub mod recent;
mod redelivery;
mod requesters;
pub mod silence;
pub mod source;
pub mod submission;

pub use door::{Counts, Intake};
