//! How long to wait before the next try.

use std::time::Duration;

/// First wait after a failure; it doubles up to [`MAX`].
const FIRST: Duration = Duration::from_millis(500);
/// The longest wait between two attempts.
const MAX: Duration = Duration::from_secs(30);

/// A wait that doubles with each failure, between half and all of it, so that a restarted
/// broker is not met by everybody at once.
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
