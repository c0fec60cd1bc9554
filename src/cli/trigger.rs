//! Triggers, from the command line and from `[[trigger]]` tables.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command};
use toml::Value;

use crate::cli::config::{Layer, Layers};
use crate::cli::mistakes::Mistakes;
use crate::cli::option_table::{is_slip, read_table};
use crate::cli::values::one_of;
use crate::error::Error;
use crate::model::answer::MAX_MAX_REPLY;
use crate::model::command::{Command as Run, DEFAULT_SHELL};
use crate::model::condition::Condition;
use crate::model::duration;
use crate::model::env::{self, Export};
use crate::model::policy::{OnInterrupt, Overlap, Policy, Retries};
use crate::model::queue::{
    QueueBroker, QueueSource, QueueType, QueueUrl, Settle, check_name, check_prefetch,
};
use crate::model::size;
use crate::model::spec::{Exports, Limits, Spec};
use crate::model::status;
use crate::model::topic::Filter;
use crate::model::trigger::{ONLY_TRIGGER, Trigger};

/// Condition on messages of topics, by default.
const DEFAULT_WHEN: &str = "status=finished";

/// Values of `--overlap`.
const OVERLAPS: &[&str] = &["queue", "skip", "replace", "coalesce"];

/// Options of one trigger.
#[derive(Debug, Clone, Args)]
pub struct TriggerOptions {
    /// MQTT topic filter to subscribe to; repeatable
    #[arg(short, long, num_args = 1.., value_name = "FILTER", action = clap::ArgAction::Append)]
    pub topic: Vec<String>,
    /// RabbitMQ queue to take work from: amqp[s]://[user@]host/VHOST/QUEUE
    #[arg(long, value_name = "URL")]
    pub queue: Option<String>,
    /// When to acknowledge a message of the queue: accept (its event is in the ledger) or done (its run
    /// has ended) [default: accept]
    #[arg(long, value_parser = one_of(Settle::parse, Settle::NAMES), value_name = "WHEN")]
    settle: Option<Settle>,
    /// Maximum number of messages of the queue to hold, 1 to 2000 [default: free jobs]
    #[arg(long, value_parser = clap::value_parser!(u16), value_name = "N")]
    prefetch: Option<u16>,
    /// Queue for messages that cannot be read or whose run has failed [default: QUEUE.dead]
    #[arg(long, value_name = "NAME")]
    dead_letter: Option<String>,
    /// Declare the queue as quorum or classic [default: it must be there]
    #[arg(long, value_parser = one_of(QueueType::parse, QueueType::NAMES), value_name = "TYPE")]
    declare: Option<QueueType>,
    /// Command to run for each event
    #[arg(short, long, value_name = "CMD", allow_hyphen_values = true)]
    command: Option<String>,
    /// Condition; '' for none [default: status=finished, none for queues]
    #[arg(long, value_name = "KEY=VALUE", action = clap::ArgAction::Append)]
    when: Vec<String>,
    /// Export every attribute as P_KEY
    #[arg(long, value_name = "P")]
    envprefix: Option<String>,
    /// Required attributes, exported as KEY
    #[arg(long, num_args = 1.., value_name = "KEY", action = clap::ArgAction::Append)]
    envreq: Vec<String>,
    /// Variables to copy into the statuses, for the next pipeline
    #[arg(long, num_args = 1.., value_name = "NAME", action = clap::ArgAction::Append)]
    payload_passthrough: Vec<String>,
    /// Maximum number of concurrent runs
    #[arg(long, value_name = "N", default_value = "1")]
    jobs: usize,
    /// Policy for an event while all jobs are busy: queue, skip, replace or coalesce
    #[arg(long, value_parser = one_of(Overlap::parse, OVERLAPS), value_name = "POLICY", default_value = "queue")]
    overlap: Overlap,
    /// Maximum time of a run; then it is ended [default: no limit]
    #[arg(long, value_parser = duration::parse, value_name = "DURATION")]
    timeout: Option<Duration>,
    /// Time between TERM and KILL when a run is ended
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "10s")]
    grace: Duration,
    /// Number of times to retry a failed run
    #[arg(long, value_name = "N", default_value = "0")]
    retries: u32,
    /// Delay before each retry
    #[arg(long, value_parser = duration::parse, value_name = "DURATION", default_value = "30s")]
    retry_delay: Duration,
    /// Policy for a run that a crash of the host has ended: fail, or rerun its event
    #[arg(long, value_parser = one_of(OnInterrupt::parse, &["fail", "rerun"]), value_name = "CHOICE", default_value = "fail")]
    on_interrupt: OnInterrupt,
    /// Maximum number of runs a minute that messages without tael-hops start; others wait; 0 for no
    /// limit [default: 60 for statuses of pipelines, no limit for other messages]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=60_000))]
    loop_rate: Option<u32>,
    /// Policy for retained messages: ignore or accept
    #[arg(long, value_parser = one_of(retained, &["ignore", "accept"]), value_name = "CHOICE", default_value = "ignore", action = clap::ArgAction::Set)]
    retained: bool,
    /// Answer those who ask: messages with a Response Topic get the output of the run
    #[arg(long)]
    reply: bool,
    /// Maximum size of an answer, 1M at most
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "256K")]
    max_reply: u64,
    /// Run the command when no message has come for this time, instead of for each message
    #[arg(long, value_parser = duration::parse, value_name = "DURATION")]
    absent: Option<Duration>,
    /// Working directory of the command [default: that of the client]
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// File of NAME=VALUE lines for the environment of the command; read at each run
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Shell that runs the command
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SHELL, conflicts_with = "no_shell")]
    shell: String,
    /// Split the command into words, and execute it without a shell
    #[arg(long)]
    no_shell: bool,
}

