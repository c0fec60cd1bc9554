//! Lines and bytes of a connection.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::model::receptor::MAX_LINE;

/// Size of the buffer for what a requester sends, bytes.
const BUFFER: usize = 4096;

/// Maximum time for a requester to take what was sent to it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A line of a requester.
pub enum Line {
    /// It is whole.
    Whole(Vec<u8>),
    /// It has no end within [`MAX_LINE`].
    TooLong,
    /// There is none: the requester sends nothing more.
    End,
}

/// A connection to a requester.
pub struct Wire(BufReader<UnixStream>);

impl Wire {
    /// Returns that of `stream`.
    pub fn new(stream: UnixStream) -> Self {
        Self(BufReader::with_capacity(BUFFER, stream))
    }

    /// Returns its stream.
    pub fn stream(&self) -> &UnixStream {
        self.0.get_ref()
    }

    /// Reads into `chunk` what comes next, and returns how much that is; 0 at the end.
    ///
    /// # Errors
    /// As the system.
    pub async fn read(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        self.0.read(chunk).await
    }

    /// Sends `text`.
    ///
    /// # Errors
    /// As [`Wire::send`].
    pub async fn say(&mut self, text: &str) -> io::Result<()> {
        self.send(text.as_bytes()).await
    }

    /// Sends `bytes`, as long as the requester takes some of them.
    ///
    /// # Errors
    /// When it takes none for [`PATIENCE`], or as the system.
    pub async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = timeout(PATIENCE, self.0.write(bytes)).await??;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = bytes.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// Returns the next line.
    ///
    /// # Errors
    /// As the system.
    pub async fn line(&mut self) -> io::Result<Line> {
        let mut line = Vec::new();
        loop {
            let there = self.0.fill_buf().await?;
            if there.is_empty() {
                return Ok(Line::End);
            }
            let end = there.iter().position(|byte| *byte == b'\n');
            let part = end.map_or(there, |end| there.get(..end).unwrap_or_default());
            if line.len() + part.len() > MAX_LINE {
                return Ok(Line::TooLong);
            }
            line.extend_from_slice(part);
            let used = end.map_or(there.len(), |end| end + 1);
            self.0.consume(used);
            if end.is_some() {
                return Ok(Line::Whole(line));
            }
        }
    }
}
