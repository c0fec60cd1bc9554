//! A broker for one machine, from the crate `mqtt5`. Only this file and its folder name that crate.
//!
//! Sessions, messages and the protocol come from the crate. The listener, the passwords and the
//! bound on retained messages are our own.

mod door;
mod keep;
mod users;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use mqtt5::broker::client_handler::ClientHandler;
use mqtt5::broker::config::{AuthConfig, StorageBackend as Backend, StorageConfig};
use mqtt5::broker::resource_monitor::ResourceMonitor;
use mqtt5::broker::router::MessageRouter;
use mqtt5::broker::sys_topics::BrokerStats;
use mqtt5::broker::tls_acceptor::{TlsAcceptorConfig, TlsStreamWrapper, accept_tls_connection};
use mqtt5::broker::transport::BrokerTransport;
use mqtt5::broker::{
    BrokerConfig, BrokerEventHandler, DynamicStorage, MqttBroker, StorageBackend as _,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};
use tracing::{debug, warn};

use crate::error::{Error, Kind, Result};
use crate::net::options::{Secret, TlsFiles};
use crate::net::tls;
use door::{Door, Seat, Strangers};
use keep::{Keep, MAX_RETAINED};
use users::Users;

/// Default maximum size of a packet, bytes: that of a client. The crate's own default is 256 MiB,
/// and properties take up to thirty times their size in its memory.
pub const MAX_PACKET: u32 = 2 * 1024 * 1024 + 64 * 1024;

/// Maximum number of messages kept for one absent client.
const MAX_QUEUED: usize = 100_000;

/// Time that the broker keeps the session of an absent client.
const SESSION_EXPIRY: Duration = Duration::from_secs(7 * 24 * 3600);

/// Maximum time of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Interval between two checks for expired sessions and messages.
const SWEEP: Duration = Duration::from_secs(600);

/// Maximum time for connections to end when the broker stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// A broker to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address to listen on; port 0 selects a free one.
    pub listen: SocketAddr,
    /// Folder for sessions and messages; by default they are in memory.
    pub data: Option<PathBuf>,
    /// Users that may connect; if empty, every client may.
    pub users: Vec<(String, Secret)>,
    /// TLS with the certificate of the broker; with `cafile`, clients need one from it too.
    pub tls: Option<TlsFiles>,
    /// Maximum size of a packet, bytes.
    pub max_packet: u32,
    /// Number of descriptors that this process may open.
    pub descriptors: u64,
}

/// A running broker.
pub struct Broker {
    address: SocketAddr,
    shutdown: broadcast::Sender<()>,
    storage: Option<Arc<DynamicStorage>>,
    task: JoinHandle<()>,
    /// Closed when no connection is left.
    connections: mpsc::Receiver<()>,
}

/// State that all connections share.
#[derive(Clone)]
struct Parts {
    config: Arc<BrokerConfig>,
    router: Arc<MessageRouter>,
    users: Arc<Users>,
    storage: Option<Arc<DynamicStorage>>,
    stats: Arc<BrokerStats>,
    monitor: Arc<ResourceMonitor>,
    alive: mpsc::Sender<()>,
}

impl Broker {
    /// Starts a broker, and returns when it accepts connections.
    ///
    /// # Errors
    /// When it cannot listen (69), its store cannot be used (73) or its settings are wrong.
    pub async fn start(options: Options) -> Result<Self> {
        let listen = options.listen;
        let failed = |kind, e: &dyn std::fmt::Display| {
            Error::new(kind, format!("start broker on {listen}: {e}"))
        };
        let listener = TcpListener::bind(listen).await;
        let listener = listener.map_err(|e| match e.kind() {
            io::ErrorKind::AddrInUse => {
                let hint = "another program listens there: use it if it is a broker, or choose another --listen";
                failed(Kind::Unavailable, &hint)
            }
            _ => failed(Kind::Unavailable, &e),
        })?;
        let address = listener.local_addr();
        let address = address.map_err(|e| failed(Kind::Unavailable, &e))?;
        if let Some(data) = &options.data {
            std::fs::create_dir_all(data).map_err(|e| {
                Error::cannot_create(format!("create broker's store {}: {e}", data.display()))
            })?;
        }
        let secure = match &options.tls {
            None => None,
            Some(files) => Some(secure(files)?),
        };
        let strangers = Arc::new(Strangers::for_descriptors(options.descriptors));
        let keep = Arc::new(Keep::new(options.max_packet as usize));
        let config =
            config(&options).with_event_handler(Arc::clone(&keep) as Arc<dyn BrokerEventHandler>);
        // It never runs. Its parts serve the connections from our own listener, and its listener
        // ends with it.
        let broker = MqttBroker::with_config(config.clone()).await;
        let broker = broker.map_err(|e| failed(Kind::CannotCreate, &e))?;
        let known = Arc::clone(&strangers);
        let users = Users::new(&options.users, known, broker.storage())?;
        let (shutdown, stopped) = broadcast::channel(1);
        let (alive, connections) = mpsc::channel(1);
        let parts = Parts {
            config: Arc::new(config),
            router: broker.router(),
            users: Arc::new(users),
            storage: broker.storage(),
            stats: broker.stats(),
            monitor: broker.resource_monitor(),
            alive,
        };
        drop(broker);
        let recovered = parts.recover(&keep).await;
        recovered.map_err(|e| failed(Kind::CannotCreate, &e))?;
        let storage = parts.storage.clone();
        let door = Door::new(listener, strangers);
        let task = tokio::spawn(serve(parts, door, secure, stopped));
        Ok(Self {
            address,
            shutdown,
            storage,
            task,
            connections,
        })
    }

