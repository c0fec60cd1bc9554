//! The job of a runner for a unit: its command and its variables.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use tracing::warn;

use crate::engine::config::Config;
use crate::model::command::Command;
use crate::model::spec::Spec;
use crate::model::topic::Filter;
use crate::model::unit::Unit;
use crate::model::variables::{Value, Variables};
use crate::model::{env_file, exec};
use crate::os::folder;
use crate::os::logging::SENDERS;
use crate::os::process::exec_limit;
use crate::os::program::{self, DEFAULT_PATH};
use crate::runner::Job;
use crate::store::unit_dir::holes::can_have_holes;
use crate::store::unit_dir::output::TAIL;

/// Maximum size of a file of variables, bytes.
const MAX_ENV_FILE: u64 = 1024 * 1024;

/// Variable that contains the id of the unit.
pub const UNIT_VARIABLE: &str = "TAEL_UNIT";

/// Returns what a runner does for `unit`, whose command reads `stdin` bytes, by `spec`.
///
/// # Errors
/// When the file of variables cannot be read, or an earlier version has not recorded how the command
/// is run.
pub fn job(config: &Config, spec: &Spec, unit: &Unit, stdin: usize) -> Result<Job, String> {
    if let Command::Recorded(_) = &spec.command {
        return Err(format!(
            "there is no trigger '{}' any more, and the ledger of an earlier version does not say \
             how its command is run",
            spec.lane
        ));
    }
    let mut variables = match &spec.env_file {
        Some(path) => read_env_file(path)?,
        None => Vec::new(),
    };
    let from_file = variables.len();
    let hops = unit.hops.to_string();
    let attempt = unit.attempt.to_string();
    let about = match &unit.work {
        Some(work) => ("TAEL_WORK_TYPE", &work.kind),
        None => ("TAEL_TOPIC", &unit.topic),
    };
    let own = [
        about,
        ("TAEL_REASON", &unit.reason),
        ("TAEL_WHO", &config.who),
        (UNIT_VARIABLE, &unit.id),
        ("TAEL_EVENT", &unit.event),
        ("TAEL_ATTEMPT", &attempt),
        ("TAEL_HOPS", &hops),
    ];
    variables.extend(own.map(|(name, value)| (name.to_owned(), value.clone().into())));
    if let Some(origin) = &unit.origin {
        let redelivered = u8::from(origin.redelivered).to_string();
        let about_queue = [
            ("TAEL_QUEUE", origin.queue.clone()),
            ("TAEL_REDELIVERED", redelivered),
            ("TAEL_FENCE", origin.fence.to_string()),
        ];
        variables.extend(about_queue.map(|(name, value)| (name.to_owned(), value.into())));
    }
    if let Some(traceparent) = &unit.traceparent {
        variables.push(("TRACEPARENT".into(), traceparent.clone().into()));
    }
    let params = unit.work.as_deref().map_or(&[][..], |work| &work.params);
    let with_params = |argv: Vec<&str>| -> Vec<String> {
        let params = params.iter().map(String::as_str);
        argv.into_iter().chain(params).map(str::to_owned).collect()
    };
    let argv = with_params(spec.command.argv());
    let shell_argv = with_params(spec.command.shell_argv());
    let mut attributes = unit.variables.clone();
    let left_out = exec::fit(
        &mut attributes,
        size(argv.iter().chain(&shell_argv), &variables),
        exec_limit(),
    );
    if left_out > 0 {
        warn!(
            target: SENDERS,
            TAEL_UNIT = unit.id,
            "{left_out} attributes are left out of the environment: the system allows no more \
             with this stack limit (ulimit -s) and inherited environment"
        );
    }
    // Variables of the event were requested by name or prefix, and win over the file.
    variables.splice(from_file..from_file, attributes);
    let start_folder = folder::find().map(Path::to_owned);
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    Ok(Job {
        unit: unit.id.clone(),
        stdin,
        stdin_file: None,
        is_followed: unit.work.is_some(),
        argv,
        shell_argv,
        variables,
        timeout: spec.limits.timeout.map(millis),
        grace: millis(spec.limits.grace),
        max_output: spec.limits.max_output,
        cwd: spec.cwd.clone().or(start_folder),
    })
}

