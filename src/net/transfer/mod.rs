//! Sends and receives one file over one plain TCP connection, as `ncat` does, within allowed
//! folders.

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

/// Maximum time for a connection, and maximum time without a byte.
const PATIENCE: Duration = Duration::from_secs(30);

/// Interval between two checks whether the other side has everything.
const LOOK: Duration = Duration::from_millis(5);

/// Runs `work` on a thread of its own.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (tx, rx) = oneshot::channel();
    thread::Builder::new()
        .name("transfer".into())
        .spawn(move || {
            // The caller may be gone.
            let _ = tx.send(work());
        })?;
    rx.await
        .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
}
