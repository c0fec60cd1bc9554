//! One file over one plain TCP connection, as `ncat` sends and takes it; confined to folders
//! that were named for that.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use tokio::sync::oneshot;

/// How long a connection may take to come about, and how long it may stand still.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often is looked whether the other side has everything.
const LOOK: Duration = Duration::from_millis(5);

/// Whether `real`, a path without links, is below one of `folders`.
fn is_inside(real: &Path, folders: &[PathBuf]) -> bool {
    let inside = |folder: &PathBuf| folder.canonicalize().is_ok_and(|f| real.starts_with(f));
    folders.iter().any(inside)
}

/// Opens the file at `path` for reading, and for emptying if `truncate`, if it is a file below
/// one of `folders`. What counts is where the open file is, not where its name led before.
///
/// # Errors
/// A text for the user.
pub fn open_confined(path: &Path, folders: &[PathBuf], truncate: bool) -> Result<File, String> {
    let wrong = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let mut options = File::options();
    // One end of a FIFO must not wait for the other.
    options
        .read(true)
        .write(truncate)
        .custom_flags(libc::O_NONBLOCK);
    let file = options.open(path).map_err(|e| wrong(&e))?;
    let real = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    if !is_inside(&real.map_err(|e| wrong(&e))?, folders) {
        return Err(wrong(&"it is in no folder of --allow-dir"));
    }
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(wrong(&"it is no plain file"));
    }
    Ok(file)
}

/// Where a file called `path` is to be put, if its folder is one of `folders` or below.
///
/// # Errors
/// A text for the user.
pub fn confined(path: &Path, folders: &[PathBuf]) -> Result<PathBuf, String> {
    let wrong = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let name = path.file_name().ok_or_else(|| wrong(&"it has no name"))?;
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(wrong(&"it has no folder")),
    };
    let real = parent.canonicalize().map_err(|e| wrong(&e))?;
    if is_inside(&real, folders) {
        Ok(real.join(name))
    } else {
        Err(wrong(&"it is in no folder of --allow-dir"))
    }
}

/// Runs `work` on a thread of its own.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (tx, rx) = oneshot::channel();
    thread::Builder::new()
        .name("transfer".into())
        .spawn(move || {
            // Whoever waited may have gone.
            let _ = tx.send(work());
        })?;
    rx.await
        .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
}

/// Sends `file` to `address` and `port`; done when the other side's system has all of it.
/// With `truncate` the file is emptied then, and only then.
///
/// # Errors
/// As the file system and the network.
pub async fn send(mut file: File, address: String, port: u16, truncate: bool) -> io::Result<u64> {
    apart(move || {
        let mut found = (address.as_str(), port).to_socket_addrs()?;
        let first = found.next();
        let first = first.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let mut stream = TcpStream::connect_timeout(&first, PATIENCE)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let bytes = io::copy(&mut file, &mut stream)?;
        stream.shutdown(Shutdown::Write)?;
        accepted(&stream)?;
        if truncate {
            file.set_len(0)?;
        }
        Ok(bytes)
    })
    .await
}

/// Waits until the other side has acknowledged everything (`SIOCOUTQ`, `tcp(7)`).
fn accepted(stream: &TcpStream) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(e) = stream.take_error()? {
            return Err(e);
        }
        let mut waiting: libc::c_int = 0;
        // SAFETY: the descriptor is open as long as `stream` lives, and SIOCOUTQ, which has the
        // number of TIOCOUTQ, writes one `int` to the live local that it is given.
        let asked = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut waiting) };
        if asked != 0 {
            return Err(io::Error::last_os_error());
        }
        if waiting == 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(LOOK);
    }
}

/// Listens on `port` of every address.
///
/// # Errors
/// As `bind(2)`.
pub fn listen(port: u16) -> io::Result<TcpListener> {
    let listener =
        TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Where a file is kept beside `file` while it comes.
#[must_use]
pub fn part_of(file: &Path) -> PathBuf {
    let mut part = file.to_owned().into_os_string();
    part.push(format!(".part-{}", ulid::Ulid::generate()));
    PathBuf::from(part)
}

/// Takes one file within `limit`, keeps it at `part`, and puts it at `file` when its sender has
/// closed the connection in order. Whether that had sent all of it, only the sender knows. A
/// connection that brings nothing is none.
///
/// # Errors
/// As the file system and the network.
pub async fn receive(
    listener: TcpListener,
    file: PathBuf,
    part: PathBuf,
    limit: Duration,
) -> io::Result<u64> {
    apart(move || {
        let deadline = Instant::now() + limit;
        loop {
            let stream = accept(&listener, deadline)?;
            let kept = keep(stream, &part, deadline);
            match kept {
                Ok(0) => {}
                Ok(bytes) => return fs::rename(&part, &file).map(|()| bytes),
                Err(e) => {
                    let _ = fs::remove_file(&part);
                    return Err(e);
                }
            }
            let _ = fs::remove_file(&part);
        }
    })
    .await
}

fn accept(listener: &TcpListener, deadline: Instant) -> io::Result<TcpStream> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
            Err(_) if Instant::now() < deadline => thread::sleep(LOOK),
            Err(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "nobody has sent it",
                ));
            }
        }
    }
}

fn keep(mut stream: TcpStream, part: &Path, deadline: Instant) -> io::Result<u64> {
    let mut target = File::options().write(true).create_new(true).open(part)?;
    let (mut bytes, mut buffer) = (0, vec![0; 64 * 1024]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "it has not come to its end",
            ));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                target.write_all(&buffer[..n])?;
                bytes += n as u64;
            }
            Err(e)
                if [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&e.kind()) => {}
            Err(e) => return Err(e),
        }
    }
    target.sync_all()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_its_folder() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        fs::create_dir(&inside).expect("folder");
        fs::create_dir(&outside).expect("folder");
        fs::write(outside.join("secret"), "").expect("file");
        fs::write(inside.join("file"), "").expect("file");
        std::os::unix::fs::symlink(&outside, inside.join("link")).expect("link");
        let allowed = [inside.clone()];
        let may_send = |path: &Path| open_confined(path, &allowed, true).is_ok();
        let may_put = |path: &Path| confined(path, &allowed).is_ok();
        assert!(may_send(&inside.join("file")) && may_put(&inside.join("new")));
        nix::unistd::mkfifo(&inside.join("fifo"), nix::sys::stat::Mode::S_IRUSR).expect("fifo");
        for path in [
            "../out/secret",
            "link/secret",
            "no/where",
            "..",
            ".",
            "fifo",
        ] {
            assert!(!may_send(&inside.join(path)), "{path}");
        }
        for path in ["../out/new", "link/new", "no/where", ".."] {
            assert!(!may_put(&inside.join(path)), "{path}");
        }
        assert!(!may_send(&outside.join("secret")));
        assert!(open_confined(&inside.join("file"), &[], false).is_err());
    }
}
