//! Sockets in a folder, of any length of path.
//!
//! The address of a Unix socket holds 108 bytes (`unix(7)`), and a state folder may have a longer
//! path. So the folder is opened, and addressed by its descriptor.

use std::fs::{self, File, Permissions};
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Mode of a socket: only its user may connect (`unix(7)`).
const MODE: u32 = 0o600;

/// Delay after a connection could not be accepted: descriptors may be short.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

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
        let listener = tokio::net::UnixListener::from_std(listen(folder, name)?)?;
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

/// Listens on the socket `name` in `folder`, and replaces one that an ended process has left. The
/// folder belongs to its only listener.
///
/// # Errors
/// As the system.
pub fn listen(folder: &Path, name: &str) -> io::Result<UnixListener> {
    let (_open, short) = short(folder)?;
    let path = short.join(name);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(MODE))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects to the socket `name` in `folder`.
///
/// # Errors
/// As the system: `NotFound` or `ConnectionRefused` when no process listens.
pub fn connect(folder: &Path, name: &str) -> io::Result<UnixStream> {
    let (_open, short) = short(folder)?;
    let stream = UnixStream::connect(short.join(name))?;
    stream.set_nonblocking(true)?;
    Ok(stream)
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
            let listener = listen(&folder, "s").expect("listen");
            connect(&folder, "s").expect("connect");
            let mode = fs::metadata(folder.join("s"))
                .expect("socket")
                .permissions();
            assert_eq!(mode.mode() & 0o777, MODE);
            listener.accept().expect("accept");
        }
        let left = connect(&folder, "s").expect_err("no listener");
        assert_eq!(left.kind(), io::ErrorKind::ConnectionRefused);
        assert!(listen(&folder.join("none"), "s").is_err());
    }
}