    /// Returns the address it listens on.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns when the broker has failed. Cancel safe.
    pub async fn failed(&mut self) -> Error {
        let cause = match (&mut self.task).await {
            Ok(()) => "it stopped by itself".to_owned(),
            Err(e) => e.to_string(),
        };
        Error::new(Kind::Unavailable, format!("run broker: {cause}"))
    }

    /// Stops it. This can take 5 s while clients are connected.
    pub async fn stop(mut self) {
        let _ = self.shutdown.send(());
        let _ = self.task.await;
        if timeout(FAREWELL, self.connections.recv()).await.is_err() {
            warn!("clients are still connected: the broker leaves them");
        }
        if let Some(storage) = &self.storage
            && let Err(e) = storage.shutdown().await
        {
            warn!("write the broker's store: {e}");
        }
    }
}

/// A TLS handshake that is running.
type Handshake = Pin<Box<dyn Future<Output = mqtt5::Result<TlsStreamWrapper>> + Send>>;

/// Starts a TLS handshake with a client.
type Secure = Arc<dyn Fn(TcpStream, SocketAddr) -> Handshake + Send + Sync>;

impl Parts {
    /// Restores sessions and messages of an earlier run.
    async fn recover(&self, keep: &Keep) -> mqtt5::Result<()> {
        self.router.initialize().await?;
        // Before the sessions: nothing is delivered here.
        self.expire().await?;
        let expiry = u32::try_from(SESSION_EXPIRY.as_secs()).unwrap_or(u32::MAX);
        self.router.recover_sessions(expiry).await?;
        if let Some(storage) = &self.storage {
            storage.cleanup_expired().await?;
        }
        keep.watch(&self.router).await;
        Ok(())
    }

    /// Restores when retained messages of an earlier run expire. The library stores that, and does not read
    /// it: they would be kept for ever.
    async fn expire(&self) -> mqtt5::Result<()> {
        let Some(storage) = &self.storage else {
            return Ok(());
        };
        for (_, mut message) in storage.get_retained_messages("#").await? {
            if message.message_expiry_interval.is_none() {
                continue;
            }
            message.recompute_expiry();
            if message.is_expired() {
                message.payload.clear();
            }
            let mut message = message.to_publish_packet();
            message.retain = true;
            self.router.route_message(&message, None).await;
        }
        Ok(())
    }

    async fn sweep(&self) {
        if let Some(storage) = &self.storage
            && let Err(e) = storage.cleanup_expired().await
        {
            warn!("clean the broker's store: {e}");
        }
        self.router.sweep_sessions().await;
        self.monitor.cleanup_expired_windows().await;
    }

    async fn handle(
        self,
        transport: BrokerTransport,
        client: SocketAddr,
        shutdown: broadcast::Receiver<()>,
    ) {
        let handler = ClientHandler::new(
            transport,
            client,
            self.config,
            self.router,
            self.users,
            self.storage,
            self.stats,
            self.monitor,
            shutdown,
        );
        if let Err(e) = handler.run().await {
            debug!("connection of {client}: {e}");
        }
        drop(self.alive);
    }

