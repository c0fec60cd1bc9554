//! The control socket in the state folder. It speaks Receptor's control protocol (see
//! [`crate::model::receptor`]), for `tael work` and for `receptorctl`.
//!
//! Each connection is a task of its own, which asks the client for what only that knows, and reads
//! the output of units itself. So a slow requester holds up itself only.

mod bridge;
mod node;
mod payload;
mod results;
mod session;
mod wire;

use std::future::pending;
use std::io;
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};
use tracing::warn;

use crate::engine::control::call::Call;
use crate::engine::control::socket::node::Node;
use crate::engine::control::socket::session::Session;
use crate::engine::control::socket::wire::Wire;
use crate::engine::pipeline::Pipeline;
use crate::error::{Error, Result};
use crate::model::receptor::{self, TRY_AGAIN};
use crate::os::logging::SENDERS;
use crate::os::socket::{Served, free};

/// Name of the socket in the folder of a pipeline.
pub const SOCKET: &str = "control";

/// Maximum number of connections that are served. A further one gets an error.
const MAX_CONNECTIONS: usize = 128;

/// Maximum number of requests that wait for the client. Further ones wait in their connections.
const MAX_WAITING: usize = 64;

/// The socket, and what its connections ask for.
#[derive(Debug)]
pub struct ControlSocket {
    _served: Vec<Served>,
    calls: mpsc::Receiver<Call>,
}

impl ControlSocket {
    /// Serves the socket in the folder of `pipeline`, and that of its configuration. A client can do
    /// without the former, so that a failure is only logged.
    ///
    /// # Errors
    /// When the socket of the configuration cannot be served (73).
    pub fn open(pipeline: &Pipeline) -> Result<Self> {
        let (sender, calls) = mpsc::channel(MAX_WAITING);
        let node = Arc::new(Node {
            name: pipeline.config.who.clone(),
            host: pipeline.config.host.clone(),
            home: pipeline.home.path.clone(),
            room: Arc::clone(&pipeline.room),
            calls: sender,
            slots: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        });
        let each = || {
            let node = Arc::clone(&node);
            move |stream| serve(stream, Arc::clone(&node))
        };
        let mut served = Vec::new();
        let folder = &pipeline.home.path;
        match Served::open(folder, SOCKET, each()) {
            Ok(own) => served.push(own),
            Err(e) => warn!(
                "cannot listen on {}: {e}; nothing can be submitted there",
                folder.join(SOCKET).display()
            ),
        }
        if let Some((path, mode)) = &pipeline.config.control_socket {
            let other = free(path)
                .and_then(|(folder, name)| Served::with_mode(folder, name, *mode, each()));
            let cannot =
                |e: io::Error| Error::cannot_create(format!("listen on {}: {e}", path.display()));
            served.push(other.map_err(cannot)?);
        }
        Ok(Self {
            _served: served,
            calls,
        })
    }

    /// Returns what a connection asks for next. Cancel safe.
    pub async fn next(&mut self) -> Call {
        match self.calls.recv().await {
            Some(call) => call,
            None => pending().await,
        }
    }
}

async fn serve(stream: UnixStream, node: Arc<Node>) {
    let Ok(_slot) = Arc::clone(&node.slots).try_acquire_owned() else {
        warn!(target: SENDERS, "more than {MAX_CONNECTIONS} connections to the control socket");
        let cause = format!("{TRY_AGAIN}{MAX_CONNECTIONS} connections are served already");
        // The buffer of a new socket has room for a line.
        let _ = stream.try_write(receptor::error(&cause).as_bytes());
        return;
    };
    let wire = Wire::new(stream);
    // A requester that has gone needs no answer.
    let _ = Session::new(wire, node).converse().await;
}
