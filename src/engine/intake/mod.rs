//! What comes: sources, what each event means to the triggers, and how many may wait.

pub mod backlog;
mod bridge;
mod door;
pub mod judge;
mod names;
pub mod offer;
mod pace;
mod pressure;
mod redelivery;
pub mod silence;
pub mod source;

pub use door::{Counts, Intake};
