//! The pure model: what an event, a trigger, a unit and a status are. Nothing here does I/O.

pub mod check;
pub mod condition;
pub mod control;
pub mod duration;
pub mod env;
pub mod env_file;
pub mod event;
pub mod exec;
pub mod filter_index;
pub mod json;
pub mod marker;
pub mod message;
pub mod moment;
pub mod network;
pub mod network_address;
pub mod node;
pub mod outcome;
pub mod passthrough;
pub mod playbook;
mod sources;
pub mod status;
pub mod text;
pub mod topic;
pub mod trigger;
pub mod triggers;
pub mod unit;
pub mod variables;