/// Maximum number of concurrent runs of a trigger.
pub const MAX_JOBS: usize = 1024;

fn retained(text: &str) -> Result<bool, String> {
    match text {
        "ignore" => Ok(false),
        "accept" => Ok(true),
        _ => Err(format!("'{text}' is not a choice: ignore or accept")),
    }
}

/// Returns whether option `id` was given as a flag or in the environment.
pub fn is_by_hand(matches: &ArgMatches, id: &str) -> bool {
    let source = matches.value_source(id);
    source.is_some_and(|source| source != ValueSource::DefaultValue)
}

/// Returns the triggers of the command line, or those of the files if it has none; notes what is
/// wrong: 64 for the command line, 78 for a file. After a mistake they are incomplete: of use for
/// looking for more mistakes only.
pub fn all(
    options: TriggerOptions,
    matches: &ArgMatches,
    layers: &Layers,
    has_work: bool,
    broker: Option<&QueueBroker>,
    mistakes: &mut Mistakes,
) -> Option<Vec<Trigger>> {
    let tables = layers.triggers().filter(|(_, list)| !list.is_empty());
    // The topic of a dry run is not a filter.
    let no_topic = options.topic.is_empty();
    let by_hand = |id: &str| is_by_hand(matches, id) && !(id == "topic" && no_topic);
    let is_one = by_hand("topic") || by_hand("command") || by_hand("queue");
    if !is_one && (has_work || tables.is_some()) {
        note_unused(&by_hand, layers, mistakes);
    }
    let Some((layer, tables)) = tables.filter(|_| !is_one) else {
        let is_none =
            options.topic.is_empty() && options.queue.is_none() && options.command.is_none();
        if is_none && has_work {
            return Some(Vec::new());
        }
        if is_none {
            mistakes.note_missing(Error::usage(
                "start client: give -t FILTER and -c CMD (or --queue URL and -c CMD), or [[trigger]] or [[work]] tables in a \
                 --config file (or --submit-only)",
            ));
            return None;
        }
        let name = ONLY_TRIGGER.to_owned();
        let noted = &mut |key: &str, cause| mistakes.note(Error::usage(cause).about(key));
        return Some(vec![trigger(options, name, broker, noted)]);
    };
    let (mut triggers, mut names) = (Vec::new(), HashSet::new());
    for (n, table) in tables.iter().enumerate() {
        let Some(trigger) = from_table(layer, table, n + 1, broker, mistakes) else {
            continue;
        };
        if !names.insert(trigger.name.clone()) {
            let place = ["trigger", &n.to_string(), "name"];
            let cause = format!("two triggers are called '{}'", trigger.name);
            mistakes.note(layer.wrong_at(&place, cause));
        }
        triggers.push(trigger);
    }
    Some(triggers)
}

/// Notes options of one trigger that would change nothing, in silence: there are tables.
fn note_unused(by_hand: &impl Fn(&str) -> bool, layers: &Layers, mistakes: &mut Mistakes) {
    let command = TriggerOptions::augment_args(Command::new("trigger"));
    for arg in command.get_arguments() {
        let name = arg.get_long().unwrap_or_default();
        if by_hand(arg.get_id().as_str()) {
            mistakes.note(Error::usage(format!(
                "start client: --{name} is about one trigger: put it into the [[trigger]] tables, \
                 or give -t and -c too"
            )));
        }
        if let Some(layer) = layers.with_key("client", name) {
            mistakes.note(layer.wrong_at(&["client", name], format_args!(
                "'{name}' below [client] is about one trigger: put it into the [[trigger]] tables"
            )));
        }
    }
}

