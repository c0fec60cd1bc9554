//! Errors, and the one match that turns them into exit codes.

use std::fmt;
use std::io;
use std::path::PathBuf;

use nix::libc;

/// Kind of an error, which decides the exit code.
///
/// The codes are those of `sysexits.h` (BSD).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The command line is wrong (64).
    Usage,
    /// Input data is wrong (65).
    Data,
    /// The broker cannot be reached, or has refused us (69).
    Unavailable,
    /// Tael itself has a bug (70).
    Bug,
    /// State cannot be created, is damaged, or is held by another process (73). A restart does not
    /// help.
    CannotCreate,
    /// No answer came in time, or a restart helps: try again (75).
    TryAgain,
    /// Credentials or permissions were refused (77).
    NotAuthorised,
    /// A configuration file is wrong (78).
    Config,
    /// There is no exit code of a command to pass on (125, like `env(1)` and `timeout(1)`).
    NoCode,
}

impl Kind {
    /// Returns the exit code of the process.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 64,
            Self::Data => 65,
            Self::Unavailable => 69,
            Self::Bug => 70,
            Self::CannotCreate => 73,
            Self::TryAgain => 75,
            Self::NotAuthorised => 77,
            Self::Config => 78,
            Self::NoCode => 125,
        }
    }

    /// Returns the kind of an exit code that an answer of a client may have.
    #[must_use]
    pub fn from_exit_code(code: u8) -> Option<Self> {
        let all = [
            Self::Usage,
            Self::Data,
            Self::Unavailable,
            Self::Bug,
            Self::CannotCreate,
            Self::TryAgain,
            Self::NotAuthorised,
            Self::Config,
        ];
        all.into_iter().find(|kind| kind.exit_code() == code)
    }
}

/// An error for the user, on one line: verb, object, cause, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    message: String,
    /// Boxed, because few errors are about a file or an option.
    subject: Option<Box<Subject>>,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    /// A place in a file.
    Place(Place),
    /// The value of an option, by its long name.
    Option(String),
}

/// Place of a mistake in a file; places sort as a reader meets them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1; `None` for the whole file.
    pub line: Option<usize>,
}

/// A result with the project's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Returns an error of `kind` with its one-line message.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            subject: None,
        }
    }

    /// Returns the error as one about `place`, which its message names already.
    #[must_use]
    pub fn at(self, place: Place) -> Self {
        Self {
            subject: Some(Box::new(Subject::Place(place))),
            ..self
        }
    }

    /// Returns the place of the mistake, if it is in a file.
    #[must_use]
    pub fn place(&self) -> Option<&Place> {
        match self.subject.as_deref() {
            Some(Subject::Place(place)) => Some(place),
            _ => None,
        }
    }

    /// Returns the error as one about the value of `option`, a long name. The value may stand in a file.
    #[must_use]
    #[cold]
    pub fn about(mut self, option: &str) -> Self {
        self.subject = Some(Box::new(Subject::Option(option.to_owned())));
        self
    }

    /// Returns an error about an option as one about the option with `prefix` before that name, for callers that
    /// have other names.
    #[must_use]
    pub fn about_prefixed(self, prefix: &str) -> Self {
        match self.option() {
            Some(option) => {
                let option = format!("{prefix}{option}");
                self.about(&option)
            }
            None => self,
        }
    }

    /// Returns the long name of the option whose value is wrong, if the error is about one.
    #[must_use]
    pub fn option(&self) -> Option<&str> {
        match self.subject.as_deref() {
            Some(Subject::Option(option)) => Some(option),
            _ => None,
        }
    }

    /// Returns an error about the command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// Returns an error about input data.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(Kind::Data, message)
    }

    /// Returns an error about a configuration file.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Kind::Config, message)
    }

    /// Returns an error about a bug in Tael.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(Kind::Bug, message)
    }

    /// Returns an error about state that cannot be created or written.
    pub fn cannot_create(message: impl Into<String>) -> Self {
        Self::new(Kind::CannotCreate, message)
    }

    /// Returns an error about state that cannot be used because of `cause`. A shortage or
    /// disturbance may be over at the next try (75). For others a restart does not help (73).
    pub fn state(cause: &io::Error, message: impl Into<String>) -> Self {
        let passes = matches!(
            cause.raw_os_error(),
            Some(
                libc::ENOSPC
                    | libc::EDQUOT
                    | libc::EMFILE
                    | libc::ENFILE
                    | libc::ENOMEM
                    | libc::EAGAIN
                    | libc::EIO
                    // The disk is read-only, away, or not mounted yet.
                    | libc::EROFS
                    | libc::ESTALE
                    | libc::ENOTCONN
                    | libc::ETIMEDOUT
                    | libc::ENODEV
                    | libc::EHOSTDOWN
            )
        );
        let kind = match passes {
            true => Kind::TryAgain,
            false => Kind::CannotCreate,
        };
        Self::new(kind, message)
    }

    /// Returns the kind of the error.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the exit code of the process.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        self.kind.exit_code()
    }

    /// Returns the error with another kind, for a value that came from another place.
    #[must_use]
    pub fn into_kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    /// Returns the error with `context` before its message.
    #[must_use]
    pub fn context(self, context: impl fmt::Display) -> Self {
        Self {
            message: format!("{context}: {}", self.message),
            ..self
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A cause from the operating system or a peer may have line breaks.
        for (n, line) in self.message.lines().enumerate() {
            if n > 0 {
                f.write_str(" ")?;
            }
            write_plainly(f, line.trim_end())?;
        }
        Ok(())
    }
}

