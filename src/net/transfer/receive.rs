//! Receives a file from allowed senders, within limits.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;
use tracing::warn;

use crate::model::duration;
use crate::model::network_address::Network;
use crate::net::transfer::{LOOK, PATIENCE, Target, apart};
use crate::os::logging::SENDERS;

/// Limits of a file, and its allowed senders.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Maximum time for the whole file.
    pub time: Duration,
    /// Maximum size of a file, bytes.
    pub bytes: u64,
    /// Allowed senders; if empty, all.
    pub from: Vec<Network>,
}

/// Listens on `port` of `address`, or of every address.
///
/// # Errors
/// As `bind(2)`.
pub fn listen(address: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    let listener = match address {
        Some(address) => TcpListener::bind((address, port)),
        None => TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port))),
    }?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Receives one file within `limits`, and stores it at `target` when its sender has closed the
/// connection in order. Only the sender knows whether that was all. Connections without a byte do
/// not count. Our side closes when the file is on the disk, and resets the connection if the file
/// is not kept.
///
/// # Errors
/// As the file system and the network; a file that is too large, or late.
pub async fn receive(
    listener: TcpListener,
    target: Arc<Target>,
    limits: Limits,
) -> io::Result<u64> {
    apart(move || {
        let deadline = Instant::now() + limits.time;
        loop {
            let stream = accept(&listener, &limits.from, deadline)?;
            let kept = keep(&stream, &target, limits.bytes, deadline);
            match kept {
                Ok(0) => target.discard(),
                Ok(bytes) => return Ok(bytes),
                Err(e) => {
                    target.discard();
                    // Otherwise the sender would take the end for a success.
                    let _ = set_socket_linger(&stream, Some(Duration::ZERO));
                    return Err(e);
                }
            }
        }
    })
    .await
}

fn accept(listener: &TcpListener, from: &[Network], deadline: Instant) -> io::Result<TcpStream> {
    // Senders that are not allowed must not delay it, however many they are.
    while Instant::now() < deadline {
        match listener.accept() {
            Ok((stream, peer)) if may_send(peer, from) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Ok((_, peer)) => {
                let address = peer.ip();
                warn!(target: SENDERS, "connection from {address} refused: --from does not name it");
            }
            // A connection that was reset before it was accepted (`accept(2)`).
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
            Err(_) => thread::sleep(LOOK),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        "no sender came in time",
    ))
}

fn may_send(peer: SocketAddr, from: &[Network]) -> bool {
    from.is_empty() || from.iter().any(|network| network.contains(peer.ip()))
}

fn keep(mut stream: &TcpStream, target: &Target, limit: u64, deadline: Instant) -> io::Result<u64> {
    let mut file = target.create()?;
    let (mut bytes, mut buffer) = (0, vec![0; 64 * 1024]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "it has not come to its end",
            ));
        }
        let wait = left.min(PATIENCE);
        stream.set_read_timeout(Some(wait))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                bytes += n as u64;
                if bytes > limit {
                    let cause = format!("it has more than {limit} bytes, see --max-file");
                    return Err(io::Error::new(io::ErrorKind::FileTooLarge, cause));
                }
                file.write_all(buffer.get(..n).ok_or(io::ErrorKind::InvalidData)?)?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // Another sender may wait behind a connection that brings nothing.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && bytes == 0 => return Ok(0),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let cause = format!("its sender has sent nothing for {}", duration::rough(wait));
                return Err(io::Error::new(io::ErrorKind::TimedOut, cause));
            }
            Err(e) => return Err(e),
        }
    }
    if bytes > 0 {
        file.sync_all()?;
        target.keep()?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_that_may_not_send_does_not_extend_the_time() {
        let listener = listen(Some(IpAddr::from([127, 0, 0, 1])), 0).expect("listen");
        let address = listener.local_addr().expect("address");
        let strangers: Vec<TcpStream> = (0..3)
            .map(|_| TcpStream::connect(address).expect("connect"))
            .collect();
        let from = [Network::parse("10.0.0.0/8").expect("network")];
        let refused = accept(&listener, &from, Instant::now()).expect_err("the time is up");
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        assert!(
            listener.accept().is_ok(),
            "no connection was accepted after that"
        );
        drop(strangers);
    }
}
