//! The socket in the state folder on which `tael work retry` names a run that it writes into the
//! ledger. A client learns so of a change that another process has made.
//!
//! A requester sends the id of the run, and a newline, before it writes the run. It closes its side
//! when the run is written, or when it is killed. So the client hears of every run that is written.

use std::future::pending;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::warn;

use crate::os::socket::Served;

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

/// Maximum time for a requester to write its run; it waits 10 s for another writer at most.
const WRITING: Duration = Duration::from_secs(30);

/// A run that waits in the ledger, unless its requester could not write it.
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

/// The socket, and the runs that were named on it.
#[derive(Debug)]
pub struct RetrySocket {
    _served: Option<Served>,
    retried: mpsc::Receiver<Retried>,
}

impl RetrySocket {
    /// Serves a socket in `folder`. A client can do without it, so that failures are only logged.
    #[must_use]
    pub fn open(folder: &Path) -> Self {
        let (sender, retried) = mpsc::channel(MAX_WAITING);
        let each = move |stream| {
            let sender = sender.clone();
            async move {
                // The requester notices that it gets no answer.
                let _ = hear(stream, sender).await;
            }
        };
        let served = Served::open(folder, SOCKET, each).inspect_err(|e| {
            let path = folder.join(SOCKET);
            warn!(
                "cannot listen on {}: {e}; runs of 'tael work retry' start with the next client",
                path.display()
            );
        });
        Self {
            _served: served.ok(),
            retried,
        }
    }

    /// Returns the next run that was written into the ledger. Cancel safe.
    pub async fn next(&mut self) -> Retried {
        match self.retried.recv().await {
            Some(retried) => retried,
            None => pending().await,
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
    // It is looked for in any case: also a requester that was killed may have written it.
    let _ = timeout(WRITING, from.read_u8()).await;
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
