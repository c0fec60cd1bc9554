//! The folder that this process was started in, which may be removed and made again.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static START: OnceLock<PathBuf> = OnceLock::new();

/// Whether the folder was removed and made again.
static REPLACED: AtomicBool = AtomicBool::new(false);

/// Notes where this process was started.
pub fn remember() {
    if let Ok(path) = env::current_dir() {
        let _ = START.set(path);
    }
}

/// Goes to the folder of the start's name if the one that we are in is gone; stays there as long
/// as there is none. Returns its path once that has happened: who was started before is still in
/// the one that is gone.
pub fn find() -> Option<&'static Path> {
    let start = START.get()?;
    // Without a name it is gone: `getcwd(3)` says ENOENT.
    if env::current_dir().is_err() && env::set_current_dir(start).is_ok() {
        REPLACED.store(true, Ordering::Relaxed);
    }
    REPLACED.load(Ordering::Relaxed).then_some(start)
}
