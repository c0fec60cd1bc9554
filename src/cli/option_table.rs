//! Tables of a file whose keys are options, such as `[[trigger]]` and `[[work]]`.

use clap::{Args, Command, FromArgMatches};
use toml::Value;

use crate::cli::config::texts;
use crate::cli::parser_error::file_line;
use crate::model::near::nearest;

/// Options of a table.
pub struct ReadTable<T> {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// The options.
    pub options: T,
    /// Keys that are wrong; that was noted.
    pub wrong: Vec<String>,
}

/// Returns whether `key`, which is missing, may be one of these `wrong` ones.
pub fn is_slip(wrong: &[String], key: &str) -> bool {
    let known = || wrong.iter().map(String::as_str);
    known().any(|wrong| wrong == key) || nearest(key, known()).is_some()
}

/// Reads a table whose name has the key `name_key` as if its other keys were options; notes what is
/// wrong.
pub fn read_table<T: Args + FromArgMatches>(
    name_key: &str,
    table: &Value,
    noted: &mut impl FnMut(&str, String),
) -> Option<ReadTable<T>> {
    let Value::Table(table) = table else {
        noted("", "it is not a table".into());
        return None;
    };
    let command = T::augment_args(Command::new("table").no_binary_name(true));
    let parse = |arguments: &[String]| {
        let matches = command.clone().try_get_matches_from(arguments);
        matches.and_then(|matches| T::from_arg_matches(&matches))
    };
    let (mut name, mut arguments, mut wrong) = (None, Vec::new(), Vec::new());
    for (key, value) in table {
        match key_arguments(&command, name_key, key, value) {
            Ok(values) if key == name_key => name = Some(values.concat()),
            Ok(values) => arguments.push((key.as_str(), values)),
            Err(cause) => {
                noted(key, cause);
                wrong.push(key.clone());
            }
        }
    }
    let all = |arguments: &[(&str, Vec<String>)]| {
        let all = arguments.iter().flat_map(|(_, values)| values.clone());
        parse(&all.collect::<Vec<_>>())
    };
    let mut parsed = all(&arguments);
    if parsed.is_err() {
        // The parser stops at the first mistake, so each key is parsed alone.
        arguments.retain(|(key, values)| match parse(values) {
            Ok(_) => true,
            Err(e) => {
                noted(key, file_line(&e));
                wrong.push((*key).to_owned());
                false
            }
        });
        parsed = all(&arguments);
    }
    match parsed {
        Ok(options) => Some(ReadTable {
            name,
            options,
            wrong,
        }),
        Err(first) => {
            noted("", file_line(&first));
            None
        }
    }
}

/// Returns a key of a table as command line arguments of `command`; the texts themselves for its
/// name, which has the key `name_key`.
fn key_arguments(
    command: &Command,
    name_key: &str,
    key: &str,
    value: &Value,
) -> Result<Vec<String>, String> {
    let values = texts(value).ok_or_else(|| format!("'{key}' cannot be {value}"))?;
    if key == name_key {
        return Ok(values);
    }
    let named = |arg: &&clap::Arg| arg.get_long() == Some(key);
    let Some(arg) = command.get_arguments().find(named) else {
        let known = command.get_arguments().filter_map(|arg| arg.get_long());
        let known: Vec<&str> = known.collect();
        if let Some(near) = nearest(key, known.iter().copied().chain([name_key])) {
            return Err(format!("unknown key '{key}'; did you mean '{near}'?"));
        }
        let known = known.join(", ");
        return Err(format!("unknown key '{key}': it has {name_key}, {known}"));
    };
    let flag = matches!(arg.get_action(), clap::ArgAction::SetTrue);
    match (flag, value) {
        (true, Value::Boolean(on)) => Ok(on.then(|| format!("--{key}")).into_iter().collect()),
        (true, _) | (false, Value::Boolean(_)) => Err(format!("'{key}' cannot be {value}")),
        // An empty list of conditions is no condition.
        (false, Value::Array(list)) if list.is_empty() && key == "when" => {
            Ok(vec!["--when=".into()])
        }
        (false, _) => Ok(values.iter().map(|v| format!("--{key}={v}")).collect()),
    }
}
