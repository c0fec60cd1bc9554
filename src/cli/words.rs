//! The words of a command line, before they are parsed: forms that the parser does not know.

use std::ffi::OsString;

use clap::error::{ContextKind, ErrorKind};
use clap::{Arg, ArgAction, Command};

use crate::cli::parser_error::context;
use crate::error::{Error, Result};
use crate::model::text::printable;

/// Returns `arguments` of `command` with each `--attr KEY=VALUE` as the two words that it means.
///
/// # Errors
/// When an option with one dash has the name of a long one: `-topic x` would mean `-t opic`.
pub fn prepared(command: &Command, arguments: Vec<OsString>) -> Result<Vec<OsString>> {
    let mut words = arguments.into_iter();
    let mut prepared: Vec<OsString> = words.next().into_iter().collect();
    while let Some(word) = words.next() {
        let Some(text) = word.to_str() else {
            prepared.push(word);
            continue;
        };
        if text == "--" {
            prepared.push(word);
            break;
        }
        if let Some(long) = with_one_dash(command, text) {
            let text = printable(text, 80);
            return Err(Error::usage(format!(
                "unexpected argument '{text}'; did you mean --{long}?"
            )));
        }
        let option = options(command).find(|arg| is(arg, text));
        let Some(arg) = option.filter(|arg| arg.is_allow_hyphen_values_set()) else {
            match joined_pair(command, text) {
                Some(pair) => prepared.extend(pair),
                None => prepared.push(word),
            }
            continue;
        };
        prepared.push(word);
        // Its values may begin with a dash.
        let count = arg.get_num_args().map_or(1, |range| range.min_values());
        let is_pair = arg.get_long() == Some("attr");
        for place in 0..count {
            let Some(value) = words.next() else { break };
            match value
                .to_str()
                .filter(|_| is_pair && place == 0)
                .and_then(split)
            {
                Some(pair) => {
                    prepared.extend(pair);
                    break;
                }
                None => prepared.push(value),
            }
        }
    }
    prepared.extend(words);
    Ok(prepared)
}

/// Returns whether a word is `value`, or an option with that value, as in `--port=x` and `-px`.
pub fn has_value(word: &str, value: &str) -> bool {
    match word.strip_suffix(value) {
        Some("") => true,
        Some(option) => {
            option.starts_with('-') && (option.ends_with('=') || option.chars().count() == 2)
        }
        None => false,
    }
}

/// Removes from `arguments` the option that the parser has refused with `error`, with its value, so that
/// the parser can read the others. Returns whether it was there.
pub fn leave_out(error: &clap::Error, arguments: &mut Vec<OsString>) -> bool {
    let Some(option) = context(error, ContextKind::InvalidArg) else {
        return false;
    };
    let text = |at: usize| arguments.get(at).map(|word| word.to_string_lossy());
    let is_option = |at: usize| text(at).is_some_and(|word| word.starts_with('-'));
    let range = match (error.kind(), context(error, ContextKind::InvalidValue)) {
        (ErrorKind::ValueValidation | ErrorKind::InvalidValue, Some(value))
            if !value.is_empty() =>
        {
            let ends = |word: &OsString| has_value(&word.to_string_lossy(), value);
            let Some(at) = arguments.iter().skip(1).position(ends).map(|at| at + 1) else {
                return false;
            };
            let alone = text(at).is_some_and(|word| word == value);
            let with_option = alone && at > 1 && is_option(at - 1);
            at - usize::from(with_option)..at + 1
        }
        (ErrorKind::UnknownArgument, _) => {
            let joined = format!("{option}=");
            let named = |word: &OsString| {
                let word = word.to_string_lossy();
                word == option || word.starts_with(&joined)
            };
            let Some(at) = arguments.iter().skip(1).position(named).map(|at| at + 1) else {
                return false;
            };
            // The word after an unknown option may be its value.
            let has_value = option.starts_with('-')
                && text(at).is_some_and(|word| word == option)
                && text(at + 1).is_some()
                && !is_option(at + 1);
            at..at + 1 + usize::from(has_value)
        }
        _ => return false,
    };
    arguments.drain(range);
    true
}

