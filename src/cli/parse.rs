//! Parsing of command lines, and where the value that is wrong came from.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::builder::Resettable;
use clap::error::{ContextKind, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use toml::Value;

use crate::cli::config::{Layers, QUEUE, texts};
use crate::cli::mistakes::Mistakes;
use crate::cli::parser_error::{context, file_line, parser_line, usage_line};
use crate::cli::{connection, words};
use crate::error::{Error, Kind, Result};
use crate::model::topic;
use crate::tools::print_part;

/// Hint about words of a value that is not quoted.
const QUOTES: &str = "; a value with blanks needs quotes; see --help";

/// Parses a command line of `tool`; `Err` is an end that is reached already.
pub fn parse(
    mut command: Command,
    arguments: Vec<OsString>,
    tool: &str,
    layers: &Layers,
) -> Result<ArgMatches, Result<ExitCode>> {
    let own = command.find_subcommand(tool).unwrap_or(&command);
    let words = words::prepared(own, arguments).map_err(Err)?;
    command.try_get_matches_from_mut(&words).map_err(|e| {
        match ended(&e, &command, &words, tool, layers) {
            Ok(mistake) => Err(mistake),
            Err(end) => end,
        }
    })
}

/// Parses a command line of `tool` as [`parse`] does. Notes each option that is wrong, and goes on
/// without it; `None` if nothing is left.
pub fn parse_all(
    mut command: Command,
    arguments: Vec<OsString>,
    tool: &str,
    layers: &Layers,
    mistakes: &mut Mistakes,
) -> Result<Option<ArgMatches>, Result<ExitCode>> {
    let program = arguments.first().cloned();
    let prepared = words::prepared(&command, arguments);
    let mut whole = prepared.is_ok();
    let mut words = prepared.unwrap_or_else(|e| {
        mistakes.note(e);
        mistakes.note_unread();
        program.into_iter().collect()
    });
    loop {
        let error = match command.clone().try_get_matches_from(&words) {
            Ok(matches) => return Ok(Some(matches)),
            Err(error) => error,
        };
        // What is missing now may have been left out.
        if error.kind() == ErrorKind::MissingRequiredArgument && !whole {
            return Ok(None);
        }
        mistakes.note(ended(&error, &command, &words, tool, layers)?);
        mistakes.note_unread();
        whole = false;
        if words::leave_out(&error, &mut words) {
            continue;
        }
        // Then it came from the environment, or options do not fit together.
        let long = wrong_value(&error).map(|(long, _)| long);
        let set = |arg: &&Arg| long.is_some() && arg.get_long() == long && arg.get_env().is_some();
        let option = command.get_arguments().find(set);
        match option.map(|arg| arg.get_id().clone()) {
            Some(id) => command = command.mut_arg(id, |arg| arg.env(Resettable::Reset)),
            None if words.len() > 1 => words.truncate(1),
            None => return Ok(None),
        }
    }
}

/// Returns the mistake that the parser of `command` has found in the `words` of a command line of
/// `tool`; `Err` is an end without a mistake, such as the help.
fn ended(
    error: &clap::Error,
    command: &Command,
    words: &[OsString],
    tool: &str,
    layers: &Layers,
) -> Result<Error, Result<ExitCode>> {
    // In other tools -h names a host. A script that means that must not succeed in silence.
    let help = words.iter().position(|word| word == "-h");
    let host = help.and_then(|place| words.get(place + 1));
    match (error.kind(), host) {
        (ErrorKind::DisplayHelp, Some(host)) => Ok(Error::usage(format!(
            "-h is help and takes no value; the broker is -H {}",
            host.to_string_lossy()
        ))),
        (ErrorKind::DisplayHelp | ErrorKind::DisplayVersion, _) => {
            Err(print_part(&error.render().to_string()).map(|()| ExitCode::SUCCESS))
        }
        (ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand, _) => {
            eprint!("{error}");
            Err(Ok(ExitCode::from(Kind::Usage.exit_code())))
        }
        _ => Ok(match from_file(error, command, tool, layers) {
            Some(mistake) => mistake,
            None => match from_variable(error, tool, words) {
                Some(name) => Error::usage(format!("{name}: {}", usage_line(error))),
                None => {
                    let own = command.find_subcommand(tool).unwrap_or(command);
                    let hint = stray_hint(error, command, tool)
                        .or_else(|| unquoted_hint(error, own, words))
                        .or_else(|| listen_hint(error, own, words));
                    Error::usage(parser_line(error, "; see --help", hint))
                }
            },
        }),
    }
}

/// Returns the long option of a wrong value, and the value.
fn wrong_value(error: &clap::Error) -> Option<(&str, &str)> {
    let option = context(error, ContextKind::InvalidArg)?.strip_prefix("--")?;
    let long = option.split([' ', '=']).next()?;
    Some((long, context(error, ContextKind::InvalidValue)?))
}

/// Returns the mistake in a file that a wrong value came from, if it came from one.
fn from_file(error: &clap::Error, command: &Command, tool: &str, layers: &Layers) -> Option<Error> {
    let (long, wrong) = wrong_value(error)?;
    let arg = option(command.find_subcommand(tool).unwrap_or(command), long)?;
    let is_wrong =
        |value: &Value| texts(value).is_some_and(|texts| texts.iter().any(|text| text == wrong));
    layers.wrong_option((tool, arg), &is_wrong, &file_line(error))
}

/// Returns the option of `command` that is called `long`.
fn option<'a>(command: &'a Command, long: &str) -> Option<&'a Arg> {
    let mut options = command.get_arguments();
    options.find(|arg| arg.get_long() == Some(long))
}

