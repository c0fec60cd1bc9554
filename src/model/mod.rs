//! The pure model: what an event, a trigger, a unit and a status are. Nothing here does I/O.

pub mod control;
pub mod duration;
pub mod env;
pub mod event;
pub mod message;
pub mod status;
pub mod text;
pub mod topic;
pub mod trigger;
pub mod unit;
