//! Sends a file, and empties it only when nothing can be lost.

use std::fs::File;
use std::io::{self, Read};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;

use crate::net::transfer::lease::Lease;
use crate::net::transfer::{LOOK, PATIENCE, apart};

/// How long the other side may take to close the connection. Tael's does when the file is on its
/// disk; other programs may not close it at all.
const CLOSE: Duration = Duration::from_secs(10);

/// The same for a file that is to be emptied, which needs the answer.
const CLOSE_BEFORE_EMPTYING: Duration = Duration::from_secs(300);

/// How long another process may have a file open that is to be emptied.
const RELEASE: Duration = Duration::from_secs(5);

/// What became of a file that was sent.
#[derive(Debug)]
pub enum Sent {
    /// All of it was taken, and it was emptied if that was wanted.
    Whole,
    /// All of it was taken, but to empty it might lose something, for this reason.
    NotEmptied(String),
}

/// Sends what is in `file` to `address` and `port`. Returns when the other side has closed the
/// connection, or its system has all of it and a while has passed.
///
/// With `truncate` the file is then emptied, if the other side has closed, and no other process
/// could have written what was not sent: none has the file open, and none can open it meanwhile.
///
/// # Errors
/// As the file system and the network.
pub async fn send(file: File, address: String, port: u16, truncate: bool) -> io::Result<Sent> {
    apart(move || {
        let mut stream = connect(&address, port)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        // What is written from now on is for the next time, or else this might not end.
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

/// Empties `file`, of which `sent` bytes were sent, once all of it was taken.
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
        // Now nobody else can write to it.
        let size = file.metadata()?.len();
        if size == sent {
            break lease;
        }
        if size < sent {
            close(stream, CLOSE)?;
            return Ok(Sent::NotEmptied("another process has changed it".into()));
        }
        // It may be long; others need not wait for that.
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

/// Takes a lease, if others leave the file in time.
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

/// Says that this was all; waits until the other side's system has it, and then up to `limit`
/// until the other side closes, too. Returns whether it has.
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
            // It has nothing to say.
            Ok(_) => {}
            Err(e) => match e.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                _ => return Err(e),
            },
        }
    }
}

/// Waits until the other side's system has acknowledged everything (`SIOCOUTQ`, `tcp(7)`).
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
