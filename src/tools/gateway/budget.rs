//! Memory for large answers that are made, or that their callers have not read.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::model::gateway::rate::Caller;
use crate::net::http::{Body, Response, Seat};

/// Maximum size of all large answers together, bytes. A caller has at most its share of it: all, divided by
/// the number of callers that have or want some, and one that may come. It may always have one.
pub const MAX_ANSWERS: usize = 32 * 1024 * 1024;

/// Maximum size of an answer that is not large, bytes.
const SMALL: usize = 64 * 1024;

/// Maximum number of answers that are made already and wait for memory, of one caller each.
const MAX_MADE: usize = 16;

/// Time without any reading after which the answer of another ends for a caller that has none.
const UNREAD: Duration = Duration::from_secs(1);

/// Interval at which such an answer is looked for.
const LOOK: Duration = Duration::from_millis(100);

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
    /// Of each caller that has some.
    own: HashMap<Caller, usize>,
    /// Number of requests that wait, of each caller.
    waiting: HashMap<Caller, usize>,
    /// Callers of which an answer that is made waits.
    made: HashSet<Caller>,
}

/// Notes that a request of a caller waits, until it is dropped.
struct Waits<'a> {
    shared: &'a Shared,
    caller: Caller,
    is_made: bool,
}

impl<'a> Waits<'a> {
    /// Notes it, unless its answer `is_made` and there are too many of these.
    fn new(shared: &'a Shared, caller: Caller, is_made: bool) -> Option<Self> {
        let mut used = shared.used();
        if is_made && (used.made.len() >= MAX_MADE || !used.made.insert(caller)) {
            return None;
        }
        *used.waiting.entry(caller).or_default() += 1;
        Some(Self {
            shared,
            caller,
            is_made,
        })
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut used = self.shared.used();
        if self.is_made {
            used.made.remove(&self.caller);
        }
        if let Some(count) = used.waiting.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                used.waiting.remove(&self.caller);
            }
        }
    }
}

/// Who wants memory.
pub trait Claim {
    /// Returns the caller.
    fn caller(&self) -> Caller;

    /// Has an answer of another caller end that is not read.
    fn make_room(&self);
}

impl Claim for Seat {
    fn caller(&self) -> Caller {
        self.caller()
    }

    fn make_room(&self) {
        self.oust_unread(UNREAD);
    }
}

impl Used {
    fn has_some(&self, caller: Caller) -> bool {
        self.own.contains_key(&caller)
    }

    /// Returns the share of `caller`, bytes.
    fn share(&self, caller: Caller) -> usize {
        let waiting = self.waiting.keys();
        let others = self
            .own
            .keys()
            .chain(waiting.filter(|own| !self.own.contains_key(own)));
        // Itself, and one that may come.
        MAX_ANSWERS / (others.filter(|own| **own != caller).count() + 2)
    }
}

/// Memory for one answer, which is free when this is dropped.
#[derive(Debug)]
pub struct Reserved {
    shared: Arc<Shared>,
    caller: Caller,
    size: usize,
}

