//! Units: which starts when, their runners, and what an earlier client has left.

pub mod cleanup;
pub mod job;
pub mod lanes;
pub mod pool;
pub mod recovery;
mod units;
