//! Places of connections: many short requests, and apart from them answers that take long.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{Duration, Instant, sleep_until, timeout};

use crate::model::gateway::rate::Caller;
use crate::net::http::table::{Phase, Table, Taken};
use crate::net::http::{MIN_RATE, Response, Times};

/// Maximum number of connections without a place that are read until their clients close them. Others
/// are closed at once.
const MAX_LINGERING: usize = 64;

/// Numbers about the connections of a server.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections there are, without those with a long answer.
    pub open: AtomicU64,
    /// Connections with a long answer.
    pub long: AtomicU64,
    /// Connections that were one too many.
    pub refused: AtomicU64,
    /// Connections that were ended for those of other callers.
    pub ousted: AtomicU64,
}

/// The places of a server.
#[derive(Debug, Clone)]
pub(super) struct Seats {
    table: Arc<Mutex<Table<oneshot::Sender<Seat>>>>,
    /// Tells that connections may have to give way.
    changed: Arc<Notify>,
    /// Number of connections with a place.
    count: watch::Sender<usize>,
    lingering: Arc<Semaphore>,
    counts: Arc<Counts>,
}

/// A connection that waits for a place. It leaves the queue when this is dropped.
#[derive(Debug)]
pub(super) struct Queued {
    seats: Seats,
    id: u64,
    told: oneshot::Receiver<Seat>,
}

/// The place of a connection, which is free when this is dropped.
#[derive(Debug)]
pub struct Seat {
    seats: Seats,
    id: u64,
    caller: Caller,
    ousted: watch::Receiver<bool>,
    /// When the client has to have read the present answer.
    due: Mutex<Option<Instant>>,
}

impl Seats {
    pub(super) fn new(counts: Arc<Counts>) -> Self {
        Self {
            table: Arc::default(),
            changed: Arc::default(),
            count: watch::channel(0).0,
            lingering: Arc::new(Semaphore::new(MAX_LINGERING)),
            counts,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table<oneshot::Sender<Seat>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a place for a connection of `caller`, unless all are taken.
    pub(super) fn take(&self, caller: Caller) -> Option<Seat> {
        let taken = self.table().take(caller, Instant::now());
        taken.map(|taken| self.seat(taken))
    }

    fn seat(&self, Taken { id, caller, ousted }: Taken) -> Seat {
        self.counts.open.fetch_add(1, Ordering::Relaxed);
        self.count.send_modify(|count| *count += 1);
        Seat {
            seats: self.clone(),
            id,
            caller,
            ousted,
            due: Mutex::default(),
        }
    }

    /// Lets a connection of `caller` wait for a place, unless too many wait. Others make room for it.
    pub(super) fn queue(&self, caller: Caller) -> Option<Queued> {
        let (tell, told) = oneshot::channel();
        let id = self.table().enqueue(caller, tell, Instant::now())?;
        self.changed.notify_one();
        Some(Queued {
            seats: self.clone(),
            id,
            told,
        })
    }

    /// Hands free places to those that wait.
    fn hand_over(&self) {
        loop {
            let next = self.table().next(Instant::now());
            let Some((tell, taken)) = next else {
                return;
            };
            // One that has left frees it again.
            let _ = tell.send(self.seat(taken));
        }
    }

    /// Has connections give way to those that wait, for ever.
    pub(super) async fn work(&self, times: Times) {
        loop {
            let (moved, slow) = self.table().relieve(Instant::now(), &times);
            if moved > 0 {
                let count = u64::try_from(moved).unwrap_or(u64::MAX);
                self.counts.open.fetch_sub(count, Ordering::Relaxed);
                self.counts.long.fetch_add(count, Ordering::Relaxed);
                self.hand_over();
                continue;
            }
            let next = self.table().give_way(Instant::now(), &times);
            let next = next.into_iter().chain(slow).min();
            let due = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = due => {}
            }
        }
    }

    /// Counts a connection that was one too many.
    pub(super) fn refuse(&self) {
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns what allows a connection without a place to be read until its client closes it.
    pub(super) fn linger(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.lingering).try_acquire_owned().ok()
    }

    /// Waits until every place is free; returns whether that is so within `limit`.
    pub(super) async fn are_free(&self, limit: Duration) -> bool {
        let mut count = self.count.subscribe();
        let free = count.wait_for(|count| *count == 0);
        timeout(limit, free).await.is_ok()
    }
}

impl Queued {
    /// Waits for a place, `limit` at most. There is none if others have the better right to wait.
    pub(super) async fn take(mut self, limit: Duration) -> Option<Seat> {
        timeout(limit, &mut self.told).await.ok()?.ok()
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.seats.table().leave(self.id);
    }
}

impl Seat {
    /// Returns whether others wait for the place: then each answer is the last of its connection.
    pub(super) fn is_wanted(&self) -> bool {
        self.is_ousted() || self.seats.table().is_wanted(self.id)
    }

