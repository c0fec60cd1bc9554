//! Who and where we are.

use nix::sys::stat::{Mode, umask};
use nix::unistd::{Uid, User};

/// A new id: unique everywhere, sorted by time (a ULID).
#[must_use]
pub fn new_id() -> String {
    ulid::Ulid::generate().to_string()
}

/// Whether `name` is an id as [`new_id`] makes them.
#[must_use]
pub fn is_id(name: &str) -> bool {
    ulid::Ulid::from_string(name).is_ok()
}

/// Has all files that this process makes from now on be its user's alone (`umask(2)`).
pub fn make_files_private() {
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
}

/// This host's name; `localhost` if it has none that is UTF-8.
#[must_use]
pub fn hostname() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".into())
}

/// The login name of the effective user; its number if it has none.
#[must_use]
pub fn username() -> String {
    let uid = Uid::effective();
    match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}
