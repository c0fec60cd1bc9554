//! Detects bursts, during which messages are taken in before runs start. Pure.
//!
//! A broker keeps a bounded number of messages for a client that is slower than its senders, and
//! drops the others: 1,000 for mosquitto by default. During a start, for us and for the command
//! that then competes with us, nothing is acknowledged. An event that waits in the ledger is safe,
//! and starts a little later.

use std::time::Duration;

use tokio::time::Instant;

/// Time without starts after we have handled or acknowledged a message of a burst: the broker may
/// have waited for that.
const GAP: Duration = Duration::from_millis(10);

/// Maximum gap between two messages of a burst.
const END: Duration = Duration::from_millis(100);

/// Maximum time that we wait for a message of a burst, on average over the last [`AVERAGED`].
const EACH: Duration = Duration::from_millis(5);

/// Number of messages in a row that make a burst. Each start before that costs milliseconds in
/// which nothing is taken in.
const BURST: u32 = 4;

/// Number of messages over which gaps are averaged, approximately: one gap does not end a burst.
const AVERAGED: u32 = 20;

/// Maximum time that a burst delays starts: a flow without end is not a burst.
const MAX_HOLD: Duration = Duration::from_secs(2);

/// Recent messages.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pressure {
    /// Since when no message waits for us.
    idle_since: Option<Instant>,
    /// Time that we have waited for the last [`AVERAGED`] messages, approximately.
    waited: Duration,
    count: u32,
    /// Start of the burst.
    since: Option<Instant>,
}

impl Pressure {
    /// Notes a message at `now`.
    pub fn came(&mut self, now: Instant) {
        let idle_since = self.idle_since.replace(now);
        match idle_since.map(|idle_since| now.duration_since(idle_since)) {
            Some(gap) if gap < END => self.waited = self.waited - self.waited / AVERAGED + gap,
            // It is not a burst until that has fallen.
            _ => (self.count, self.waited) = (0, EACH * AVERAGED),
        }
        self.count = self.count.saturating_add(1);
        let burst = self.count >= BURST && self.waited <= EACH * AVERAGED;
        self.since = burst.then(|| self.since.unwrap_or(now));
    }

    /// Notes that a message was handled or acknowledged at `now`.
    pub fn served(&mut self, now: Instant) {
        self.idle_since = self.idle_since.map(|_| now);
    }

    /// Returns until when nothing starts, unless more messages come; `None` if a start may be now.
    #[must_use]
    pub fn holds_until(&self, now: Instant) -> Option<Instant> {
        let until = (self.idle_since? + GAP).min(self.since? + MAX_HOLD);
        (now < until).then_some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_holds_starts_until_it_is_over() {
        let (mut pressure, start) = (Pressure::default(), Instant::now());
        let ms = |ms| start + Duration::from_millis(ms);
        for n in 0..3 {
            pressure.came(ms(n));
            assert_eq!(pressure.holds_until(ms(n)), None, "that is no burst yet");
        }
        pressure.came(ms(3));
        assert_eq!(pressure.holds_until(ms(3)), Some(ms(13)));
        assert_eq!(pressure.holds_until(ms(12)), Some(ms(13)));
        assert_eq!(pressure.holds_until(ms(13)), None);
        pressure.came(ms(15));
        assert_eq!(pressure.holds_until(ms(15)), Some(ms(25)), "it goes on");
        pressure.came(ms(240));
        assert_eq!(pressure.holds_until(ms(240)), None, "a single one is none");
    }

    #[test]
    fn a_broker_that_waits_for_acknowledgements_goes_on_with_its_burst() {
        let (mut pressure, start) = (Pressure::default(), Instant::now());
        let ms = |ms| start + Duration::from_millis(ms);
        for window in 0..3 {
            // A commit takes longer than the gap.
            (0..20).for_each(|_| pressure.came(ms(window * 30)));
            pressure.served(ms(window * 30 + 25));
        }
        assert_eq!(pressure.count, 60);
        assert_eq!(pressure.holds_until(ms(86)), Some(ms(95)));
    }

    #[test]
    fn a_steady_flow_is_no_burst() {
        let (mut pressure, start) = (Pressure::default(), Instant::now());
        for n in 0..1000 {
            let now = start + Duration::from_millis(n * 8);
            pressure.came(now);
            assert_eq!(pressure.holds_until(now), None);
        }
    }

    #[test]
    fn a_flow_without_end_holds_nothing_up_for_long() {
        let (mut pressure, start) = (Pressure::default(), Instant::now());
        let mut held = 0;
        for n in 0..10_000 {
            let now = start + Duration::from_millis(n);
            pressure.came(now);
            held += u32::from(pressure.holds_until(now).is_some());
        }
        assert!((1900..2100).contains(&held), "{held} ms");
    }
}
