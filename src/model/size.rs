//! Sizes as people write them (`50G`, `512M`, `1048576`).

/// Units, each 1024 times the one before.
const UNITS: &str = "KMGT";

/// Parses a size: a number of bytes, or a number with a unit. `K`, `M`, `G` and `T` are powers of 1024,
/// as in systemd; `KiB` is the same as `K`.
///
/// # Errors
/// A text for the user, with the expected forms.
pub fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let wrong = || format!("'{text}' is not a size: write 50G, 512M or a number of bytes");
    let end = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit = unit.trim().to_ascii_uppercase();
    let short = unit.strip_suffix("IB").filter(|short| !short.is_empty());
    let unit = short.unwrap_or(&unit);
    let power = match unit.len() {
        0 => Some(0),
        1 => UNITS.find(unit).map(|place| place + 1),
        _ => None,
    };
    let shift = 10 * u32::try_from(power.ok_or_else(wrong)?).unwrap_or(u32::MAX);
    let factor = 1_u64.checked_shl(shift).ok_or_else(wrong)?;
    number.checked_mul(factor).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("512M", 512 << 20),
            ("50G", 50 << 30),
            ("2 gib", 2 << 30),
            ("1T", 1 << 40),
            ("1k", 1024),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "5 X", "5GB", "9999999999T", "1iB"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