/// Returns an error about option `key` of the trigger that has `place` in `triggers`.
pub fn wrong(layers: &Layers, triggers: &[Trigger], place: usize, key: &str, cause: &str) -> Error {
    let name = triggers.get(place).map_or("", |trigger| &trigger.name);
    // Two of one name are a mistake as well.
    let before = triggers.iter().take(place);
    let before = before.filter(|trigger| trigger.name == name).count();
    let named = |(n, table): (usize, &Value)| {
        let own = table.get("name").and_then(Value::as_str);
        (own == Some(name) || (own.is_none() && name == (n + 1).to_string())).then_some(n)
    };
    let found = layers.triggers().and_then(|(layer, tables)| {
        Some((
            layer,
            tables.iter().enumerate().filter_map(named).nth(before)?,
        ))
    });
    match found {
        Some((layer, n)) => {
            let place = ["trigger", &n.to_string(), key];
            layer.wrong_at(&place, format!("trigger {}: {cause}", n + 1))
        }
        None => Error::config(format!("--{key}: {cause}")),
    }
}

/// Reads a `[[trigger]]` table as if its keys were options; notes what is wrong.
fn from_table(
    layer: &Layer,
    table: &Value,
    number: usize,
    broker: Option<&QueueBroker>,
    mistakes: &mut Mistakes,
) -> Option<Trigger> {
    let place = (number - 1).to_string();
    let noted = &mut |key: &str, cause: String| {
        let cause = format!("trigger {number}: {cause}");
        mistakes.note(layer.wrong_at(&["trigger", &place, key], cause));
    };
    let read = read_table::<TriggerOptions>("name", table, noted)?;
    let mut wrong = read.wrong;
    let name = read.name.unwrap_or_else(|| number.to_string());
    if name.is_empty() || name.len() > 128 || name.contains(char::is_control) {
        noted(
            "name",
            "its name has 1 to 128 bytes, no control characters".into(),
        );
        wrong.push("name".to_owned());
    }
    let noted = &mut |key: &str, cause: String| {
        if !is_slip(&wrong, key) {
            noted(key, cause);
        }
    };
    Some(trigger(read.options, name, broker, noted))
}

/// Returns the queue of a trigger, if it has one; notes what is wrong with its options.
fn queue(
    options: &mut TriggerOptions,
    broker: Option<&QueueBroker>,
    noted: &mut impl FnMut(&str, String),
) -> Option<QueueSource> {
    let Some(text) = options.queue.take() else {
        for (key, is_given) in [
            ("settle", options.settle.is_some()),
            ("prefetch", options.prefetch.is_some()),
            ("dead-letter", options.dead_letter.is_some()),
            ("declare", options.declare.is_some()),
        ] {
            if is_given {
                noted(key, format!("'{key}' is about a queue: give 'queue' too"));
            }
        }
        return None;
    };
    if options.absent.is_some() {
        noted(
            "absent",
            "'absent' is about topics: it does not go with a queue".into(),
        );
    }
    if let Some(Err(cause)) = options.prefetch.map(check_prefetch) {
        noted("prefetch", cause);
    }
    let url = match QueueUrl::parse_or_name(&text, broker) {
        Ok(url) => url,
        Err(cause) => {
            noted("queue", cause);
            // It stands for the one that was meant, so that no topic is missed.
            QueueUrl::default()
        }
    };
    let source = QueueSource {
        settle: options.settle.unwrap_or_default(),
        prefetch: options.prefetch,
        dead_letter: options.dead_letter.clone(),
        declare: options.declare,
        url,
    };
    if let Err(cause) = check_name(&source.dead_letter()) {
        noted("dead-letter", format!("dead-letter queue: {cause}"));
    } else if source.dead_letter() == source.url.queue {
        noted(
            "dead-letter",
            "a queue cannot be its own dead-letter queue".into(),
        );
    }
    Some(source)
}

