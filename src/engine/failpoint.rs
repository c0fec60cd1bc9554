//! Places where a test can have a debug build killed, as by `kill -9`.

/// Dies at `name` if the environment variable `TAEL_FAILPOINT` says so; nothing in a release
/// build.
#[cfg(debug_assertions)]
pub fn reached(name: &str) {
    if std::env::var_os("TAEL_FAILPOINT").is_some_and(|wanted| wanted == name) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGKILL);
    }
}

/// Nothing in a release build.
#[cfg(not(debug_assertions))]
pub const fn reached(_: &str) {}
