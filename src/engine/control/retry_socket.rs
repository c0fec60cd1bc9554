//! The socket in the state folder on which `tael work retry` names a run that it has written into the
//! ledger. A client learns so of a change that another process has made.

use std::future::pending;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::os::socket;

/// Name of the socket in the folder of a pipeline.
pub const SOCKET: &str = "retries";

/// Answer to the id of a run that the client knows now.
pub const TAKEN: &str = "taken\n";

/// Maximum length of the line of a requester, bytes; a ULID has 26.
const MAX_LINE: u64 = 64;

/// Maximum number of requests that wait for the client. Further ones wait in their connections.
const MAX_WAITING: usize = 16;

/// Maximum time for a requester to name its run.
const PATIENCE: Duration = Duration::from_secs(5);

/// Delay after a connection could not be accepted: descriptors may be short.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// A run that waits in the ledger.
#[derive(Debug)]
pub struct Retried {
    /// Its id.
    pub unit: String,
    taken: oneshot::Sender<()>,
}

impl Retried {
    /// Tells the requester that the run is in its lane.
    pub fn taken(self) {
        // A requester that has gone needs no answer.
        let _ = self.taken.send(());
    }
}

/// A socket that is served until this is dropped.
#[derive(Debug)]
pub struct RetrySocket {
    task: Option<JoinHandle<()>>,
    retried: mpsc::Receiver<Retried>,
}

impl RetrySocket {
    /// Serves a socket in `folder`. A client can do without it, so that failures are only logged.
    #[must_use]
    pub fn open(folder: &Path) -> Self {
        let (sender, retried) = mpsc::channel(MAX_WAITING);
        let listener = socket::listen(folder, SOCKET).and_then(UnixListener::from_std);
        let task = match listener {
            Ok(listener) => Some(tokio::spawn(serve(listener, sender))),
            Err(e) => {
                let path = folder.join(SOCKET);
                warn!(
                    "cannot listen on {}: {e}; runs of 'tael work retry' start with the next client",
                    path.display()
                );
                None
            }
        };
        Self { task, retried }
    }

    /// Returns the next run that was written into the ledger. Cancel safe.
    pub async fn next(&mut self) -> Retried {
        match self.retried.recv().await {
            Some(retried) => retried,
            None => pending().await,
        }
    }
}

impl Drop for RetrySocket {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn serve(listener: UnixListener, retried: mpsc::Sender<Retried>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let retried = retried.clone();
                tokio::spawn(async move {
                    // The requester notices that it gets no answer.
                    let _ = hear(stream, retried).await;
                });
            }
            Err(_) => sleep(ACCEPT_RETRY).await,
        }
    }
}

async fn hear(mut stream: UnixStream, retried: mpsc::Sender<Retried>) -> io::Result<()> {
    let (from, mut to) = stream.split();
    let mut line = String::new();
    let mut from = BufReader::new(from.take(MAX_LINE));
    timeout(PATIENCE, from.read_line(&mut line)).await??;
    let Some(unit) = line.strip_suffix('\n') else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let (taken, answer) = oneshot::channel();
    let unit = unit.to_owned();
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    retried
        .send(Retried { unit, taken })
        .await
        .map_err(|_| io::ErrorKind::BrokenPipe)?;
    answer.await.map_err(gone)?;
    to.write_all(TAKEN.as_bytes()).await
}
