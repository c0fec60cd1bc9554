//! Work that blocks, such as reading a ledger, on a bounded number of threads.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task;
use tokio::time::timeout;

use crate::error::{Error, Kind};
use crate::model::gateway::rate::Caller;
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
    /// Threads that one caller may have, if it has some or waits for some.
    own: Arc<Mutex<HashMap<Caller, Arc<Semaphore>>>>,
    /// Maximum number of them.
    share: usize,
    /// Maximum time until one is free.
    wait: Duration,
}

impl Threads {
    /// Allows `count` at a time. The work of others waits.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(count)),
            own: Arc::default(),
            share: count.div_ceil(2),
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

    /// Runs `work` of `caller`, which has at most half of the threads. The rest of its work waits for its
    /// own, and holds up no others.
    ///
    /// # Errors
    /// The answer when it fails.
    pub async fn run_of<T: Send + 'static>(
        &self,
        caller: Caller,
        work: impl FnOnce() -> crate::error::Result<T> + Send + 'static,
    ) -> Result<T, Response> {
        let own = {
            let mut all = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, own| Arc::strong_count(own) > 1);
            let new = || Arc::new(Semaphore::new(self.share));
            Arc::clone(all.entry(caller).or_insert_with(new))
        };
        let turn = timeout(self.wait, own.acquire_owned()).await;
        let turn = turn
            .map_err(|_| late())
            .and_then(|turn| turn.map_err(|_| broken()));
        let turn = turn.map_err(|e| refused(&e))?;
        let work = move || {
            let done = work();
            drop(turn);
            done
        };
        self.run(work).await
    }

    /// Runs `work`, for answers of another form.
    ///
    /// # Errors
    /// Those of `work`; 70 when it panics, 75 when others hold all threads for long.
    pub async fn result<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> crate::error::Result<T> + Send + 'static,
    ) -> crate::error::Result<T> {
        let permit = timeout(self.wait, Arc::clone(&self.free).acquire_owned()).await;
        let permit: OwnedSemaphorePermit = permit.map_err(|_| late())?.map_err(|_| broken())?;
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
    use std::sync::mpsc;

    #[tokio::test]
    async fn the_work_of_one_caller_leaves_threads_to_others() {
        let threads = Threads::new(4);
        let caller = |last| Caller::at(Some([127, 0, 0, last].into()));
        let (go, wait) = mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let mut many = Vec::new();
        for _ in 0..20 {
            let (threads, wait) = (threads.clone(), Arc::clone(&wait));
            many.push(tokio::spawn(async move {
                let work = move || {
                    let wait = wait.lock().unwrap_or_else(PoisonError::into_inner);
                    Ok(wait.recv().is_ok())
                };
                threads.run_of(caller(1), work).await
            }));
        }
        while threads.free.available_permits() > 2 {
            task::yield_now().await;
        }
        let own = threads.run_of(caller(2), || Ok(()));
        let own = timeout(Duration::from_secs(5), own).await;
        (0..20).for_each(|_| go.send(()).expect("send"));
        assert!(own.expect("a thread").is_ok());
        for one in many {
            assert!(one.await.expect("join").expect("done"));
        }
        // Callers without work are forgotten.
        assert!(threads.run_of(caller(3), || Ok(())).await.is_ok());
        let known = threads.own.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(known.len(), 1);
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
