//! All mistakes in a configuration: `--check` reports each of them, a start only the first.

use std::process::ExitCode;

use crate::error::{Error, Kind, Result};
use crate::os::logging;

/// Maximum number of mistakes that are reported.
const MAX_REPORTED: usize = 100;

/// The mistakes found so far, in the order in which a start would meet them.
#[derive(Debug, Default)]
pub struct Mistakes(Vec<Error>);

impl Mistakes {
    /// Notes a mistake.
    pub fn note(&mut self, mistake: Error) {
        self.0.push(mistake);
    }

    /// Returns the value of `result`, or notes its error.
    pub fn keep<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|e| self.note(e)).ok()
    }

    /// Returns a line for each mistake.
    pub fn lines(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    /// Returns `value` if there are no mistakes.
    ///
    /// # Errors
    /// The first mistake.
    pub fn or_first<T>(self, value: Option<T>) -> Result<T> {
        match (self.0.into_iter().next(), value) {
            (Some(first), _) => Err(first),
            (None, Some(value)) => Ok(value),
            (None, None) => Err(Error::bug("check options: a value is missing")),
        }
    }

    /// Prints every mistake on a line of stderr. Returns 78 if one is in a file, otherwise the code
    /// of the first, or 0.
    pub fn report(self) -> ExitCode {
        for mistake in self.0.iter().take(MAX_REPORTED) {
            logging::say(&mistake.to_string());
        }
        if let Some(more) = self.0.len().checked_sub(MAX_REPORTED).filter(|n| *n > 0) {
            logging::say(&format!("{more} more mistakes: correct these first"));
        }
        let in_file = self.0.iter().find(|e| e.kind() == Kind::Config);
        let code = in_file.or(self.0.first()).map_or(0, Error::exit_code);
        ExitCode::from(code)
    }
}
