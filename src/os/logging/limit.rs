//! Limits the lines that senders cause: the first ones are logged, the others counted.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Maximum number of warnings of one kind in a period; further ones are counted.
pub const MAX_WARNINGS: u32 = 20;

/// The same for other lines.
pub const MAX_NOTES: u32 = 200;

/// Maximum number of lines of one kind in a period after one with too many.
const MAX_LINES_LATER: u32 = 1;

/// Length of a period; it doubles after each period with too many lines.
pub const PERIOD: Duration = Duration::from_secs(60);

/// Maximum length of a period.
const MAX_PERIOD: Duration = Duration::from_secs(3600);

/// Lines of one kind within a period.
#[derive(Debug)]
struct Period {
    start: Instant,
    length: Duration,
    logged: u32,
    allowed: u32,
    held: u64,
    /// The last line that was counted.
    example: String,
}

/// Summary of the lines that were counted.
#[derive(Debug, PartialEq, Eq)]
pub struct Summary {
    /// Number of lines.
    pub count: u64,
    /// Time in which they came.
    pub within: Duration,
    /// The last of them.
    pub example: String,
}

/// Counts lines by kind. The code that logs bounds the number of kinds.
#[derive(Debug)]
pub struct Limit<K> {
    periods: HashMap<K, Period>,
}

impl Period {
    /// Returns one that begins at `now`, with at most `allowed` lines.
    const fn new(now: Instant, allowed: u32) -> Self {
        Self {
            start: now,
            length: PERIOD,
            logged: 0,
            allowed,
            held: 0,
            example: String::new(),
        }
    }
}

impl<K: Eq + Hash> Limit<K> {
    /// Returns a limit that has counted nothing.
    pub fn new() -> Self {
        Self {
            periods: HashMap::new(),
        }
    }

    /// Returns whether a line of `kind` may be logged now, with at most `most` in a period.
    /// Otherwise it is counted.
    pub fn allows(&mut self, kind: K, most: u32, line: &str, now: Instant) -> bool {
        let period = self
            .periods
            .entry(kind)
            .or_insert_with(|| Period::new(now, most));
        if period.held == 0 && now.saturating_duration_since(period.start) >= period.length {
            *period = Period::new(now, most);
        }
        if period.logged < period.allowed {
            period.logged += 1;
            return true;
        }
        period.held += 1;
        line.clone_into(&mut period.example);
        false
    }

    /// Returns when the next summary is due.
    pub fn due(&self) -> Option<Instant> {
        let open = self.periods.values().filter(|period| period.held > 0);
        open.map(|period| period.start + period.length).min()
    }

    /// Takes the summaries that are due `now`, or all of them at the end.
    pub fn summaries(&mut self, now: Instant, at_the_end: bool) -> Vec<Summary> {
        let mut summaries = Vec::new();
        for period in self.periods.values_mut().filter(|period| period.held > 0) {
            let elapsed = now.saturating_duration_since(period.start);
            if elapsed < period.length && !at_the_end {
                continue;
            }
            summaries.push(Summary {
                count: period.held,
                within: elapsed,
                example: std::mem::take(&mut period.example),
            });
            *period = Period {
                start: now,
                length: (period.length * 2).min(MAX_PERIOD),
                logged: 0,
                allowed: MAX_LINES_LATER,
                held: 0,
                example: String::new(),
            };
        }
        summaries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logs `times` lines, as far as that is allowed. Returns how many were logged.
    fn logged(limit: &mut Limit<u8>, kind: u8, times: u32, now: Instant) -> u32 {
        (0..times)
            .map(|n| u32::from(limit.allows(kind, MAX_WARNINGS, &n.to_string(), now)))
            .sum()
    }

    #[test]
    fn the_first_are_logged_the_rest_is_counted() {
        let (mut limit, start) = (Limit::new(), Instant::now());
        assert_eq!(logged(&mut limit, 1, MAX_WARNINGS, start), MAX_WARNINGS);
        assert_eq!(limit.due(), None);
        assert_eq!(logged(&mut limit, 1, 1000, start), 0);
        // Kinds are counted separately.
        assert_eq!(logged(&mut limit, 2, 5, start), 5);
        assert_eq!(limit.due(), Some(start + PERIOD));
        assert_eq!(limit.summaries(start, false), []);
        let later = start + PERIOD;
        let summary = Summary {
            count: 1000,
            within: PERIOD,
            example: "999".into(),
        };
        assert_eq!(limit.summaries(later, false), [summary]);
        assert_eq!(limit.summaries(later, true), []);
        // A quiet period resets the limit.
        assert_eq!(
            logged(&mut limit, 1, 1000, later + 2 * PERIOD),
            MAX_WARNINGS
        );
    }

    #[test]
    fn a_day_of_junk_is_a_short_mail() {
        let (mut limit, start) = (Limit::new(), Instant::now());
        let (mut lines, mut counted) = (0, 0);
        for second in 0..24 * 3600 {
            let now = start + Duration::from_secs(second);
            let summaries = limit.summaries(now, false);
            lines += u32::try_from(summaries.len()).expect("few");
            counted += summaries.iter().map(|s| s.count).sum::<u64>();
            let direct = logged(&mut limit, 1, 10, now);
            lines += direct;
            counted += u64::from(direct);
        }
        counted += limit.summaries(start, true)[0].count;
        assert!(lines < 100, "{lines}");
        assert_eq!(counted, 24 * 3600 * 10);
    }
}
