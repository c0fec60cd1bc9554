//! Hooks for the test suite: the only code that reads a test variable or asks whether this is a
//! debug build.
//!
//! Each hook is a pair of functions. The one that reads its environment variable is compiled
//! under `cfg(debug_assertions)`, which cargo's `release` and `bench` profiles leave off. The
//! other is an empty function or a constant, which the compiler removes. A release build
//! therefore holds neither the checks nor the names of the variables.

use std::time::Duration;

/// Kills this process, as `kill -9` does, if `TAEL_FAILPOINT` names this place.
#[cfg(debug_assertions)]
pub fn failpoint(name: &str) {
    if std::env::var_os("TAEL_FAILPOINT").is_some_and(|wanted| wanted == name) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGKILL);
    }
}

/// Does nothing in a release build.
#[cfg(not(debug_assertions))]
pub const fn failpoint(_: &str) {}

/// Delay before a stalled network task looks at its file again.
#[cfg(debug_assertions)]
const STALL_LOOK: Duration = Duration::from_millis(50);

/// Returns for how long the network task stands still before it asks again: while the file exists
/// that `TAEL_TEST_STALL` names.
#[cfg(debug_assertions)]
#[must_use]
pub fn stall() -> Option<Duration> {
    let file = std::env::var_os("TAEL_TEST_STALL")?;
    std::path::Path::new(&file).exists().then_some(STALL_LOOK)
}

/// Returns `None` in a release build.
#[cfg(not(debug_assertions))]
#[must_use]
pub const fn stall() -> Option<Duration> {
    None
}

/// Waits beside the loop while the file exists that `TAEL_TEST_SLOW_READ` names, and notes that in it.
#[cfg(debug_assertions)]
pub fn slow_read() {
    let Some(file) = std::env::var_os("TAEL_TEST_SLOW_READ").map(std::path::PathBuf::from) else {
        return;
    };
    while file.exists() {
        let _ = std::fs::write(&file, "waits");
        std::thread::sleep(STALL_LOOK);
    }
}

/// Does nothing in a release build.
#[cfg(not(debug_assertions))]
pub const fn slow_read() {}

/// Returns the maximum number of waiting units that `TAEL_TEST_MAX_WAITING` sets.
#[cfg(debug_assertions)]
#[must_use]
pub fn max_waiting() -> Option<usize> {
    std::env::var("TAEL_TEST_MAX_WAITING").ok()?.parse().ok()
}

/// Returns `None` in a release build.
#[cfg(not(debug_assertions))]
#[must_use]
pub const fn max_waiting() -> Option<usize> {
    None
}

/// Returns the maximum size of the outbox that `TAEL_TEST_MAX_OUTBOX` sets, bytes.
#[cfg(debug_assertions)]
#[must_use]
pub fn max_outbox() -> Option<u64> {
    std::env::var("TAEL_TEST_MAX_OUTBOX").ok()?.parse().ok()
}

/// Returns `None` in a release build.
#[cfg(not(debug_assertions))]
#[must_use]
pub const fn max_outbox() -> Option<u64> {
    None
}

/// Returns the boot id that `TAEL_TEST_BOOT_ID` sets.
#[cfg(debug_assertions)]
#[must_use]
pub fn boot_id() -> Option<String> {
    std::env::var("TAEL_TEST_BOOT_ID").ok()
}

/// Returns `None` in a release build.
#[cfg(not(debug_assertions))]
#[must_use]
pub const fn boot_id() -> Option<String> {
    None
}

/// Whether files are treated as if they cannot have holes: `TAEL_TEST_NO_HOLES` is set.
#[cfg(debug_assertions)]
#[must_use]
pub fn no_holes() -> bool {
    std::env::var_os("TAEL_TEST_NO_HOLES").is_some()
}

/// Returns false in a release build.
#[cfg(not(debug_assertions))]
#[must_use]
pub const fn no_holes() -> bool {
    false
}

/// Whether the system gives no watches of folders: `TAEL_TEST_NO_WATCHES` is set.
#[cfg(debug_assertions)]
#[must_use]
pub fn no_watches() -> bool {
    std::env::var_os("TAEL_TEST_NO_WATCHES").is_some()
}

/// Returns false in a release build.
#[cfg(not(debug_assertions))]
#[must_use]
pub const fn no_watches() -> bool {
    false
}

/// Whether every file system is treated as a network file system: `TAEL_TEST_NETWORK_FS` is set.
#[cfg(debug_assertions)]
#[must_use]
pub fn network_fs() -> bool {
    std::env::var_os("TAEL_TEST_NETWORK_FS").is_some()
}

/// Returns false in a release build.
#[cfg(not(debug_assertions))]
#[must_use]
pub const fn network_fs() -> bool {
    false
}

/// Returns after how long the units of a node that is away are called lost, as `TAEL_TEST_LOST` sets it,
/// milliseconds.
#[cfg(debug_assertions)]
#[must_use]
pub fn lost() -> Option<Duration> {
    let text = std::env::var("TAEL_TEST_LOST").ok()?;
    text.parse().ok().map(Duration::from_millis)
}

/// Returns `None` in a release build.
#[cfg(not(debug_assertions))]
#[must_use]
pub const fn lost() -> Option<Duration> {
    None
}

/// Returns for how long a message waits that a broker of queues delivers again, as
/// `TAEL_TEST_QUEUE_GRACE` sets it, milliseconds.
#[cfg(debug_assertions)]
#[must_use]
pub fn queue_grace() -> Option<Duration> {
    let text = std::env::var("TAEL_TEST_QUEUE_GRACE").ok()?;
    text.parse().ok().map(Duration::from_millis)
}

/// Returns `None` in a release build.
#[cfg(not(debug_assertions))]
#[must_use]
pub const fn queue_grace() -> Option<Duration> {
    None
}

/// Returns for how long submitted work that has ended is kept in any case, as `TAEL_TEST_FRESH` sets it,
/// milliseconds.
#[cfg(debug_assertions)]
#[must_use]
pub fn fresh() -> Option<Duration> {
    let text = std::env::var("TAEL_TEST_FRESH").ok()?;
    text.parse().ok().map(Duration::from_millis)
}

/// Returns `None` in a release build.
#[cfg(not(debug_assertions))]
#[must_use]
pub const fn fresh() -> Option<Duration> {
    None
}
