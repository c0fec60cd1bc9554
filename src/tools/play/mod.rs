//! `tael play`: runs a playbook over several nodes, step by step.

mod heard;
mod player;
mod report;
mod steps;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Kind, Result};
use crate::model::duration;
use crate::model::network_address::Network;
use crate::model::playbook::Playbook;
use crate::model::text::printable;
use crate::net::options::BrokerOptions;
use crate::os::logging::say;
use crate::os::signals;
use player::Player;
use report::Outcome;

/// Maximum time of our end after a signal, in which nodes stop or end.
const FAREWELL: Duration = Duration::from_secs(30);

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// Broker and credentials; the client identifier is unique to this process.
    pub broker: BrokerOptions,
    /// Root of the topics of nodes and pipelines.
    pub root: String,
    /// Name of the playbook, for people.
    pub name: String,
    /// The playbook.
    pub playbook: Playbook,
    /// Maximum time of a wait without TIMEOUT, and of a transfer.
    pub timeout: Duration,
    /// Whether a wait compares whole statuses.
    pub exact: bool,
    /// Folders into which files may be written.
    pub allow: Vec<PathBuf>,
    /// Maximum size of a file, bytes.
    pub max_file: u64,
    /// Address on which files are received; by default every address.
    pub listen: Option<IpAddr>,
    /// Allowed senders of files; if empty, all.
    pub from: Vec<Network>,
    /// File for the report.
    pub report: Option<PathBuf>,
    /// Whether an interruption ends the nodes, not only what runs on them.
    pub terminate: bool,
}

/// Why a step failed, and the exit code for that.
#[derive(Debug)]
struct Failure {
    code: u8,
    cause: String,
}

impl Failure {
    fn new(kind: Kind, cause: impl Into<String>) -> Self {
        Self {
            code: kind.exit_code(),
            cause: cause.into(),
        }
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Self::new(e.kind(), e.to_string())
    }
}

/// Shows the ignored lines of a playbook.
///
/// # Errors
/// When stdout cannot be written.
pub fn show_ignored(playbook: &Playbook) -> Result<()> {
    for (line, text) in &playbook.ignored {
        super::print(&format!("line {line}: ignored: {}", printable(text, 120)))?;
    }
    Ok(())
}

/// Runs the playbook, and returns 0 if every step succeeded.
///
/// # Errors
/// 69 and 77 when the broker cannot be reached or refuses us.
pub fn run(options: &Options) -> Result<ExitCode> {
    signals::give_up_after(FAREWELL)?;
    let runtime = super::runtime()?;
    let code = runtime.block_on(play(options));
    // A file that never came must not delay the end.
    runtime.shutdown_background();
    code.map(ExitCode::from)
}

async fn play(options: &Options) -> Result<u8> {
    let mut player = Player::new(options)?;
    // A report that cannot be written is better known before the first step.
    if let Some(path) = &options.report {
        report::write(path, &options.name, &[])?;
    }
    if let Err(f) = player.connect().await {
        say(&format!("play: {}", printable(&f.cause, 500)));
        return Ok(f.code);
    }
    let begun = Instant::now();
    let steps = &options.playbook.steps;
    let (mut outcomes, mut failed) = (Vec::new(), None);
    for step in steps {
        let (outcome, done) = steps::take(&mut player, step).await;
        outcomes.push(outcome);
        if let Err(f) = done {
            failed = Some((step.line, f.code));
            break;
        }
    }
    if failed.is_none()
        && let Err((line, f)) = steps::received(&mut player).await
    {
        failed = Some((line, f.code));
        let step = steps.iter().find(|s| s.line == line);
        let step = step.map(|s| s.action.to_string()).unwrap_or_default();
        player.show(line, &step, Duration::ZERO, Some(&f.cause));
        outcomes.push(Outcome {
            line,
            step,
            took: Duration::ZERO,
            failure: Some(f.cause),
        });
    }
    let held = outcomes.iter().filter(|o| o.failure.is_none()).count();
    let progress = format!("after {held} of {} steps", steps.len());
    let result = match failed {
        None => {
            let took = duration::brief(begun.elapsed());
            let steps = match steps.len() {
                1 => "1 step".to_owned(),
                n => format!("{n} steps"),
            };
            let ignored = match options.playbook.ignored.len() {
                0 => String::new(),
                1 => "; 1 line ignored".to_owned(),
                n => format!("; {n} lines ignored"),
            };
            format!("done: {steps} in {took}{ignored}")
        }
        Some((line, code)) => {
            for step in &options.playbook.on_failure {
                // All of them are tried, because they clean up.
                let (outcome, done) = steps::take(&mut player, step).await;
                outcomes.push(outcome);
                if done.is_err_and(|f| f.code == INTERRUPTED) {
                    break;
                }
            }
            match (code, player.interrupts) {
                (INTERRUPTED, _) | (_, 1..) => {
                    let nodes = end_nodes(&mut player).await;
                    format!("interrupted at line {line}, {progress}{nodes}")
                }
                _ => format!("failed at line {line}, {progress}, with {code}"),
            }
        }
    };
    player.targets.iter().for_each(|target| target.discard());
    let written = match &options.report {
        Some(path) => report::write(path, &options.name, &outcomes),
        None => Ok(()),
    };
    player.print(&result);
    player.session.close().await;
    match (failed, written) {
        (None, written) => written.map(|()| 0),
        (Some((_, code)), written) => {
            if let Err(e) = written {
                say(&e.to_string());
            }
            Ok(code)
        }
    }
}

/// Stops what runs on the nodes. Ends the nodes if the options say so, or at a second request to stop.
/// Returns what became of them, for people.
async fn end_nodes(player: &mut Player<'_>) -> String {
    let ends = |player: &Player<'_>| player.options.terminate || player.interrupts > 1;
    let mut stopped = Vec::new();
    if !ends(player) {
        if !player.running.is_empty() {
            let running = player.running.join(", ");
            player.print(&format!(
                "stopping what runs on {}; Ctrl-C again ends these nodes",
                printable(&running, 200)
            ));
        }
        match steps::stop_running(player).await {
            Ok(nodes) => stopped = nodes,
            Err(f) if f.code == INTERRUPTED => {}
            Err(f) => say(&format!("STOP: {}", printable(&f.cause, 300))),
        }
    }
    if ends(player) {
        return match steps::terminate(player).await {
            nodes if nodes.is_empty() => String::new(),
            nodes => format!("; ended {}", printable(&nodes.join(", "), 200)),
        };
    }
    match stopped.is_empty() {
        true => String::new(),
        false => format!("; stopped {}", printable(&stopped.join(", "), 200)),
    }
}

/// Exit code after Ctrl-C, as in a shell: 128 and SIGINT.
const INTERRUPTED: u8 = 130;