/// Returns what the arguments `argv` of a command and its environment take without attributes.
fn size<'a>(argv: impl Iterator<Item = &'a String>, variables: &Variables) -> usize {
    let argv: usize = argv.map(|word| exec::string(word.len())).sum();
    let inherited =
        std::env::vars_os().map(|(name, value)| exec::variable(name.len(), value.len()));
    let ours = variables
        .iter()
        .map(|(name, value)| exec::variable(name.len(), value.len()));
    argv + inherited.chain(ours).sum::<usize>()
}

/// Warns of files, folders and programs that are missing.
pub fn warn_of_what_is_missing(config: &Config) {
    let triggers = config
        .triggers
        .iter()
        .map(|t| ("trigger", &t.name, &t.spec));
    let work = config.work.iter().map(|w| ("work type", &w.name, &w.spec));
    for (kind, name, spec) in triggers.chain(work) {
        for path in [&spec.cwd, &spec.env_file].into_iter().flatten() {
            if !path.exists() {
                warn!("{kind} '{name}': there is no {} yet", path.display());
            }
        }
        let mut variables = Variables::new();
        // It is read again at each run.
        if let Some(path) = spec.env_file.as_deref().filter(|path| path.exists()) {
            match read_env_file(path) {
                Ok(read) => variables = read,
                Err(e) => {
                    warn!("{kind} '{name}': {e}; its runs cannot start until that is corrected");
                }
            }
        }
        let start = folder::find().unwrap_or(Path::new("."));
        let folder = spec.cwd.as_deref().unwrap_or(start);
        if folder.exists()
            && let Err(e) = program::look_for(&spec.command, &search_path(&variables), folder)
        {
            warn!("{kind} '{name}': {e}; its runs fail until that is corrected");
        }
    }
    warn_of_doubts(config);
}

/// Returns the `PATH` of a command that gets `variables` from a file.
pub fn search_path(variables: &[(String, Value)]) -> OsString {
    let own = variables.iter().rev().find(|(name, _)| name == "PATH");
    let own = own.map(|(_, value)| value.as_os_str().to_owned());
    own.or_else(|| std::env::var_os("PATH"))
        .unwrap_or_else(|| OsString::from(DEFAULT_PATH))
}

/// Warns of what is valid and hardly meant: filters, and a metrics file that is not collected.
pub fn warn_of_doubts(config: &Config) {
    for trigger in &config.triggers {
        for doubt in trigger.filters.iter().filter_map(Filter::doubt) {
            warn!("trigger '{}': {doubt}", trigger.name);
        }
    }
    if let Some(path) = &config.metrics
        && path.extension().is_none_or(|e| e != "prom")
    {
        let path = path.display();
        warn!("collectors read files in .prom only, not {path}");
    }
}

/// Warns if files in `folder` cannot have holes, so that the middle of a long output cannot be
/// freed.
pub fn warn_without_holes(config: &Config, folder: &Path) {
    // Other failures are reported elsewhere.
    if config.max_output > 0 && matches!(can_have_holes(folder), Ok(false)) {
        warn!(
            "files in {} cannot have holes: of an output stream beyond --max-output the first {} \
             bytes are kept, and the last {} when its command ends",
            folder.display(),
            config.max_output / 2,
            TAIL.min(config.max_output - config.max_output / 2)
        );
    }
}

/// Reads a file of variables.
///
/// # Errors
/// A text for the user.
pub fn read_env_file(path: &Path) -> Result<Variables, String> {
    let wrong = |cause: &dyn std::fmt::Display| format!("read {}: {cause}", path.display());
    // Opening a FIFO must not wait for its other end.
    let mut options = std::fs::File::options();
    options.read(true).custom_flags(nix::libc::O_NONBLOCK);
    let mut file = options.open(path).map_err(|e| wrong(&e))?;
    let meta = file.metadata().map_err(|e| wrong(&e))?;
    if !meta.is_file() || meta.len() > MAX_ENV_FILE {
        return Err(wrong(&format_args!(
            "it is no file of up to {MAX_ENV_FILE} bytes"
        )));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| wrong(&e))?;
    env_file::parse(&bytes).map_err(|e| wrong(&e))
}
