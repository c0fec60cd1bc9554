//! Errors of the parser of command lines, as one line each.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::cli::attr;

/// Returns a text that the parser has added to its error.
pub fn context(error: &clap::Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text),
        _ => None,
    }
}

/// Returns an error of the parser about a command line as one line.
pub fn usage_line(error: &clap::Error) -> String {
    parser_line(error, "; see --help", None)
}

/// Returns an error of the parser about a value in a file as one line. It names the key, not the
/// option, and does not lead to the help of the command line.
pub fn file_line(error: &clap::Error) -> String {
    let line = parser_line(error, "", None);
    match context(error, ContextKind::InvalidArg) {
        Some(option) => {
            let key = option.trim_start_matches('-').split([' ', '=']).next();
            line.replace(option, key.unwrap_or_default())
        }
        None => line,
    }
}

/// Returns an error of the parser as one line. Its hint is `stray`, or one that fits, or `otherwise`.
pub fn parser_line(error: &clap::Error, otherwise: &str, stray: Option<String>) -> String {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first).trim();
    let argument = context(error, ContextKind::InvalidArg).unwrap_or_default();
    let suggested = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand]
        .into_iter()
        .find_map(|kind| match error.get(kind)? {
            ContextValue::Strings(list) => list.first().cloned(),
            other => Some(other.to_string()),
        });
    let suggested = suggested.filter(|_| stray.is_none());
    let hint = match (suggested, error.kind()) {
        (None, _) if stray.is_some() => stray.unwrap_or_default(),
        (Some(suggested), _) => format!("; did you mean {suggested}?"),
        (None, ErrorKind::WrongNumberOfValues) if argument.contains("<KEY> <VALUE>") => {
            format!("; {}", attr::HINT)
        }
        (None, ErrorKind::UnknownArgument)
            if argument.contains('=') && !argument.starts_with('-') =>
        {
            format!("; {}", attr::HINT)
        }
        (None, ErrorKind::UnknownArgument) if !argument.starts_with('-') => {
            "; a value with blanks needs quotes; see --help".to_owned()
        }
        // The error of the value says what is right.
        (None, ErrorKind::ValueValidation) => String::new(),
        (None, _) => otherwise.to_owned(),
    };
    // A URL may have a password in it.
    let first = match first.split_once(" for '--broker ") {
        Some((_, rest)) => format!("invalid value for '--broker {rest}"),
        None => first.to_owned(),
    };
    let words: Vec<&str> = first.split_whitespace().collect();
    // The standard library words its errors for programmers.
    if error.kind() == ErrorKind::MissingRequiredArgument
        && let Some(ContextValue::Strings(missing)) = error.get(ContextKind::InvalidArg)
    {
        let verb = if missing.len() == 1 { "is" } else { "are" };
        return format!("{} {verb} missing{hint}", missing.join(" and "));
    }
    let text = words
        .join(" ")
        .replace("unrecognized subcommand", "there is no command")
        .replace("invalid digit found in string", "it is not a whole number")
        .replace("number too large to fit in target type", "it is too large")
        .replace("cannot parse integer from empty string", "it is empty");
    format!("{text}{hint}")
}
