//! Command lines: options from flags, environment and configuration files, then dispatch.

mod attr;
pub mod beacon;
#[cfg(feature = "embedded-broker")]
mod broker;
mod check;
pub mod client;
mod complete;
mod completions;
mod config;
mod connection;
mod control;
mod dry_run;
mod events;
mod facts;
mod forget;
mod gateway;
mod help;
mod key_lines;
mod man;
pub mod message;
mod mistakes;
mod node;
mod option_table;
mod pair;
mod parse;
mod parser_error;
mod play;
mod queue;
mod queue_access;
mod route_tables;
mod signing;
mod status;
mod submit;
mod toml_mistakes;
mod trigger;
mod values;
mod variables;
mod version;
mod view;
mod watch;
mod words;
mod work;
mod work_node;
mod work_type;

use std::ffi::OsString;
use std::panic;
use std::process::ExitCode;
use std::sync::atomic::{AtomicI32, Ordering};

use clap::{ArgMatches, Args, Command, FromArgMatches};

use crate::error::{Error, Kind, Result};
use crate::os::facts::guard;
use crate::os::folder;
use crate::os::inherit::{keep_descriptors, unblock_signals};
use crate::os::init::reap_as_first_process;
use crate::os::logging::{self, Target};
use crate::os::process::{hear_of_children, survive_file_size_limit};
use crate::runner;
use config::Layers;
use help::Page;
use mistakes::Mistakes;
use parse::{parse, parse_all};
use parser_error::usage_line;

/// One command: its options, and its work.
trait Tool: Args + FromArgMatches {
    /// Its name below `tael`.
    const NAME: &'static str;
    /// Its purpose, in a line.
    const ABOUT: &'static str;

    /// Its help page.
    const HELP: Page = Page::PLAIN;

    /// Its exit code for a bug of ours.
    const ON_BUG: i32 = Kind::Bug.exit_code() as i32;

    /// Whether it runs until it is stopped, and logs meanwhile.
    const DAEMON: bool = false;

    /// Returns whether it runs so with these options.
    fn is_daemon(_: &ArgMatches) -> bool {
        Self::DAEMON
    }

    /// Options that only one of its verbs takes, and this verb. Others refuse them.
    const OF_VERB: (&str, &[&str]) = ("", &[]);

    /// Whether help and completions leave it out.
    const HIDDEN: bool = false;

    /// Notes all mistakes in the options: what `--check` does, for tools that have it. It changes
    /// nothing and connects to nothing.
    const CHECK: Option<fn(Self, &ArgMatches, &Layers, &mut Mistakes)> = None;

    /// Checks the options and does the work.
    fn run(self, matches: &ArgMatches, layers: &Layers) -> Result<ExitCode>;

    /// Turns an error into what it means to the caller of this tool.
    fn failed(error: Error) -> Result<ExitCode> {
        Err(error)
    }
}

/// A tool, for the list of all.
struct Entry {
    name: &'static str,
    command: fn() -> Command,
    run: fn(&ArgMatches, &Layers) -> Result<ExitCode>,
    check: Option<fn(Vec<OsString>) -> Result<ExitCode>>,
    failed: fn(Error) -> Result<ExitCode>,
    on_bug: i32,
    page: Page,
}

const fn entry<T: Tool>() -> Entry {
    Entry {
        name: T::NAME,
        command: command::<T>,
        run: run::<T>,
        check: if T::CHECK.is_some() {
            Some(check::<T>)
        } else {
            None
        },
        failed: T::failed,
        on_bug: T::ON_BUG,
        page: T::HELP,
    }
}

/// All commands of `tael`, as its help lists them. Only `tael` reaches them: the other binaries link
/// one tool.
const ENTRIES: &[Entry] = &[
    entry::<client::Client>(),
    entry::<message::Message>(),
    entry::<beacon::Beacon>(),
    entry::<control::Control>(),
    entry::<status::Status>(),
    entry::<check::Check>(),
    entry::<watch::Watch>(),
    entry::<forget::Forget>(),
    entry::<work::Work>(),
    entry::<events::Events>(),
    entry::<queue::Queue>(),
    entry::<facts::Facts>(),
    entry::<gateway::Gateway>(),
    entry::<pair::Pair>(),
    entry::<play::Play>(),
    entry::<node::Node>(),
    #[cfg(feature = "embedded-broker")]
    entry::<broker::Broker>(),
    #[cfg(feature = "embedded-broker")]
    entry::<broker::Demo>(),
    entry::<version::Version>(),
    entry::<man::Man>(),
    entry::<completions::Completions>(),
    entry::<complete::Complete>(),
];

