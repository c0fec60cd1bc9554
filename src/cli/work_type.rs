//! Work types, from `[[work]]` tables.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use toml::Value;

use crate::cli::config::Layers;
use crate::cli::mistakes::Mistakes;
use crate::cli::option_table::{is_slip, read_table};
use crate::cli::trigger::MAX_JOBS;
use crate::cli::values::one_of;
use crate::error::Error;
use crate::model::command::Command;
use crate::model::duration;
use crate::model::policy::{OnInterrupt, Overlap, Policy, Retries};
use crate::model::spec::{Limits, Spec};
use crate::model::trigger::Trigger;
use crate::model::work::{MAX_NAME, Signed, WorkType, WorkTypes, lane_of};

/// Maximum number of units of a type that may wait.
const MAX_QUEUE: usize = 100_000;

/// Options of one work type.
#[derive(Debug, Clone, Args)]
pub struct WorkOptions {
    /// Command, split into words and executed without a shell; it reads the payload
    #[arg(long, value_name = "CMD", allow_hyphen_values = true)]
    command: Option<String>,
    /// Let submitters give parameters: words are appended to the command, --param KEY=VALUE becomes
    /// WORK_KEY in its environment
    #[arg(long)]
    params: bool,
    /// Policy for signatures: required, accepted or never
    #[arg(long, value_parser = one_of(Signed::parse, &["required", "accepted", "never"]), value_name = "CHOICE", default_value = "never")]
    signed: Signed,
    /// Maximum number of concurrent runs
    #[arg(long, value_name = "N", default_value = "1")]
    jobs: usize,
    /// Maximum number of units that wait; further ones are refused (75)
    #[arg(long, value_name = "N", default_value = "1000")]
    queue: usize,
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
    /// Policy for a run that a crash of the host has ended: fail, or rerun it
    #[arg(long, value_parser = one_of(OnInterrupt::parse, &["fail", "rerun"]), value_name = "CHOICE", default_value = "fail")]
    on_interrupt: OnInterrupt,
    /// Working directory of the command [default: that of the client]
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// File of NAME=VALUE lines for the environment of the command; read at each run
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Bytes to keep of each output stream of a run, half head, half tail; 0 keeps all [default: that
    /// of the client]
    #[arg(long, value_name = "BYTES")]
    max_output: Option<u64>,
    /// Maximum size of a payload, bytes
    #[arg(long, value_name = "BYTES", default_value = "67108864")]
    max_stdin: u64,
}

/// Returns whether a file has work types.
pub fn are_there(layers: &Layers) -> bool {
    layers
        .work_types()
        .is_some_and(|(_, list)| !list.is_empty())
}

/// Returns the work types of the files of a client that keeps `max_output` bytes of a stream, and has
/// these `triggers`; notes what is wrong (78).
pub fn all(
    layers: &Layers,
    max_output: u64,
    triggers: &[Trigger],
    mistakes: &mut Mistakes,
) -> WorkTypes {
    let Some((layer, tables)) = layers.work_types() else {
        return WorkTypes::default();
    };
    let (mut types, mut names) = (Vec::new(), HashSet::new());
    for (n, table) in tables.iter().enumerate() {
        let place = n.to_string();
        let mut noted = |key: &str, cause: String| {
            let cause = format!("work type {}: {cause}", n + 1);
            mistakes.note(layer.wrong_at(&["work", &place, key], cause));
        };
        let Some(kind) = from_table(table, max_output, &mut noted) else {
            continue;
        };
        if !names.insert(kind.name.clone()) {
            noted("type", format!("two work types are called '{}'", kind.name));
        }
        let lane = &kind.spec.lane;
        if triggers.iter().any(|trigger| trigger.name == *lane) {
            noted(
                "type",
                format!("a trigger is called '{lane}': rename one of both"),
            );
        }
        types.push(kind);
    }
    WorkTypes::new(types)
}

/// Returns an error about option `key` of the work type that has `place` in `types`.
pub fn wrong(layers: &Layers, types: &[WorkType], place: usize, key: &str, cause: &str) -> Error {
    let name = types.get(place).map_or("", |kind| &kind.name);
    let is_named = |table: &Value| table.get("type").and_then(Value::as_str) == Some(name);
    let found = layers
        .work_types()
        .and_then(|(layer, tables)| Some((layer, tables.iter().position(is_named)?)));
    match found {
        Some((layer, n)) => {
            let place = ["work", &n.to_string(), key];
            layer.wrong_at(&place, format!("work type {}: {cause}", n + 1))
        }
        None => Error::config(format!("work type '{name}': {cause}")),
    }
}

/// Reads a `[[work]]` table; notes everything that is wrong with it, and leaves that out.
fn from_table(
    table: &Value,
    max_output: u64,
    noted: &mut impl FnMut(&str, String),
) -> Option<WorkType> {
    let read = read_table::<WorkOptions>("type", table, noted)?;
    let (name, options, slips) = (read.name.unwrap_or_default(), read.options, read.wrong);
    let mut wrong = |key: &str, cause: String| {
        if !is_slip(&slips, key) {
            noted(key, cause);
        }
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !(1..=MAX_NAME).contains(&name.len()) || !name.chars().all(is_plain) {
        wrong(
            "type",
            format!("its 'type' has 1 to {MAX_NAME} letters, digits, '.', '_' and '-'"),
        );
    }
    let line = options.command.unwrap_or_default();
    // It cannot be run.
    let mut command = Command::Recorded(line.clone());
    if line.trim().is_empty() {
        wrong(
            "command",
            "there is no command: give one as 'command'".into(),
        );
    } else if line.contains('\0') {
        wrong("command", "the command contains a NUL character".into());
    } else {
        match Command::direct(&line) {
            Ok(direct) => command = direct,
            Err(e) => wrong("command", e),
        }
    }
    for (key, number, most) in [
        ("jobs", options.jobs, MAX_JOBS),
        ("queue", options.queue, MAX_QUEUE),
    ] {
        let least = usize::from(key == "jobs");
        if !(least..=most).contains(&number) {
            wrong(
                key,
                format!("{number} {key} are out of range: {least} to {most}"),
            );
        }
    }
    // A client may be started anywhere.
    let mut absolute = |key: &str, path: Option<PathBuf>| {
        let path = path?;
        let found = std::path::absolute(&path);
        let found = found.map_err(|e| format!("cannot find '{}': {e}", path.display()));
        found.map_err(|e| wrong(key, e)).ok()
    };
    let (cwd, env_file) = (
        absolute("cwd", options.cwd),
        absolute("env-file", options.env_file),
    );
    let spec = Spec {
        lane: lane_of(&name),
        command,
        cwd,
        env_file,
        limits: Limits {
            timeout: options.timeout.filter(|limit| !limit.is_zero()),
            grace: options.grace,
            max_output: options.max_output.unwrap_or(max_output),
        },
        retries: Retries {
            limit: options.retries,
            delay: options.retry_delay,
            on_interrupt: options.on_interrupt,
        },
        required: Vec::new(),
        exports: None,
    };
    Some(WorkType {
        name,
        params: options.params,
        signed: options.signed,
        policy: Policy {
            jobs: options.jobs,
            overlap: Overlap::Queue,
            loop_rate: None,
        },
        queue: options.queue,
        max_stdin: options.max_stdin,
        spec: Arc::new(spec),
    })
}
