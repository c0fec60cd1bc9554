//! Lines for stdout that do not wait for its reader.

use std::io;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;

use tokio::sync::oneshot;
use tracing::warn;

use crate::error::{Error, Kind, Result};

/// Maximum number of lines that wait for the reader.
const MAX_LINES: usize = 64;

/// Prints lines in a thread of its own.
#[derive(Debug)]
pub struct Printer {
    lines: SyncSender<String>,
    end: oneshot::Receiver<io::Result<()>>,
    /// Whether it was said that lines are left out.
    is_said: bool,
}

impl Printer {
    /// Starts to print.
    ///
    /// # Errors
    /// When there is no thread (75).
    pub fn start() -> Result<Self> {
        let (lines, waiting) = sync_channel::<String>(MAX_LINES);
        let (ended, end) = oneshot::channel();
        let print = move || {
            let all = waiting.iter().try_for_each(|line| super::write_line(&line));
            // The other side may be gone.
            let _ = ended.send(all);
        };
        let thread = thread::Builder::new().name("printer".into());
        thread
            .spawn(print)
            .map_err(|e| Error::new(Kind::TryAgain, format!("start a thread: {e}")))?;
        Ok(Self {
            lines,
            end,
            is_said: false,
        })
    }

    /// Prints a line, or leaves it out when [`MAX_LINES`] wait for the reader.
    ///
    /// # Errors
    /// When an earlier line could not be written: see [`super::unprinted`].
    pub fn print(&mut self, line: String) -> io::Result<()> {
        match self.lines.try_send(line) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => {
                if !std::mem::replace(&mut self.is_said, true) {
                    warn!("nothing reads stdout: lines are left out");
                }
                Ok(())
            }
            Err(TrySendError::Disconnected(_)) => self.end.try_recv().unwrap_or(Ok(())),
        }
    }

    /// Returns when all lines are printed.
    ///
    /// # Errors
    /// When a line could not be written: see [`super::unprinted`].
    pub async fn end(self) -> io::Result<()> {
        drop(self.lines);
        self.end.await.unwrap_or(Ok(()))
    }
}
