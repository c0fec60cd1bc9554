//! Work that blocks, such as reading a ledger, on a bounded number of threads.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task;

use crate::error::{Error, Kind};
use crate::model::text::printable;
use crate::net::http::Response;

/// Maximum number of characters of the cause of an error.
const SHOWN: usize = 500;

/// Threads for work that blocks.
#[derive(Debug, Clone)]
pub struct Threads(Arc<Semaphore>);

impl Threads {
    /// Allows `count` at a time. The work of others waits.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self(Arc::new(Semaphore::new(count)))
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
    /// Those of `work`; 70 when it panics.
    pub async fn result<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> crate::error::Result<T> + Send + 'static,
    ) -> crate::error::Result<T> {
        let broken = || Error::bug("the gateway has failed");
        let permit = Arc::clone(&self.0).acquire_owned().await;
        let permit = permit.map_err(|_| broken())?;
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
