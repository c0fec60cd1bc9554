//! The socket in the state folder on which a client tells what becomes of messages. `tael events`
//! reads it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tracing::warn;

use crate::engine::intake::recent::{Reading, Recent};
use crate::model::note::Line;
use crate::os::socket::Served;

/// Name of the socket in the folder of a pipeline.
pub const SOCKET: &str = "events";

/// Serves the notes in `recent` on a socket in `folder`. A client can do without it, so that
/// failures are only logged.
#[must_use]
pub fn open(folder: &Path, recent: &Recent) -> Option<Served> {
    let recent = recent.clone();
    let each = move |stream| {
        let reading = recent.read();
        async move {
            // A reader that has gone needs no more.
            let _ = tell(stream, reading).await;
        }
    };
    let served = Served::open(folder, SOCKET, each);
    let served = served.inspect_err(|e| {
        let path = folder.join(SOCKET);
        warn!(
            "cannot listen on {}: {e}; 'tael events' shows what the ledger has only",
            path.display()
        );
    });
    served.ok()
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
