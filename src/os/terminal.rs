//! The terminal that a command prints to: its width, and whether it shows colours.

use std::env;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use rustix::termios::tcgetwinsize;

use crate::model::unit::short_id;

/// Width of a terminal that reports none, columns: that of a VT100.
const WIDTH: usize = 80;

/// Where a command prints to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    /// Its width, columns; `None` if it is not a terminal, but a file or a pipe.
    pub width: Option<usize>,
    /// Whether to print colours: only on a terminal, unless `NO_COLOR` is set (no-color.org) or
    /// `TERM` is `dumb`.
    pub colour: bool,
}

impl Terminal {
    /// Returns what is known about the terminal on standard output.
    #[must_use]
    pub fn of_stdout() -> Self {
        Self::of(&io::stdout())
    }

    /// Returns what is known about the terminal on standard error.
    #[must_use]
    pub fn of_stderr() -> Self {
        Self::of(&io::stderr())
    }

    fn of(stream: &(impl AsFd + IsTerminal)) -> Self {
        if !stream.is_terminal() {
            return Self {
                width: None,
                colour: false,
            };
        }
        let named = |name| env::var_os(name).filter(|value| !value.is_empty());
        // A terminal on a serial line reports 0 columns.
        let reported = tcgetwinsize(stream).ok().map(|size| size.ws_col.into());
        let wanted = || named("COLUMNS")?.to_str()?.parse().ok();
        let positive = |width: &usize| *width > 0;
        let width = reported
            .filter(positive)
            .or_else(|| wanted().filter(positive));
        Self {
            width: Some(width.unwrap_or(WIDTH)),
            colour: named("NO_COLOR").is_none() && named("TERM").is_none_or(|term| term != "dumb"),
        }
    }

    /// Returns the id of a unit as it is shown there: short for a person, whole for a program.
    #[must_use]
    pub fn id<'a>(&self, id: &'a str) -> &'a str {
        match self.is_terminal() {
            true => short_id(id),
            false => id,
        }
    }

    /// Whether it is a terminal.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        self.width.is_some()
    }
}
