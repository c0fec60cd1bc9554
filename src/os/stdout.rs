//! Standard output, and whether it was closed when this process started (`>&-`).
//!
//! The runtime of Rust opens `/dev/null` instead of a closed descriptor before `main`, and everything
//! written to it would be lost without an error. Later nothing tells the two apart: other programs open
//! `/dev/null` in the same way for those whose output they do not want.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;

static CLOSED: AtomicBool = AtomicBool::new(false);

extern "C" fn look() {
    // SAFETY: fcntl reads the flags of a number only; it need not be an open descriptor.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
    CLOSED.store(flags == -1, Ordering::Relaxed);
}

/// The loader calls it before the runtime of Rust begins.
#[used]
// SAFETY: the section holds pointers to functions that need nothing of a runtime, as `look` is.
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

/// Returns standard output.
///
/// # Errors
/// `EBADF` if it was closed when this process started.
pub fn stdout() -> io::Result<io::Stdout> {
    if CLOSED.load(Ordering::Relaxed) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    Ok(io::stdout())
}
