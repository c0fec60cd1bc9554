//! Configuration files: defaults for options, below flags and environment.
//!
//! ```toml
//! host = "broker.example"     # options that all commands share
//! [client]                    # options of one command
//! who = "align"
//! [[trigger]]                 # a client's triggers
//! topic = "lab/seq/status"
//! command = "align.sh"
//! ```

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command};
use toml::{Table, Value};

use crate::cli::key_lines::KeyLines;
use crate::cli::mistakes::Mistakes;
use crate::cli::toml_mistakes;
use crate::error::{Error, Place, Result};
use crate::model::near::nearest;
use crate::model::text::printable;
use crate::os::paths;

/// One file.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its path.
    pub path: PathBuf,
    table: Table,
    text: String,
    /// Found when the first mistake is noted.
    lines: OnceLock<KeyLines>,
}

/// All files that apply, the strongest first.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    layers: Vec<Layer>,
}

/// Tables of options of one command.
pub const TABLES: &[&str] = &[
    "client", "message", "beacon", "control", "play", "node", "status", "check", "watch", "work",
    "events", "facts", "gateway", "pair", "broker", "demo",
];
/// Tables of triggers of a client.
const TRIGGER: &str = "trigger";
/// Tables of routes of a gateway.
const ROUTE: &str = "route";
/// Tables of views.
const VIEW: &str = "view";
/// Tables of work types of a client. Options of `tael work` are a table of the same name.
const WORK: &str = "work";
/// Tables of the keys that sign work, and of those whose signatures are taken.
const KEYS: &[&str] = &["signing", "verify"];
/// Table about the broker of work queues.
pub const QUEUE: &str = "queue";
/// Tables of commands of a node.
const COMMAND: &str = "command";

/// Keys that are lists of tables, and what such a table is.
const LISTS: &[(&str, &str)] = &[
    (TRIGGER, "a trigger"),
    (ROUTE, "a route"),
    (VIEW, "a view"),
    (WORK, "a work type"),
];

/// Keys of a work type that are no options of `tael work`.
const OF_WORK_TYPES: &[&str] = &["name", "command"];

/// Maximum length of a path in an error, characters.
const MAX_PATH: usize = 200;

/// Options that no file may hold.
const NOT_IN_FILES: &[&str] = &[
    "help",
    "version",
    "config",
    "password",
    "check",
    "connect",
    "dry-run",
    "message",
    "message-topic",
    "message-property",
    "message-retained",
];

/// A value of a file, whether it stands in the table of the command, and the option that it is for.
type Entry<'a> = (&'a Layer, bool, &'a str, &'a Value);

impl Layers {
    /// Reads the file that `--config` or `TAEL_CONFIG` names (default: the file of the user), and
    /// the file of the host.
    ///
    /// # Errors
    /// When a file that exists, or that was named, cannot be read (78).
    pub fn load(arguments: &[OsString]) -> Result<Self> {
        let mut mistakes = Mistakes::default();
        let layers = Self::load_all(arguments, &mut mistakes);
        mistakes.or_first(Some(layers))
    }

    /// Reads the same files; notes those that cannot be read.
    pub fn load_all(arguments: &[OsString], mistakes: &mut Mistakes) -> Self {
        let first = match named(arguments) {
            Some(path) => {
                if matches!(path.try_exists(), Ok(false)) {
                    let cause = format!("read {}: there is no such file", path.display());
                    mistakes.note(Error::config(cause));
                }
                read(&path, mistakes)
            }
            None => paths::user_config().and_then(|path| read(&path, mistakes)),
        };
        let system = read(Path::new(paths::SYSTEM_CONFIG), mistakes);
        Self {
            layers: first.into_iter().chain(system).collect(),
        }
    }

