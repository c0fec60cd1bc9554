//! The ledger: accepted events, their units, and messages that are not published yet.
//!
//! One SQLite file for each pipeline. All writes go through one thread, which commits everything
//! that waits as one transaction. Readers open the file themselves.

mod accept;
mod failure;
mod identity;
pub mod last_ends;
mod letters;
pub mod listing;
mod migrate;
mod network;
pub mod oldest;
mod packets;
mod place;
mod prune;
pub mod queues;
mod reader;
pub mod received;
mod records;
mod rows;
mod schema;
mod state;
pub mod submitted;
mod write;
mod writer;

pub use accept::{Acceptance, CANCELED, Part, Refused};
pub use identity::{Again, EventKey, Known, Naming};
pub use letters::Posted;
pub use prune::{Pruned, Retention};
pub use reader::{Reader, Totals};
pub use records::Record;
pub use rows::{Queued, released_file};
pub use schema::file;
pub use write::{Done, Heard, Op};
pub use writer::{Committed, Fault, Ledger, OnDisk, Openable};

#[cfg(test)]
mod tests;
