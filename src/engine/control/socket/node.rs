//! The client, for the tasks of its connections.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::engine::control::call::{Answer, Call};
use crate::model::receptor::LOCALHOST;
use crate::store::room::Room;

/// Answer to a requester when the client does not answer any more.
pub const STOPPING: &str = "try again: the client is stopping";

/// The client, as its connections see it.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its host.
    pub host: String,
    /// Folder of its pipeline.
    pub home: PathBuf,
    /// Room in it.
    pub room: Arc<Room>,
    /// Takes what connections ask.
    pub calls: mpsc::Sender<Call>,
    /// Room for connections.
    pub slots: Arc<Semaphore>,
}

impl Node {
    /// Asks the client.
    ///
    /// # Errors
    /// What it says, or that it does not answer.
    pub async fn ask<T>(&self, call: impl FnOnce(oneshot::Sender<Answer<T>>) -> Call) -> Answer<T> {
        let (sender, answer) = oneshot::channel();
        let sent = self.calls.send(call(sender)).await;
        match sent {
            Ok(()) => answer.await.unwrap_or_else(|_| Err(STOPPING.to_owned())),
            Err(_) => Err(STOPPING.to_owned()),
        }
    }

    /// Returns whether `name` is the name of this node.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        name == self.name || name == LOCALHOST
    }
}
