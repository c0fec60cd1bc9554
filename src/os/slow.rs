//! Reads of whole files beside the loop.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::{spawn, spawn_blocking};

use crate::os::hooks;

/// Maximum number of reads at a time. They take as long as the files are large, and the few threads of
/// the runtime also sync payloads and write for connections. Further reads wait in their order; there is
/// at most one for each stream of output.
const MAX_READS: usize = 1;

/// Reads that wait for each other.
#[derive(Debug, Clone)]
pub struct SlowReads(Arc<Semaphore>);

impl Default for SlowReads {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_READS)))
    }
}

impl SlowReads {
    /// Runs `read` on a thread for blocking work, when those before it are done. A client that stops does
    /// not wait for it.
    pub fn run(&self, read: impl FnOnce() + Send + 'static) {
        let reads = Arc::clone(&self.0);
        drop(spawn(async move {
            // It is never closed.
            if let Ok(_turn) = reads.acquire_owned().await {
                // A read that has panicked gives its turn to the next.
                let slow = || {
                    hooks::slow_read();
                    read();
                };
                let _ = spawn_blocking(slow).await;
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::mpsc;

    /// Number of reads in the test.
    const READS: usize = 8;

    #[tokio::test]
    async fn one_file_is_read_at_a_time() {
        let reads = SlowReads::default();
        let running = Arc::new(AtomicUsize::new(0));
        let (sender, mut receiver) = mpsc::unbounded_channel();
        for number in 0..READS {
            let (running, sender) = (Arc::clone(&running), sender.clone());
            reads.run(move || {
                let others = running.fetch_add(1, Ordering::SeqCst);
                std::thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
                sender.send((number, others)).expect("receiver");
            });
        }
        for number in 0..READS {
            assert_eq!(receiver.recv().await, Some((number, 0)));
        }
    }
}