    /// Takes `text` as that of the only file, `path`.
    ///
    /// # Errors
    /// When it is not TOML (78).
    pub fn of_text(path: &Path, text: &str) -> Result<Self> {
        let mut mistakes = Mistakes::default();
        let layer = Layer::parse(path, text, &mut mistakes);
        mistakes.or_first(layer.map(|layer| Self {
            layers: vec![layer],
        }))
    }

    /// Gives `command` the values of the files as defaults.
    ///
    /// # Errors
    /// When a file has a key that `command` does not know, or a value of a wrong type (78).
    pub fn apply(&self, mut command: Command) -> Result<Command> {
        for entry in self.entries(&command) {
            let (layer, own, key, value) = entry?;
            command = layer.set(command, own, key, value)?;
        }
        Ok(command)
    }

    /// Does the same; notes every key and every value that is wrong, and leaves it out.
    pub fn apply_all(&self, command: Command, mistakes: &mut Mistakes) -> Command {
        let mut whole = command.clone();
        // Parsed without a command line and an environment, only the value of the file can be wrong.
        let bare = command
            .clone()
            .no_binary_name(true)
            .mut_args(|arg| arg.env(Resettable::Reset));
        for entry in self.entries(&command) {
            let checked = entry.and_then(|(layer, own, key, value)| {
                let alone = layer.set(bare.clone(), own, key, value)?;
                match alone.try_get_matches_from([""; 0]) {
                    Err(e) if e.kind() != ErrorKind::MissingRequiredArgument => {
                        let tool = if own { command.get_name() } else { "" };
                        Err(layer.wrong_at(&[tool, key], crate::cli::parser_error::file_line(&e)))
                    }
                    _ => Ok((layer, own, key, value)),
                }
            });
            if let Some((layer, own, key, value)) = mistakes.keep(checked) {
                match layer.set(whole.clone(), own, key, value) {
                    Ok(with) => whole = with,
                    Err(e) => mistakes.note(e),
                }
            }
        }
        whole
    }

