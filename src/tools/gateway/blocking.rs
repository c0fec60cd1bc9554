//! Work that blocks, such as reading a ledger, on a bounded number of threads.

use std::time::Duration;

use tokio::task;
use tokio::time::timeout;

use crate::error::{Error, Kind};
use crate::model::text::printable;
use crate::net::http::Response;
use crate::tools::gateway::permits::{Owner, Permits};

/// Maximum number of characters of the cause of an error.
const SHOWN: usize = 500;

/// Maximum time until a thread is free.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// Threads for work that blocks, of which each caller has its share.
#[derive(Debug, Clone)]
pub struct Threads {
    permits: Permits,
    /// Maximum time until one is free.
    wait: Duration,
}

impl Threads {
    /// Allows `count` at a time. More work waits, and that of one owner holds up no others.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self {
            permits: Permits::new(count),
            wait: MAX_WAIT,
        }
    }

    /// Runs `work` of `owner`.
    ///
    /// # Errors
    /// The answer when it fails.
    pub async fn run<T: Send + 'static>(
        &self,
        owner: Owner,
        work: impl FnOnce() -> crate::error::Result<T> + Send + 'static,
    ) -> Result<T, Response> {
        self.result(owner, work).await.map_err(|e| refused(&e))
    }

    /// Runs `work` of `owner`, for answers of another form.
    ///
    /// # Errors
    /// Those of `work`; 70 when it panics, 75 when no thread is free for long.
    pub async fn result<T: Send + 'static>(
        &self,
        owner: Owner,
        work: impl FnOnce() -> crate::error::Result<T> + Send + 'static,
    ) -> crate::error::Result<T> {
        let permit = timeout(self.wait, self.permits.take(owner)).await;
        let permit = permit.map_err(|_| late())?.ok_or_else(broken)?;
        // It is held until the work ends, also when the request is dropped.
        let done = task::spawn_blocking(move || {
            let done = work();
            drop(permit);
            done
        });
        done.await.map_err(|_| broken())?
    }
}

fn broken() -> Error {
    Error::bug("the gateway has failed")
}

fn late() -> Error {
    Error::new(Kind::TryAgain, "the gateway is busy; try again later")
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
    use crate::model::gateway::rate::Caller;
    use std::sync::mpsc;
    use std::sync::{Arc, Mutex, PoisonError};

    fn caller(last: u8) -> Owner {
        Some(Caller::at(Some([127, 0, 0, last].into())))
    }

    #[tokio::test]
    async fn the_work_of_callers_leaves_threads_to_others() {
        let threads = Threads::new(8);
        let (go, wait) = mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let mut many = Vec::new();
        for n in 0..20 {
            let (threads, wait) = (threads.clone(), Arc::clone(&wait));
            many.push(tokio::spawn(async move {
                let work = move || {
                    let wait = wait.lock().unwrap_or_else(PoisonError::into_inner);
                    Ok(wait.recv().is_ok())
                };
                threads.run(caller(n % 2), work).await
            }));
        }
        // All of them have had a turn to ask.
        for _ in 0..20 {
            task::yield_now().await;
        }
        let own = threads.run(caller(2), || Ok(()));
        let own = timeout(Duration::from_secs(5), own).await;
        (0..20).for_each(|_| go.send(()).expect("send"));
        assert!(own.expect("a thread").is_ok());
        for one in many {
            assert!(one.await.expect("join").expect("done"));
        }
    }

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
                let done = busy.result(None, move || Ok(wait.recv().is_ok())).await;
                done.expect("done")
            });
            while let Some(free) = threads.permits.try_take(caller(1)) {
                drop(free);
                task::yield_now().await;
            }
            let late = threads.result(caller(1), || Ok(())).await;
            assert_eq!(late.expect_err("no thread").kind(), Kind::TryAgain);
            go.send(()).expect("send");
            assert!(first.await.expect("join"));
            assert!(threads.result(None, || Ok(())).await.is_ok());
        });
    }
}
