//! One file over one plain TCP connection, as `ncat` sends and takes it; confined to folders
//! that were named for that.

mod confine;
mod lease;
mod receive;
mod send;

use std::io;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

pub use confine::{Target, open_confined};
pub use receive::{Limits, listen, receive};
pub use send::{Sent, send};

/// How long a connection may take to come about, and how long it may stand still.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often is looked whether the other side has everything.
const LOOK: Duration = Duration::from_millis(5);

/// Runs `work` on a thread of its own.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (tx, rx) = oneshot::channel();
    thread::Builder::new()
        .name("transfer".into())
        .spawn(move || {
            // Whoever waited may have gone.
            let _ = tx.send(work());
        })?;
    rx.await
        .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
}
