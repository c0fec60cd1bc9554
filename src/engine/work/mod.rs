//! Units: the order of starts, runners, ends, and units of an earlier client.

mod adopted;
pub mod cleanup;
pub mod delegates;
mod end;
mod handover;
pub mod job;
pub mod lanes;
mod live;
mod pool;
pub mod quota;
mod receipts;
pub mod recovery;
pub mod retry;
mod shortage;
mod start;
mod units;

pub use end::Ended;
pub use pool::Report;
pub use units::{MAX_PACE_DELAY, Units};
