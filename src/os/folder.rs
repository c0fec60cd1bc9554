//! The folder in which this process was started. It may be removed and created again.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static START: OnceLock<PathBuf> = OnceLock::new();

/// Whether the folder was removed and created again.
static REPLACED: AtomicBool = AtomicBool::new(false);

/// Remembers the folder in which this process was started.
pub fn remember() {
    if let Ok(path) = env::current_dir() {
        let _ = START.set(path);
    }
}

/// Changes to the folder of the same path if the present one is gone; otherwise stays. Returns its
/// path after that: earlier children are still in the removed one.
pub fn find() -> Option<&'static Path> {
    let start = START.get()?;
    // It is gone if it has no path: `getcwd(3)` fails with ENOENT.
    if env::current_dir().is_err() && env::set_current_dir(start).is_ok() {
        REPLACED.store(true, Ordering::Relaxed);
    }
    REPLACED.load(Ordering::Relaxed).then_some(start)
}
