//! The end of a certificate (X.509; RFC 5280, section 4.1), read from its DER (X.690).

/// Remaining time from which on a certificate is worth a warning, seconds: 14 days.
pub const SOON: i64 = 14 * DAY;

const DAY: i64 = 86_400;

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// Tag of the version, which certificates of version 1 lack.
const VERSION: u8 = 0xa0;

/// Values of DER, one after another.
struct Values<'a>(&'a [u8]);

impl<'a> Values<'a> {
    /// Takes the next value: its tag, and its content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            // Of a length in the long form, up to four bytes follow.
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                let length = bytes.iter().fold(0, |all, b| all << 8 | usize::from(*b));
                (length, rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// Takes the next value, which must be a sequence.
    fn sequence(&mut self) -> Option<Values<'a>> {
        let (tag, content) = self.next()?;
        (tag == SEQUENCE).then_some(Values(content))
    }
}

/// Returns the second since 1970 after which a certificate in DER is not valid; `None` if it cannot be read.
#[must_use]
pub fn not_after(der: &[u8]) -> Option<i64> {
    let mut fields = Values(der).sequence()?.sequence()?;
    if fields.next()?.0 == VERSION {
        // The serial number.
        fields.next()?;
    }
    let (_algorithm, _issuer) = (fields.next()?, fields.next()?);
    let mut validity = fields.sequence()?;
    validity.next()?;
    let (tag, text) = validity.next()?;
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    match tag {
        UTC_TIME => {
            // Years from 50 on are of the last century (section 4.1.2.5.1).
            let century = if text.get(..2)? < "50" { "20" } else { "19" };
            seconds(&format!("{century}{text}"))
        }
        GENERALIZED_TIME => seconds(text),
        _ => None,
    }
}

/// Returns the seconds since 1970 of `YYYYMMDDHHMMSS`.
fn seconds(text: &str) -> Option<i64> {
    if text.len() != 14 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let part = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (part(0, 4)?, part(4, 6)?, part(6, 8)?);
    let (hour, minute, second) = (part(8, 10)?, part(10, 12)?, part(12, 14)?);
    let fits = (1..=12).contains(&month) && (1..=31).contains(&day);
    if !fits || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Days of the proleptic Gregorian calendar; years begin in March, so that a leap day is the last.
    let (year, month) = match month {
        3.. => (year, month - 3),
        _ => (year - 1, month + 9),
    };
    let of_years = 365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let days = of_years + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(days * DAY + hour * 3600 + minute * 60 + second)
}

/// Returns what to say about a certificate that ends at `not_after`, if it has ended `now` or does so soon;
/// both are seconds since 1970.
#[must_use]
pub fn ending(not_after: i64, now: i64) -> Option<String> {
    match not_after.saturating_sub(now) {
        ..0 => Some("has expired: callers refuse it; renew it".to_owned()),
        left @ 0..SOON => Some(match left / DAY {
            0 => "expires within a day: renew it".to_owned(),
            1 => "expires in 1 day: renew it".to_owned(),
            days => format!("expires in {days} days: renew it"),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Certificates that openssl has made, and their ends as it shows them.
    const MADE: [(&[u8], i64); 3] = [
        (
            include_bytes!("../../tests/fixtures/certificates/utc-time.der"),
            1_925_389_272,
        ),
        (
            include_bytes!("../../tests/fixtures/certificates/generalized-time.der"),
            2_832_589_272,
        ),
        (
            include_bytes!("../../tests/fixtures/certificates/version-1.der"),
            2_111_149_250,
        ),
    ];

    #[test]
    fn the_end_is_read() {
        for (der, end) in MADE {
            assert_eq!(not_after(der), Some(end));
            for length in 0..der.len() {
                assert_eq!(not_after(&der[..length]), None, "cut at {length}");
            }
        }
    }

    #[test]
    fn times_are_seconds() {
        for (text, want) in [
            ("19700101000000", Some(0)),
            ("19691231235959", Some(-1)),
            ("20000229120000", Some(951_825_600)),
            ("20240301000000", Some(1_709_251_200)),
            ("99991231235959", Some(253_402_300_799)),
            ("20241301000000", None),
            ("20240100000000", None),
            ("20240101240000", None),
            ("2024010100000", None),
            ("2024010100000a", None),
        ] {
            assert_eq!(seconds(text), want, "{text}");
        }
    }

    #[test]
    fn what_ends_soon_is_said() {
        for (left, said) in [
            (-1, "has expired"),
            (0, "within a day"),
            (DAY, "in 1 day"),
            (SOON - 1, "in 13 days"),
        ] {
            let told = ending(1000 + left, 1000).expect("a warning");
            assert!(told.contains(said), "{left}: {told}");
        }
        assert_eq!(ending(1000 + SOON, 1000), None);
        assert_eq!(ending(i64::MAX, i64::MIN), None);
    }

    proptest! {
        #[test]
        fn anything_is_read_without_a_panic(
            which in 0..MADE.len(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            noise in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut der = MADE[which].0.to_vec();
            for (at, byte) in changes {
                let at = at.index(der.len());
                der[at] = byte;
            }
            let _ = not_after(&der);
            let _ = not_after(&noise);
        }
    }
}
