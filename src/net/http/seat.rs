//! Places of connections: many short requests, and apart from them answers that take long.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use crate::net::http::{MAX_CONNECTIONS, MAX_LONG, MAX_QUEUED, Response};

/// Numbers about the connections of a server.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections there are, without those with a long answer.
    pub open: AtomicU64,
    /// Connections with a long answer.
    pub long: AtomicU64,
    /// Connections that were one too many.
    pub refused: AtomicU64,
}

/// The places of a server.
#[derive(Debug, Clone)]
pub(super) struct Seats {
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
    /// Number of connections that wait for a place.
    queued: watch::Sender<usize>,
    counts: Arc<Counts>,
}

/// A connection that waits for a place. It leaves the queue when this is dropped.
#[derive(Debug)]
pub(super) struct Queued(Seats);

/// The place of a connection, which is free when this is dropped.
#[derive(Debug)]
pub struct Seat {
    seats: Seats,
    taken: Mutex<Taken>,
}

#[derive(Debug)]
struct Taken {
    _permit: OwnedSemaphorePermit,
    is_long: bool,
}

impl Seats {
    pub(super) fn new(counts: Arc<Counts>) -> Self {
        Self {
            short: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            long: Arc::new(Semaphore::new(MAX_LONG)),
            queued: watch::channel(0).0,
            counts,
        }
    }

    /// Returns a place for a connection, unless all are taken.
    pub(super) fn take(&self) -> Option<Seat> {
        let permit = Arc::clone(&self.short).try_acquire_owned().ok()?;
        Some(self.seat(permit))
    }

    fn seat(&self, permit: OwnedSemaphorePermit) -> Seat {
        self.counts.open.fetch_add(1, Ordering::Relaxed);
        Seat {
            seats: self.clone(),
            taken: Mutex::new(Taken {
                _permit: permit,
                is_long: false,
            }),
        }
    }

    /// Lets a connection wait for a place, unless too many wait. Connections that are idle make room
    /// for it.
    pub(super) fn queue(&self) -> Option<Queued> {
        let has_room = self.queued.send_if_modified(|count| {
            let has_room = *count < MAX_QUEUED;
            *count += usize::from(has_room);
            has_room
        });
        has_room.then(|| Queued(self.clone()))
    }

    /// Counts a connection that was one too many.
    pub(super) fn refuse(&self) {
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until every place is free; returns whether that is so within `limit`.
    pub(super) async fn are_free(&self, limit: Duration) -> bool {
        let all = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let free = async {
            // A connection may still move from the first to the second.
            let _short = self.short.acquire_many(all(MAX_CONNECTIONS)).await;
            let _long = self.long.acquire_many(all(MAX_LONG)).await;
        };
        timeout(limit, free).await.is_ok()
    }
}

impl Queued {
    /// Waits for a place, `limit` at most. The first one in the queue is the first one served.
    pub(super) async fn take(self, limit: Duration) -> Option<Seat> {
        let permit = Arc::clone(&self.0.short).acquire_owned();
        let permit = timeout(limit, permit).await.ok()?.ok()?;
        Some(self.0.seat(permit))
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.queued.send_modify(|count| *count -= 1);
    }
}

impl Seat {
    /// Returns whether other connections wait for a place: then each answer is the last of its
    /// connection.
    pub(super) fn is_wanted(&self) -> bool {
        *self.seats.queued.borrow() > 0
    }

    /// Waits until other connections wait for a place.
    pub(super) fn wanted(&self) -> impl Future<Output = ()> + use<> {
        let mut queued = self.seats.queued.subscribe();
        async move {
            // While a connection has a place, there is a sender.
            let _ = queued.wait_for(|count| *count > 0).await;
        }
    }

    /// Moves the connection to the places of long answers, where it stays: its answer is the last.
    /// From now on a client that closes its side has left, even if it would still read.
    ///
    /// # Errors
    /// The answer when all those places are taken.
    pub fn lengthen(&self) -> Result<(), Response> {
        let mut taken = self.taken();
        if taken.is_long {
            return Ok(());
        }
        let Ok(permit) = Arc::clone(&self.seats.long).try_acquire_owned() else {
            let refused = Response::error(503, "too many streams and waiting requests");
            return Err(refused.with("retry-after", "1"));
        };
        *taken = Taken {
            _permit: permit,
            is_long: true,
        };
        self.seats.counts.open.fetch_sub(1, Ordering::Relaxed);
        self.seats.counts.long.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Returns whether the answer takes long.
    pub(super) fn is_long(&self) -> bool {
        self.taken().is_long
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let counts = &self.seats.counts;
        let count = match self.is_long() {
            true => &counts.long,
            false => &counts.open,
        };
        count.fetch_sub(1, Ordering::Relaxed);
    }
}