    /// Returns the values for `command`, the weakest file first, so that stronger ones replace
    /// them.
    fn entries(&self, command: &Command) -> Vec<Result<Entry<'_>>> {
        let tool = command.get_name();
        let mut entries = Vec::new();
        for layer in self.layers.iter().rev() {
            for (key, value) in &layer.table {
                match value {
                    Value::Table(_) if key == QUEUE => {}
                    Value::Table(table) if key == WORK && is_work_type(table) => {
                        entries.push(Err(layer.unknown(key, command)));
                    }
                    Value::Table(table) if *key == tool => {
                        let own = table.iter();
                        entries
                            .extend(own.map(|(key, value)| Ok((layer, true, key.as_str(), value))));
                    }
                    Value::Table(_) if TABLES.contains(&key.as_str()) => {}
                    Value::Array(_) if [TRIGGER, WORK, VIEW, ROUTE].contains(&key.as_str()) => {}
                    Value::Table(_) if key == COMMAND || KEYS.contains(&key.as_str()) => {}
                    value if super::connection::is_shared(key) => {
                        // Not every command has every shared option.
                        if command.get_arguments().any(|arg| is_named(arg, key)) {
                            entries.push(Ok((layer, false, key.as_str(), value)));
                        }
                    }
                    _ => entries.push(Err(layer.unknown(key, command))),
                }
            }
        }
        entries
    }

    /// Returns whether no file may hold `key`.
    #[must_use]
    pub fn is_excluded(key: &str) -> bool {
        NOT_IN_FILES.contains(&key)
    }

    /// Returns `error` as one about option `arg` of `tool` in the strongest file that has a value of it
    /// that `is_wrong`.
    pub fn wrong_option(
        &self,
        (tool, arg): (&str, &Arg),
        is_wrong: &dyn Fn(&Value) -> bool,
        error: &str,
    ) -> Option<Error> {
        let found = self.layers.iter().find_map(|layer| {
            let has = |(key, value): &(&String, &Value)| is_named(arg, key) && is_wrong(value);
            let own = layer.table.get(tool).and_then(Value::as_table);
            let own = own.and_then(|table| table.iter().find(has));
            let shared = |(key, _): &(&String, &Value)| super::connection::is_shared(key);
            let shared = || layer.table.iter().filter(shared).find(has);
            let (table, (key, _)) = own
                .map(|own| (tool, own))
                .or_else(|| Some(("", shared()?)))?;
            Some((layer, [table, key.as_str()]))
        });
        found.map(|(layer, place)| layer.wrong_at(&place, error))
    }

    /// Returns the strongest file that has `key` in the table of `tool`.
    pub fn with_key(&self, tool: &str, key: &str) -> Option<&Layer> {
        self.layers
            .iter()
            .find(|layer| match layer.table.get(tool) {
                Some(Value::Table(table)) => table.contains_key(key),
                _ => false,
            })
    }

    /// Returns the files that `key` of the table `[table]` names, from the strongest file that has
    /// that table.
    ///
    /// # Errors
    /// When the table has another key, or the value is no list of files (78).
    pub fn files_of(&self, table: &str, key: &str) -> Result<Vec<PathBuf>> {
        let found = self
            .layers
            .iter()
            .find_map(|layer| match layer.table.get(table) {
                Some(Value::Table(found)) => Some((layer, found)),
                _ => None,
            });
        let Some((layer, found)) = found else {
            return Ok(Vec::new());
        };
        if let Some(other) = found.keys().find(|other| *other != key) {
            let cause = format!("unknown key '{other}': [{table}] has '{key}' only");
            return Err(layer.wrong_at(&[table, other], cause));
        }
        let files = found
            .get(key)
            .map(texts)
            .unwrap_or_default()
            .unwrap_or_default();
        match files.is_empty() {
            true => {
                Err(layer.wrong_at(&[table, key], format!("[{table}] names no file as '{key}'")))
            }
            false => Ok(files.into_iter().map(PathBuf::from).collect()),
        }
    }

    /// Returns the `[command.NAME]` tables of the strongest file that has any.
    pub fn commands(&self) -> Option<(&Layer, &Table)> {
        self.layers
            .iter()
            .find_map(|layer| match layer.table.get(COMMAND) {
                Some(Value::Table(table)) => Some((layer, table)),
                _ => None,
            })
    }

    /// Returns the `[queue]` table of the strongest file that has one.
    pub fn queue(&self) -> Option<(&Layer, &Table)> {
        self.layers
            .iter()
            .find_map(|layer| match layer.table.get(QUEUE) {
                Some(Value::Table(table)) => Some((layer, table)),
                _ => None,
            })
    }

    /// Returns the `[[trigger]]` tables of the strongest file that has any.
    pub fn triggers(&self) -> Option<(&Layer, &[Value])> {
        self.tables(TRIGGER)
    }

    /// Returns the `[[view]]` tables of the strongest file that has any.
    pub fn views(&self) -> Option<(&Layer, &[Value])> {
        self.tables(VIEW)
    }

    /// Returns which files were read, for an error about a `table` that none of them has.
    pub fn read_for(&self, table: &str) -> String {
        let shown = |path: &Path| printable(&path.display().to_string(), MAX_PATH);
        let read = self.layers.iter().map(|layer| shown(&layer.path));
        let read: Vec<String> = read.collect();
        if !read.is_empty() {
            return format!("there is no {table} in {}", read.join(" and "));
        }
        let places = paths::user_config().into_iter();
        let places = places.chain([PathBuf::from(paths::SYSTEM_CONFIG)]);
        let places: Vec<String> = places.map(|path| shown(&path)).collect();
        format!("there is no file {}", places.join(", and no "))
    }

    /// Returns the `[[route]]` tables of the strongest file that has any.
    pub fn routes(&self) -> Option<(&Layer, &[Value])> {
        self.tables(ROUTE)
    }

    /// Returns the `[[work]]` tables of the strongest file that has any.
    pub fn work_types(&self) -> Option<(&Layer, &[Value])> {
        self.tables(WORK)
    }

    fn tables(&self, key: &str) -> Option<(&Layer, &[Value])> {
        self.layers
            .iter()
            .find_map(|layer| match layer.table.get(key) {
                Some(Value::Array(list)) => Some((layer, list.as_slice())),
                _ => None,
            })
    }
}

