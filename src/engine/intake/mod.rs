//! What comes: messages, silences, and what each means to the triggers.

pub mod backlog;
mod inbound;
pub mod judge;
pub mod names;
pub mod pace;
pub mod pressure;
pub mod redelivery;
pub mod silence;
