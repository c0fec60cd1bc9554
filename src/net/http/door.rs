//! Listeners, and the limit on connections.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use crate::error::{Error, Result};
use crate::model::gateway::rate::Caller;
use crate::net::http::seat::{Counts, Seat, Seats};
use crate::net::http::{Address, MAX_CONNECTIONS, MAX_QUEUED, Service, Times, Tls, connection};
use crate::os::socket;

/// Mode of a Unix socket: users of our group may connect, such as a proxy.
const MODE: u32 = 0o660;

/// Size of the buffer of the system for what a client has not taken yet, bytes; the system doubles it. By
/// default it grows to megabytes.
const SEND_BUFFER: usize = 128 * 1024;

/// Wait after a failed accept: descriptors or memory have run out.
const PAUSE: Duration = Duration::from_millis(250);

/// Minimum time between two warnings.
const WARNING_PAUSE: Duration = Duration::from_secs(60);

/// Answer to a connection that is one too many.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n\
    Content-Length: 33\r\nRetry-After: 1\r\nConnection: close\r\n\r\n\
    {\"error\":\"too many connections\"}\n";

/// An open listener.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
    address: Address,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

enum Stream {
    Tcp(TcpStream, IpAddr),
    Unix(UnixStream),
}

impl Stream {
    /// Returns who has opened it.
    fn caller(&self) -> Caller {
        match self {
            Self::Tcp(_, peer) => Caller::at(Some(*peer)),
            Self::Unix(_) => Caller::at(None),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Kind::Unix(_, path) = &self.kind {
            // The next listener replaces one that stays.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Listener {
    /// Listens on `address`, within a runtime.
    ///
    /// # Errors
    /// When another process listens there, or it cannot be used (73, or 75 if that may pass).
    pub async fn open(address: &Address) -> Result<Self> {
        let failed = |e: io::Error| Error::state(&e, format!("listen on {address}: {e}"));
        match address {
            Address::Tcp(tcp) => {
                let listener = TcpListener::bind(tcp).await.map_err(failed)?;
                // Its connections have the same.
                set_socket_send_buffer_size(&listener, SEND_BUFFER)
                    .map_err(|e| failed(e.into()))?;
                let address = Address::Tcp(listener.local_addr().map_err(failed)?);
                let kind = Kind::Tcp(listener);
                Ok(Self { kind, address })
            }
            Address::Unix(path) => {
                let (folder, name) = socket::free(path).map_err(failed)?;
                let listener = socket::listen(folder, name, MODE).map_err(failed)?;
                let listener = UnixListener::from_std(listener).map_err(failed)?;
                let kind = Kind::Unix(listener, path.clone());
                let address = address.clone();
                Ok(Self { kind, address })
            }
        }
    }

    /// Returns its address, with the port that the system has selected.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    async fn accept(&self) -> io::Result<Stream> {
        match &self.kind {
            Kind::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                // An answer waits for the acknowledgement of the packet before otherwise.
                let _ = stream.set_nodelay(true);
                Ok(Stream::Tcp(stream, peer.ip()))
            }
            Kind::Unix(listener, _) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

/// Serves the listeners, those of TCP with `tls` if there is one, until `stop` is true. Then no connection is accepted any more, streams
/// end, and answers that are being made end within [`Times::stop`].
pub async fn serve<S: Service>(
    listeners: Vec<Listener>,
    service: Arc<S>,
    times: Times,
    counts: Arc<Counts>,
    tls: Option<watch::Receiver<Tls>>,
    stop: watch::Receiver<bool>,
) {
    let seats = Seats::new(Arc::clone(&counts));
    let working = tokio::spawn({
        let seats = seats.clone();
        async move { seats.work(times).await }
    });
    let mut tasks = Vec::new();
    for listener in listeners {
        let door = Door {
            seats: seats.clone(),
            service: Arc::clone(&service),
            times,
            tls: tls.clone(),
            stop: stop.clone(),
        };
        tasks.push(tokio::spawn(Arc::new(door).open(listener)));
    }
    for task in tasks {
        let _ = task.await;
    }
    if !seats.are_free(times.stop).await {
        warn!("some HTTP clients did not read their answers in time; closing their connections");
    }
    working.abort();
}

struct Door<S> {
    seats: Seats,
    service: Arc<S>,
    times: Times,
    tls: Option<watch::Receiver<Tls>>,
    stop: watch::Receiver<bool>,
}

impl<S: Service> Door<S> {
    async fn open(self: Arc<Self>, listener: Listener) {
        let mut stop = self.stop.clone();
        let mut warned: Option<Instant> = None;
        let mut warn_of = |what: std::fmt::Arguments<'_>| {
            if warned.is_none_or(|at| at.elapsed() > WARNING_PAUSE) {
                warned = Some(Instant::now());
                warn!("{what}");
            }
        };
        loop {
            let accepted = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(e) => {
                    warn_of(format_args!("accept on {}: {e}", listener.address));
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let caller = stream.caller();
            if let Some(seat) = self.seats.take(caller) {
                self.admit(stream, seat);
                continue;
            }
            if let Some(queued) = self.seats.queue(caller) {
                let door = Arc::clone(&self);
                let mut stop = self.stop.clone();
                tokio::spawn(async move {
                    let seat = tokio::select! {
                        biased;
                        _ = stop.wait_for(|stop| *stop) => None,
                        seat = queued.take(door.times.queue) => seat,
                    };
                    match seat {
                        Some(seat) => door.admit(stream, seat),
                        None => door.refuse(stream),
                    }
                });
                continue;
            }
            warn_of(format_args!(
                "{MAX_CONNECTIONS} HTTP connections are open, and {MAX_QUEUED} wait: refusing more"
            ));
            self.refuse(stream);
        }
    }

    /// Serves a connection.
    fn admit(&self, stream: Stream, seat: Seat) {
        match stream {
            Stream::Tcp(stream, peer) => match &self.tls {
                Some(tls) => {
                    let tls = tls.borrow().clone();
                    self.take_encrypted(&tls, stream, peer, seat);
                }
                None => self.take(stream, Some(peer), seat),
            },
            Stream::Unix(stream) => self.take(stream, None, seat),
        }
    }

    /// Turns away a connection that is one too many.
    fn refuse(&self, stream: Stream) {
        self.seats.refuse();
        self.service.answered(503);
        match stream {
            // An answer would need a handshake first.
            Stream::Tcp(..) if self.tls.is_some() => {}
            Stream::Tcp(stream, _) => self.tell_full(stream),
            Stream::Unix(stream) => self.tell_full(stream),
        }
    }

    fn take(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        peer: Option<IpAddr>,
        seat: Seat,
    ) {
        let service = Arc::clone(&self.service);
        let (times, stop) = (self.times, self.stop.clone());
        tokio::spawn(async move {
            connection::run(stream, peer, service, times, stop, seat).await;
        });
    }

    /// Serves a connection that must begin with a TLS handshake, in the time of a head.
    fn take_encrypted(&self, tls: &Tls, stream: TcpStream, peer: IpAddr, seat: Seat) {
        let service = Arc::clone(&self.service);
        let (times, mut stop) = (self.times, self.stop.clone());
        let shaken = TlsAcceptor::from(Arc::clone(&tls.config)).accept(stream);
        tokio::spawn(async move {
            let shaken = tokio::select! {
                shaken = timeout(times.head, shaken) => shaken,
                _ = stop.wait_for(|stop| *stop) => return,
                () = seat.ousted() => return,
            };
            match shaken {
                Ok(Ok(stream)) => {
                    connection::run(stream, Some(peer), service, times, stop, seat).await;
                }
                Ok(Err(e)) => debug!("TLS handshake of an HTTP client at {peer}: {e}"),
                Err(_) => debug!("TLS handshake of an HTTP client at {peer}: too slow"),
            }
        });
    }

    /// Says that there are too many connections, without reading the request.
    fn tell_full(&self, stream: impl AsyncRead + AsyncWrite + AsFd + Send + Unpin + 'static) {
        // A connection has room for that much from its beginning.
        if socket::send_last(&stream, FULL).is_err() {
            return;
        }
        let Some(permit) = self.seats.linger() else {
            return;
        };
        let linger = self.times.linger;
        tokio::spawn(async move {
            let _ = timeout(linger, connection::drain(stream)).await;
            drop(permit);
        });
    }
}
