//! Sends a file, and empties it only if nothing can be lost.

use std::fs::File;
use std::io::{self, Read};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;

use crate::net::transfer::lease::Lease;
use crate::net::transfer::{LOOK, PATIENCE, apart};

/// Maximum time for the other side to close the connection. Tael closes when the file is on its
/// disk. Other programs may not close at all.
const CLOSE: Duration = Duration::from_secs(10);

/// The same for a file that will be emptied, which needs the answer.
const CLOSE_BEFORE_EMPTYING: Duration = Duration::from_secs(300);

/// Maximum time for other processes to close a file that will be emptied.
const RELEASE: Duration = Duration::from_secs(5);

/// Result of sending a file.
#[derive(Debug)]
pub enum Sent {
    /// The other side has all of it; it was emptied if that was requested.
    Whole,
    /// The other side has all of it, but emptying it could lose something, for this reason.
    NotEmptied(String),
}

/// Sends the content of `file` to `address` and `port`. Returns when the other side has closed the
/// connection, or when its system has all of it and some time has passed.
///
/// With `truncate` the file is then emptied, if the other side has closed and no other process
/// could have appended something: none has the file open, and none can open it meanwhile.
///
/// # Errors
/// As the file system and the network.
pub async fn send(file: File, address: String, port: u16, truncate: bool) -> io::Result<Sent> {
    apart(move || {
        let mut stream = connect(&address, port)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        // Later data is for the next time; otherwise this might not end.
        let size = file.metadata()?.len();
        let sent = io::copy(&mut (&file).take(size), &mut stream)?;
        if !truncate {
            close(&stream, CLOSE)?;
            return Ok(Sent::Whole);
        }
        empty(&file, &mut stream, sent)
    })
    .await
}

/// Connects to the first address that answers.
fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut error = io::Error::from(io::ErrorKind::NotFound);
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(e) => error = e,
        }
    }
    Err(error)
}

/// Empties `file`, of which `sent` bytes were sent, after the other side has them.
fn empty(file: &File, stream: &mut TcpStream, mut sent: u64) -> io::Result<Sent> {
    let lease = loop {
        let lease = match lease(file) {
            Ok(lease) => lease,
            Err(e) => {
                close(stream, CLOSE)?;
                let why = match e.kind() {
                    io::ErrorKind::WouldBlock => "another process has it open".to_owned(),
                    _ => format!("whether another process writes to it is not known: {e}"),
                };
                return Ok(Sent::NotEmptied(why));
            }
        };
        // Now no other process can write to it.
        let size = file.metadata()?.len();
        if size == sent {
            break lease;
        }
        if size < sent {
            close(stream, CLOSE)?;
            return Ok(Sent::NotEmptied("another process has changed it".into()));
        }
        // This may take long, and others need not wait for it.
        drop(lease);
        sent += io::copy(&mut file.take(size - sent), stream)?;
    };
    let closed = close(stream, CLOSE_BEFORE_EMPTYING)?;
    if !closed {
        let why = "the other side has not closed the connection: has it kept the file?";
        return Ok(Sent::NotEmptied(why.into()));
    }
    if !lease.is_held() || file.metadata()?.len() != sent {
        return Ok(Sent::NotEmptied("another process opens it".into()));
    }
    file.set_len(0)?;
    Ok(Sent::Whole)
}

/// Takes a lease, if other processes close the file in time.
fn lease(file: &File) -> io::Result<Lease<'_>> {
    let deadline = Instant::now() + RELEASE;
    loop {
        match Lease::take(file) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                thread::sleep(LOOK);
            }
            other => return other,
        }
    }
}

/// Ends our side. Waits until the system of the other side has everything, and then up to `limit`
/// until the other side closes. Returns whether it has.
fn close(stream: &TcpStream, limit: Duration) -> io::Result<bool> {
    stream.shutdown(Shutdown::Write)?;
    accepted(stream)?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        stream.set_read_timeout(Some(left))?;
        let mut stream = stream;
        match stream.read(&mut [0; 1024]) {
            Ok(0) => return Ok(true),
            // It has nothing to send.
            Ok(_) => {}
            Err(e) => match e.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                _ => return Err(e),
            },
        }
    }
}

/// Waits until the system of the other side has acknowledged everything (`SIOCOUTQ`, `tcp(7)`).
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
