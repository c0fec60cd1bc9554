//! Time that does not count: a process that is stopped, or that waits for the reader of its output, cannot
//! read the answers that come meanwhile.
//!
//! Times are durations since the sender began, so that nothing here needs a clock.

use std::time::Duration;

/// Shortest and longest wait of a timer. A process that was stopped notices that by a timer that is late.
const PULSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// Lateness of a timer that is no standstill: a host that is busy makes timers late too, one after another.
const SLACK: Duration = Duration::from_secs(1);

/// Time after a standstill for what has come meanwhile: it is not read yet.
const GRACE: Duration = Duration::from_secs(1);

/// A turn of a loop, which a timer ends at the latest.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Turn {
    begin: Duration,
    wake: Duration,
}

impl Turn {
    /// Returns a turn that begins `now`, until something is `due`. A standstill that no timer notices takes a
    /// part of a try, which has `timeout`, at most.
    pub fn new(now: Duration, due: Duration, timeout: Duration) -> Self {
        let pulse = (timeout / 8).clamp(PULSES.0, PULSES.1);
        Self {
            begin: now,
            wake: due.clamp(now, now.saturating_add(pulse)),
        }
    }

    /// Returns when its timer ends it.
    pub const fn wake(&self) -> Duration {
        self.wake
    }

    /// Returns the time that is lost if this process was stopped during the turn, which ends `now`.
    pub fn standstill(&self, now: Duration) -> Option<Duration> {
        let is_late = now > self.wake.saturating_add(SLACK);
        is_late.then(|| now.saturating_sub(self.begin))
    }
}

/// Returns how much later a try, which has `timeout`, ends for `lost` time.
pub(super) fn delay(lost: Duration, timeout: Duration) -> Duration {
    let grace = match lost > SLACK {
        true => GRACE.min(timeout),
        false => Duration::ZERO,
    };
    lost.saturating_add(grace)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_turn_ends_when_something_is_due_and_in_time_to_notice_a_standstill() {
        let wake = |now, due, timeout| Turn::new(now, due, timeout).wake();
        assert_eq!(wake(ms(500), ms(700), ms(8_000)), ms(700));
        assert_eq!(wake(ms(500), ms(400), ms(8_000)), ms(500), "it is over");
        assert_eq!(wake(ms(500), Duration::MAX, ms(8_000)), ms(1_500));
        assert_eq!(wake(ms(500), Duration::MAX, ms(1)), ms(600));
        assert_eq!(wake(ms(500), Duration::MAX, Duration::MAX), ms(60_500));
        assert_eq!(wake(Duration::MAX, ms(1), ms(1)), Duration::MAX);
    }

    #[test]
    fn a_late_timer_is_a_standstill_from_the_beginning_of_its_turn() {
        let turn = Turn::new(ms(500), ms(700), ms(8_000));
        for busy in [ms(500), ms(700), ms(1_700)] {
            assert_eq!(turn.standstill(busy), None, "{busy:?}");
        }
        assert_eq!(turn.standstill(ms(1_701)), Some(ms(1_201)));
        let last = Turn::new(Duration::MAX, Duration::MAX, ms(1));
        assert_eq!(last.standstill(Duration::MAX), None);
    }

    #[test]
    fn a_standstill_leaves_time_to_read_what_has_come() {
        assert_eq!(delay(Duration::ZERO, ms(500)), Duration::ZERO);
        assert_eq!(delay(ms(1_000), ms(500)), ms(1_000));
        assert_eq!(delay(ms(1_001), ms(500)), ms(1_501));
        assert_eq!(delay(ms(1_001), ms(9_000)), ms(2_001));
        assert_eq!(delay(Duration::MAX, ms(500)), Duration::MAX);
    }
}
