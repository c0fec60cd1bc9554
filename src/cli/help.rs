//! Help pages: which options `-h` shows, groups of options, and examples.

use clap::{Arg, ArgAction, Command, ValueHint};

use crate::cli::connection::is_shared;

/// The help page of a tool.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Options that `-h` shows, by their long names; `--help` shows all. Empty: `-h` shows all too.
    pub first: &'static [&'static str],
    /// Headings, and the long names of the options below them.
    pub groups: &'static [(&'static str, &'static [&'static str])],
    /// Command lines that work.
    pub examples: &'static [&'static str],
}

impl Page {
    /// A page without groups and examples.
    pub const PLAIN: Self = Self {
        first: &[],
        groups: &[],
        examples: &[],
    };
}

/// Gives the help of `command`, which is called `tool`, its groups and examples.
pub fn dress(command: Command, tool: &str, page: Page) -> Command {
    let has_options = command.get_arguments().any(|arg| arg.get_long().is_some());
    let variable = variable(&command);
    let mut command = command.mut_args(|arg| {
        // Help texts name the values, where they mean something.
        let arg = match arg.get_action().takes_values() {
            true => hinted(arg).hide_possible_values(true),
            false => arg,
        };
        let Some(long) = arg.get_long() else {
            return arg;
        };
        let hidden = !page.first.is_empty() && !page.first.contains(&long);
        let group = page.groups.iter().find(|(_, names)| names.contains(&long));
        // Manual pages show no short help of an option that hides it.
        let arg = match arg.get_help().cloned() {
            Some(help) => arg.long_help(help),
            None => arg,
        };
        let arg = arg.hide_short_help(hidden).hide_env(true);
        match group {
            Some((heading, _)) => arg.help_heading(*heading),
            None => arg,
        }
    });
    let mut end = String::new();
    for example in page.examples {
        let heading = if end.is_empty() { "Examples:" } else { "" };
        end.push_str(&format!("{heading}\n  {example}"));
    }
    if has_options {
        let space = if end.is_empty() { "" } else { "\n\n" };
        end.push_str(space);
        end.push_str(&format!(
            "Options also come from the environment{variable} and from tael.toml. Flags win over the \
             environment, and the environment wins over files."
        ));
    }
    if !page.first.is_empty() {
        let more = format!("All options, and examples: tael {tool} --help");
        command = command.after_help(more);
        command = own_flags(command);
    }
    let command = command.mut_subcommands(|verb| {
        let lines = examples_of(page.examples, tool, &verb).join("\n  ");
        let name = verb.get_name();
        let more = format!("All options, and examples: tael {tool} {name} --help");
        let verb = match page.first.is_empty() {
            true => verb,
            false => verb.after_help(more),
        };
        verb.after_long_help(format!("Examples:\n  {lines}"))
    });
    let mut command = command;
    if let Some(usage) = usage(tool) {
        command = command.override_usage(format!("tael {usage}"));
    }
    command.after_long_help(end)
}

/// Hides `options` of `command` in the help of all its verbs except `owner`. They stay options of them, so that
/// files and the environment may have them.
pub fn hide_from_others(command: Command, (owner, options): (&str, &[&str])) -> Command {
    let is_own = |arg: &&Arg| options.contains(&arg.get_id().as_str());
    let own: Vec<Arg> = command.get_arguments().filter(is_own).cloned().collect();
    command.mut_subcommands(|verb| match verb.get_name() == owner {
        true => verb,
        // An option of a verb stands before that of the command for all verbs.
        false => verb.args(own.iter().map(|arg| arg.clone().global(false).hide(true))),
    })
}

/// Returns those of `examples` that are about `verb` of a tool, or its shortest use.
pub fn examples_of(examples: &[&str], tool: &str, verb: &Command) -> Vec<String> {
    let line = format!("tael {tool} {}", verb.get_name());
    let is_own = |example: &&&str| match example.strip_prefix(&line) {
        Some(rest) => rest.is_empty() || rest.starts_with(' '),
        None => false,
    };
    let own: Vec<String> = examples
        .iter()
        .filter(is_own)
        .map(|e| (*e).to_owned())
        .collect();
    if !own.is_empty() {
        return own;
    }
    let takes_unit = verb.get_positionals().any(|arg| arg.is_required_set());
    vec![match takes_unit {
        true => format!("{line} M1XCD"),
        false => line,
    }]
}

/// Returns the usage of a tool whose required options may also come from a file.
pub fn usage(tool: &str) -> Option<&'static str> {
    Some(match tool {
        "client" => "client [OPTIONS] --who NAME -t FILTER... -c CMD",
        "message" => "message [OPTIONS] -t TOPIC [KEY=VALUE]...",
        "control" => "control [OPTIONS] WHO ACTION [UNIT | KEY=VALUE...]",
        "check" => "check [OPTIONS] --who NAME\n       tael check [OPTIONS] [-t TOPIC]",
        "node" => "node [OPTIONS] NAME --functions FILE",
        _ => return None,
    })
}

/// Returns how options of `command` are called in the environment, by two examples.
fn variable(command: &Command) -> String {
    let named = |is_wanted: fn(&str) -> bool| {
        command.get_arguments().find_map(|arg| {
            let env = arg.get_env()?.to_str()?;
            let long = arg.get_long().filter(|long| is_wanted(long))?;
            Some(format!("--{long} is {env}"))
        })
    };
    let own = named(|long| !is_shared(long));
    let shared = named(is_shared).map(|text| format!("{text}, as for all commands"));
    let examples: Vec<String> = own.into_iter().chain(shared).collect();
    match examples.is_empty() {
        true => String::new(),
        false => format!(" ({})", examples.join("; ")),
    }
}

/// Tells shells which values are files and folders.
fn hinted(arg: Arg) -> Arg {
    let names = arg.get_value_names().unwrap_or_default();
    let hint = match names.first().map(|name| name.as_str()) {
        Some("FILE") => ValueHint::FilePath,
        Some("DIR" | "FOLDER") => ValueHint::DirPath,
        Some("CMD") => ValueHint::CommandString,
        _ => return arg,
    };
    arg.value_hint(hint)
}

/// Adds `--help` and `--version`, which need no line in the help of `-h`.
fn own_flags(command: Command) -> Command {
    // Verbs take this one: without that of the command they have none.
    let has_verbs = command.has_subcommands();
    let help = Arg::new("help")
        .short('h')
        .long("help")
        .global(has_verbs)
        .action(ArgAction::Help)
        .hide_short_help(true)
        .long_help("Print the most important options (-h), or all of them (--help)");
    let version = Arg::new("version")
        .short('V')
        .long("version")
        .action(ArgAction::Version)
        .hide_short_help(true)
        .long_help("Print version");
    command
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args([help, version])
}
