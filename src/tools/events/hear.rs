//! Hears the client of a pipeline, on the socket in its state folder.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::engine::observe::event_socket::SOCKET;
use crate::model::note::Line;
use crate::os::socket;

/// Delay before a client that does not run is looked for again.
pub const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Maximum length of a line from a client, bytes.
const MAX_LINE: u64 = 64 * 1024;

/// What a client says, or that there is none.
#[derive(Debug)]
pub enum Heard {
    /// A line of it.
    Line(Line),
    /// None runs.
    Absent,
}

/// Asks the client of the pipeline `who` in `folder`, again and again to follow it.
pub async fn ask(who: usize, folder: PathBuf, follow: bool, to: mpsc::Sender<(usize, Heard)>) {
    let mut told = false;
    loop {
        match hear(who, &folder, follow, &to).await {
            Ok(()) => told = false,
            Err(_) if std::mem::replace(&mut told, true) => {}
            Err(_) if to.send((who, Heard::Absent)).await.is_err() => return,
            Err(_) => {}
        }
        if !follow || to.is_closed() {
            return;
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Hears the client until it has told all, or leaves.
async fn hear(
    who: usize,
    folder: &Path,
    follow: bool,
    to: &mpsc::Sender<(usize, Heard)>,
) -> io::Result<()> {
    let stream = UnixStream::from_std(socket::connect(folder, SOCKET)?)?;
    let mut lines = BufReader::new(stream);
    let mut text = String::new();
    loop {
        text.clear();
        let read = (&mut lines).take(MAX_LINE).read_line(&mut text).await?;
        if read == 0 {
            return Ok(());
        }
        let Some(line) = Line::parse(&text) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let is_last = matches!(line, Line::Full) || (matches!(line, Line::Live { .. }) && !follow);
        let _ = to.send((who, Heard::Line(line))).await;
        if is_last {
            return Ok(());
        }
    }
}
