//! What a client publishes: statuses, the last end, and answers to requests.

mod answer_room;
pub mod answers;
pub mod followers;
pub mod last;
pub mod letters;
pub mod outbox;
pub mod reply;
mod reports;
pub mod status;

pub use reports::Reports;