    /// Returns who has the connection.
    #[must_use]
    pub const fn caller(&self) -> Caller {
        self.caller
    }

    /// Returns whether the connection gives way to others.
    #[must_use]
    pub fn is_ousted(&self) -> bool {
        *self.ousted.borrow()
    }

    /// Waits until the connection gives way to others. An answer that waits for something ends then.
    pub fn ousted(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ousted = self.ousted.clone();
        async move {
            // The place may be free already.
            let _ = ousted.wait_for(|is_ousted| *is_ousted).await;
        }
    }

    /// Has an answer of another caller end of which nothing has been read for `patience`: what it takes is
    /// wanted for this connection.
    pub fn oust_unread(&self, patience: Duration) {
        let now = Instant::now();
        self.seats.table().oust_unread(self.caller, patience, now);
    }

    /// Notes what the connection is about now.
    pub(super) fn enter(&self, phase: Phase) {
        let mut table = self.seats.table();
        table.enter(self.id, phase, Instant::now());
        if table.has_queue() {
            self.seats.changed.notify_one();
        }
    }

    /// Notes that an answer goes out, which the client has to read in time if its `length` is known.
    pub(super) fn send(&self, length: Option<usize>, stall: Duration) {
        let seconds = |length: usize| u64::try_from(length / MIN_RATE).unwrap_or(u64::MAX);
        let due = length.map(|length| Duration::from_secs(seconds(length)).saturating_add(stall));
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) =
            due.and_then(|due| Instant::now().checked_add(due));
        self.enter(Phase::Sending);
    }

    /// Returns when the client has to have read the present answer.
    pub(super) fn due(&self) -> Option<Instant> {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what the connection is about.
    pub(super) fn phase(&self) -> Option<Phase> {
        self.seats.table().phase(self.id)
    }

    /// Returns what allows to read the connection on without this place.
    pub(super) fn linger(&self) -> Option<OwnedSemaphorePermit> {
        self.seats.linger()
    }

    /// Moves the connection to the places of long answers, where it stays: its answer is the last.
    /// From now on a client that closes its side has left, even if it would still read. The answer ends
    /// early, as [`Seat::ousted`] says, if others have too few of those places.
    ///
    /// # Errors
    /// The answer when all those places are taken.
    pub fn lengthen(&self) -> Result<(), Response> {
        let mut table = self.seats.table();
        if table.is_long(self.id) {
            table.ask(self.id);
            return Ok(());
        }
        if !table.lengthen(self.id, Instant::now()) {
            let refused = Response::error(503, "too many streams and waiting requests");
            return Err(refused.with("retry-after", "1"));
        }
        drop(table);
        self.seats.counts.open.fetch_sub(1, Ordering::Relaxed);
        self.seats.counts.long.fetch_add(1, Ordering::Relaxed);
        self.seats.hand_over();
        Ok(())
    }

    /// Returns whether the answer has asked for a long place: its client has to stay.
    pub(super) fn has_asked(&self) -> bool {
        self.seats.table().has_asked(self.id)
    }

    /// Returns whether the answer takes long.
    pub(super) fn is_long(&self) -> bool {
        self.seats.table().is_long(self.id)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let counts = &self.seats.counts;
        let count = match self.seats.table().free(self.id) {
            true => &counts.long,
            false => &counts.open,
        };
        count.fetch_sub(1, Ordering::Relaxed);
        counts
            .ousted
            .fetch_add(u64::from(self.is_ousted()), Ordering::Relaxed);
        self.seats.count.send_modify(|count| *count -= 1);
        self.seats.hand_over();
    }
}
