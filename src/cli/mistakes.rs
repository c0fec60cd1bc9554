//! All mistakes in a configuration: `--check` reports each of them, a start only the first.

use std::process::ExitCode;

use crate::error::{Error, Kind, Result};
use crate::os::logging;
use crate::os::terminal::Terminal;
use crate::tools::print_part;

/// Maximum number of mistakes that are reported.
const MAX_REPORTED: usize = 100;

/// The mistakes found so far, in the order in which a start would meet them.
#[derive(Debug, Default)]
pub struct Mistakes {
    list: Vec<Error>,
    /// Whether a file or a part of the command line could not be read. What is missing elsewhere may
    /// stand there.
    unread: bool,
    /// What was found to be right, a line each.
    right: Vec<String>,
    /// What was checked.
    subject: Option<String>,
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

    /// Adds to each mistake where it stands.
    pub fn locate(&mut self, located: impl Fn(Error) -> Error) {
        let list = std::mem::take(&mut self.list);
        self.list = list.into_iter().map(located).collect();
    }

    /// Returns how many there are.
    pub const fn count(&self) -> usize {
        self.list.len()
    }

    /// Notes that some of what was given could not be read.
    pub const fn note_unread(&mut self) {
        self.unread = true;
    }

    /// Notes a line about something that was found to be right.
    pub fn note_right(&mut self, line: String) {
        self.right.push(line);
    }

    /// Names what was checked, for the line that a success prints.
    pub fn name(&mut self, subject: String) {
        self.subject = Some(subject);
    }

    /// Notes that something is missing, unless it may stand in a file that could not be read.
    pub fn note_missing(&mut self, mistake: Error) {
        if !self.unread {
            self.note(mistake);
        }
    }

    /// Returns a line for each mistake, in the order of [`Self::sorted`].
    pub fn lines(self) -> Vec<String> {
        self.sorted().iter().map(ToString::to_string).collect()
    }

    /// Returns the mistakes as a reader meets them: those of the command line and of the host first,
    /// then those of each file by their lines.
    fn sorted(self) -> Vec<Error> {
        let mut list = self.list;
        list.sort_by(|a, b| a.place().cmp(&b.place()));
        list
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

    /// Prints every mistake on a line of stderr. Prints what is right on stdout if that is a terminal.
    /// Returns 78 if a mistake is in a file or on this host, otherwise the code of the first, or 0.
    ///
    /// # Errors
    /// When stdout cannot be written (73).
    pub fn report(mut self) -> Result<ExitCode> {
        let mut right = std::mem::take(&mut self.right);
        let subject = self.subject.take();
        let list = self.sorted();
        if list.is_empty() {
            right.push(match subject {
                Some(subject) => format!("{subject}, no mistakes"),
                None => "no mistakes".to_owned(),
            });
        }
        if Terminal::of_stdout().is_terminal() {
            let lines = right.iter().map(|line| format!("{line}\n"));
            print_part(&lines.collect::<String>())?;
        }
        for mistake in list.iter().take(MAX_REPORTED) {
            logging::say(&mistake.to_string());
        }
        if let Some(more) = list.len().checked_sub(MAX_REPORTED).filter(|n| *n > 0) {
            logging::say(&format!("{more} more mistakes: correct these first"));
        }
        let in_file = list.iter().find(|e| e.kind() == Kind::Config);
        let code = in_file.or(list.first()).map_or(0, Error::exit_code);
        Ok(ExitCode::from(code))
    }
}
