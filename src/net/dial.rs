//! TCP connections to a name or an address. A thread looks the name up, so that nothing waits for
//! it. All addresses are raced (RFC 8305), so that one that drops packets costs 250 ms only.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::net::quick_ack::QuickAck;

/// Delay before the next address is tried too (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);

/// Maximum number of addresses of a name to try.
const MAX_ADDRESSES: usize = 16;

/// Maximum number of concurrent look-ups; the resolver of the system cannot be stopped.
const MAX_LOOKUPS: usize = 4;

/// Maximum number of failures in an error.
const MAX_CAUSES: usize = 3;

static LOOKUPS: AtomicUsize = AtomicUsize::new(0);

/// A look-up that is running.
struct Lookup;

impl Lookup {
    fn begin() -> io::Result<Self> {
        let lookup = Self;
        if LOOKUPS.fetch_add(1, Ordering::Relaxed) >= MAX_LOOKUPS {
            let cause = format!("{MAX_LOOKUPS} look-ups of names hang; does the resolver answer?");
            return Err(io::Error::new(io::ErrorKind::TimedOut, cause));
        }
        Ok(lookup)
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        LOOKUPS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns the addresses of `host`, a name or an address, with its scope if it has one.
///
/// The resolver of the system blocks for half a minute if its servers are away. It runs in a thread
/// that is never joined: neither a deadline nor the end of the process waits for it.
///
/// # Errors
/// The failure of the resolver, or of the start of a thread.
pub async fn lookup(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (found, wanted) = oneshot::channel();
    let name = host.to_owned();
    let lookup = Lookup::begin()?;
    let thread = std::thread::Builder::new()
        .name("lookup".into())
        .spawn(move || {
            let list = (name.as_str(), port).to_socket_addrs();
            drop(lookup);
            // The caller may have given up.
            let _ = found.send(list.map(|list| list.take(MAX_ADDRESSES).collect::<Vec<_>>()));
        });
    if let Err(e) = thread {
        let cause = format!("start a thread: {e}; are too many processes running?");
        return Err(io::Error::new(e.kind(), cause));
    }
    let list = wanted.await.unwrap_or_else(|_| Ok(Vec::new()));
    list.map_err(|e| {
        let text = e.to_string();
        // The standard library says that it is a lookup, too.
        let cause = text.strip_prefix("failed to lookup address information: ");
        let cause = cause.unwrap_or(&text);
        io::Error::new(e.kind(), format!("look up '{host}': {cause}"))
    })
}

/// Orders addresses so that the two families alternate, beginning with the first of the resolver
/// (RFC 8305, section 4).
fn interleaved(list: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first = list.first().is_some_and(SocketAddr::is_ipv6);
    let (mut one, mut other): (Vec<_>, Vec<_>) = list
        .into_iter()
        .partition(|address| address.is_ipv6() == first);
    let mut order = Vec::with_capacity(one.len() + other.len());
    one.reverse();
    other.reverse();
    while let Some(address) = one.pop() {
        order.push(address);
        order.extend(other.pop());
    }
    order.extend(other.into_iter().rev());
    order
}

/// Connects to the first of `addresses` that answers.
///
/// # Errors
/// The failure of each address, if none answers.
pub async fn connect(addresses: Vec<SocketAddr>) -> io::Result<QuickAck> {
    let mut waiting = interleaved(addresses).into_iter();
    let mut racing = JoinSet::new();
    let mut causes: Vec<(SocketAddr, io::Error)> = Vec::new();
    // The first attempt is due at once. A timer that is due rounds up to a millisecond.
    let (mut due, mut next) = (true, Instant::now());
    loop {
        if std::mem::take(&mut due)
            && let Some(address) = waiting.next()
        {
            racing.spawn(async move { (address, TcpStream::connect(address).await) });
            next = Instant::now() + STAGGER;
        }
        tokio::select! {
            biased;
            Some(done) = racing.join_next() => match done {
                Ok((_, Ok(stream))) => {
                    let stream: TcpStream = stream;
                    // Otherwise small packets wait 40 ms for an acknowledgement.
                    stream.set_nodelay(true)?;
                    return Ok(QuickAck::new(stream));
                }
                Ok((address, Err(e))) => {
                    causes.push((address, e));
                    due = true;
                }
                Err(e) => return Err(io::Error::other(e)),
            },
            () = sleep_until(next), if waiting.len() > 0 => due = true,
            else => return Err(failed(causes)),
        }
    }
}

/// Returns the text of `error`; that of the system without its number, and in the middle of a
/// sentence.
#[must_use]
pub fn cause(error: &io::Error) -> String {
    let text = error.to_string();
    if error.raw_os_error().is_none() {
        return text;
    }
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut rest = text.chars();
    let first = rest.next().map(|c| c.to_ascii_lowercase());
    first.into_iter().chain(rest).collect()
}

fn failed(mut causes: Vec<(SocketAddr, io::Error)>) -> io::Error {
    if causes.len() == 1
        && let Some((_, e)) = causes.pop()
    {
        return e;
    }
    let Some((_, first)) = causes.first() else {
        return io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    };
    let kind = first.kind();
    let more = match causes.len().saturating_sub(MAX_CAUSES) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let causes = causes.iter().take(MAX_CAUSES);
    let list: Vec<String> = causes
        .map(|(address, e)| format!("{}: {}", address.ip(), cause(e)))
        .collect();
    io::Error::new(kind, format!("{}{more}", list.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("address")
    }

    #[test]
    fn causes_stand_within_a_sentence() {
        let refused = io::Error::from_raw_os_error(nix::libc::ECONNREFUSED);
        assert_eq!(cause(&refused), "connection refused");
        assert_eq!(cause(&io::Error::other("Look: x")), "Look: x");
    }

    #[test]
    fn families_take_turns() {
        let list = ["[::1]:1", "[::2]:1", "1.1.1.1:1", "[::3]:1", "2.2.2.2:1"].map(address);
        let order = ["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"].map(address);
        assert_eq!(interleaved(list.to_vec()), order);
        let list = ["1.1.1.1:1", "[::1]:1", "[::2]:1", "[::3]:1"].map(address);
        assert_eq!(interleaved(list.to_vec()), list);
        assert_eq!(interleaved(Vec::new()), []);
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("runtime").block_on(future)
    }

    #[test]
    fn an_address_that_swallows_packets_holds_nobody_up() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let there = listener.local_addr().expect("address");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("runtime").block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().expect("socket");
            socket.bind(address("127.0.0.1:0")).expect("bind");
            let full = socket.listen(0).expect("listen");
            let dead = full.local_addr().expect("address");
            // It fills the queue: the next SYN gets no answer.
            let _first = TcpStream::connect(dead).await.expect("connect");
            let stream = connect(vec![dead, dead, there]).await.expect("connect");
            assert_eq!(stream.peer_addr().expect("peer"), there);
        });
    }

    #[test]
    fn all_that_fail_are_told_of() {
        let refuse = |ip: &str| {
            let listener = TcpListener::bind((ip, 0)).expect("listen");
            listener.local_addr().expect("address")
        };
        let list = ["127.0.0.1", "127.0.0.2"].map(refuse).to_vec();
        let error = wait(connect(list)).expect_err("refused").to_string();
        assert!(
            error.contains("127.0.0.1: ") && error.contains("127.0.0.2: "),
            "{error}"
        );
        let none = wait(connect(Vec::new())).expect_err("no address");
        assert!(none.to_string().contains("no address"));
    }
}
