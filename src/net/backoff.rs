//! Waits between attempts.

use std::time::Duration;

/// First wait after a failure; it doubles up to [`MAX`].
const FIRST: Duration = Duration::from_millis(500);
/// Maximum wait between two attempts.
const MAX: Duration = Duration::from_secs(30);

/// Returns a wait that doubles with each failure, at random between half and all of it. Otherwise
/// all clients would reach a restarted broker at once.
pub fn backoff(failures: u32) -> Duration {
    let full = FIRST.saturating_mul(1 << failures.min(16)).min(MAX);
    full.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit() {
        for failures in 0..64 {
            let wait = backoff(failures);
            assert!(wait >= FIRST / 2 && wait <= MAX, "{wait:?}");
        }
        assert!(backoff(60) >= MAX / 2);
    }
}
