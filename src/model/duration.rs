//! Durations as people write and read them (`10s`, `5m`, `1h 30m`, `90`), and as Python prints them.

use std::time::Duration;

use jiff::SignedDuration;

/// Maximum duration, 100 years: every clock can add it to its time.
const MAX: Duration = Duration::from_secs(36_525 * 86_400);

/// Parses a duration of zero or more: a number of seconds (`90`, `0.5`), or amounts with units
/// (`10s`, `5m`, `1h 30m`, `2d`). A day has 24 hours.
///
/// # Errors
/// A text for the user, with the expected forms.
pub fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let wrong = || format!("'{text}' is not a duration: write 10s, 5m, 1h30m or 2d");
    let bounded = |duration: Duration| {
        if duration > MAX {
            return Err(format!(
                "'{text}' is too long: {} days at most",
                MAX.as_secs() / 86_400
            ));
        }
        Ok(duration)
    };
    if let Ok(seconds) = text.parse::<f64>() {
        let seconds = Duration::try_from_secs_f64(seconds).map_err(|_| wrong());
        return bounded(seconds?);
    }
    let (days, rest) = match text.split_once('d') {
        Some((days, rest)) if days.bytes().all(|b| b.is_ascii_digit()) && !days.is_empty() => {
            (days.parse::<u64>().map_err(|_| wrong())?, rest.trim())
        }
        _ => (0, text),
    };
    let rest = match rest {
        "" if days > 0 => SignedDuration::ZERO,
        rest => rest.parse::<SignedDuration>().map_err(|_| wrong())?,
    };
    days.checked_mul(86_400)
        .map(Duration::from_secs)
        .and_then(|days| days.checked_add(rest.try_into().ok()?))
        .ok_or_else(wrong)
        .and_then(bounded)
}

/// Parses a time to wait for something, as [`parse`] does.
///
/// # Errors
/// A text for the user, also for 0.
pub fn parse_wait(text: &str) -> Result<Duration, String> {
    match parse(text)? {
        Duration::ZERO => Err(format!("'{text}' leaves no time: write 10s, 5m or 1h30m")),
        time => Ok(time),
    }
}

/// Returns the seconds for a Message Expiry Interval, rounded up. 1 is the shortest that a broker
/// counts.
#[must_use]
pub fn whole_seconds(duration: Duration) -> u32 {
    let seconds = duration.as_millis().div_ceil(1000).max(1);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// Returns a span as people read it and as [`parse`] takes it, to the millisecond: `407ms`, `1.5s`,
/// `12s`, `11m`, `1h 30m`, `2d`.
#[must_use]
pub fn text(span: Duration) -> String {
    let mut rest = span.as_millis();
    let mut words = Vec::new();
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000)] {
        if rest >= size {
            words.push(format!("{}{unit}", rest / size));
            rest %= size;
        }
    }
    let (seconds, millis) = (rest / 1000, rest % 1000);
    if millis > 0 && seconds == 0 {
        words.push(format!("{millis}ms"));
    } else if millis > 0 {
        let fraction = format!("{millis:03}");
        words.push(format!("{seconds}.{}s", fraction.trim_end_matches('0')));
    } else if seconds > 0 || words.is_empty() {
        words.push(format!("{seconds}s"));
    }
    words.join(" ")
}

/// Returns a span as [`text`] does, rounded down for tables: from a second to a tenth of one, from a
/// minute to the second.
#[must_use]
pub fn rough(span: Duration) -> String {
    match span.as_secs() {
        0 => text(span),
        1..60 => {
            let tenths = span.subsec_millis() / 100 * 100;
            text(Duration::from_secs(span.as_secs()) + Duration::from_millis(tenths.into()))
        }
        seconds => text(Duration::from_secs(seconds)),
    }
}

/// Returns a span as [`rough`] does, in two units: from an hour to the minute, from a day to the hour
/// (`3h 2m`, `40d`). It has at most eight columns below 10,000 days.
#[must_use]
pub fn brief(span: Duration) -> String {
    let whole = |unit: u64| Duration::from_secs(span.as_secs() / unit * unit);
    match span.as_secs() {
        0..3600 => rough(span),
        3600..86_400 => rough(whole(60)),
        _ => rough(whole(3600)),
    }
}

