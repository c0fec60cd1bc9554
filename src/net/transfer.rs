//! One file over one plain TCP connection, as `ncat` sends and takes it; confined to folders
//! that were named for that.

use std::fs::{self, File};
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use tokio::sync::oneshot;

/// How long a connection may take to come about, and how long it may stand still.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often is looked whether the other side has everything.
const LOOK: Duration = Duration::from_millis(5);

/// Where `path` leads, if that is below one of `folders`; symbolic links are followed first.
///
/// # Errors
/// A text for the user.
pub fn confined(path: &Path, folders: &[PathBuf]) -> Result<PathBuf, String> {
    let wrong = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let real = match path.canonicalize() {
        Ok(real) => real,
        // One that is to be made: its folder is what counts.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let name = path.file_name().ok_or_else(|| wrong(&"it has no name"))?;
            let parent = match path.parent() {
                Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
                Some(parent) => parent,
                None => return Err(wrong(&"it has no folder")),
            };
            parent.canonicalize().map_err(|e| wrong(&e))?.join(name)
        }
        Err(e) => return Err(wrong(&e)),
    };
    let inside = |folder: &PathBuf| folder.canonicalize().is_ok_and(|f| real.starts_with(f));
    if folders.iter().any(inside) {
        Ok(real)
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
pub async fn send(file: PathBuf, address: String, port: u16, truncate: bool) -> io::Result<u64> {
    apart(move || {
        let mut source = File::open(&file)?;
        let mut found = (address.as_str(), port).to_socket_addrs()?;
        let first = found.next();
        let first = first.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let mut stream = TcpStream::connect_timeout(&first, PATIENCE)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let bytes = io::copy(&mut source, &mut stream)?;
        stream.shutdown(Shutdown::Write)?;
        accepted(&stream)?;
        if truncate {
            File::options().write(true).open(&file)?.set_len(0)?;
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

/// Takes one file within `limit` and puts it at `file`, where it appears when it is whole.
///
/// # Errors
/// As the file system and the network.
pub async fn receive(listener: TcpListener, file: PathBuf, limit: Duration) -> io::Result<u64> {
    apart(move || {
        let deadline = Instant::now() + limit;
        let mut stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    thread::sleep(LOOK);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "nobody has sent it",
                    ));
                }
                Err(e) => return Err(e),
            }
        };
        drop(listener);
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(limit.max(Duration::from_millis(1))))?;
        let mut part = file.clone().into_os_string();
        part.push(format!(".part-{}", std::process::id()));
        let part = PathBuf::from(part);
        let kept = File::create(&part)
            .and_then(|mut target| {
                let bytes = io::copy(&mut stream, &mut target)?;
                target.sync_all()?;
                Ok(bytes)
            })
            .and_then(|bytes| fs::rename(&part, &file).map(|()| bytes));
        if kept.is_err() {
            let _ = fs::remove_file(&part);
        }
        kept
    })
    .await
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
        assert!(confined(&inside.join("file"), &allowed).is_ok());
        assert!(confined(&inside.join("new"), &allowed).is_ok());
        for path in ["../out/secret", "link/secret", "link/new", "no/where", ".."] {
            assert!(confined(&inside.join(path), &allowed).is_err(), "{path}");
        }
        assert!(confined(&outside.join("secret"), &allowed).is_err());
        assert!(confined(&inside.join("file"), &[]).is_err());
    }
}
