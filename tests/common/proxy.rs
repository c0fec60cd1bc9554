//! A TCP link to a broker that a test can cut, stall and slow down.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Maximum number of bytes that are passed on at once.
const CHUNK: usize = 4096;

/// A link to a port of loopback. It ends with the value.
pub struct Proxy {
    address: SocketAddr,
    link: Arc<Link>,
}

struct Link {
    to: u16,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    mode: Mode,
    /// Both ends of each connection.
    ends: Vec<(u64, [TcpStream; 2])>,
    /// Number of connections so far.
    accepted: u64,
    /// Limit of the bytes of a connection, see [`Proxy::cutting`].
    limit: Option<u64>,
    cuts: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    /// So many bytes a second in each direction of each connection.
    Slow(u32),
    /// Connections stay, and nothing passes.
    Stalled,
    /// New connections are closed at once.
    Closed,
    /// The proxy is gone.
    Ended,
}

impl Proxy {
    /// Starts a link to a port of loopback.
    pub fn new(to: u16) -> Self {
        Self::start("127.0.0.1", to, None)
    }

    /// Starts a link that listens on another address than 127.0.0.1.
    pub fn at(host: &str, to: u16) -> Self {
        Self::start(host, to, None)
    }

    /// Starts a link that cuts each connection in a packet, after some bytes in either direction: the
    /// first one after `bytes`, and each later one after as many more, so that work comes to its end.
    pub fn cutting(to: u16, bytes: u64) -> Self {
        Self::start("127.0.0.1", to, Some(bytes))
    }

    fn start(host: &str, to: u16, limit: Option<u64>) -> Self {
        let listener = TcpListener::bind((host, 0)).expect("bind");
        let address = listener.local_addr().expect("address");
        let link = Arc::new(Link {
            to,
            state: Mutex::new(State {
                mode: Mode::Open,
                ends: Vec::new(),
                accepted: 0,
                limit,
                cuts: 0,
            }),
            changed: Condvar::new(),
        });
        let accepting = Arc::clone(&link);
        thread::spawn(move || accepting.accept(&listener));
        Self { address, link }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Returns how many connections were cut, by [`Self::cut`] or for their limit.
    pub fn cuts(&self) -> u64 {
        self.link.state().cuts
    }

    /// Cuts all connections. New ones pass.
    pub fn cut(&self) {
        self.link.state().cut();
    }

    /// Cuts all connections, and lets no new one pass until [`Self::open`].
    pub fn close(&self) {
        self.set(Mode::Closed);
        self.cut();
    }

    /// Lets nothing pass until [`Self::open`]. Connections stay.
    pub fn stall(&self) {
        self.set(Mode::Stalled);
    }

    /// Lets so many bytes a second pass in each direction.
    pub fn slow(&self, rate: u32) {
        self.set(Mode::Slow(rate));
    }

    /// Lets everything pass again.
    pub fn open(&self) {
        self.set(Mode::Open);
    }

    fn set(&self, mode: Mode) {
        self.link.state().mode = mode;
        self.link.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Mode::Ended);
        self.cut();
        // It waits for the next connection.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn cut(&mut self) {
        self.cuts += self.ends.len() as u64;
        for end in self.ends.drain(..).flat_map(|(_, ends)| ends) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl Link {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something may pass. Returns the mode: `Open`, `Slow` or what ends the connection.
    fn passable(&self) -> Mode {
        let stalled = |state: &mut State| state.mode == Mode::Stalled;
        let state = self.changed.wait_while(self.state(), stalled);
        state.unwrap_or_else(PoisonError::into_inner).mode
    }

    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming().flatten() {
            match self.passable() {
                Mode::Ended => return,
                Mode::Closed => continue,
                _ => {}
            }
            let Ok(server) = TcpStream::connect(("127.0.0.1", self.to)) else {
                continue;
            };
            let copy = |end: &TcpStream| end.try_clone().expect("clone");
            let mut state = self.state();
            state.accepted += 1;
            let number = state.accepted;
            state.ends.push((number, [copy(&client), copy(&server)]));
            let limit = state.limit.map(|bytes| bytes * (1 + state.cuts));
            drop(state);
            let left = Arc::new(Mutex::new(limit));
            let ways = [(copy(&client), copy(&server)), (server, client)];
            for (from, to) in ways {
                let (link, left) = (Arc::clone(&self), Arc::clone(&left));
                thread::spawn(move || {
                    link.relay(from, to, &left);
                    link.state().ends.retain(|(other, _)| *other != number);
                });
            }
        }
    }

    fn relay(&self, mut from: TcpStream, mut to: TcpStream, left: &Mutex<Option<u64>>) {
        let _ = to.set_nodelay(true);
        let mut buffer = [0; CHUNK];
        while let Ok(size @ 1..) = from.read(&mut buffer) {
            match self.passable() {
                Mode::Closed | Mode::Ended => break,
                Mode::Slow(rate) => {
                    thread::sleep(Duration::from_secs_f64(size as f64 / f64::from(rate)));
                }
                Mode::Open | Mode::Stalled => {}
            }
            if over(left, size) {
                // The last bytes are a part of a packet.
                let _ = to.write_all(&buffer[..size / 2]);
                self.state().cuts += 1;
                break;
            }
            if to.write_all(&buffer[..size]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

/// Takes `size` bytes of what is left to a connection. Returns whether they reach its limit: once.
fn over(left: &Mutex<Option<u64>>, size: usize) -> bool {
    let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(bytes) = *left else { return false };
    let rest = bytes.saturating_sub(size as u64);
    *left = Some(rest);
    bytes > 0 && rest == 0
}