impl Shared {
    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives `size` bytes back.
    fn free(&self, caller: Caller, size: usize) {
        if size == 0 {
            return;
        }
        let mut used = self.used();
        used.all -= size;
        if let Some(own) = used.own.get_mut(&caller) {
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
    /// Reserves memory for an answer of `size` bytes of `caller`. Returns `None` if there is not enough.
    #[must_use]
    pub fn try_reserve(&self, caller: Caller, size: usize) -> Option<Reserved> {
        let size = cost(size);
        let mut used = self.0.used();
        if size > 0 {
            let own = used.own.get(&caller).copied().unwrap_or_default();
            let is_over = own > 0 && own + size > used.share(caller);
            if used.all + size > MAX_ANSWERS || is_over {
                return None;
            }
            used.all += size;
            used.own.insert(caller, own + size);
        }
        Some(Reserved {
            shared: Arc::clone(&self.0),
            caller,
            size,
        })
    }

    /// Reserves memory for an answer of `size` bytes of the caller that has the `seat`, and waits for it. If
    /// that caller has none, answers of others that are not read make room.
    ///
    /// # Errors
    /// The answer when there is not enough in time.
    pub async fn reserve(&self, seat: &impl Claim, size: usize) -> Result<Reserved, Response> {
        let caller = seat.caller();
        if let Some(reserved) = self.try_reserve(caller, size) {
            return Ok(reserved);
        }
        let waits = Waits::new(&self.0, caller, false).ok_or_else(full)?;
        self.wait(&waits, size, seat).await
    }

    /// Waits for memory for an answer of `size` bytes.
    async fn wait(
        &self,
        waits: &Waits<'_>,
        size: usize,
        seat: &impl Claim,
    ) -> Result<Reserved, Response> {
        let enough = async {
            loop {
                let freed = self.0.freed.notified();
                tokio::pin!(freed);
                // What is freed after the attempt counts.
                freed.as_mut().enable();
                if let Some(reserved) = self.try_reserve(waits.caller, size) {
                    return reserved;
                }
                if timeout(LOOK, freed).await.is_err() && !self.0.used().has_some(waits.caller) {
                    seat.make_room();
                }
            }
        };
        timeout(MAX_WAIT, enough).await.map_err(|_| full())
    }

    /// Returns an answer that is made already of the caller that has the `seat`, when there is memory for it.
    ///
    /// # Errors
    /// The answer when there is not enough in time, or another answer of the caller waits already.
    pub async fn keep(&self, seat: &impl Claim, response: Response) -> Result<Response, Response> {
        let caller = seat.caller();
        let size = response.body.whole().len();
        if let Some(reserved) = self.try_reserve(caller, size) {
            return Ok(reserved.keep_answer(response));
        }
        let waits = Waits::new(&self.0, caller, true).ok_or_else(full)?;
        Ok(self.wait(&waits, size, seat).await?.keep_answer(response))
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A caller whom others leave no room, and how often it has asked for some.
    struct Asks(Caller, AtomicUsize);

    impl Claim for Asks {
        fn caller(&self) -> Caller {
            self.0
        }

        fn make_room(&self) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn seat(last: u8) -> Asks {
        Asks(caller(last), AtomicUsize::new(0))
    }

    #[tokio::test]
    async fn a_caller_that_has_none_asks_others_to_make_room() {
        let budget = Budget::default();
        let _all = budget.try_reserve(caller(1), MAX_ANSWERS - SMALL - 1);
        let _own = budget.try_reserve(caller(2), SMALL + 1).expect("the rest");
        for (who, asks) in [(2, false), (3, true)] {
            let seat = seat(who);
            let full = timeout(LOOK * 3, budget.reserve(&seat, SMALL + 1)).await;
            assert!(full.is_err(), "it is full");
            assert_eq!(seat.1.load(Ordering::Relaxed) > 0, asks);
        }
    }

    fn caller(last: u8) -> Caller {
        Caller::at(Some([127, 0, 0, last].into()))
    }

    #[tokio::test]
    async fn large_answers_take_memory_until_they_are_dropped_and_small_ones_none() {
        let budget = Budget::default();
        let free = |size| budget.try_reserve(caller(9), size).is_some();
        let kept = budget.try_reserve(caller(1), MAX_ANSWERS / 2);
        let kept = kept.expect("half").keep(vec![0; SMALL + 1].into());
        assert!(!free(MAX_ANSWERS - SMALL) && free(MAX_ANSWERS - SMALL - 1));
        let copy = kept.clone();
        drop(kept);
        assert!(!free(MAX_ANSWERS));
        drop(copy);
        assert!(free(MAX_ANSWERS) && !free(MAX_ANSWERS + 1));
        let all = budget.try_reserve(caller(2), MAX_ANSWERS).expect("all");
        assert!(free(SMALL) && !free(SMALL + 1));
        let answer = |size| Response::new(200, "text/plain", vec![0; size]);
        assert!(budget.keep(&seat(1), answer(SMALL)).await.is_ok());
        // Nothing is left of a reservation for a small answer.
        let _small = all.keep(vec![0; SMALL].into());
        assert!(free(MAX_ANSWERS));
        assert!(budget.0.used().own.is_empty());
    }

    #[tokio::test]
    async fn a_caller_leaves_half_to_others_and_waits_for_its_own() {
        let budget = Budget::default();
        let half = budget.reserve(&seat(1), MAX_ANSWERS / 2).await;
        let half = half.expect("half");
        assert!(budget.try_reserve(caller(1), SMALL + 1).is_none());
        let other = budget.try_reserve(caller(2), MAX_ANSWERS / 2);
        assert!(other.is_some());
        let waits = tokio::spawn({
            let budget = budget.clone();
            async move { budget.reserve(&seat(1), MAX_ANSWERS / 2).await }
        });
        tokio::task::yield_now().await;
        drop(half);
        assert!(waits.await.expect("task").is_ok());
    }

    #[test]
    fn callers_that_take_all_they_can_leave_room_for_the_next_one() {
        const ANSWER: usize = 1024 * 1024;
        let budget = Budget::default();
        let take = |who| {
            let own = std::iter::from_fn(|| budget.try_reserve(caller(who), ANSWER));
            own.collect::<Vec<_>>()
        };
        let (first, second) = (take(1), take(2));
        assert_eq!((first.len(), second.len()), (16, 10));
        assert!(!take(3).is_empty());
        drop(first);
        // Those who wait have a share, too.
        let waits = Waits::new(&budget.0, caller(4), false);
        assert_eq!(take(1).len(), 8);
        drop(waits);
        assert_eq!(take(1).len(), 10);
        drop(second);
        let used = budget.0.used();
        assert!(used.own.is_empty() && used.waiting.is_empty());
    }

    #[tokio::test]
    async fn one_made_answer_of_a_caller_waits_for_memory() {
        let budget = Budget::default();
        let answer = || Response::new(200, "text/plain", vec![0; SMALL + 1]);
        let all = budget.try_reserve(caller(1), MAX_ANSWERS).expect("all");
        let keep = |who| {
            let (budget, answer) = (budget.clone(), answer());
            tokio::spawn(async move { budget.keep(&seat(who), answer).await })
        };
        let (one, other) = (keep(2), keep(3));
        while budget.0.used().made.len() < 2 {
            tokio::task::yield_now().await;
        }
        let full = budget.keep(&seat(2), answer()).await.expect_err("full");
        assert_eq!(full.status, 503);
        drop(all);
        for kept in [one, other] {
            assert_eq!(kept.await.expect("task").expect("kept").status, 200);
        }
        let used = budget.0.used();
        assert!(used.made.is_empty() && used.waiting.is_empty());
    }
}
