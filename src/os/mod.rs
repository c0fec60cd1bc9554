//! The operating system: processes, locks, signals, folders, logs.

pub mod command;
pub mod descent;
pub mod host;
pub mod lock;
pub mod logging;
pub mod notify;
pub mod paths;
pub mod proc;
pub mod process;
pub mod signals;