impl Layer {
    /// Parses the `text` of the file at `path`; notes the first mistake of each line.
    fn parse(path: &Path, text: &str, mistakes: &mut Mistakes) -> Option<Self> {
        let table = text.parse::<Table>();
        for (line, cause) in toml_mistakes::of(text) {
            let place = Place {
                file: path.to_owned(),
                line: Some(line),
            };
            let cause = format!("line {line}: {cause}");
            mistakes.note(unreadable(path, &cause).at(place));
        }
        Some(Self {
            path: path.to_owned(),
            table: table.ok()?,
            text: text.to_owned(),
            lines: OnceLock::new(),
        })
    }

    /// Returns an error about this file.
    pub fn wrong(&self, cause: impl std::fmt::Display) -> Error {
        Error::config(format!("use {}: {cause}", self.path.display())).at(self.place(None))
    }

    fn place(&self, line: Option<usize>) -> Place {
        Place {
            file: self.path.clone(),
            line,
        }
    }

    /// Returns an error about what stands at `place` in this file: keys of tables and numbers of
    /// triggers, counted from 0. Empty ones do not count.
    pub fn wrong_at(&self, place: &[&str], cause: impl std::fmt::Display) -> Error {
        let lines = self.lines.get_or_init(|| KeyLines::of(&self.text));
        match lines.line(place) {
            Some(line) => {
                Error::config(format!("use {}, line {line}: {cause}", self.path.display()))
                    .at(self.place(Some(line)))
            }
            None => self.wrong(cause),
        }
    }

    fn unknown(&self, key: &str, command: &Command) -> Error {
        if let Some(shape) = shape_of(key) {
            return self.wrong_at(&[key], shape);
        }
        let cause = format!("unknown key '{key}'");
        let own = || command.get_arguments().filter_map(Arg::get_long);
        if let Some(near) = nearest(key, super::connection::shared()) {
            return self.wrong_at(&[key], format_args!("{cause}; did you mean '{near}'?"));
        }
        if let Some(near) = nearest(
            key,
            TABLES
                .iter()
                .copied()
                .chain(KEYS.iter().copied())
                .chain([TRIGGER, WORK, COMMAND, QUEUE, VIEW, ROUTE]),
        ) {
            let list = LISTS.iter().any(|(list, _)| *list == near);
            let near = if list {
                format!("[{near}]")
            } else {
                near.to_owned()
            };
            return self.wrong_at(&[key], format_args!("{cause}; did you mean [{near}]?"));
        }
        let tool = command.get_name();
        let same = own().find(|own| *own == key);
        if let Some(near) = same.or_else(|| nearest(key, own())) {
            return self.wrong_at(
                &[key],
                format_args!("{cause}; did you mean '{near}' below [{tool}]?"),
            );
        }
        self.wrong_at(&[key], format_args!(
            "{cause}: no option that all commands share is called so; options of one command go \
             below [client], [message], …, triggers of a client into [[trigger]]"
        ))
    }

