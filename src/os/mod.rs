//! The operating system: processes, locks, signals, folders, logs.

pub mod command;
pub mod descent;
pub mod facts;
pub mod folder;
pub mod hooks;
pub mod host;
pub mod host_lock;
pub mod inherit;
pub mod init;
pub mod lock;
pub mod logging;
pub mod memory;
pub mod notify;
pub mod paths;
pub mod proc;
pub mod process;
pub mod program;
pub mod signals;
pub mod slow;
pub mod socket;
pub mod stdout;
pub mod terminal;
pub mod watch;