fn command<T: Tool>() -> Command {
    let command = T::augment_args(Command::new(T::NAME))
        .about(T::ABOUT)
        .hide(T::HIDDEN)
        .version(env!("CARGO_PKG_VERSION"));
    let command = connection::with_environment(command, T::NAME);
    let command = help::dress(command, T::NAME, T::HELP);
    help::hide_from_others(command, T::OF_VERB)
}

fn run<T: Tool>(matches: &ArgMatches, layers: &Layers) -> Result<ExitCode> {
    let tool = T::from_arg_matches(matches).map_err(|e| Error::usage(usage_line(&e)))?;
    begin_log::<T>(matches)?;
    variables::warn_of_variables(T::NAME, command::<T>);
    tool.run(matches, layers)
        .map_err(|e| located::<T>(e, matches, layers))
}

/// Returns `error` with its place, if it is about an option of `T` whose value stands in a file.
fn located<T: Tool>(error: Error, matches: &ArgMatches, layers: &Layers) -> Error {
    match error.option() {
        Some(_) => parse::located(error, &command::<T>(), matches, layers),
        None => error,
    }
}

/// Starts the log as the options say.
fn begin_log<T: Tool>(matches: &ArgMatches) -> Result<()> {
    if let Ok(Some(target)) = matches.try_get_one::<Target>("log") {
        let level = std::env::var("TAEL_LOG").ok();
        let who = matches.try_get_one::<String>("who").ok().flatten();
        let is_daemon = T::is_daemon(matches);
        let who = who.filter(|_| is_daemon).map(String::as_str);
        logging::init(*target, level.as_deref(), is_daemon, who)?;
    }
    Ok(())
}

/// Whether `arguments` ask to check the configuration only.
fn wants_check(arguments: &[OsString]) -> bool {
    let mut options = arguments.iter().take_while(|argument| *argument != "--");
    options.any(|argument| argument == "--check")
}

/// Reports every mistake that a start of `T` with these `arguments` would meet.
fn check<T: Tool>(arguments: Vec<OsString>) -> Result<ExitCode> {
    let mut mistakes = Mistakes::default();
    let layers = Layers::load_all(&arguments, &mut mistakes);
    if mistakes.count() > 0 {
        mistakes.note_unread();
    }
    let command = layers.apply_all(command::<T>(), &mut mistakes);
    let arguments = without_name::<T>(arguments);
    match parse_all(command, arguments, T::NAME, &layers, &mut mistakes) {
        Ok(Some(matches)) => {
            let tool = T::from_arg_matches(&matches).map_err(|e| Error::usage(usage_line(&e)))?;
            begin_log::<T>(&matches)?;
            variables::warn_of_variables(T::NAME, self::command::<T>);
            if let Some(check) = T::CHECK {
                check(tool, &matches, &layers, &mut mistakes);
                mistakes.locate(|e| located::<T>(e, &matches, &layers));
            }
        }
        Ok(None) => {}
        Err(end) => return end,
    }
    mistakes.report()
}

/// Returns the command line of `tael T …` as that of `tael-T …`.
fn without_name<T: Tool>(mut arguments: Vec<OsString>) -> Vec<OsString> {
    if arguments.get(1).is_some_and(|first| first == T::NAME) {
        arguments.remove(1);
    }
    arguments
}

fn root() -> Command {
    Command::new("tael")
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
}

/// `tael` with all its commands.
fn whole() -> Command {
    root().subcommands(ENTRIES.iter().map(|entry| (entry.command)()))
}

/// The binaries that are one tool each.
fn single_commands() -> [Command; 3] {
    [
        single_command::<client::Client>(),
        single_command::<message::Message>(),
        single_command::<beacon::Beacon>(),
    ]
}

