//! Names of this host and user, and new ids.

use nix::sys::stat::{Mode, umask};
use nix::unistd::{Uid, User};

/// Returns a new id, unique everywhere and sorted by time (a ULID).
#[must_use]
pub fn new_id() -> String {
    ulid::Ulid::generate().to_string()
}

/// Returns the id that has these bytes, in the form of [`new_id`].
#[must_use]
pub fn id_from(bytes: [u8; 16]) -> String {
    ulid::Ulid::from_bytes(bytes).to_string()
}

/// Returns whether `name` has the form of an id from [`new_id`].
#[must_use]
pub fn is_id(name: &str) -> bool {
    ulid::Ulid::from_string(name).is_ok()
}

/// Makes new files of this process private to its user (`umask(2)`).
pub fn make_files_private() {
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
}

/// Returns the name of this host; `localhost` if it has none that is UTF-8.
#[must_use]
pub fn hostname() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".into())
}

/// Returns the login name of the effective user; the number if there is none.
#[must_use]
pub fn username() -> String {
    username_of(Uid::effective().as_raw())
}

/// Returns the login name of user `uid`; the number if there is none.
#[must_use]
pub fn username_of(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

/// Returns the size of the memory of this host, MiB; 0 if it is not known (`proc_meminfo(5)`).
#[must_use]
pub fn memory_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}
