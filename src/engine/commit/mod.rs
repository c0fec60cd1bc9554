//! What waits for the ledger, and what follows once it is on disk.

pub mod batch;
mod committed;
pub mod permit;