    async fn secured(
        self,
        stream: TcpStream,
        client: SocketAddr,
        secure: Option<Secure>,
        seat: Seat,
        mut shutdown: broadcast::Receiver<()>,
    ) {
        let transport = match secure {
            None => BrokerTransport::tcp(stream),
            Some(secure) => {
                let handshake = timeout(HANDSHAKE, secure(stream, client));
                tokio::select! {
                    done = handshake => match done {
                        Ok(Ok(stream)) => BrokerTransport::tls(stream),
                        Ok(Err(e)) => return debug!("TLS handshake of {client}: {e}"),
                        Err(_) => return debug!("TLS handshake of {client}: no end in time"),
                    },
                    _ = shutdown.recv() => return,
                }
            }
        };
        self.handle(transport, client, shutdown).await;
        drop(seat);
    }
}

/// Serves clients until `shutdown` says that it is stopped.
async fn serve(
    parts: Parts,
    mut door: Door,
    secure: Option<Secure>,
    mut shutdown: broadcast::Receiver<()>,
) {
    let mut sweep = interval(SWEEP);
    loop {
        tokio::select! {
            // A receiver hears only what is sent after it was made. So each task gets its own from here, where
            // nothing was sent yet.
            biased;
            _ = shutdown.recv() => return,
            _ = sweep.tick() => parts.sweep().await,
            (stream, client, seat) = door.next() => {
                let (parts, secure) = (parts.clone(), secure.clone());
                tokio::spawn(parts.secured(stream, client, secure, seat, shutdown.resubscribe()));
            }
        }
    }
}

fn secure(files: &TlsFiles) -> Result<Secure> {
    let Some((cert, key)) = &files.identity else {
        return Err(Error::usage("a broker with TLS needs --cert and --key"));
    };
    let (chain, secret) = tls::pair(cert, key)?;
    let mut config = TlsAcceptorConfig::new(chain, secret);
    if let Some(cafile) = &files.cafile {
        let authorities = tls::certificates(cafile, "certificate authorities")?;
        config = config
            .with_client_ca_certs(authorities)
            .with_require_client_cert(true);
    }
    let wrong = |e| {
        let (cert, key) = (cert.display(), key.display());
        Error::config(format!("use certificate {cert} with key {key}: {e}"))
    };
    let acceptor = Arc::new(config.build_acceptor().map_err(wrong)?);
    Ok(Arc::new(move |stream, client| {
        let acceptor = Arc::clone(&acceptor);
        Box::pin(async move { accept_tls_connection(&acceptor, stream, client).await })
    }))
}

fn config(options: &Options) -> BrokerConfig {
    let storage = match &options.data {
        Some(dir) => StorageConfig::new()
            .with_backend(Backend::File)
            .with_base_dir(dir.clone()),
        // Without persistence the crate would not keep sessions either, so memory is used.
        None => StorageConfig::new().with_backend(Backend::Memory),
    };
    let mut config = BrokerConfig::new()
        // The crate requires a listener, which is never served.
        .with_bind_address(SocketAddr::from(([127, 0, 0, 1], 0)))
        .with_max_packet_size(options.max_packet as usize)
        .with_session_expiry(SESSION_EXPIRY)
        .with_sys_topics_enabled(false)
        .with_max_retained_messages(MAX_RETAINED)
        .with_auth(AuthConfig::new().with_allow_anonymous(true))
        .with_storage(storage.with_max_queued_messages_per_client(MAX_QUEUED));
    // Otherwise each client could make the broker remember 4 GB of topics.
    config.topic_alias_maximum = 0;
    config
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpStream as Client;

    use super::*;

    /// CONNECT of MQTT 5 with a clean start, without an identifier.
    const CONNECT: &[u8] = b"\x10\x0d\0\x04MQTT\x05\x02\0\0\0\0\0";

    async fn broker() -> Broker {
        let options = Options {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data: None,
            users: Vec::new(),
            tls: None,
            max_packet: MAX_PACKET,
            descriptors: 256,
        };
        Broker::start(options).await.expect("broker")
    }

    /// Stops a broker that has no reason to wait.
    async fn stop(broker: Broker) {
        let stopped = timeout(FAREWELL / 2, broker.stop()).await;
        stopped.expect("the broker stops");
    }

    #[tokio::test]
    async fn a_stop_before_the_first_turn_of_its_task_is_heard() {
        stop(broker().await).await;
    }

    /// However far the connection is.
    #[tokio::test]
    async fn a_stop_while_a_client_connects_is_heard() {
        for turns in 0..40 {
            let broker = broker().await;
            let mut client = Client::connect(broker.address()).expect("connect");
            client.write_all(CONNECT).expect("CONNECT");
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            stop(broker).await;
        }
    }
}
