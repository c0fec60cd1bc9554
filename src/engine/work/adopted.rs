//! Runs whose runner another client has started.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{error, warn};

use crate::engine::pipeline::Pipeline;
use crate::os::logging::STACK;

/// Delay before another look at a run for which no thread could wait.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Waits for such runs. There are at most as many as ran when the client started.
#[derive(Debug)]
pub struct Adopted {
    ended: mpsc::UnboundedSender<String>,
    next: mpsc::UnboundedReceiver<String>,
}

impl Default for Adopted {
    fn default() -> Self {
        let (ended, next) = mpsc::unbounded_channel();
        Self { ended, next }
    }
}

impl Adopted {
    /// Returns the next unit whose runner is gone. Cancel safe.
    pub async fn next(&mut self) -> Option<String> {
        // We hold a sender ourselves, so the channel never ends.
        self.next.recv().await
    }

    /// Waits for the end of the runner of `unit`, in a thread of its own.
    pub fn wait_for(&self, pipeline: &Pipeline, unit: String) {
        let (dir, ended, id) = (pipeline.dir(&unit), self.ended.clone(), unit.clone());
        let waiter = std::thread::Builder::new().name("adopted".into());
        let waiting = waiter.stack_size(STACK).spawn(move || {
            if let Err(e) = dir.wait_unlocked() {
                warn!("{e}");
            }
            let _ = ended.send(id);
        });
        if let Err(e) = waiting {
            error!(
                TAEL_UNIT = unit,
                "cannot wait for an adopted run: {e}; trying again"
            );
            let ended = self.ended.clone();
            tokio::spawn(async move {
                sleep(LOOK_AGAIN).await;
                let _ = ended.send(unit);
            });
        }
    }
}
