//! The bodies of messages to push: one several times, or lines of standard input.

use bytes::Bytes;
use serde::de::IgnoredAny;
use tokio::sync::mpsc::Receiver;

use crate::error::Result;
use crate::tools::lines::lines;
pub use crate::tools::lines::{MAX_LINE as MAX_BODY, check};

/// Where bodies come from.
#[derive(Debug)]
pub enum Bodies {
    /// This one, so many times more.
    Same(Bytes, u64),
    /// Lines.
    Lines(Receiver<Result<Bytes>>),
}

impl Bodies {
    /// Reads lines from standard input.
    ///
    /// # Errors
    /// As [`lines`].
    pub fn lines() -> Result<Self> {
        lines().map(Self::Lines)
    }

    /// Returns the number of all bodies, if it is known.
    #[must_use]
    pub const fn total(&self) -> Option<u64> {
        match self {
            Self::Same(_, left) => Some(*left),
            Self::Lines(_) => None,
        }
    }

    /// Returns the next body. A call that is dropped takes none.
    ///
    /// # Errors
    /// 65 when standard input cannot be read.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::Same(body, left) => {
                let next = left.checked_sub(1);
                *left = next.unwrap_or_default();
                Ok(next.map(|_| body.clone()))
            }
            Self::Lines(lines) => lines.recv().await.transpose(),
        }
    }
}

/// Returns the media type of a body, as far as it shows.
#[must_use]
pub fn media_type(body: &[u8]) -> &'static str {
    let is_json = serde_json::from_slice::<IgnoredAny>(body).is_ok();
    match (is_json, std::str::from_utf8(body)) {
        (true, _) => "application/json",
        (false, Ok(_)) => "text/plain",
        (false, Err(_)) => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types() {
        for (body, kind) in [
            (&b"{}"[..], "application/json"),
            (b" [1] ", "application/json"),
            (b"{", "text/plain"),
            (b"", "text/plain"),
            (b"\xff", "application/octet-stream"),
        ] {
            assert_eq!(media_type(body), kind);
        }
    }
}
