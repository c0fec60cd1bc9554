//! The way to the ledger: changes, what follows each, and what the parts ask the client to do.

mod batch;
mod commits;
pub mod permit;
pub mod receipt;
pub mod step;

pub use commits::Commits;
