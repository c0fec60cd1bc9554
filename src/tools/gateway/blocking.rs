//! Work that blocks, such as reading a ledger, on a bounded number of threads.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task;
use tokio::time::timeout;

use crate::error::{Error, Kind};
use crate::model::text::printable;
use crate::net::http::Response;

/// Maximum number of characters of the cause of an error.
const SHOWN: usize = 500;

/// Maximum time until a thread is free.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// Threads for work that blocks.
#[derive(Debug, Clone)]
pub struct Threads {
    free: Arc<Semaphore>,
    /// Maximum time until one is free.
    wait: Duration,
}

impl Threads {
    /// Allows `count` at a time. The work of others waits.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(count)),
            wait: MAX_WAIT,
        }
    }

    /// Runs `work`.
    ///
    /// # Errors
    /// The answer when it fails.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> crate::error::Result<T> + Send + 'static,
    ) -> Result<T, Response> {
        self.result(work).await.map_err(|e| refused(&e))
    }

    /// Runs `work`, for answers of another form.
    ///
    /// # Errors
    /// Those of `work`; 70 when it panics, 75 when others hold all threads for long.
    pub async fn result<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> crate::error::Result<T> + Send + 'static,
    ) -> crate::error::Result<T> {
        let broken = || Error::bug("the gateway has failed");
        let permit = timeout(self.wait, Arc::clone(&self.free).acquire_owned()).await;
        let late = |_| Error::new(Kind::TryAgain, "the gateway is busy; try again later");
        let permit = permit.map_err(late)?.map_err(|_| broken())?;
        // It is held until the work ends, also when the request is dropped.
        let done = task::spawn_blocking(move || {
            let done = work();
            drop(permit);
            done
        });
        done.await.map_err(|_| broken())?
    }
}

/// Returns the answer to a request that has failed so.
#[must_use]
pub fn refused(e: &Error) -> Response {
    let cause = printable(&e.to_string(), SHOWN);
    let status = match e.kind() {
        Kind::Usage | Kind::Data => 400,
        Kind::NotAuthorised => 403,
        Kind::Unavailable | Kind::TryAgain => 503,
        Kind::Bug | Kind::CannotCreate | Kind::Config | Kind::NoCode => 500,
    };
    let answer = Response::error(status, &cause);
    match status {
        503 => answer.with("retry-after", "1"),
        _ => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn work_does_not_wait_for_ever_behind_other_work() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        let (go, wait) = mpsc::channel::<()>();
        runtime.block_on(async {
            let threads = Threads {
                wait: Duration::from_millis(50),
                ..Threads::new(1)
            };
            let busy = threads.clone();
            let first = tokio::spawn(async move {
                let done = busy.result(move || Ok(wait.recv().is_ok())).await;
                done.expect("done")
            });
            while threads.free.available_permits() > 0 {
                task::yield_now().await;
            }
            let late = threads.result(|| Ok(())).await.expect_err("no thread");
            assert_eq!(late.kind(), Kind::TryAgain);
            go.send(()).expect("send");
            assert!(first.await.expect("join"));
            assert!(threads.result(|| Ok(())).await.is_ok());
        });
    }
}