/// Returns a span as statuses carry it, as `str(timedelta)` of Python prints it: `0:00:01.234567`,
/// `1 day, 2:03:04`.
///
/// Source: Python 3, `datetime.timedelta.__str__`; it leaves out zero microseconds.
#[must_use]
pub fn python(duration: Duration) -> String {
    let (seconds, micros) = (duration.as_secs(), duration.subsec_micros());
    let (days, seconds) = (seconds / 86_400, seconds % 86_400);
    let mut out = match days {
        0 => String::new(),
        1 => "1 day, ".to_owned(),
        n => format!("{n} days, "),
    };
    out += &format!(
        "{}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    );
    if micros > 0 {
        out += &format!(".{micros:06}");
    }
    out
}

/// Returns the span that [`python`] has printed.
#[must_use]
pub fn from_python(text: &str) -> Option<Duration> {
    let (days, rest) = match text.split_once(", ") {
        Some((days, rest)) => (days.split(' ').next()?.parse::<u64>().ok()?, rest),
        None => (0, text),
    };
    let (whole, micros) = match rest.split_once('.') {
        Some((whole, digits)) if digits.len() == 6 => (whole, digits.parse::<u32>().ok()?),
        Some(_) => return None,
        None => (rest, 0),
    };
    let mut seconds = days.checked_mul(24)?;
    let mut parts = 0;
    for (n, part) in whole.split(':').enumerate() {
        let part: u64 = part.parse().ok()?;
        // Days count as hours; minutes and seconds follow.
        let base = if n == 0 { 1 } else { 60 };
        seconds = seconds.checked_mul(base)?.checked_add(part)?;
        parts += 1;
    }
    (parts == 3).then_some(Duration::new(seconds, micros * 1000))
}

/// A duration as the ledger holds it: a number of milliseconds.
pub mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes the number; as many as there are at most if it is larger.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    /// Reads the number.
    ///
    /// # Errors
    /// When there is no such number.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

/// The same of a duration that may be missing.
pub mod millis_if_any {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes the number, or null.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::millis::serialize(duration, to),
            None => to.serialize_none(),
        }
    }

    /// Reads the number, or null.
    ///
    /// # Errors
    /// When there is something else.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_as_people_write_them() {
        let secs = Duration::from_secs;
        for (text, want) in [
            ("0", secs(0)),
            ("90", secs(90)),
            ("0.5", Duration::from_millis(500)),
            ("10s", secs(10)),
            ("5m", secs(300)),
            ("1h30m", secs(5400)),
            ("1h 30m", secs(5400)),
            ("2d", secs(172_800)),
            ("30d", secs(2_592_000)),
            ("1d 12h", secs(129_600)),
            ("250ms", Duration::from_millis(250)),
        ] {
            assert_eq!(parse(text), Ok(want), "{text}");
        }
        for text in ["", "-1", "-5s", "soon", "5 parsecs", "1e400", "nan", "d"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_as_python_prints_them() {
        assert_eq!(python(Duration::from_micros(1_234_567)), "0:00:01.234567");
        assert_eq!(python(Duration::from_secs(61)), "0:01:01");
        assert_eq!(python(Duration::from_secs(36_000)), "10:00:00");
        assert_eq!(python(Duration::from_secs(86_400)), "1 day, 0:00:00");
        assert_eq!(
            python(Duration::from_millis(200_000_500)),
            "2 days, 7:33:20.500000"
        );
    }

    #[test]
    fn spans_as_people_read_them() {
        let millis = Duration::from_millis;
        for (span, exact, short) in [
            (millis(0), "0s", "0s"),
            (millis(7), "7ms", "7ms"),
            (millis(407), "407ms", "407ms"),
            (millis(1_234), "1.234s", "1.2s"),
            (millis(12_000), "12s", "12s"),
            (millis(59_999), "59.999s", "59.9s"),
            (millis(660_000), "11m", "11m"),
            (millis(3_599_999), "59m 59.999s", "59m 59s"),
            (millis(10_925_000), "3h 2m 5s", "3h 2m"),
            (millis(90_061_500), "1d 1h 1m 1.5s", "1d 1h"),
            (millis(86_400_000 + 1_800_000), "1d 30m", "1d"),
        ] {
            assert_eq!(text(span), exact);
            assert_eq!(brief(span), short);
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".{0,40}") {
            let _ = parse(&text);
            let _ = from_python(&text);
        }

        #[test]
        fn what_is_printed_can_be_read(millis in 0_u64..10_000_000_000) {
            let span = Duration::from_millis(millis);
            prop_assert_eq!(parse(&text(span)), Ok(span));
            prop_assert_eq!(from_python(&python(span)), Some(span));
        }
    }
}
