//! Lines of standard input, a message each.

use std::io::{self, BufRead, Read};
use std::thread;

use bytes::Bytes;
use tokio::sync::mpsc::{Receiver, channel};

use crate::error::{Error, Kind, Result};

/// Maximum size of a line, bytes: what a client of Tael takes at most is 64 MiB, and RabbitMQ 4 takes
/// 16 MiB by default.
pub const MAX_LINE: usize = 16 * 1024 * 1024;

/// Maximum number of lines that are read ahead.
const MAX_AHEAD: usize = 32;

/// Reads lines from standard input in a thread, so that a slow sender does not keep us from talking to
/// the broker. Empty lines are skipped; a line break at the end is no part of a line.
///
/// # Errors
/// 75 when no thread can be started. A receiver gets 65 when standard input cannot be read.
pub fn lines() -> Result<Receiver<Result<Bytes>>> {
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
        Ok(_) => Ok(read),
        Err(e) => Err(Error::new(Kind::TryAgain, format!("start a thread: {e}"))),
    }
}

/// Returns the next line that is not empty, without its line break.
fn line(input: &mut impl BufRead) -> Result<Option<Bytes>> {
    let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX) + 2;
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

/// Checks the size of a message.
///
/// # Errors
/// 65 when it is too large.
pub fn check(size: usize) -> Result<()> {
    match size <= MAX_LINE {
        true => Ok(()),
        false => Err(Error::data(format!(
            "a message has {} MiB at most",
            MAX_LINE >> 20
        ))),
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
        let whole = vec![b'x'; MAX_LINE];
        let mut text = whole.clone();
        text.extend(b"\r\n");
        assert_eq!(
            line(&mut &text[..]).expect("line").map(|l| l.len()),
            Some(MAX_LINE)
        );
        let mut text = whole;
        text.push(b'x');
        assert!(line(&mut &text[..]).is_err());
    }
}
