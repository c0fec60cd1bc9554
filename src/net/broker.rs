//! A broker for one machine, from the `mqtt5` crate; the only file that names it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mqtt5::broker::config::{AuthConfig, StorageBackend, StorageConfig, TlsConfig};
use mqtt5::broker::{BrokerConfig, BrokerShutdownHandle, MqttBroker, PasswordAuthProvider};
use tokio::task::JoinHandle;

use crate::error::{Error, Kind, Result};
use crate::net::options::{Secret, TlsFiles};

/// The largest packet that is taken; the crate's own limit is 256 MiB.
const MAX_PACKET: usize = 16 * 1024 * 1024;

/// Messages kept for one absent client.
const MAX_QUEUED: usize = 100_000;

/// A broker to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Where sessions and messages are kept; in memory when there is none.
    pub data: Option<PathBuf>,
    /// Who may connect; anybody when empty.
    pub users: Vec<(String, Secret)>,
    /// TLS with the broker's certificate; with `cafile`, clients need one from it too.
    pub tls: Option<TlsFiles>,
}

/// A running broker.
pub struct Broker {
    address: SocketAddr,
    shutdown: BrokerShutdownHandle,
    task: JoinHandle<Result<(), String>>,
}

impl Broker {
    /// Starts a broker and returns once it accepts connections.
    ///
    /// # Errors
    /// When it cannot listen (69), its store cannot be used (73) or its settings are wrong.
    pub async fn start(options: Options) -> Result<Self> {
        let listen = options.listen;
        let failed = |kind, e: &dyn std::fmt::Display| {
            Error::new(kind, format!("start broker on {listen}: {e}"))
        };
        // The crate's own message for a port in use is a page of advice.
        drop(std::net::TcpListener::bind(listen).map_err(|e| failed(Kind::Unavailable, &e))?);
        if let Some(data) = &options.data {
            std::fs::create_dir_all(data).map_err(|e| {
                Error::cannot_create(format!("create broker's store {}: {e}", data.display()))
            })?;
        }
        let mut broker = MqttBroker::with_config(config(&options)?)
            .await
            .map_err(|e| failed(Kind::Config, &e))?;
        if !options.users.is_empty() {
            let users = PasswordAuthProvider::new().with_anonymous(false);
            for (name, password) in &options.users {
                users
                    .add_user(name, password.reveal())
                    .map_err(|e| failed(Kind::Config, &e))?;
            }
            broker = broker.with_auth_provider(Arc::new(users));
        }
        let address = if options.tls.is_some() {
            broker.tls_local_addr()
        } else {
            broker.local_addr()
        }
        .ok_or_else(|| failed(Kind::Unavailable, &"it has no address"))?;
        let shutdown = broker.shutdown_handle();
        let mut ready = broker.ready_receiver();
        let task = tokio::spawn(async move { broker.run().await.map_err(|e| e.to_string()) });
        if ready.wait_for(|ready| *ready).await.is_err() {
            let cause = match task.await {
                Ok(Err(cause)) => cause,
                _ => "it stopped at once".into(),
            };
            return Err(failed(Kind::CannotCreate, &cause));
        }
        Ok(Self {
            address,
            shutdown,
            task,
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns when the broker has failed; cancel safe.
    pub async fn failed(&mut self) -> Error {
        let cause = match (&mut self.task).await {
            Ok(Ok(())) => "it stopped by itself".to_owned(),
            Ok(Err(cause)) => cause,
            Err(e) => e.to_string(),
        };
        Error::new(Kind::Unavailable, format!("run broker: {cause}"))
    }

    /// Stops it; this can take 5 s while clients are connected.
    pub async fn stop(self) {
        self.shutdown.shutdown();
        let _ = self.task.await;
    }
}

fn config(options: &Options) -> Result<BrokerConfig> {
    let storage = match &options.data {
        Some(dir) => StorageConfig::new()
            .with_backend(StorageBackend::File)
            .with_base_dir(dir.clone()),
        // Without persistence the crate forgets sessions too: memory it is.
        None => StorageConfig::new().with_backend(StorageBackend::Memory),
    };
    let mut config = BrokerConfig::new()
        .with_max_packet_size(MAX_PACKET)
        .with_session_expiry(Duration::from_secs(7 * 24 * 3600))
        .with_sys_topics_enabled(false)
        .with_auth(AuthConfig::new().with_allow_anonymous(true))
        .with_storage(storage.with_max_queued_messages_per_client(MAX_QUEUED));
    match &options.tls {
        None => config = config.with_bind_address(options.listen),
        Some(files) => {
            let Some((cert, key)) = &files.identity else {
                return Err(Error::usage("a broker with TLS needs --cert and --key"));
            };
            let mut tls =
                TlsConfig::new(cert.clone(), key.clone()).with_bind_address(options.listen);
            if let Some(cafile) = &files.cafile {
                tls = tls
                    .with_ca_file(cafile.clone())
                    .with_require_client_cert(true);
            }
            config = config.with_bind_addresses(Vec::new()).with_tls(tls);
        }
    }
    Ok(config)
}