/// Returns the options of `command` and of its subcommands that take values or not.
fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    let own = command.get_arguments();
    let below = command.get_subcommands().flat_map(Command::get_arguments);
    own.chain(below)
}

/// Returns whether `text` is option `arg`, without a value in the same word.
fn is(arg: &Arg, text: &str) -> bool {
    match (text.strip_prefix("--"), text.strip_prefix('-')) {
        (Some(long), _) => arg.get_long() == Some(long),
        (None, Some(short)) => arg.get_short().is_some_and(|c| short == c.to_string()),
        (None, None) => false,
    }
}

/// Returns the long option that `text` names after a single dash.
fn with_one_dash<'a>(command: &'a Command, text: &str) -> Option<&'a str> {
    let name = text
        .strip_prefix('-')
        .filter(|name| !name.starts_with('-'))?;
    let name = name.split('=').next().filter(|name| name.len() > 1)?;
    let mut longs = options(command).filter_map(Arg::get_long);
    longs.find(|long| *long == name)
}

/// Splits `KEY=VALUE`; the key may be empty, which is an error later.
fn split(pair: &str) -> Option<[OsString; 2]> {
    let (key, value) = pair.split_once('=')?;
    Some([key.into(), value.into()])
}

/// Returns `--attr=KEY=VALUE` and `-aKEY=VALUE` as three words.
fn joined_pair(command: &Command, text: &str) -> Option<[OsString; 3]> {
    let arg = options(command).find(|arg| arg.get_long() == Some("attr"))?;
    if !matches!(arg.get_action(), ArgAction::Append) {
        return None;
    }
    let rest = match text.strip_prefix("--attr=") {
        Some(rest) => rest,
        None => text.strip_prefix('-')?.strip_prefix(arg.get_short()?)?,
    };
    let [key, value] = split(rest)?;
    Some(["--attr".into(), key, value])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let attr = Arg::new("attr").short('a').long("attr").num_args(2);
        let attr = attr.action(ArgAction::Append).allow_hyphen_values(true);
        let topic = Arg::new("topic").short('t').long("topic");
        let payload = Arg::new("payload").short('m').long("payload");
        let payload = payload.allow_hyphen_values(true);
        Command::new("message").args([attr, topic, payload])
    }

    fn words(line: &str) -> Result<String> {
        let arguments = line.split(' ').map(OsString::from).collect();
        let prepared = prepared(&command(), arguments)?;
        let texts: Vec<_> = prepared.iter().filter_map(|word| word.to_str()).collect();
        Ok(texts.join(" "))
    }

    #[test]
    fn pairs_become_two_words() {
        for (line, want) in [
            ("x -t a --attr k=v", "x -t a --attr k v"),
            ("x --attr k=v=w --attr l -m", "x --attr k v=w --attr l -m"),
            ("x -a k=v -t a", "x -a k v -t a"),
            ("x --attr=k=v", "x --attr k v"),
            ("x -ak=v", "x --attr k v"),
            ("x --attr k a=b", "x --attr k a=b"),
            ("x --attr k --topic=a c=d", "x --attr k --topic=a c=d"),
            ("x --attr =v", "x --attr  v"),
            ("x --attr", "x --attr"),
            ("x -m -attr k=v", "x -m -attr k=v"),
            ("x c=d -- --attr k=v -topic", "x c=d -- --attr k=v -topic"),
        ] {
            assert_eq!(words(line).as_deref(), Ok(want), "{line}");
        }
    }

    #[test]
    fn long_options_have_two_dashes() {
        for line in ["x -topic a", "x -t a -attr k v", "x -payload={}"] {
            let error = words(line).expect_err(line).to_string();
            assert!(error.contains("did you mean --"), "{error}");
        }
        assert_eq!(words("x -tlab").as_deref(), Ok("x -tlab"));
    }
}
