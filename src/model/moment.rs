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
    }
}
