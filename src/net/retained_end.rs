//! When all retained messages of a subscription have come.

use std::time::Duration;

use tokio::time::Instant;

/// Maximum time between a marker and a first message after it. Some brokers look for retained messages
/// in the background.
const QUIET: Duration = Duration::from_millis(400);

/// Silence after which all retained messages have come, if no marker comes: a broker that refuses our
/// marker gives no other sign. A lost packet is sent again within this time.
pub const SILENCE: Duration = Duration::from_secs(2);

/// The end of the retained messages of one connection. We publish a marker right behind the
/// subscription: what comes before it is all there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetainedEnd {
    at: Instant,
    is_marked: bool,
    has_messages: bool,
}

impl RetainedEnd {
    /// Begins with a subscription at `now`. The first message or the marker comes within `patience`.
    #[must_use]
    pub fn new(now: Instant, patience: Duration) -> Self {
        Self {
            at: now + patience,
            is_marked: false,
            has_messages: false,
        }
    }

    /// Takes a retained message.
    pub fn message(&mut self, now: Instant) {
        self.has_messages = true;
        self.at = now + if self.is_marked { QUIET } else { SILENCE };
    }

    /// Takes the marker, and returns whether everything has come.
    #[must_use]
    pub fn marker(&mut self, now: Instant) -> bool {
        self.is_marked = true;
        if !self.has_messages {
            self.at = now + QUIET;
        }
        self.has_messages
    }

    /// Returns when everything has come, if nothing comes before.
    #[must_use]
    pub const fn at(&self) -> Instant {
        self.at
    }

    /// Returns whether the marker has come.
    #[must_use]
    pub const fn is_marked(&self) -> bool {
        self.is_marked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_long_silence_stands_for_a_marker() {
        let begun = Instant::now();
        let mut end = RetainedEnd::new(begun, SILENCE);
        assert_eq!(end.at(), begun + SILENCE);
        // Each message is followed by the whole silence, also one that comes late.
        for ms in [0, 10, 1900] {
            let now = begun + Duration::from_millis(ms);
            end.message(now);
            assert_eq!(end.at(), now + SILENCE, "{ms} ms");
        }
        assert!(end.marker(begun));
    }

    #[test]
    fn a_marker_without_a_message_waits_for_brokers_that_look_in_the_background() {
        let begun = Instant::now();
        let mut end = RetainedEnd::new(begun, Duration::from_secs(10));
        assert!(!end.marker(begun));
        assert_eq!(end.at(), begun + QUIET);
        let now = begun + Duration::from_millis(300);
        end.message(now);
        assert_eq!(end.at(), now + QUIET);
        assert!(end.is_marked());
    }
}
