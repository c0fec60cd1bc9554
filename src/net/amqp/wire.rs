//! Elementary types on the wire (AMQP 0-9-1, section 4.2.5).

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;

/// Maximum size of a short string, bytes: its length is one byte.
pub const MAX_SHORT: usize = 255;

/// The reason why bytes are not what they should be, for the middle of a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub Cow<'static, str>);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&'static str> for Malformed {
    fn from(text: &'static str) -> Self {
        Self(text.into())
    }
}

/// The reason why something cannot be sent, for the middle of a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsendable(pub String);

/// Bytes that are read from the front.
pub struct Reader<'a> {
    rest: &'a [u8],
    /// First flaw that did not stop the reading.
    flaw: Option<Malformed>,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            flaw: None,
        }
    }

    /// Returns whether all bytes are read.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Returns the bytes that are not read yet.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Notes a flaw that does not stop the reading; the first is kept.
    pub fn note(&mut self, flaw: Malformed) {
        self.flaw.get_or_insert(flaw);
    }

    /// Returns the first flaw that did not stop the reading.
    pub fn into_flaw(self) -> Option<Malformed> {
        self.flaw
    }

    /// Reads `count` bytes.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or("it ends too early")?;
        self.rest = rest;
        Ok(taken)
    }

    /// Reads an array of bytes.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| "it ends too early".into())
    }

    /// Reads a number of 8 bits.
    ///
    /// # Errors
    /// When the bytes have ended.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_be_bytes)
    }

    /// Reads a number of 16 bits.
    ///
    /// # Errors
    /// When the bytes have ended.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    /// Reads a number of 32 bits.
    ///
    /// # Errors
    /// When the bytes have ended.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// Reads a number of 64 bits.
    ///
    /// # Errors
    /// When the bytes have ended.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// Reads the bytes of a short string.
    ///
    /// # Errors
    /// When the bytes have ended.
    pub fn short(&mut self) -> Result<&'a [u8], Malformed> {
        let count = self.u8()?;
        self.take(count.into())
    }

    /// Reads a short string as text. Text that is not UTF-8 is a flaw, and gets replacement
    /// characters. The result fits into a short string again.
    ///
    /// # Errors
    /// When the bytes have ended.
    pub fn text(&mut self) -> Result<String, Malformed> {
        let bytes = self.short()?;
        if let Ok(text) = std::str::from_utf8(bytes) {
            return Ok(text.to_owned());
        }
        self.note("a short string is not UTF-8".into());
        Ok(fitting(&String::from_utf8_lossy(bytes)).to_owned())
    }

    /// Reads the bytes of a long string.
    ///
    /// # Errors
    /// When the bytes have ended.
    pub fn long(&mut self) -> Result<&'a [u8], Malformed> {
        let count = self.u32()?;
        self.take(usize::try_from(count).unwrap_or(usize::MAX))
    }
}

/// Returns the start of `text` that fits into a short string.
#[must_use]
pub fn fitting(text: &str) -> &str {
    let mut end = text.len().min(MAX_SHORT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// Appends a short string.
///
/// # Errors
/// When it is longer than [`MAX_SHORT`].
pub fn put_short(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Unsendable> {
    let Ok(count) = u8::try_from(bytes.len()) else {
        return Err(Unsendable(format!(
            "a name or property of {} bytes is longer than {MAX_SHORT}",
            bytes.len()
        )));
    };
    out.push(count);
    out.extend_from_slice(bytes);
    Ok(())
}

/// Appends a long string.
///
/// # Errors
/// When its length does not fit into 32 bits.
pub fn put_long(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Unsendable> {
    let at = begin(out);
    out.extend_from_slice(bytes);
    end(out, at)
}

/// Appends room for the length of what follows, and returns its place for [`end`].
pub fn begin(out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(&[0; 4]);
    out.len()
}

/// Writes the length of what follows `at` into its place.
///
/// # Errors
/// When it does not fit into 32 bits.
pub fn end(out: &mut [u8], at: usize) -> Result<(), Unsendable> {
    let count = u32::try_from(out.len().saturating_sub(at));
    let count = count.map_err(|_| Unsendable("it is longer than 4 GiB".into()))?;
    if let Some(place) = at.checked_sub(4).and_then(|start| out.get_mut(start..at)) {
        place.copy_from_slice(&count.to_be_bytes());
    }
    Ok(())
}

/// An argument of a method.
pub trait Field: Sized {
    /// Reads it.
    ///
    /// # Errors
    /// When the bytes have ended.
    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed>;

    /// Appends it.
    ///
    /// # Errors
    /// When it does not fit into its type.
    fn put(&self, out: &mut Vec<u8>) -> Result<(), Unsendable>;
}

/// Implements [`Field`] for a number.
macro_rules! number {
    ($($number:ident),+) => {$(
        impl Field for $number {
            fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
                from.$number()
            }

            fn put(&self, out: &mut Vec<u8>) -> Result<(), Unsendable> {
                out.extend_from_slice(&self.to_be_bytes());
                Ok(())
            }
        }
    )+};
}

number!(u8, u16, u32, u64);

/// A bit that has a byte for itself.
impl Field for bool {
    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(from.u8()? & 1 != 0)
    }

    fn put(&self, out: &mut Vec<u8>) -> Result<(), Unsendable> {
        out.push((*self).into());
        Ok(())
    }
}

/// A short string.
impl Field for String {
    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        from.text()
    }

    fn put(&self, out: &mut Vec<u8>) -> Result<(), Unsendable> {
        put_short(out, self.as_bytes())
    }
}

/// A long string.
impl Field for Bytes {
    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        from.long().map(Self::copy_from_slice)
    }

    fn put(&self, out: &mut Vec<u8>) -> Result<(), Unsendable> {
        put_long(out, self)
    }
}

/// A short string that has no meaning any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unused;

impl Field for Unused {
    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        from.short().map(|_| Self)
    }

    fn put(&self, out: &mut Vec<u8>) -> Result<(), Unsendable> {
        put_short(out, b"")
    }
}

/// A ticket for access, which no broker reads any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ticket;

impl Field for Ticket {
    fn read(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        from.u16().map(|_| Self)
    }

    fn put(&self, out: &mut Vec<u8>) -> Result<(), Unsendable> {
        0_u16.put(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_no_utf_8_fits_again() {
        let mut bytes = vec![255];
        bytes.extend([0xff; 255]);
        let mut reader = Reader::new(&bytes);
        let text = reader.text().expect("text");
        assert_eq!(text.len(), 255, "85 replacement characters");
        assert!(reader.is_empty() && reader.into_flaw().is_some());
        let mut out = Vec::new();
        text.put(&mut out).expect("it fits");
        assert!("x".repeat(256).put(&mut out).is_err());
    }

    #[test]
    fn text_is_cut_between_characters() {
        let text = format!("{}ä", "x".repeat(254));
        assert_eq!(fitting(&text), &text[..254]);
        assert_eq!(fitting("ä"), "ä");
    }

    #[test]
    fn bytes_that_end_are_told_of() {
        for bytes in [&b""[..], b"\x02a"] {
            assert!(Reader::new(bytes).text().is_err());
        }
        for bytes in [&b"\0\0"[..], b"\xff\xff\xff\xffabc"] {
            assert!(Reader::new(bytes).long().is_err());
        }
    }
}
