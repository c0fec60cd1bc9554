//! A lease: while it is held, no other process has the file open (`fcntl(2)`, "Leases").

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::{self, c_int};

/// Selects the signal for a process that waits for the file. `libc` lacks it for some systems.
///
/// Source: Linux, `include/uapi/asm-generic/fcntl.h`.
const F_SETSIG: c_int = 10;

/// Time that other processes wait for the end of a lease, seconds.
const BREAK_TIME: &str = "/proc/sys/fs/lease-break-time";

/// Subtracted from that time.
const MARGIN: Duration = Duration::from_secs(5);

/// A write lease on a file.
#[derive(Debug)]
pub struct Lease<'a> {
    file: &'a File,
    /// Until then no other process gets the file.
    until: Instant,
}

fn fcntl(file: &File, command: c_int, argument: c_int) -> io::Result<c_int> {
    // SAFETY: the descriptor is open as long as `file` lives, and these commands take integers.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, argument) };
    Ok(Errno::result(result)?)
}

impl<'a> Lease<'a> {
    /// Takes the lease on `file`. Processes that open the file then wait for `lease-break-time` (45
    /// s) at most.
    ///
    /// # Errors
    /// `WouldBlock` when another process has it open; otherwise the file system has no leases, or
    /// the file belongs to another user.
    pub fn take(file: &'a File) -> io::Result<Self> {
        // The default signal, SIGIO, would end this process; this one is ignored.
        fcntl(file, F_SETSIG, libc::SIGURG)?;
        let time = fs::read_to_string(BREAK_TIME).unwrap_or_default();
        let time = Duration::from_secs(time.trim().parse().unwrap_or(0));
        let until = Instant::now() + time.saturating_sub(MARGIN);
        fcntl(file, libc::F_SETLEASE, libc::F_WRLCK)?;
        Ok(Self { file, until })
    }

    /// Returns whether no process waits for its end.
    fn is_undisturbed(&self) -> bool {
        fcntl(self.file, libc::F_GETLEASE, 0).is_ok_and(|kind| kind == libc::F_WRLCK)
    }

    /// Returns whether no other process can have the file open, now and for some seconds.
    pub fn is_held(&self) -> bool {
        self.is_undisturbed() || Instant::now() < self.until
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // At the latest it ends with the file.
        let _ = fcntl(self.file, libc::F_SETLEASE, libc::F_UNLCK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_for_files_that_nobody_else_has_open() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("file");
        let open = || File::options().create(true).append(true).open(&path);
        let file = File::create(&path).expect("file");
        let other = open().expect("other");
        let refused = Lease::take(&file).expect_err("it is open elsewhere");
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        drop(other);
        let lease = Lease::take(&file).expect("lease");
        assert!(lease.is_held() && lease.is_undisturbed());
        // Processes that open it now wait, and the lease knows.
        std::thread::scope(|scope| {
            let waiting = scope.spawn(open);
            while lease.is_undisturbed() {
                std::thread::yield_now();
            }
            assert!(lease.is_held() && !waiting.is_finished());
            drop(lease);
            waiting.join().expect("thread").expect("opened");
        });
    }
}