    fn set(&self, command: Command, own: bool, key: &str, value: &Value) -> Result<Command> {
        let tool = command.get_name();
        let place = [if own { tool } else { "" }, key];
        let arg = command
            .get_arguments()
            .find(|arg| is_named(arg, key) && !NOT_IN_FILES.contains(&key))
            .ok_or_else(|| {
                let own = command.get_arguments().filter_map(Arg::get_long);
                let own = own.filter(|own| !NOT_IN_FILES.contains(own));
                let hint = match nearest(key, own) {
                    _ if list_of(key).is_some() => {
                        let (list, what) = list_of(key).unwrap_or_default();
                        format!("; {what} is written [[{list}]], outside of other tables")
                    }
                    Some(near) => format!("; did you mean '{near}'?"),
                    None => String::new(),
                };
                self.wrong_at(
                    &place,
                    format_args!("unknown key '{key}': 'tael {tool}' has no such option{hint}"),
                )
            })?;
        let id = arg.get_id().clone();
        let flag = matches!(arg.get_action(), ArgAction::SetTrue);
        let values = texts(value)
            .filter(|_| flag == matches!(value, Value::Boolean(_)))
            .ok_or_else(|| self.wrong_at(&place, format_args!("'{key}' cannot be {value}")))?;
        Ok(command.mut_arg(id, |arg| arg.default_values(values)))
    }
}

/// Returns the file that the user names.
fn named(arguments: &[OsString]) -> Option<PathBuf> {
    let mut rest = arguments.iter().skip(1);
    while let Some(argument) = rest.next() {
        let text = argument.to_string_lossy();
        if text == "--" {
            break;
        }
        if text == "--config" {
            return rest.next().map(PathBuf::from);
        }
        if let Some(path) = text.strip_prefix("--config=") {
            return Some(PathBuf::from(path));
        }
    }
    std::env::var_os("TAEL_CONFIG")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

/// Reads the file at `path`, if there is one; notes what is wrong with it.
fn read(path: &Path, mistakes: &mut Mistakes) -> Option<Layer> {
    match fs::read_to_string(path) {
        Ok(text) => Layer::parse(path, &text, mistakes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => {
            let place = Place {
                file: path.to_owned(),
                line: None,
            };
            mistakes.note(unreadable(path, &e.to_string()).at(place));
            None
        }
    }
}

/// Returns whether a table of options of `tael work` is a work type with one bracket.
fn is_work_type(table: &Table) -> bool {
    OF_WORK_TYPES.iter().any(|key| table.contains_key(*key))
}

/// Returns the list of tables that `key` names, in the singular or the plural, and what such a table is.
fn list_of(key: &str) -> Option<(&'static str, &'static str)> {
    let is_meant = |list: &str| key == list || key.strip_suffix('s') == Some(list);
    LISTS.iter().copied().find(|(list, _)| is_meant(list))
}

/// Returns how the table `key` is written, if there is one: the file has another value of that name.
fn shape_of(key: &str) -> Option<String> {
    if let Some((list, what)) = list_of(key).filter(|(list, _)| *list == key) {
        return Some(format!("{what} is written [[{list}]], with two brackets"));
    }
    let is_table = TABLES.contains(&key) || KEYS.contains(&key) || key == QUEUE;
    match key {
        COMMAND => Some("a command is written [command.NAME], with one bracket".to_owned()),
        _ if is_table => Some(format!("'{key}' is a table: [{key}], with one bracket")),
        _ => None,
    }
}

fn unreadable(path: &Path, cause: &str) -> Error {
    let cause = cause.split_whitespace().collect::<Vec<_>>().join(" ");
    Error::config(format!("read {}: {cause}", path.display()))
}

/// Returns a TOML value as the texts of an option.
pub fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Integer(number) => Some(vec![number.to_string()]),
        Value::Float(number) => Some(vec![number.to_string()]),
        Value::Boolean(flag) => Some(vec![flag.to_string()]),
        Value::Array(list) => {
            let lists = list.iter().map(|v| match v {
                Value::Array(_) => None,
                v => texts(v),
            });
            lists
                .collect::<Option<Vec<_>>>()
                .map(|lists| lists.concat())
        }
        Value::Datetime(_) | Value::Table(_) => None,
    }
}

fn is_named(arg: &Arg, key: &str) -> bool {
    arg.get_long() == Some(key)
        || arg
            .get_all_aliases()
            .is_some_and(|aliases| aliases.contains(&key))
}
