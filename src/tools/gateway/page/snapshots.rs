//! Everything at some time, as all see it who come soon after it: one copy, in chunks.

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use crate::net::http::{Parts, Response};
use crate::tools::gateway::blocking::Threads;
use crate::tools::gateway::page::lock::lock;

/// Maximum age of what is shared: ages of nodes are in it.
pub(super) const AGE: Duration = Duration::from_secs(1);

/// Time between two, as a multiple of the time that one takes; `AGE` at most.
const PAUSE: u32 = 10;

/// Size of a chunk, bytes. A reader that does not read holds a few of them.
const CHUNK: usize = 16 * 1024;

/// Maximum size of all that readers hold, bytes. Beyond it the readers of the oldest are dropped.
const MAX_ALIVE: usize = 64 * 1024 * 1024;

/// Everything at some time.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// Number of the last change that is in it.
    pub number: u64,
    /// Place in the log of the first event after it.
    pub place: u64,
    begun: Instant,
    ended: Instant,
    size: usize,
    count: usize,
    /// Its JSON; nothing when its readers are dropped.
    chunks: Mutex<Vec<Bytes>>,
}

/// What a snapshot is made of.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub number: u64,
    pub place: u64,
    chunks: Vec<Bytes>,
    open: Vec<u8>,
    size: usize,
}

/// The last snapshot, and those that still have readers.
#[derive(Debug)]
pub(super) struct Snapshots {
    latest: Mutex<Option<Arc<Snapshot>>>,
    alive: Mutex<Vec<Weak<Snapshot>>>,
    /// When the next one may be made. One is made at a time.
    next: sync::Mutex<Option<Instant>>,
    threads: Threads,
}

impl Draft {
    /// Adds a part of the text.
    pub fn write(&mut self, mut part: &[u8]) {
        self.size += part.len();
        while !part.is_empty() {
            if self.open.capacity() == 0 {
                self.open.reserve_exact(CHUNK);
            }
            let room = CHUNK.saturating_sub(self.open.len()).min(part.len());
            let (now, later) = part.split_at(room);
            self.open.extend_from_slice(now);
            part = later;
            if self.open.len() >= CHUNK {
                self.chunks.push(std::mem::take(&mut self.open).into());
            }
        }
    }

    fn finish(mut self, begun: Instant) -> Snapshot {
        if !self.open.is_empty() {
            self.open.shrink_to_fit();
            self.chunks.push(self.open.into());
        }
        Snapshot {
            number: self.number,
            place: self.place,
            begun,
            ended: Instant::now(),
            size: self.size,
            count: self.chunks.len(),
            chunks: Mutex::new(self.chunks),
        }
    }
}

impl Snapshot {
    /// Returns whether it was begun after `time`.
    pub fn is_after(&self, time: Instant) -> bool {
        self.begun >= time
    }

    /// Returns whether it was made a short time ago.
    pub fn is_young(&self) -> bool {
        self.ended.elapsed() < AGE
    }

    /// Returns the number of its chunks.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Returns a chunk of its JSON; `None` when its readers are dropped.
    pub fn chunk(&self, n: usize) -> Option<Bytes> {
        lock(&self.chunks).get(n).cloned()
    }

    fn is_dropped(&self) -> bool {
        lock(&self.chunks).is_empty()
    }

    /// Returns it as an answer, which ends early when its readers are dropped.
    pub fn response(self: Arc<Self>) -> Response {
        let length = self.size;
        let mut chunks = 0..self.count;
        let next = move || chunks.next().and_then(|n| self.chunk(n));
        Response::parts("application/json", Parts::new(length, next))
    }
}

impl Snapshots {
    pub fn new() -> Self {
        Self {
            latest: Mutex::default(),
            alive: Mutex::default(),
            next: sync::Mutex::default(),
            threads: Threads::new(1),
        }
    }

    /// Returns the last snapshot if it is `good`, otherwise a new one that a thread makes. There are pauses
    /// between them.
    ///
    /// # Errors
    /// The answer when it cannot be made.
    pub async fn get(
        &self,
        good: impl Fn(&Snapshot) -> bool,
        make: impl FnOnce(&mut Draft) + Send + 'static,
    ) -> Result<Arc<Snapshot>, Response> {
        let known = || lock(&self.latest).clone().filter(|known| good(known));
        if let Some(known) = known() {
            return Ok(known);
        }
        let mut next = self.next.lock().await;
        // Another may have made one in the meantime.
        if let Some(known) = known() {
            return Ok(known);
        }
        if let Some(at) = *next {
            sleep_until(at).await;
        }
        let begun = Instant::now();
        // The caller may leave, and its thread goes on.
        *next = Some(begun + AGE);
        let made = move || {
            let mut draft = Draft::default();
            make(&mut draft);
            Ok(Arc::new(draft.finish(begun)))
        };
        let made = self.threads.run(None, made).await?;
        *next = Some(made.ended + ((made.ended - begun) * PAUSE).min(AGE));
        self.enter(&made);
        Ok(made)
    }

