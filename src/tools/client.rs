//! `tael client`: takes events, runs commands, publishes statuses.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::engine::config::Config;
use crate::engine::control::reload::Reload;
use crate::engine::service::Service;
use crate::engine::work::job::warn_of_doubts;
use crate::error::{Error, Kind, Result};
use crate::os::host_lock::HostLock;
use crate::os::notify::Notify;
use crate::os::signals::{self, Stop};
use crate::store::home::Home;

/// Options of the command.
pub struct Options {
    /// The pipeline.
    pub config: Config,
    /// The state folder.
    pub state: PathBuf,
    /// Whether a running client of that name is a success.
    pub if_not_running: bool,
    /// Reads the configuration again.
    pub reread: Box<dyn Fn() -> Result<Config>>,
}

/// Warns of what a client with this configuration does and may not be meant.
pub fn warn(config: &Config) {
    warn_of_doubts(config);
}

/// Runs the client until it is stopped.
///
/// # Errors
/// 73 when another client of the name runs or the state cannot be used; 75 when the state was moved
/// or cut off, or another user has the name; 77 and 69 when the broker refuses the client; 78 for
/// state of a newer version.
pub fn run(options: Options) -> Result<ExitCode> {
    let who = options.config.who.clone();
    let another = match options.config.triggers.share_events() {
        true => "another --who is another pipeline, which takes a share of the events",
        false => "another --who is another pipeline, which runs every event too",
    };
    let home = match Home::acquire(&options.state, &who)? {
        Ok(home) => home,
        Err(_) if options.if_not_running => return Ok(ExitCode::SUCCESS),
        Err(holder) => {
            return Err(Error::cannot_create(format!(
                "start client: one called '{who}' runs already in {}: {holder}; end it first, or add \
                 --if-not-running; {another}",
                options.state.display()
            )));
        }
    };
    // Another user or state folder may have the same pipeline.
    let parts = [
        "pipeline",
        &options.config.broker.address(),
        &options.config.root,
        &who,
    ];
    let _lock = match HostLock::acquire(&parts) {
        Ok(lock) => lock,
        Err(holder) if options.if_not_running && holder.kind() == Kind::CannotCreate => {
            return Ok(ExitCode::SUCCESS);
        }
        Err(holder) => {
            return Err(Error::new(
                holder.kind(),
                format!(
                    "start client: one called '{who}' runs already, from another state folder: \
                     {holder}; end it first, or add --if-not-running; {another}"
                ),
            ));
        }
    };
    // The thread of the ledger may write until this process ends.
    home.stay_locked();
    let runtime = super::runtime()?;
    let ended = runtime.block_on(async {
        let mut stop = Stop::listen(true)?;
        let reload = Reload {
            requests: signals::reload()?,
            read: options.reread,
        };
        let service = Service::open(options.config, home, Notify::from_environment()).await?;
        service.run(&mut stop, reload).await
    });
    // A read of a disk that does not answer must not hold up the end.
    runtime.shutdown_background();
    ended.map(|()| ExitCode::SUCCESS)
}
