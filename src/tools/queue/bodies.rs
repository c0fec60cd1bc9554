//! The bodies of messages to push: one several times, or lines of standard input.

use std::io::{self, BufRead, Read};
use std::thread;

use bytes::Bytes;
use serde::de::IgnoredAny;
use tokio::sync::mpsc::{Receiver, channel};

use crate::error::{Error, Kind, Result};

/// Maximum size of a body, bytes: what a client of Tael takes at most is 64 MiB, and RabbitMQ 4 takes
/// 16 MiB by default.
pub const MAX_BODY: usize = 16 * 1024 * 1024;

/// Maximum number of lines that are read ahead.
const MAX_AHEAD: usize = 32;

/// Where bodies come from.
#[derive(Debug)]
pub enum Bodies {
    /// This one, so many times more.
    Same(Bytes, u64),
    /// Lines.
    Lines(Receiver<Result<Bytes>>),
}

impl Bodies {
    /// Reads lines from standard input in a thread, so that a slow sender does not keep us from
    /// sending heartbeats. Empty lines are skipped; a line break at the end is no part of a body.
    ///
    /// # Errors
    /// 75 when no thread can be started.
    pub fn lines() -> Result<Self> {
        let (lines, read) = channel(MAX_AHEAD);
        let run = move || {
            let mut input = io::stdin().lock();
            loop {
                let line = line(&mut input).transpose();
                let Some(line) = line else { break };
                let is_last = line.is_err();
                // The reader may have gone.
                if lines.blocking_send(line).is_err() || is_last {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("lines".into()).spawn(run);
        match thread {
            Ok(_) => Ok(Self::Lines(read)),
            Err(e) => Err(Error::new(Kind::TryAgain, format!("start a thread: {e}"))),
        }
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

/// Returns the next line that is not empty, without its line break.
fn line(input: &mut impl BufRead) -> Result<Option<Bytes>> {
    let limit = u64::try_from(MAX_BODY).unwrap_or(u64::MAX) + 2;
    loop {
        let mut line = Vec::new();
        let read = input.take(limit).read_until(b'\n', &mut line);
        let read = read.map_err(|e| Error::data(format!("read standard input: {e}")))?;
        if read == 0 {
            return Ok(None);
        }
        let bare = line.strip_suffix(b"\n").unwrap_or(&line);
        let bare = bare.strip_suffix(b"\r").unwrap_or(bare);
        check(bare.len()).map_err(|e| e.context("read a line of standard input"))?;
        if !bare.is_empty() {
            return Ok(Some(Bytes::copy_from_slice(bare)));
        }
    }
}

/// Checks the size of a body.
///
/// # Errors
/// 65 when it is too large.
pub fn check(size: usize) -> Result<()> {
    match size <= MAX_BODY {
        true => Ok(()),
        false => Err(Error::data(format!(
            "a message has {} MiB at most",
            MAX_BODY >> 20
        ))),
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
    fn lines_end_anyhow_and_empty_ones_are_none() {
        let mut input = &b"a\n\r\n\n{\"b\": 1}\r\n c"[..];
        let mut lines = Vec::new();
        while let Some(found) = line(&mut input).expect("line") {
            lines.push(found);
        }
        assert_eq!(lines, ["a", "{\"b\": 1}", " c"]);
    }

    #[test]
    fn a_line_has_a_limit() {
        let whole = vec![b'x'; MAX_BODY];
        let mut text = whole.clone();
        text.extend(b"\r\n");
        assert_eq!(
            line(&mut &text[..]).expect("line").map(|l| l.len()),
            Some(MAX_BODY)
        );
        let mut text = whole;
        text.push(b'x');
        assert!(line(&mut &text[..]).is_err());
    }

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
