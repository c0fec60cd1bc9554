//! All mistakes in a configuration: `--check` reports each of them, a start only the first.

use std::process::ExitCode;

use crate::error::{Error, Kind, Result};
use crate::os::logging;

/// Maximum number of mistakes that are reported.
const MAX_REPORTED: usize = 100;

/// The mistakes found so far, in the order in which a start would meet them.
#[derive(Debug, Default)]
pub struct Mistakes {
    list: Vec<Error>,
    /// Whether a file could not be read. What is missing elsewhere may stand there.
    unread: bool,
}

impl Mistakes {
    /// Notes a mistake.
    pub fn note(&mut self, mistake: Error) {
        self.list.push(mistake);
    }

    /// Returns the value of `result`, or notes its error.
    pub fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|e| self.note(e)).ok()
    }

    /// Notes that the files were read; a mistake so far is a file that could not be.
    pub const fn read_files(&mut self) {
        self.unread = !self.list.is_empty();
    }

    /// Notes that something is missing, unless it may stand in a file that could not be read.
    pub fn note_missing(&mut self, mistake: Error) {
        if !self.unread {
            self.note(mistake);
        }
    }

    /// Returns a line for each mistake.
    pub fn lines(&self) -> Vec<String> {
        self.list.iter().map(ToString::to_string).collect()
    }

    /// Returns `value` if there are no mistakes.
    ///
    /// # Errors
    /// The first mistake.
    pub fn or_first<T>(self, value: Option<T>) -> Result<T> {
        match (self.list.into_iter().next(), value) {
            (Some(first), _) => Err(first),
            (None, Some(value)) => Ok(value),
            (None, None) => Err(Error::bug("check options: a value is missing")),
        }
    }

    /// Prints every mistake on a line of stderr. Returns 78 if one is in a file, otherwise the code
    /// of the first, or 0.
    pub fn report(self) -> ExitCode {
        for mistake in self.list.iter().take(MAX_REPORTED) {
            logging::say(&mistake.to_string());
        }
        if let Some(more) = self.list.len().checked_sub(MAX_REPORTED).filter(|n| *n > 0) {
            logging::say(&format!("{more} more mistakes: correct these first"));
        }
        let in_file = self.list.iter().find(|e| e.kind() == Kind::Config);
        let code = in_file.or(self.list.first()).map_or(0, Error::exit_code);
        ExitCode::from(code)
    }
}
