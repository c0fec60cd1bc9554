//! Sockets in a folder, of any length of path.
//!
//! The address of a Unix socket holds 108 bytes (`unix(7)`), and a state folder may have a longer
//! path. So the folder is opened, and addressed by its descriptor.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, bind,
    recv, shutdown, socket_with,
};
use tokio::io::Interest;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Mode of a socket: only its user may connect (`unix(7)`).
const MODE: u32 = 0o600;

/// Delay after a connection could not be accepted: descriptors may be short.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// Maximum number of connections that wait to be accepted. The system may allow fewer
/// (`net.core.somaxconn`).
const BACKLOG: i32 = 128;

/// Maximum number of bytes of a connection that are dropped when it is refused.
const MAX_UNREAD: usize = 16 * 1024;

/// Maximum time for a listener to accept one of those that wait, and time between two attempts.
const PATIENCE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(20);

/// A socket that is served until this is dropped, which removes it.
#[derive(Debug)]
pub struct Served {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Served {
    /// Serves the socket `name` in `folder`, as [`listen`] makes it: each connection gets a task of
    /// its own, which `each` returns.
    ///
    /// # Errors
    /// As the system.
    pub fn open<F>(
        folder: &Path,
        name: &str,
        each: impl Fn(tokio::net::UnixStream) -> F + Send + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::with_mode(folder, name, MODE, each)
    }

    /// Does the same for a socket of this `mode`.
    ///
    /// # Errors
    /// As the system.
    pub fn with_mode<F>(
        folder: &Path,
        name: impl AsRef<OsStr>,
        mode: u32,
        each: impl Fn(tokio::net::UnixStream) -> F + Send + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let name = name.as_ref();
        let listener = tokio::net::UnixListener::from_std(listen(folder, name, mode)?)?;
        let task = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(each(stream))),
                    Err(_) => sleep(ACCEPT_RETRY).await,
                }
            }
        });
        let path = folder.join(name);
        Ok(Self { path, task })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
        // The next listener replaces one that stays.
        let _ = fs::remove_file(&self.path);
    }
}

/// Returns a short path of `folder`, which is valid as long as the file is open.
fn short(folder: &Path) -> io::Result<(File, PathBuf)> {
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY);
    let folder = options.open(folder)?;
    let path = format!("/proc/self/fd/{}", folder.as_raw_fd()).into();
    Ok((folder, path))
}

/// Listens on the socket `name` of this `mode` in `folder`, and replaces one that an ended process has left. The
/// folder belongs to its only listener.
///
/// # Errors
/// As the system.
pub fn listen(folder: &Path, name: impl AsRef<Path>, mode: u32) -> io::Result<UnixListener> {
    let (_open, short) = short(folder)?;
    let path = short.join(name);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(&path)?)?;
    // Before any user can connect: the umask of this process may allow all.
    fs::set_permissions(&path, Permissions::from_mode(mode))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// Sends `bytes` and the end on a new connection without waiting, and drops what the other side has sent so
/// far. A close would otherwise be a reset, for which the other side may not read `bytes`.
///
/// # Errors
/// As the system; also when there is no room for all of them.
pub fn send_last(stream: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    if rustix::net::send(&stream, bytes, flags)? < bytes.len() {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let mut dropped = [0; MAX_UNREAD];
    let _ = recv(&stream, dropped.as_mut_slice(), RecvFlags::DONTWAIT);
    Ok(shutdown(&stream, Shutdown::Write)?)
}

/// Returns the folder and the name of the socket `path`, on which nothing may listen.
///
/// # Errors
/// When another process listens there, or there is something else than a socket.
pub fn free(path: &Path) -> io::Result<(&Path, &OsStr)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other("it names no file"));
    };
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::other("there is a file that is not a socket"));
        }
        Ok(_) => match try_connect(folder, name) {
            // A process that takes no connection listens all the same.
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => {}
            _ => return Err(io::Error::other("another process listens there")),
        },
        _ => {}
    }
    Ok((folder, name))
}

/// Returns whether the other side of `stream` is closed for both directions, as after the end of its
/// process. Half of it may be closed by a process that waits for an answer.
#[must_use]
pub fn has_hung_up(stream: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let polled = poll(&mut fds, Some(&now));
    let [fd] = &fds;
    polled.is_ok() && fd.revents().contains(PollFlags::HUP)
}

/// Waits until the other side of a connection has hung up. It has a descriptor of its own, so that
/// reading and writing are not disturbed.
#[derive(Debug)]
pub struct HangUp(tokio::net::UnixStream);

impl HangUp {
    /// Returns that of `stream`.
    ///
    /// # Errors
    /// When descriptors are short.
    pub fn of(stream: &impl AsFd) -> io::Result<Self> {
        let own = stream.as_fd().try_clone_to_owned()?;
        tokio::net::UnixStream::from_std(UnixStream::from(own)).map(Self)
    }

    /// Returns when it has. Cancel safe.
    pub async fn wait(&self) {
        while let Ok(ready) = self.0.ready(Interest::WRITABLE).await {
            if ready.is_write_closed() {
                return;
            }
            // There is always room to write, and that is not what is waited for.
            let again = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            let _ = self.0.try_io(Interest::WRITABLE, again);
        }
    }
}

/// Connects to the socket `name` in `folder`. While too many others wait to be accepted, it tries again,
/// for [`PATIENCE`] at most.
///
/// # Errors
/// As the system: `NotFound` or `ConnectionRefused` when no process listens, `WouldBlock` when one does
/// not accept.
pub fn connect(folder: &Path, name: impl AsRef<Path>) -> io::Result<UnixStream> {
    let name = name.as_ref();
    let by = Instant::now() + PATIENCE;
    loop {
        match try_connect(folder, name) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < by => {
                thread::sleep(AGAIN);
            }
            done => return done,
        }
    }
}

/// Connects without waiting.
fn try_connect(folder: &Path, name: impl AsRef<Path>) -> io::Result<UnixStream> {
    let (_open, short) = short(folder)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(short.join(name))?)?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_no_obstacle_and_a_left_socket_is_replaced() {
        let dir = tempfile::tempdir().expect("tempdir");
        let folder = dir.path().join("a".repeat(200));
        fs::create_dir(&folder).expect("folder");
        assert!(connect(&folder, "s").is_err(), "no listener");
        for _ in 0..2 {
            let listener = listen(&folder, "s", MODE).expect("listen");
            connect(&folder, "s").expect("connect");
            let mode = fs::metadata(folder.join("s"))
                .expect("socket")
                .permissions();
            assert_eq!(mode.mode() & 0o777, MODE);
            listener.accept().expect("accept");
        }
        let left = connect(&folder, "s").expect_err("no listener");
        assert_eq!(left.kind(), io::ErrorKind::ConnectionRefused);
        assert!(listen(&folder.join("none"), "s", MODE).is_err());
    }

    #[test]
    fn a_listener_that_accepts_nothing_is_one_and_holds_up_nobody() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("s");
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let socket = socket.expect("socket");
        bind(&socket, &SocketAddrUnix::new(&path).expect("address")).expect("bind");
        assert!(free(&path).is_ok(), "no process listens yet");
        rustix::net::listen(&socket, 0).expect("listen");
        let mut waiting = Vec::new();
        while let Ok(stream) = try_connect(dir.path(), "s") {
            waiting.push(stream);
        }
        let refused = free(&path).expect_err("its queue is full");
        assert!(refused.to_string().contains("listens there"), "{refused}");
    }
}
