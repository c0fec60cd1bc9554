//! Reads the configuration again while the client runs.

use tokio::signal::unix::Signal;
use tracing::warn;

use crate::engine::config::Config;
use crate::error::{Error, Result};

/// Requests to reload, and the source of the new configuration.
pub struct Reload {
    /// One for each request.
    pub requests: Signal,
    /// Reads the configuration.
    pub read: Box<dyn Fn() -> Result<Config>>,
}

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reload").finish_non_exhaustive()
    }
}

/// Returns the parts of a new configuration that a client with the configuration `old` can apply
/// without a restart.
///
/// # Errors
/// When its subscriptions need a restart.
pub fn merge(old: &Config, config: Config) -> Result<Config> {
    let fixed = [
        ("who", old.who == config.who),
        ("root", old.root == config.root),
        ("broker", old.broker.is_same_broker(&config.broker)),
        ("metrics", old.metrics == config.metrics),
        (
            "control-socket",
            old.control_socket == config.control_socket,
        ),
    ];
    for (name, same) in fixed {
        if !same {
            warn!("reload: a new {name} needs a restart; it stays as it was");
        }
    }
    let config = Config {
        who: old.who.clone(),
        root: old.root.clone(),
        host: old.host.clone(),
        broker: old.broker.clone(),
        metrics: old.metrics.clone(),
        control_socket: old.control_socket.clone(),
        chosen_id: old.chosen_id,
        ..config
    };
    if old.triggers.are_shared() != config.triggers.are_shared() {
        return Err(Error::config(
            "a change to or from shared subscriptions needs a restart",
        ));
    }
    Ok(config)
}
