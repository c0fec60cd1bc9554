//! Whether the task that reads the network makes progress.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Last progress of the task that reads the network; `None` while it waits for its holder.
#[derive(Debug, Clone)]
pub(super) struct Progress(Arc<Mutex<(Option<Instant>, Duration)>>);

impl Progress {
    /// Allows `silence` without progress.
    pub fn new(silence: Duration) -> Self {
        Self(Arc::new(Mutex::new((Some(Instant::now()), silence))))
    }

    pub fn made(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = Some(Instant::now());
    }

    pub fn waits_for_holder(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = None;
    }

    pub fn allow(&self, silence: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1 = silence;
    }

    pub fn is_missing(&self) -> bool {
        let (at, silence) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        at.is_some_and(|at| at.elapsed() > silence)
    }
}
