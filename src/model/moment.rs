//! Times as people read them; JSON has seconds or RFC 3339 instead.

use jiff::Zoned;

/// Returns date and time: `2026-03-01 12:34:56`, in the time zone of `at`.
#[must_use]
pub fn text(at: &Zoned) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Returns the time of day, for lines that people see at once: `12:34:56`.
#[must_use]
pub fn clock(at: &Zoned) -> String {
    at.strftime("%H:%M:%S").to_string()
}

/// Returns a time in at most eleven columns, for tables: `12:34:56` on the day of `now`, `03-01 12:34`
/// in its year, otherwise `2025-03-01`.
#[must_use]
pub fn near(at: &Zoned, now: &Zoned) -> String {
    if at.date() == now.date() {
        return clock(at);
    }
    let form = match at.year() == now.year() {
        true => "%m-%d %H:%M",
        false => "%Y-%m-%d",
    };
    at.strftime(form).to_string()
}

/// Returns date and time in one word, for programs that read tables: `2026-03-01T12:34:56`.
#[must_use]
pub fn word(at: &Zoned) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use jiff::tz::TimeZone;

    #[test]
    fn times_as_people_read_them() {
        let at = Timestamp::from_second(1_772_368_496).expect("time");
        let at = at.to_zoned(TimeZone::UTC);
        assert_eq!(text(&at), "2026-03-01 12:34:56");
        assert_eq!(clock(&at), "12:34:56");
        assert_eq!(word(&at), "2026-03-01T12:34:56");
        let later = |days: i64| &at + jiff::SignedDuration::from_hours(24 * days);
        assert_eq!(near(&at, &at), "12:34:56");
        assert_eq!(near(&at, &later(1)), "03-01 12:34");
        assert_eq!(near(&at, &later(310)), "2026-03-01");
    }
}
