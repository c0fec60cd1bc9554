//! The line on a terminal that shows how far a command is.

use std::convert::Infallible;
use std::io::{self, Write};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::model::table;
use crate::model::text::printable;
use crate::os::terminal::Terminal;

/// Time between two pictures.
const REDRAW: Duration = Duration::from_millis(200);

/// Columns of the bar.
const BAR: usize = 24;

/// Time between two lines where there is no terminal.
const LINES: Duration = Duration::from_secs(10);

/// Shows progress: on a terminal in a line of stderr that is drawn again, otherwise in lines if they are
/// wanted.
#[derive(Debug)]
pub struct Progress {
    width: Option<usize>,
    lines: bool,
}

impl Progress {
    /// Returns the progress of a command that is `quiet` or not, and prints `lines` without a terminal.
    #[must_use]
    pub fn new(quiet: bool, lines: bool) -> Self {
        Self {
            width: Terminal::of_stderr().width.filter(|_| !quiet),
            lines: lines && !quiet,
        }
    }

    /// Shows what `text` says, for ever.
    pub async fn show(&self, text: impl Fn() -> String) -> Infallible {
        match self.width {
            Some(width) => {
                // A command that is over at once shows nothing.
                sleep(REDRAW).await;
                loop {
                    self.draw(&text(), width);
                    sleep(REDRAW).await;
                }
            }
            None if self.lines => {
                let mut last = String::new();
                loop {
                    sleep(LINES).await;
                    let text = text();
                    if text != last {
                        // A reader that is gone must not end the work.
                        let _ = writeln!(io::stderr().lock(), "{text}");
                        last = text;
                    }
                }
            }
            None => std::future::pending().await,
        }
    }

    fn draw(&self, text: &str, width: usize) {
        // A full line would wrap, and could not be cleared.
        let text = table::cut(&printable(text, 400), width.saturating_sub(1));
        let mut out = io::stderr().lock();
        let _ = write!(out, "\r\x1b[K{text}");
        let _ = out.flush();
    }

    /// Returns a bar for `done` of `total`, before a text; nothing where there is no terminal.
    #[must_use]
    pub fn bar(&self, done: u64, total: u64) -> String {
        self.width.map_or_else(String::new, |_| bar(done, total))
    }

    /// Clears the line.
    pub fn clear(&self) {
        if self.width.is_some() {
            let mut out = io::stderr().lock();
            let _ = write!(out, "\r\x1b[K");
            let _ = out.flush();
        }
    }
}

/// Returns a bar for `done` of `total`.
fn bar(done: u64, total: u64) -> String {
    let full = u64::try_from(BAR).unwrap_or_default();
    let filled = done
        .saturating_mul(full)
        .checked_div(total)
        .unwrap_or(full)
        .min(full);
    let filled = usize::try_from(filled).unwrap_or(BAR);
    format!("[{}{}] ", "#".repeat(filled), "-".repeat(BAR - filled))
}

/// Returns a rate: `done` since `begun`, a second.
#[must_use]
pub fn rate(done: u64, begun: Instant) -> u64 {
    let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    done.saturating_mul(1000)
        .checked_div(millis)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_have_one_width() {
        assert_eq!(bar(0, 10), format!("[{}] ", "-".repeat(BAR)));
        assert_eq!(bar(10, 10), format!("[{}] ", "#".repeat(BAR)));
        assert_eq!(bar(0, 0), format!("[{}] ", "#".repeat(BAR)));
        for done in [1, 7, 12, u64::MAX] {
            assert_eq!(bar(done, 12).len(), BAR + 3);
        }
    }
}