fn single_command<T: Tool>() -> Command {
    named::<T>(command::<T>())
}

/// Gives the command of `T` the name of its own binary.
fn named<T: Tool>(command: Command) -> Command {
    let command = command.name(format!("tael-{}", T::NAME));
    match help::usage(T::NAME) {
        Some(usage) => command.override_usage(format!("tael-{}", usage.replace("tael ", "tael-"))),
        None => command,
    }
}

/// `tael`.
#[must_use]
pub fn main() -> ExitCode {
    start(|arguments| {
        let name = arguments.get(1).and_then(|name| name.to_str());
        if let (Some(guard::ARGUMENT), Some(path)) = (name, arguments.get(2)) {
            return Ok(ExitCode::from(guard::main(path.as_ref())));
        }
        let wanted = ENTRIES.iter().find(|entry| Some(entry.name) == name);
        match wanted {
            Some(entry) => {
                let failed = entry.failed;
                ON_BUG.store(entry.on_bug, Ordering::Relaxed);
                run_entry(entry, arguments).or_else(failed)
            }
            None => match parse(whole(), arguments, "", &Layers::default()) {
                Ok(_) => Err(Error::usage("tael: no command given; see tael --help")),
                Err(end) => end,
            },
        }
    })
}

fn run_entry(wanted: &Entry, arguments: Vec<OsString>) -> Result<ExitCode> {
    if let Some(check) = wanted.check.filter(|_| wants_check(&arguments)) {
        return check(arguments);
    }
    let layers = Layers::load(&arguments)?;
    let mut root = root();
    for entry in ENTRIES {
        let mut command = (entry.command)();
        if wanted.name == entry.name {
            command = layers.apply(command)?;
        }
        root = root.subcommand(command);
    }
    match parse(root, arguments, wanted.name, &layers) {
        Ok(matches) => match matches.subcommand() {
            Some((_, matches)) => (wanted.run)(matches, &layers),
            None => Err(Error::usage("tael: no command given; see tael --help")),
        },
        Err(end) => end,
    }
}

/// Runs a binary that is one tool.
fn single<T: Tool>() -> ExitCode {
    start(|arguments| {
        if T::CHECK.is_some() && wants_check(&arguments) {
            return check::<T>(arguments);
        }
        let layers = Layers::load(&arguments)?;
        let command = layers.apply(command::<T>())?;
        let command = named::<T>(command);
        match parse(command, arguments, T::NAME, &layers) {
            Ok(matches) => run::<T>(&matches, &layers),
            Err(end) => end,
        }
    })
}

/// Reads the options of `T` again, from the command line and from files that may have changed.
fn again<T: Tool>() -> Result<(T, ArgMatches, Layers)> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let layers = Layers::load(&arguments)?;
    let command = layers.apply(command::<T>())?;
    let arguments = without_name::<T>(arguments);
    let matches = parse(command, arguments, T::NAME, &layers).map_err(|end| {
        end.err()
            .unwrap_or_else(|| Error::bug("read options again"))
    })?;
    let tool = T::from_arg_matches(&matches).map_err(|e| Error::usage(usage_line(&e)))?;
    Ok((tool, matches, layers))
}

/// The exit code of this process for a bug.
static ON_BUG: AtomicI32 = AtomicI32::new(Kind::Bug.exit_code() as i32);

/// Does what every process of ours does first and last, and `work` in between.
fn start(work: impl FnOnce(Vec<OsString>) -> Result<ExitCode>) -> ExitCode {
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        logging::say(&format!(
            "bug at {place} in version {}: please report it",
            env!("CARGO_PKG_VERSION")
        ));
        std::process::exit(ON_BUG.load(Ordering::Relaxed));
    }));
    keep_descriptors();
    unblock_signals();
    hear_of_children();
    if let Some(code) = reap_as_first_process() {
        return code;
    }
    folder::remember();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments
        .get(1)
        .is_some_and(|first| first == runner::ARGUMENT)
    {
        return runner::main(arguments.get(2).map(Into::into));
    }
    survive_file_size_limit();
    let code = work(arguments).unwrap_or_else(|e| {
        logging::say(&e.to_string());
        ExitCode::from(e.exit_code())
    });
    logging::finish();
    code
}
