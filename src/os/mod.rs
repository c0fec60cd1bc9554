//! The operating system: processes, locks, signals, folders, logs.

pub mod command;
pub mod host;
pub mod lock;
pub mod logging;
pub mod notify;
pub mod paths;
pub mod process;
pub mod signals;
