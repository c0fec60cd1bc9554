//! A lock for the whole host, for all users and folders: the name of an abstract Unix socket
//! (`unix(7)`). The kernel gives it to one process of a network namespace, and frees it with that
//! process.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use tracing::debug;

use crate::error::Kind;
use crate::model::digest::sha256;
use crate::model::signature::hex;

/// Maximum time that the lock of a killed process may outlive it. A process that it was about to
/// start has a copy until it executes its program.
const PATIENCE: Duration = Duration::from_millis(500);

/// Time between two attempts.
const LOOK: Duration = Duration::from_millis(20);

/// Maximum time to find the holder of a lock, who may not accept connections.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// A lock, released when it is dropped or the process ends. Where the kernel grants no such names
/// it holds nothing.
#[derive(Debug)]
pub struct HostLock {
    _socket: Option<UnixListener>,
}

/// The holder of a lock, as far as the kernel knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    process: Option<(i32, u32)>,
}

impl Holder {
    /// Returns the kind of error for a process that needs the lock. If the same user, or root,
    /// holds it, a restart does not help (73). Any other user can take a name, and must not keep us
    /// away for good: try again (75).
    #[must_use]
    pub fn kind(&self) -> Kind {
        let own = nix::unistd::Uid::effective().as_raw();
        match self.process {
            Some((_, uid)) if uid == own || uid == 0 => Kind::CannotCreate,
            _ => Kind::TryAgain,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.process {
            Some((pid, uid)) => write!(f, "process {pid} of user {uid} on this host"),
            None => f.write_str("another process on this host"),
        }
    }
}

impl HostLock {
    /// Takes the lock on the name that `parts` make, none of which contains a NUL.
    ///
    /// # Errors
    /// The holder.
    pub fn acquire(parts: &[&str]) -> Result<Self, Holder> {
        // Every user sees such names in /proc/net/unix, but must not see client identifiers.
        let mut hash = hex(&sha256(parts.join("\0").as_bytes()));
        hash.truncate(32);
        let deadline = Instant::now() + PATIENCE;
        let name = match SocketAddr::from_abstract_name(format!("tael-{hash}")) {
            Ok(name) => name,
            Err(e) => return Ok(Self::none(&e)),
        };
        loop {
            match UnixListener::bind_addr(&name) {
                Ok(socket) => {
                    return Ok(Self {
                        _socket: Some(socket),
                    });
                }
                Err(e) if e.kind() != io::ErrorKind::AddrInUse => return Ok(Self::none(&e)),
                Err(_) if Instant::now() >= deadline => return Err(holder(name)),
                Err(_) => thread::sleep(LOOK),
            }
        }
    }

    fn none(e: &io::Error) -> Self {
        debug!("cannot lock a name for this host: {e}");
        Self { _socket: None }
    }
}

/// Asks the kernel which process listens at `name`.
fn holder(name: SocketAddr) -> Holder {
    let (answer, answers) = mpsc::channel();
    // It may wait without end, and then ends with the process.
    let asker = thread::Builder::new().spawn(move || {
        let process = UnixStream::connect_addr(&name).and_then(|stream| peer(&stream));
        let _ = answer.send(process.ok());
    });
    let process = match asker {
        Ok(_) => answers.recv_timeout(ASK_TIMEOUT).ok().flatten(),
        Err(_) => None,
    };
    // A process of another PID namespace has no number here.
    Holder {
        process: process.filter(|(pid, _)| *pid > 0),
    }
}

/// Returns the process and user at the other end of `stream`.
fn peer(stream: &UnixStream) -> io::Result<(i32, u32)> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or(0);
    // SAFETY: the descriptor is open for as long as `stream` is borrowed; the kernel writes
    // `length` bytes to `peer` at most, which has as many, and the length itself to `length`.
    let done = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    match done {
        0 => Ok((peer.pid, peer.uid)),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_a_name_and_is_known() {
        let own = crate::os::host::new_id();
        let first = HostLock::acquire(&["test", &own]).expect("free");
        let holder = HostLock::acquire(&["test", &own]).expect_err("held");
        let uid = nix::unistd::Uid::effective().as_raw();
        let pid = std::process::id();
        assert_eq!(
            holder.to_string(),
            format!("process {pid} of user {uid} on this host")
        );
        assert_eq!(holder.kind(), Kind::CannotCreate);
        for process in [None, Some((pid.cast_signed(), uid + 1))] {
            assert_eq!(Holder { process }.kind(), Kind::TryAgain);
        }
        assert!(HostLock::acquire(&["test", &own, "other"]).is_ok());
        drop(first);
        assert!(HostLock::acquire(&["test", &own]).is_ok());
    }
}
