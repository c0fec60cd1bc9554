//! Triggers, from the command line and from `[[trigger]]` tables.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use toml::Value;

use crate::cli::config::{Layer, Layers, texts};
use crate::error::{Error, Kind, Result};
use crate::model::condition::Condition;
use crate::model::duration;
use crate::model::env::{self, Export};
use crate::model::status;
use crate::model::topic::Filter;
use crate::model::trigger::{Command as Run, DEFAULT_SHELL, OnInterrupt, Overlap, Policy, Trigger};

/// Options of one trigger.
#[derive(Debug, Clone, Args)]
pub struct TriggerOptions {
    /// Topic filters to listen to; may be repeated
    #[arg(short, long, num_args = 1.., value_name = "FILTER", action = clap::ArgAction::Append)]
    topic: Vec<String>,
    /// Command to run
    #[arg(short, long, value_name = "CMD", allow_hyphen_values = true)]
    command: Option<String>,
    /// Condition on an attribute, repeatable, all must hold; '' for none
    #[arg(long, value_name = "KEY=VALUE", default_value = "status=finished", action = clap::ArgAction::Append)]
    when: Vec<String>,
    /// Export every attribute as P_KEY
    #[arg(long, value_name = "P")]
    envprefix: Option<String>,
    /// Required attributes, exported as KEY
    #[arg(long, num_args = 1.., value_name = "KEY", action = clap::ArgAction::Append)]
    envreq: Vec<String>,
    /// Environment names that are copied into the statuses; upper-cased
    #[arg(long, num_args = 1.., value_name = "NAME", action = clap::ArgAction::Append)]
    payload_passthrough: Vec<String>,
    /// Runs at one time
    #[arg(long, value_name = "N", default_value = "1")]
    jobs: usize,
    /// What happens to an event while all jobs are busy: queue, skip, replace or coalesce
    #[arg(long, value_parser = Overlap::parse, value_name = "POLICY", default_value = "queue")]
    overlap: Overlap,
    /// Cancel a run after this time
    #[arg(long, value_parser = duration::parse, value_name = "DURATION")]
    timeout: Option<Duration>,
    /// Time between TERM and KILL when a run is cancelled
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "10s")]
    grace: Duration,
    /// Further tries of a run that failed
    #[arg(long, value_name = "N", default_value = "0")]
    retries: u32,
    /// Wait before each of them
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "30s")]
    retry_delay: Duration,
    /// What to do with a run that was lost with its host: fail, or rerun its event too
    #[arg(long, value_parser = OnInterrupt::parse, value_name = "CHOICE", default_value = "fail")]
    on_interrupt: OnInterrupt,
    /// Runs a minute that messages without tael-hops may start, as in a loop of plain messages;
    /// others wait; 0 is no limit [default: 60, for statuses of pipelines only]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=60_000))]
    loop_rate: Option<u32>,
    /// Whether retained messages count as events: ignore or accept
    #[arg(long, value_parser = retained, value_name = "CHOICE", default_value = "ignore", action = clap::ArgAction::Set)]
    retained: bool,
    /// Run the command when nothing has come for this time, in place of when something does
    #[arg(long, value_parser = duration::parse, value_name = "DURATION")]
    absent: Option<Duration>,
    /// Folder that the command runs in [default: the client's]
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// File of NAME=VALUE lines for the command's environment, read at each run
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Shell that runs the command
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SHELL, conflicts_with = "no_shell")]
    shell: String,
    /// Split the command into words and execute it without a shell
    #[arg(long)]
    no_shell: bool,
}

/// The most runs of a trigger at one time.
const MAX_JOBS: usize = 1024;

fn retained(text: &str) -> Result<bool, String> {
    match text {
        "ignore" => Ok(false),
        "accept" => Ok(true),
        _ => Err(format!("'{text}' is no choice: ignore or accept")),
    }
}

/// The triggers of the command line, or else those of the files.
///
/// # Errors
/// 64 for the command line, 78 for a file.
pub fn all(options: TriggerOptions, matches: &ArgMatches, layers: &Layers) -> Result<Vec<Trigger>> {
    let tables = layers.triggers().filter(|(_, list)| !list.is_empty());
    let by_hand = |id: &str| {
        let source = matches.value_source(id);
        source.is_some_and(|source| source != ValueSource::DefaultValue)
    };
    let Some((layer, tables)) = tables.filter(|_| !by_hand("topic") && !by_hand("command")) else {
        if options.topic.is_empty() && options.command.is_none() {
            return Err(Error::usage(
                "start client: give -t FILTER and -c CMD, or [[trigger]] tables in a --config file",
            ));
        }
        let name = "default".to_owned();
        return Ok(vec![trigger(options, name).map_err(Error::usage)?]);
    };
    // They would change nothing, and nobody would be told.
    let command = TriggerOptions::augment_args(Command::new("trigger"));
    for arg in command.get_arguments() {
        let name = arg.get_long().unwrap_or_default();
        if by_hand(arg.get_id().as_str()) {
            return Err(Error::usage(format!(
                "start client: --{name} is about one trigger: put it into the [[trigger]] tables, \
                 or give -t and -c too"
            )));
        }
        if let Some(layer) = layers.with_key("client", name) {
            return Err(layer.wrong(format_args!(
                "'{name}' below [client] is about one trigger: put it into the [[trigger]] tables"
            )));
        }
    }
    let (mut triggers, mut names) = (Vec::new(), HashSet::new());
    for (n, table) in tables.iter().enumerate() {
        let trigger = from_table(layer, table, n + 1)?;
        if !names.insert(trigger.name.clone()) {
            return Err(layer.wrong(format_args!("two triggers are called '{}'", trigger.name)));
        }
        triggers.push(trigger);
    }
    Ok(triggers)
}