/// Returns `error`, found when `matches` were parsed already, with the line of the file that has the value
/// which it is about, if a file has it.
pub fn located(error: Error, command: &Command, matches: &ArgMatches, layers: &Layers) -> Error {
    let Some(long) = error.option() else {
        return error;
    };
    let arg = option(command, long);
    let source = arg.and_then(|arg| matches.value_source(arg.get_id().as_str()));
    let found = match (arg, source) {
        (Some(arg), Some(ValueSource::DefaultValue)) => {
            layers.wrong_option((command.get_name(), arg), &|_| true, &error.to_string())
        }
        // Then it may stand in the table about queues.
        (_, None) => long.strip_prefix("queue-").and_then(|key| {
            let (layer, table) = layers.queue()?;
            let wrong = || layer.wrong_at(&[QUEUE, key], error.to_string());
            table.contains_key(key).then(wrong)
        }),
        _ => None,
    };
    found.unwrap_or(error)
}

/// Returns the variable that a wrong value came from, if none of the words that were `given` has it.
fn from_variable(error: &clap::Error, tool: &str, given: &[OsString]) -> Option<String> {
    let (long, value) = wrong_value(error)?;
    let name = connection::variable(tool, long)?;
    let has = std::env::var(&name).is_ok_and(|text| text == value);
    let typed = given
        .iter()
        .any(|word| words::has_value(&word.to_string_lossy(), value));
    (has && !typed).then_some(name)
}

/// Returns a hint about a word that a command line of `tool`, which `command` is or has, has no place
/// for.
fn stray_hint(error: &clap::Error, command: &Command, tool: &str) -> Option<String> {
    if error.kind() == ErrorKind::InvalidSubcommand && tool.is_empty() {
        let word = context(error, ContextKind::InvalidSubcommand)?;
        let has = |command: &&Command| command.find_subcommand(word).is_some();
        let command = command.get_subcommands().find(has)?;
        return Some(format!(
            "; did you mean tael {} {word}?",
            command.get_name()
        ));
    }
    let word = context(error, ContextKind::InvalidArg)?;
    if error.kind() != ErrorKind::UnknownArgument || word.starts_with('-') {
        return None;
    }
    let command = command.find_subcommand(tool).unwrap_or(command);
    let has = |long: &str| {
        command
            .get_arguments()
            .any(|arg| arg.get_long() == Some(long))
    };
    if word.contains('=') {
        return match (has("when"), has("attr")) {
            (true, false) => Some("; give each condition with a --when of its own".to_owned()),
            (_, true) => None,
            (false, false) => Some(QUOTES.to_owned()),
        };
    }
    // The words of a command that is not quoted look like this too.
    let names_pipeline = has("who") && !has("command") && topic::check_who(word).is_ok();
    names_pipeline.then(|| format!("; did you mean --who {word}?"))
}

/// Returns the option that a command has no place for, and its place among the `words`.
fn unknown_option<'a>(error: &'a clap::Error, words: &[OsString]) -> Option<(&'a str, usize)> {
    let option = context(error, ContextKind::InvalidArg)?;
    if error.kind() != ErrorKind::UnknownArgument || !option.starts_with('-') {
        return None;
    }
    let is_it = |word: &OsString| word.to_string_lossy().starts_with(option);
    Some((option, words.iter().position(is_it)?))
}

/// Returns a hint about an option of the command that `-c` names, if that is not quoted.
fn unquoted_hint(error: &clap::Error, own: &Command, words: &[OsString]) -> Option<String> {
    let (_, at) = unknown_option(error, words)?;
    // A slip of an option of ours.
    if error.get(ContextKind::SuggestedArg).is_some() {
        return None;
    }
    let mut options = own.get_arguments();
    options.find(|arg| arg.get_long() == Some("command"))?;
    let before = words.get(..at)?;
    let start = before
        .iter()
        .rposition(|word| word == "-c" || word == "--command")?;
    let mut rest = before.get(start + 2..)?.iter();
    let is_plain = |word: &OsString| !word.to_string_lossy().starts_with('-');
    rest.all(is_plain).then(|| QUOTES.to_owned())
}

/// Returns a hint about a host or port for a command that listens on an address with both.
fn listen_hint(error: &clap::Error, own: &Command, words: &[OsString]) -> Option<String> {
    let (option, at) = unknown_option(error, words)?;
    let has = |long: &str| own.get_arguments().any(|arg| arg.get_long() == Some(long));
    if !has("listen") || has("port") {
        return None;
    }
    let word = words.get(at)?.to_string_lossy().into_owned();
    let joined = word
        .strip_prefix(option)
        .map(|rest| rest.trim_start_matches('='));
    let next = || Some(words.get(at + 1)?.to_string_lossy().into_owned());
    let value = match joined {
        Some("") | None => next(),
        Some(value) => Some(value.to_owned()),
    };
    let port = || value.as_deref()?.parse::<u16>().ok();
    match option {
        "-p" | "--port" => Some(match port() {
            Some(port) => format!("; did you mean --listen 127.0.0.1:{port}?"),
            None => "; did you mean --listen ADDRESS:PORT?".to_owned(),
        }),
        "-H" | "--host" => Some("; did you mean --listen ADDRESS:PORT?".to_owned()),
        _ => None,
    }
}