/// Writes `text` without the numbers that the standard library adds to the errors of the system, as in
/// `No such file or directory (os error 2)`: the words say the same. What it says about a file that is no
/// text is worded for users.
fn write_plainly(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    const NUMBER: &str = " (os error ";
    const NO_TEXT: &str = "stream did not contain valid UTF-8";
    if let Some((before, after)) = text.split_once(NO_TEXT) {
        write_plainly(f, before)?;
        f.write_str("it is not text in UTF-8")?;
        return write_plainly(f, after);
    }
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(NUMBER) {
        f.write_str(before)?;
        rest = match after.split_once(')') {
            Some((number, end)) if number.bytes().all(|b| b.is_ascii_digit()) => end,
            _ => {
                f.write_str(NUMBER)?;
                after
            }
        };
    }
    f.write_str(rest)
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_to_be_tried_again() {
        for (errno, code) in [
            (libc::ENOSPC, 75),
            (libc::EDQUOT, 75),
            (libc::EROFS, 75),
            (libc::EACCES, 73),
            (libc::ENOTDIR, 73),
        ] {
            let error = Error::state(&io::Error::from_raw_os_error(errno), "");
            assert_eq!(error.exit_code(), code, "{errno}");
        }
        assert_eq!(Error::state(&io::Error::other(""), "").exit_code(), 73);
    }

    #[test]
    fn an_error_is_one_line() {
        let error = Error::data("read payload: expected value\n at line 1");
        assert_eq!(error.to_string(), "read payload: expected value  at line 1");
    }

    #[test]
    fn the_words_of_the_system_say_enough() {
        let cause = io::Error::from_raw_os_error(libc::ENOENT);
        let error = Error::config(format!("read a: {cause}; read b: {cause}"));
        assert_eq!(
            error.to_string(),
            "read a: No such file or directory; read b: No such file or directory"
        );
        // The text of the standard library.
        let cause = io::read_to_string(&[0xff][..]).expect_err("no text");
        let error = Error::data(format!("read a: {cause}"));
        assert_eq!(error.to_string(), "read a: it is not text in UTF-8");
        let error = Error::data("read a: stream did not contain valid UTF-8 (os error 2)");
        assert_eq!(error.to_string(), "read a: it is not text in UTF-8");
        for odd in ["use ' (os error x)'", "use ' (os error 2"] {
            assert_eq!(Error::config(odd).to_string(), odd);
        }
    }
}
