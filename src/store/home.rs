//! The folder that a pipeline lives in.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::model::text::printable;
use crate::os::host::hostname;
use crate::os::lock::Lock;
use crate::store::private::{self, create_private_dir};
use crate::store::unit_dir::RUNNERS;

/// Maximum time that the lock of a killed client may outlive it. A process that it was about to
/// start has a copy until it executes its program.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// Interval between two attempts.
const LOCK_LOOK: Duration = Duration::from_millis(20);

/// Creates the missing folders of a pipeline.
///
/// # Errors
/// When one cannot be created (73).
pub fn make_folders(pipeline: &Path) -> Result<()> {
    create_private_dir(&pipeline.join("units"))?;
    create_private_dir(&pipeline.join(RUNNERS))
}

/// The state folder of a pipeline, locked by this process.
#[derive(Debug)]
pub struct Home {
    pub(crate) path: PathBuf,
    lock: Arc<Lock>,
}

impl Home {
    /// Creates and locks the folder of pipeline `who` below `state`. The inner error names the
    /// holder, if a client of that name runs already.
    ///
    /// # Errors
    /// When it cannot be created, or other users can change its content (73).
    pub fn acquire(state: &Path, who: &str) -> Result<Result<Self, String>> {
        let path = state.join(who);
        create_private_dir(state)?;
        private::check_root(state)?;
        create_private_dir(&path)?;
        private::check(&path)?;
        private::check_entries(&path)?;
        make_folders(&path)?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            let file = path.join("lock");
            if let Some(lock) = Lock::try_acquire(&file)? {
                // The signature only helps people, and a full disk must not prevent the start.
                let _ = lock.sign(&format!("pid {} on {}\n", std::process::id(), hostname()));
                let lock = Arc::new(lock);
                return Ok(Ok(Self { path, lock }));
            }
            if Instant::now() >= deadline {
                let holder = Lock::signature(&file).map(|holder| printable(&holder, 200));
                return Ok(Err(holder.unwrap_or_else(|| "an unknown process".into())));
            }
            std::thread::sleep(LOCK_LOOK);
        }
    }

    /// Keeps the lock until this process ends, also after this is dropped.
    pub fn stay_locked(&self) {
        std::mem::forget(Arc::clone(&self.lock));
    }
}