/// Makes a trigger of its options; notes everything that is wrong with them, and leaves that out.
fn trigger(
    mut options: TriggerOptions,
    name: String,
    broker: Option<&QueueBroker>,
    noted: &mut impl FnMut(&str, String),
) -> Trigger {
    let queue = queue(&mut options, broker, noted);
    let mut wrong = |key: &str, cause: String| noted(key, cause);
    let line = options.command.unwrap_or_default();
    // It cannot be run.
    let mut command = Run::Recorded(line.clone());
    if line.trim().is_empty() {
        wrong(
            "command",
            "there is no command: give one with -c, or as 'command' in a [[trigger]]".into(),
        );
    } else if line.contains('\0') {
        wrong("command", "the command contains a NUL character".into());
    } else if options.no_shell {
        match Run::direct(&line) {
            Ok(direct) => command = direct,
            Err(e) => wrong("command", e),
        }
    } else if options.shell.is_empty() {
        wrong("shell", "the shell has no name".into());
    } else {
        command = Run::Shell {
            shell: options.shell,
            line,
        };
    }
    if options.topic.is_empty() && queue.is_none() {
        wrong(
            "topic",
            "there is no topic: give one with -t, or as 'topic' in a [[trigger]]; or a queue"
                .into(),
        );
    }
    let mut filters = Vec::new();
    for text in options.topic {
        filters.extend(Filter::new(text).map_err(|e| wrong("topic", e)));
    }
    let mut conditions = Vec::new();
    if options.when.is_empty() && queue.is_none() {
        options.when.push(DEFAULT_WHEN.to_owned());
    }
    if options.when.is_empty() && !filters.is_empty() {
        wrong(
            "when",
            format!(
                "messages of a queue have no default condition, those of a topic have \
                 {DEFAULT_WHEN}: say with 'when' which both have, '' for none"
            ),
        );
    }
    for text in options.when.iter().filter(|text| !text.is_empty()) {
        conditions.extend(Condition::parse(text).map_err(|e| wrong("when", e)));
    }
    if !(1..=MAX_JOBS).contains(&options.jobs) {
        let jobs = options.jobs;
        wrong(
            "jobs",
            format!("{jobs} jobs are out of range: 1 to {MAX_JOBS}"),
        );
    }
    if options.max_reply > MAX_MAX_REPLY {
        let most = MAX_MAX_REPLY >> 20;
        wrong("max-reply", format!("an answer has {most}M at most"));
    }
    let export = Export::new(options.envprefix, options.envreq);
    let export = export.unwrap_or_else(|e| {
        wrong("envreq", e);
        Export::default()
    });
    for name in &options.payload_passthrough {
        let odd = |b: u8| !b.is_ascii_alphanumeric() && b != b'_';
        if status::RESERVED.contains(&name.as_str()) {
            wrong(
                "payload-passthrough",
                format!("'{name}' is a key of every status: it cannot be passed through"),
            );
        } else if *name != env::sanitize(name) && name.bytes().any(odd) {
            wrong(
                "payload-passthrough",
                format!("'{name}' is not an environment name"),
            );
        }
    }
    if options.absent.is_some_and(|absent| absent.is_zero()) {
        wrong("absent", "--absent needs a time, such as 11m".into());
    }
    // A client may be started anywhere.
    let mut absolute = |key: &str, path: Option<PathBuf>| {
        let path = path?;
        if path.to_str().is_none() {
            wrong(key, format!("'{}' is not UTF-8", path.display()));
        }
        let found = std::path::absolute(&path);
        let found = found.map_err(|e| format!("cannot find '{}': {e}", path.display()));
        found.map_err(|e| wrong(key, e)).ok()
    };
    let (cwd, env_file) = (
        absolute("cwd", options.cwd),
        absolute("env-file", options.env_file),
    );
    let spec = Spec {
        lane: name.clone(),
        command,
        cwd,
        env_file,
        limits: Limits {
            timeout: options.timeout.filter(|limit| !limit.is_zero()),
            grace: options.grace,
            ..Limits::default()
        },
        retries: Retries {
            limit: options.retries,
            delay: options.retry_delay,
            on_interrupt: options.on_interrupt,
        },
        required: export.required_names(),
        exports: Some(Exports {
            export: export.clone(),
            passthrough: options.payload_passthrough.clone(),
        }),
    };
    Trigger {
        name,
        filters,
        conditions,
        export,
        passthrough: options.payload_passthrough,
        queue: queue.map(Arc::new),
        accept_retained: options.retained,
        reply: options
            .reply
            .then(|| usize::try_from(options.max_reply).unwrap_or(usize::MAX)),
        absent: options.absent,
        policy: Policy {
            jobs: options.jobs,
            overlap: options.overlap,
            loop_rate: options.loop_rate,
        },
        spec: Arc::new(spec),
    }
}
