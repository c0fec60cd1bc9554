//! A lock that others may have left in a panic: what it protects is whole at any time.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
