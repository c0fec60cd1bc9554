//! Standard output, and whether it was closed when this process started (`>&-`).
//!
//! The runtime of Rust opens `/dev/null` instead of a closed descriptor before `main`, and everything
//! written to it would be lost without an error. Later nothing tells the two apart: other programs open
//! `/dev/null` in the same way for those whose output they do not want.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::libc;
use rustix::event::{PollFd, PollFlags};

use crate::os::process::poll_until;

/// Number of bytes that a pipe with room takes at once: half of `PIPE_BUF` (`pipe(7)`), as standard error may
/// be the same pipe.
pub const ROOM: usize = 2048;

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

/// Returns whether standard output and standard error take [`ROOM`] bytes each now, so that a write does not
/// wait for a reader (`poll(2)`).
#[must_use]
pub fn has_room() -> bool {
    let (out, error) = (io::stdout(), io::stderr());
    let mut fds = [
        PollFd::new(&out, PollFlags::OUT),
        PollFd::new(&error, PollFlags::OUT),
    ];
    poll_until(&mut fds, Some(Instant::now())).is_ok()
        && fds.iter().all(|fd| fd.revents().contains(PollFlags::OUT))
}
