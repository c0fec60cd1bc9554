//! The listener of the embedded broker, and who may connect.
//!
//! The library accepts as fast as it can, spins when descriptors have run out, and waits for one
//! TLS handshake before it accepts the next client.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tracing::warn;

/// Wait after a failed accept: descriptors or memory have run out.
const PAUSE: Duration = Duration::from_millis(250);

/// Interval between two warnings of one kind.
const WARNING_PAUSE: Duration = Duration::from_secs(60);

/// Descriptors reserved for the store, the log and the runtime.
const RESERVED: u64 = 32;

/// Maximum number of connections.
const MAX_CONNECTIONS: usize = 10_000;

/// Counts connections whose client has not authenticated yet, and all connections.
#[derive(Debug)]
pub(super) struct Strangers {
    max: usize,
    max_all: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    strangers: HashMap<SocketAddr, ()>,
    addresses: HashMap<IpAddr, usize>,
    all: usize,
}

impl Counts {
    fn forget(&mut self, client: SocketAddr) {
        if self.strangers.remove(&client).is_none() {
            return;
        }
        if let Some(count) = self.addresses.get_mut(&client.ip()) {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&client.ip());
            }
        }
    }
}

/// A connection, counted until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    strangers: Arc<Strangers>,
    client: SocketAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.strangers.counts();
        counts.forget(self.client);
        counts.all -= 1;
    }
}

impl Strangers {
    /// Allows `max` connections that have not authenticated, and `max_all` in all. One address has
    /// three quarters of the former at most.
    pub fn new(max: usize, max_all: usize) -> Self {
        Self {
            max,
            max_all,
            counts: Mutex::default(),
        }
    }

    /// Allows as many as `descriptors` permit, so that these never run out.
    pub fn for_descriptors(descriptors: u64) -> Self {
        let room = usize::try_from(descriptors.saturating_sub(RESERVED)).unwrap_or(usize::MAX);
        let all = room.clamp(2, MAX_CONNECTIONS);
        Self::new(all / 2, all)
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a new connection. The error is why there is no room for it.
    pub fn seat(self: &Arc<Self>, client: SocketAddr) -> Result<Seat, &'static str> {
        let mut counts = self.counts();
        let of_address = counts.addresses.get(&client.ip()).copied().unwrap_or(0);
        if counts.all >= self.max_all {
            return Err("too many connections");
        } else if counts.strangers.len() >= self.max {
            return Err("too many clients that have not authenticated");
        } else if of_address >= (self.max * 3 / 4).max(1) {
            return Err("too many clients of one address that have not authenticated");
        }
        counts.all += 1;
        counts.strangers.insert(client, ());
        *counts.addresses.entry(client.ip()).or_default() += 1;
        Ok(Seat {
            strangers: Arc::clone(self),
            client,
        })
    }

    /// Notes that the client at this address has authenticated.
    pub fn known(&self, client: SocketAddr) {
        self.counts().forget(client);
    }
}

/// The listener.
#[derive(Debug)]
pub(super) struct Door {
    listener: TcpListener,
    strangers: Arc<Strangers>,
    warned: HashMap<&'static str, (Instant, u64)>,
}

impl Door {
    pub fn new(listener: TcpListener, strangers: Arc<Strangers>) -> Self {
        Self {
            listener,
            strangers,
            warned: HashMap::new(),
        }
    }

    /// Returns the next client that may connect. Cancel safe.
    pub async fn next(&mut self) -> (TcpStream, SocketAddr, Seat) {
        loop {
            match self.listener.accept().await {
                Ok((stream, client)) => match self.strangers.seat(client) {
                    Ok(seat) => {
                        // Otherwise small answers wait for others.
                        let _ = stream.set_nodelay(true);
                        return (stream, client, seat);
                    }
                    Err(cause) => self.warn(cause, &client),
                },
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    self.warn("accept a connection", &e);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn warn(&mut self, what: &'static str, detail: &dyn std::fmt::Display) {
        let now = Instant::now();
        let (at, count) = self.warned.entry(what).or_insert((now, 0));
        *count += 1;
        if *count == 1 || now.duration_since(*at) >= WARNING_PAUSE {
            warn!("{what}: {detail} ({count} times so far)");
            *at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_bounded_and_those_who_are_known_are_none() {
        let strangers = Arc::new(Strangers::new(4, 6));
        let client = |host: u8, port: u16| SocketAddr::from(([127, 0, 0, host], port));
        let seat = |host, port| strangers.seat(client(host, port));
        let mut seats: Vec<_> = (1..=3).map(|n| seat(1, n).expect("seat")).collect();
        assert!(seat(1, 4).is_err(), "one address");
        seats.push(seat(2, 1).expect("another address"));
        assert!(seat(3, 1).is_err(), "all strangers");
        strangers.known(client(1, 1));
        strangers.known(client(1, 1));
        seats.push(seat(1, 4).expect("one is known now"));
        strangers.known(client(1, 2));
        seats.push(seat(3, 1).expect("one more"));
        strangers.known(client(1, 3));
        assert!(seat(4, 1).is_err(), "all connections");
        seats.clear();
        assert_eq!(strangers.counts().all, 0);
        assert!(strangers.counts().addresses.is_empty());
    }

    #[test]
    fn few_descriptors_leave_few_connections() {
        for (descriptors, all) in [(0, 2), (64, 32), (1024, 992), (1 << 30, MAX_CONNECTIONS)] {
            assert_eq!(Strangers::for_descriptors(descriptors).max_all, all);
        }
    }
}
