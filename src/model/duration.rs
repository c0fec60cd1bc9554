//! Durations as users write them (`10s`, `5m`, `1h30m`, `90`) and as Python prints them.

use std::time::Duration;

use jiff::SignedDuration;

/// The longest duration, 100 years: any clock can add it to its time.
const MAX: Duration = Duration::from_secs(36_525 * 86_400);

/// Parses a duration of at least zero: a number of seconds (`90`, `0.5`) or amounts with
/// units (`10s`, `5m`, `1h 30m`, `2d`), a day being 24 hours.
///
/// # Errors
/// A text for the user that says what was expected.
pub fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let wrong = || format!("'{text}' is no duration: write 10s, 5m, 1h30m or 2d");
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

/// A duration as [`parse`] reads it, down to milliseconds: `11m`, `1h 30m`, `2d`.
#[must_use]
pub fn text(duration: Duration) -> String {
    let mut rest = duration.as_millis();
    let mut words = Vec::new();
    for (unit, size) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
        ("ms", 1),
    ] {
        if rest >= size {
            words.push(format!("{}{unit}", rest / size));
            rest %= size;
        }
    }
    if words.is_empty() {
        return "0s".to_owned();
    }
    words.join(" ")
}

/// A duration as Python's `str(timedelta)` prints it: `0:00:01.234567`, `1 day, 2:03:04`.
///
/// Source: Python 3, `datetime.timedelta.__str__`; microseconds are left out when zero.
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

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".{0,40}") {
            let _ = parse(&text);
        }
    }
}