/// A `[[trigger]]` table, read as if its keys were options.
fn from_table(layer: &Layer, table: &Value, number: usize) -> Result<Trigger> {
    let wrong = |cause: String| layer.wrong(format_args!("trigger {number}: {cause}"));
    let Value::Table(table) = table else {
        return Err(wrong("it is not a table".into()));
    };
    let command = TriggerOptions::augment_args(Command::new("trigger").no_binary_name(true));
    let (mut name, mut arguments) = (number.to_string(), Vec::new());
    for (key, value) in table {
        let values = texts(value).ok_or_else(|| wrong(format!("'{key}' cannot be {value}")))?;
        if key == "name" {
            name = values.concat();
            continue;
        }
        let Some(arg) = command
            .get_arguments()
            .find(|arg| arg.get_long() == Some(key))
        else {
            let known: Vec<&str> = command
                .get_arguments()
                .filter_map(|a| a.get_long())
                .collect();
            let known = known.join(", ");
            return Err(wrong(format!("unknown key '{key}': it has name, {known}")));
        };
        let flag = matches!(arg.get_action(), clap::ArgAction::SetTrue);
        match (flag, value) {
            (true, Value::Boolean(on)) => arguments.extend(on.then(|| format!("--{key}"))),
            (true, _) | (false, Value::Boolean(_)) => {
                return Err(wrong(format!("'{key}' cannot be {value}")));
            }
            // An empty list of conditions is no condition.
            (false, Value::Array(list)) if list.is_empty() && key == "when" => {
                arguments.push("--when=".into());
            }
            (false, _) => arguments.extend(values.iter().map(|v| format!("--{key}={v}"))),
        }
    }
    let options = command
        .try_get_matches_from(arguments)
        .and_then(|matches| TriggerOptions::from_arg_matches(&matches))
        .map_err(|e| wrong(super::usage_line(&e)))?;
    if name.is_empty() || name.len() > 128 || name.contains(char::is_control) {
        return Err(wrong(
            "its name has 1 to 128 bytes, no control characters".into(),
        ));
    }
    trigger(options, name)
        .map_err(wrong)
        .map_err(|e| e.into_kind(Kind::Config))
}

fn trigger(options: TriggerOptions, name: String) -> Result<Trigger, String> {
    let line = options.command.unwrap_or_default();
    if line.trim().is_empty() {
        return Err(
            "there is no command: give one with -c, or as 'command' in a [[trigger]]".into(),
        );
    }
    if line.contains('\0') {
        return Err("the command contains a NUL character".into());
    }
    if options.topic.is_empty() {
        return Err("there is no topic: give one with -t, or as 'topic' in a [[trigger]]".into());
    }
    let filters = options.topic.into_iter().map(Filter::new);
    let conditions = options.when.iter().filter(|text| !text.is_empty());
    let command = if options.no_shell {
        Run::direct(&line)?
    } else if options.shell.is_empty() {
        return Err("the shell has no name".into());
    } else {
        Run::Shell {
            shell: options.shell,
            line,
        }
    };
    if !(1..=MAX_JOBS).contains(&options.jobs) {
        return Err(format!(
            "{} jobs are out of range: 1 to {MAX_JOBS}",
            options.jobs
        ));
    }
    let export = Export::new(options.envprefix, options.envreq)?;
    for name in &options.payload_passthrough {
        if status::RESERVED.contains(&name.as_str()) {
            return Err(format!(
                "'{name}' is a status's own key: it cannot be passed through"
            ));
        }
        if *name != env::sanitize(name)
            && name
                .bytes()
                .any(|b| !b.is_ascii_alphanumeric() && b != b'_')
        {
            return Err(format!("'{name}' is no environment name"));
        }
    }
    if options.absent.is_some_and(|absent| absent.is_zero()) {
        return Err("a silence of no time is none: --absent 11m".into());
    }
    // A client may be started anywhere.
    let absolute = |path: Option<PathBuf>| match path {
        Some(path) if path.to_str().is_none() => Err(format!("'{}' is not UTF-8", path.display())),
        Some(path) => std::path::absolute(&path)
            .map(Some)
            .map_err(|e| format!("cannot find '{}': {e}", path.display())),
        None => Ok(None),
    };
    Ok(Trigger {
        name,
        filters: filters.collect::<Result<_, _>>()?,
        conditions: conditions
            .map(|c| Condition::parse(c))
            .collect::<Result<_, _>>()?,
        command,
        export,
        passthrough: options.payload_passthrough,
        accept_retained: options.retained,
        cwd: absolute(options.cwd)?,
        env_file: absolute(options.env_file)?,
        absent: options.absent,
        policy: Policy {
            jobs: options.jobs,
            overlap: options.overlap,
            timeout: options.timeout.filter(|limit| !limit.is_zero()),
            grace: options.grace,
            retries: options.retries,
            retry_delay: options.retry_delay,
            on_interrupt: options.on_interrupt,
            loop_rate: options.loop_rate,
        },
    })
}
