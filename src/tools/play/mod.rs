//! `tael play`: has several nodes do a playbook, in step.

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

/// How long our end may take once we are told to stop: the nodes are told to end.
const FAREWELL: Duration = Duration::from_secs(30);

/// What the command needs.
#[derive(Debug, Clone)]
pub struct Options {
    /// How to reach the broker; its identifier is one of this process alone.
    pub broker: BrokerOptions,
    /// The root of the nodes' topics, and of the pipelines'.
    pub root: String,
    /// What people call the playbook.
    pub name: String,
    /// The playbook.
    pub playbook: Playbook,
    /// How long a wait lasts that does not say so, and a file may be on its way.
    pub timeout: Duration,
    /// Whether what is waited for must be all that is said.
    pub exact: bool,
    /// Folders that files may be put into.
    pub allow: Vec<PathBuf>,
    /// Largest file that is taken, bytes.
    pub max_file: u64,
    /// Address on which files are waited for; every one without.
    pub listen: Option<IpAddr>,
    /// Who may send files; anybody if none is named.
    pub from: Vec<Network>,
    /// Where a report is written.
    pub report: Option<PathBuf>,
}

/// Why a step does not hold, and the exit code that this means.
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

/// Shows what a playbook would do.
///
/// # Errors
/// When stdout cannot be written.
pub fn check(playbook: &Playbook) -> Result<ExitCode> {
    for (line, text) in &playbook.ignored {
        super::print(&format!("line {line}: ignored: {}", printable(text, 120)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Plays, and returns 0 if every step held.
///
/// # Errors
/// 69 and 77 when the broker cannot be reached or turns us away.
pub fn run(options: &Options) -> Result<ExitCode> {
    signals::give_up_after(FAREWELL)?;
    let runtime = super::runtime()?;
    let code = runtime.block_on(play(options));
    // A file that nobody has sent must not hold us up.
    runtime.shutdown_background();
    code.map(ExitCode::from)
}

async fn play(options: &Options) -> Result<u8> {
    let mut player = Player::new(options)?;
    // That it cannot be written is better known before anything is done.
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
            // All of it is tried: it cleans up.
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

/// Ended by Ctrl-C, as a shell tells it: 128 and SIGINT.
const INTERRUPTED: u8 = 130;
