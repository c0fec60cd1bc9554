//! The socket in the state folder on which a client tells what becomes of messages. `tael events`
//! reads it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::warn;

use crate::engine::intake::recent::{Reading, Recent};
use crate::model::note::Line;
use crate::os::socket;

/// Name of the socket in the folder of a pipeline.
pub const SOCKET: &str = "events";

/// Delay after a connection could not be accepted: descriptors may be short.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// A socket that is served until this is dropped, which removes it.
#[derive(Debug)]
pub struct EventSocket {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl EventSocket {
    /// Serves the notes in `recent` on a socket in `folder`. A client can do without it, so that
    /// failures are only logged.
    #[must_use]
    pub fn open(folder: &Path, recent: &Recent) -> Option<Self> {
        let path = folder.join(SOCKET);
        let listener = socket::listen(folder, SOCKET).and_then(UnixListener::from_std);
        match listener {
            Ok(listener) => Some(Self {
                path,
                task: tokio::spawn(serve(listener, recent.clone())),
            }),
            Err(e) => {
                warn!(
                    "cannot listen on {}: {e}; 'tael events' shows what the ledger has only",
                    path.display()
                );
                None
            }
        }
    }
}

impl Drop for EventSocket {
    fn drop(&mut self) {
        self.task.abort();
        // The next client replaces one that stays.
        let _ = fs::remove_file(&self.path);
    }
}

async fn serve(listener: UnixListener, recent: Recent) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let reading = recent.read();
                tokio::spawn(async move {
                    // A reader that has gone needs no more.
                    let _ = tell(stream, reading).await;
                });
            }
            Err(_) => sleep(ACCEPT_RETRY).await,
        }
    }
}

/// Sends the notes so far and then those that come, until the reader closes the connection.
async fn tell(mut stream: UnixStream, reading: Option<Reading>) -> io::Result<()> {
    let Some(Reading {
        kept,
        forgotten,
        mut lines,
    }) = reading
    else {
        return stream.write_all(Line::Full.to_text().as_bytes()).await;
    };
    for note in kept {
        let line = Line::Note(note).to_text();
        stream.write_all(line.as_bytes()).await?;
    }
    let live = Line::Live { forgotten }.to_text();
    stream.write_all(live.as_bytes()).await?;
    let (mut from, mut to) = stream.split();
    let mut byte = [0];
    loop {
        tokio::select! {
            line = lines.recv() => {
                let Some(line): Option<Arc<str>> = line else {
                    return Ok(());
                };
                to.write_all(line.as_bytes()).await?;
            }
            // Readers say nothing, so this is the end of one.
            _ = from.read(&mut byte) => return Ok(()),
        }
    }
}