    /// Returns the last snapshot.
    #[cfg(test)]
    pub fn latest(&self) -> Option<Arc<Snapshot>> {
        lock(&self.latest).clone()
    }

    /// Drops the last one when it is old.
    pub fn forget(&self) {
        lock(&self.latest).take_if(|latest| !latest.is_young());
    }

    /// Makes `new` the last one. Drops the readers of the oldest if all are too large.
    fn enter(&self, new: &Arc<Snapshot>) {
        *lock(&self.latest) = Some(Arc::clone(new));
        let mut alive = lock(&self.alive);
        alive.retain(|old| old.upgrade().is_some_and(|old| !old.is_dropped()));
        let mut size = new.size;
        let mut dropped = 0;
        for old in alive.iter().rev().filter_map(Weak::upgrade) {
            size += old.size;
            if size > MAX_ALIVE {
                lock(&old.chunks).clear();
                dropped += 1;
            }
        }
        if dropped > 0 {
            info!("the page: dropped readers that have taken too long");
        }
        alive.push(Arc::downgrade(new));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(size: usize) -> impl FnOnce(&mut Draft) + Send + 'static {
        move |draft| draft.write(&vec![b'x'; size])
    }

    #[tokio::test]
    async fn text_is_cut_into_chunks_and_answered_whole() {
        let snapshots = Snapshots::new();
        let text: Vec<u8> = (0..3 * CHUNK + 7).map(|n| (n % 251) as u8).collect();
        let parts = text.clone();
        let make = move |draft: &mut Draft| parts.chunks(1_000).for_each(|part| draft.write(part));
        let snapshot = snapshots.get(|_| true, make).await.expect("snapshot");
        let chunks = (0..snapshot.count()).map(|n| snapshot.chunk(n).expect("chunk"));
        let chunks: Vec<Bytes> = chunks.collect();
        assert_eq!(chunks.concat(), text);
        assert!(chunks.iter().all(|chunk| chunk.len() <= CHUNK));
        assert_eq!(chunks.len(), 4);
    }

    #[tokio::test]
    async fn those_who_come_together_share_one() {
        let snapshots = Arc::new(Snapshots::new());
        let arrived = Instant::now();
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let snapshots = Arc::clone(&snapshots);
                tokio::spawn(async move {
                    let got = snapshots
                        .get(|known| known.is_after(arrived), make(1))
                        .await;
                    got.expect("snapshot")
                })
            })
            .collect();
        let mut all = Vec::new();
        for task in tasks {
            all.push(task.await.expect("task"));
        }
        assert!(all.iter().all(|one| Arc::ptr_eq(one, &all[0])));
        snapshots.forget();
        let mut old = Draft::default().finish(arrived);
        old.ended = Instant::now() - AGE;
        assert!(!old.is_young());
        *lock(&snapshots.latest) = Some(Arc::new(old));
        snapshots.forget();
        assert!(snapshots.latest().is_none());
    }

    #[tokio::test]
    async fn a_caller_that_leaves_does_not_have_them_made_all_the_time() {
        let snapshots = Snapshots::new();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        {
            let slow = snapshots.get(
                |_| false,
                move |_| {
                    let _ = wait.recv();
                },
            );
            tokio::pin!(slow);
            let left = tokio::time::timeout(Duration::from_millis(10), slow).await;
            assert!(left.is_err());
        }
        go.send(()).expect("send");
        let before = Instant::now();
        assert!(snapshots.next.lock().await.is_some_and(|at| at > before));
    }

    #[tokio::test]
    async fn readers_of_the_oldest_are_dropped_when_all_are_too_large() {
        let snapshots = Snapshots::new();
        let size = MAX_ALIVE / 4;
        let mut held = Vec::new();
        for _ in 0..6 {
            *snapshots.next.lock().await = None;
            held.push(snapshots.get(|_| false, make(size)).await.expect("one"));
        }
        let dropped: Vec<bool> = held.iter().map(|one| one.chunk(0).is_none()).collect();
        assert_eq!(dropped, [true, true, false, false, false, false]);
        // What has no readers takes nothing.
        held.clear();
        for _ in 0..2 {
            *snapshots.next.lock().await = None;
            held.push(snapshots.get(|_| false, make(size)).await.expect("one"));
        }
        assert!(held.iter().all(|one| one.chunk(0).is_some()));
        assert_eq!(lock(&snapshots.alive).len(), 2);
    }
}
