//! Help pages: which options `-h` shows, groups of options, and examples.

use clap::{Arg, ArgAction, Command};

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
    let short = std::env::args_os().any(|argument| argument == "-h");
    let has_options = command.get_arguments().any(|arg| arg.get_long().is_some());
    let mut command = command.mut_args(|arg| {
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
        let arg = arg.hide_short_help(hidden).hide_env(short);
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
        end.push_str(
            "Every option may also come from the environment or from tael.toml. Flags win over the \
             environment, and the environment wins over files.",
        );
    }
    if !page.first.is_empty() {
        let more = format!("All options, and examples: tael {tool} --help");
        command = command.after_help(more);
        command = own_flags(command);
    }
    command.after_long_help(end)
}

/// Adds `--help` and `--version`, which need no line in the help of `-h`.
fn own_flags(command: Command) -> Command {
    let help = Arg::new("help")
        .short('h')
        .long("help")
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
