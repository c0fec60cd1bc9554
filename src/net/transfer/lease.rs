//! A lease: as long as it is held, nobody else has the file open (`fcntl(2)`, "Leases").

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::{self, c_int};

/// Chooses the signal that tells of who waits for the file. `libc` lacks it for some systems.
///
/// Source: Linux, `include/uapi/asm-generic/fcntl.h`.
const F_SETSIG: c_int = 10;

/// How long others wait for the end of a lease, seconds.
const BREAK_TIME: &str = "/proc/sys/fs/lease-break-time";

/// Subtracted from that time.
const MARGIN: Duration = Duration::from_secs(5);

/// A write lease on a file.
#[derive(Debug)]
pub struct Lease<'a> {
    file: &'a File,
    /// Until then nobody is let in, whoever waits.
    until: Instant,
}

fn fcntl(file: &File, command: c_int, argument: c_int) -> io::Result<c_int> {
    // SAFETY: the descriptor is open as long as `file` lives, and these commands take integers.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, argument) };
    Ok(Errno::result(result)?)
}

impl<'a> Lease<'a> {
    /// Takes the lease on `file`. Processes that open the file then wait, at most as long as
    /// `lease-break-time` says (45 s).
    ///
    /// # Errors
    /// `WouldBlock` when another process has it open; otherwise the file system has no leases, or
    /// the file is somebody else's.
    pub fn take(file: &'a File) -> io::Result<Self> {
        // The signal that comes by default, SIGIO, would end this process; this one is ignored.
        fcntl(file, F_SETSIG, libc::SIGURG)?;
        let time = fs::read_to_string(BREAK_TIME).unwrap_or_default();
        let time = Duration::from_secs(time.trim().parse().unwrap_or(0));
        let until = Instant::now() + time.saturating_sub(MARGIN);
        fcntl(file, libc::F_SETLEASE, libc::F_WRLCK)?;
        Ok(Self { file, until })
    }

    /// Whether nobody waits for its end.
    fn is_undisturbed(&self) -> bool {
        fcntl(self.file, libc::F_GETLEASE, 0).is_ok_and(|kind| kind == libc::F_WRLCK)
    }

    /// Whether nobody else can have the file open, now and for some seconds.
    pub fn is_held(&self) -> bool {
        self.is_undisturbed() || Instant::now() < self.until
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // It ends with the file at the latest.
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
        // Whoever comes then waits, which the lease knows.
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
