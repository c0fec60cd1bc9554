//! Paths of state and configuration.

use std::env;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// Returns an environment variable that holds an absolute path. The XDG specification ignores
/// relative ones.
fn absolute(name: &str) -> Option<PathBuf> {
    env::var_os(name)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

/// Returns the state folder: the first of `$STATE_DIRECTORY` (`systemd.exec(5)`), otherwise
/// `$XDG_STATE_HOME/tael`, otherwise `~/.local/state/tael`.
///
/// # Errors
/// When the environment names none of them.
pub fn state_dir() -> Result<PathBuf> {
    if let Some(list) = env::var_os("STATE_DIRECTORY")
        && let Some(first) = env::split_paths(&list).find(|path| path.is_absolute())
    {
        return Ok(first);
    }
    own_state_dir().ok_or_else(|| {
        Error::cannot_create("find a state folder: set STATE_DIRECTORY, XDG_STATE_HOME or HOME")
    })
}

/// State folder of the system's services (systemd/tael-client@.service, `StateDirectory=`).
pub const SERVICE_STATE: &str = "/var/lib/tael";

/// Returns the state folder of the user: `$XDG_STATE_HOME/tael`, otherwise `~/.local/state/tael`.
#[must_use]
pub fn own_state_dir() -> Option<PathBuf> {
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|dir| dir.join("tael"))
}

/// Returns the configuration file of the user, `$XDG_CONFIG_HOME/tael/tael.toml`.
#[must_use]
pub fn user_config() -> Option<PathBuf> {
    absolute("XDG_CONFIG_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".config")))
        .map(|dir| dir.join("tael/tael.toml"))
}

/// Configuration file of the host.
pub const SYSTEM_CONFIG: &str = "/etc/tael/tael.toml";

/// Returns the password that systemd passes as a credential (`LoadCredential=tael-password:…`).
#[must_use]
pub fn credential_password() -> Option<PathBuf> {
    credential("tael-password")
}

/// Returns the password for brokers of queues that systemd passes as a credential
/// (`LoadCredential=tael-queue-password:…`).
#[must_use]
pub fn queue_credential() -> Option<PathBuf> {
    credential("tael-queue-password")
}

fn credential(name: &str) -> Option<PathBuf> {
    absolute("CREDENTIALS_DIRECTORY")
        .map(|dir| dir.join(name))
        .filter(|path| path.exists())
}
