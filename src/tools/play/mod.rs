//! `tael play`: runs a playbook over several nodes, step by step.

mod heard;
mod player;
mod report;
mod steps;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::model::network_address::Network;
use crate::model::playbook::Playbook;
use crate::model::text::printable;
use crate::net::options::BrokerOptions;
use crate::os::logging::say;
use crate::os::signals;
use player::Player;
use report::Outcome;

/// Maximum time of our end after a signal; the nodes are told to end.
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

impl Failure {
    fn interrupted() -> Self {
        Self {
            code: INTERRUPTED,
            cause: "interrupted".into(),
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
pub fn check(playbook: &Playbook) -> Result<ExitCode> {
    for (line, text) in &playbook.ignored {
        super::print(&format!("line {line}: ignored: {}", printable(text, 120)))?;
    }
    Ok(ExitCode::SUCCESS)
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
    let (mut outcomes, mut failure) = (Vec::new(), None);
    for step in &options.playbook.steps {
        let outcome = player.take(step).await;
        if let Err(f) = &outcome.1 {
            failure = Some(f.code);
        }
        outcomes.push(outcome.0);
        if failure.is_some() {
            break;
        }
    }
    if failure.is_none()
        && let Err((line, f)) = player.received().await
    {
        failure = Some(f.code);
        let step = options.playbook.steps.iter().find(|s| s.line == line);
        let step = step.map(|s| s.action.to_string()).unwrap_or_default();
        player.show(line, &step, Duration::ZERO, Some(&f.cause));
        outcomes.push(Outcome {
            line,
            step,
            took: Duration::ZERO,
            failure: Some(f.cause),
        });
    }
    if let Some(code) = failure {
        for step in &options.playbook.on_failure {
            // All of them are tried, because they clean up.
            outcomes.push(player.take(step).await.0);
        }
        if code == INTERRUPTED {
            player.terminate().await;
        }
    }
    player.targets.iter().for_each(|target| target.discard());
    player.session.close().await;
    if let Some(path) = &options.report
        && let Err(e) = report::write(path, &options.name, &outcomes)
    {
        if failure.is_none() {
            return Err(e);
        }
        say(&e.to_string());
    }
    Ok(failure.unwrap_or(0))
}

/// Exit code after Ctrl-C, as in a shell: 128 and SIGINT.
const INTERRUPTED: u8 = 130;
