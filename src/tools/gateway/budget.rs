//! Memory for large answers that are made, or that their callers have not read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::model::gateway::rate::Caller;
use crate::net::http::{Body, Response};

/// Maximum size of all large answers together, bytes. One caller has at most half of it.
pub const MAX_ANSWERS: usize = 32 * 1024 * 1024;

/// Maximum size of an answer that is not large, bytes.
const SMALL: usize = 64 * 1024;

/// Maximum time for others to read their answers.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Memory for large answers.
#[derive(Debug, Clone, Default)]
pub struct Budget(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    used: Mutex<Used>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Used {
    all: usize,
    /// Of callers, without answers that several share.
    own: HashMap<Caller, usize>,
}

/// Memory for one answer, which is free when this is dropped.
#[derive(Debug)]
pub struct Reserved {
    shared: Arc<Shared>,
    caller: Option<Caller>,
    size: usize,
}

impl Shared {
    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives `size` bytes back.
    fn free(&self, caller: Option<Caller>, size: usize) {
        if size == 0 {
            return;
        }
        let mut used = self.used();
        used.all -= size;
        if let Some(caller) = caller
            && let Some(own) = used.own.get_mut(&caller)
        {
            *own -= size;
            if *own == 0 {
                used.own.remove(&caller);
            }
        }
        drop(used);
        self.freed.notify_waiters();
    }
}

/// Returns what an answer of this size takes.
const fn cost(size: usize) -> usize {
    if size <= SMALL { 0 } else { size }
}

impl Budget {
    /// Reserves memory for an answer of `size` bytes of `caller`, or of `None` if several callers
    /// share it. Returns `None` if there is not enough.
    #[must_use]
    pub fn try_reserve(&self, caller: Option<Caller>, size: usize) -> Option<Reserved> {
        let size = cost(size);
        let mut used = self.0.used();
        if size > 0 {
            let own = caller.and_then(|caller| used.own.get(&caller).copied());
            let own = own.unwrap_or_default() + size;
            if used.all + size > MAX_ANSWERS || (caller.is_some() && own > MAX_ANSWERS / 2) {
                return None;
            }
            used.all += size;
            if let Some(caller) = caller {
                used.own.insert(caller, own);
            }
        }
        Some(Reserved {
            shared: Arc::clone(&self.0),
            caller,
            size,
        })
    }

    /// Reserves memory for an answer of `size` bytes of `caller`, and waits for it.
    ///
    /// # Errors
    /// The answer when there is not enough in time.
    pub async fn reserve(&self, caller: Caller, size: usize) -> Result<Reserved, Response> {
        let enough = async {
            loop {
                let freed = self.0.freed.notified();
                tokio::pin!(freed);
                // What is freed after the attempt counts.
                freed.as_mut().enable();
                if let Some(reserved) = self.try_reserve(Some(caller), size) {
                    return reserved;
                }
                freed.await;
            }
        };
        timeout(MAX_WAIT, enough).await.map_err(|_| full())
    }

    /// Returns an answer that is made already, if there is memory for it.
    ///
    /// # Errors
    /// The answer when there is not enough.
    pub fn keep(&self, caller: Caller, response: Response) -> Result<Response, Response> {
        let size = response.body.whole().len();
        let reserved = self.try_reserve(Some(caller), size).ok_or_else(full)?;
        Ok(reserved.keep_answer(response))
    }
}

/// Returns the answer when there is no memory.
#[must_use]
pub fn full() -> Response {
    let refused = Response::error(503, "too many large answers are not read yet");
    refused.with("retry-after", "1")
}

impl Reserved {
    /// Returns `bytes`, whose memory stays reserved until the last copy is dropped. What is reserved beyond
    /// that is free.
    #[must_use]
    pub fn keep(mut self, bytes: Bytes) -> Bytes {
        /// Bytes, and their memory.
        struct Kept(Bytes, #[allow(dead_code)] Reserved);
        impl AsRef<[u8]> for Kept {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let size = cost(bytes.len()).min(self.size);
        self.shared.free(self.caller, self.size - size);
        self.size = size;
        match size {
            0 => bytes,
            _ => Bytes::from_owner(Kept(bytes, self)),
        }
    }

    /// Does the same with an answer.
    #[must_use]
    pub fn keep_answer(self, mut response: Response) -> Response {
        if let Body::Whole(bytes) = &mut response.body {
            *bytes = self.keep(std::mem::take(bytes));
        }
        response
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.shared.free(self.caller, self.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(last: u8) -> Caller {
        Caller::at(Some([127, 0, 0, last].into()))
    }

    #[test]
    fn large_answers_take_memory_until_they_are_dropped_and_small_ones_none() {
        let budget = Budget::default();
        let free = |size| budget.try_reserve(None, size).is_some();
        let kept = budget.try_reserve(Some(caller(1)), MAX_ANSWERS / 2);
        let kept = kept.expect("half").keep(vec![0; SMALL + 1].into());
        assert!(!free(MAX_ANSWERS - SMALL) && free(MAX_ANSWERS - SMALL - 1));
        let copy = kept.clone();
        drop(kept);
        assert!(!free(MAX_ANSWERS));
        drop(copy);
        assert!(free(MAX_ANSWERS) && !free(MAX_ANSWERS + 1));
        let all = budget.try_reserve(None, MAX_ANSWERS).expect("all");
        assert!(free(SMALL) && !free(SMALL + 1));
        let answer = |size| Response::new(200, "text/plain", vec![0; size]);
        assert!(budget.keep(caller(1), answer(SMALL)).is_ok());
        let full = budget.keep(caller(1), answer(SMALL + 1)).expect_err("full");
        assert_eq!(full.status, 503);
        // Nothing is left of a reservation for a small answer.
        let _small = all.keep(vec![0; SMALL].into());
        assert!(free(MAX_ANSWERS));
        assert!(budget.0.used().own.is_empty());
    }

    #[tokio::test]
    async fn a_caller_leaves_half_to_others_and_waits_for_its_own() {
        let budget = Budget::default();
        let half = budget.reserve(caller(1), MAX_ANSWERS / 2).await;
        let half = half.expect("half");
        assert!(budget.try_reserve(Some(caller(1)), SMALL + 1).is_none());
        let other = budget.try_reserve(Some(caller(2)), MAX_ANSWERS / 2);
        assert!(other.is_some());
        let waits = tokio::spawn({
            let budget = budget.clone();
            async move { budget.reserve(caller(1), MAX_ANSWERS / 2).await }
        });
        tokio::task::yield_now().await;
        drop(half);
        assert!(waits.await.expect("task").is_ok());
    }
}
