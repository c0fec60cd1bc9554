//! What is told: statuses, the last end, and answers to requests.

pub mod last;
pub mod outbox;
pub mod reply;
pub mod settle;
mod statuses;
