//! Files: the ledger, and a folder for each unit.

pub mod aside;
pub mod gap;
pub mod hold;
pub mod identity;
pub mod ledger;
pub mod mark;
pub mod outcome;
pub mod output;
pub mod private;
pub mod spent;
pub mod streams;
