//! Files: the ledger, and a folder for each unit.

pub mod aside;
pub mod home;
pub mod identity;
pub mod ledger;
pub mod mark;
pub mod payload_file;
pub mod private;
pub mod room;
pub mod unit_dir;
pub mod view;
