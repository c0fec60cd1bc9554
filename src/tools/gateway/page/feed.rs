//! Readers of the page: each gets everything first, and then what changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::model::page::Change;
use crate::net::http::{Response, event};
use crate::tools::gateway::page::log::{Event, Log, Read, Reader};
use crate::tools::gateway::page::snapshots::{Draft, Snapshot, Snapshots};

/// Maximum number of events, or parts of the first, between a reader and its connection.
pub(super) const MAX_QUEUED: usize = 4;

/// Writes everything as it is.
pub(super) trait Source: Clone + Send + Sync + 'static {
    /// Writes everything. The caller calls [`Feed::mark`] while nothing changes.
    fn write(&self, draft: &mut Draft);
}

/// What readers get.
#[derive(Debug)]
pub(super) struct Feed {
    /// Changes and messages.
    log: Arc<Log>,
    /// Number of the last change.
    number: AtomicU64,
    snapshots: Snapshots,
}

/// Sends a snapshot as an event; `None` when its reader has left, or is dropped.
async fn send_snapshot(snapshot: &Snapshot, sender: &mpsc::Sender<Bytes>) -> Option<()> {
    let (head, end) = event::around("network", snapshot.number);
    sender.send(head).await.ok()?;
    for n in 0..snapshot.count() {
        // Only what goes out next is held while the connection takes nothing.
        let room = sender.reserve().await.ok()?;
        room.send(snapshot.chunk(n)?);
    }
    sender.send(end).await.ok()
}

impl Feed {
    pub fn new() -> Self {
        Self {
            log: Arc::new(Log::new()),
            number: AtomicU64::new(0),
            snapshots: Snapshots::new(),
        }
    }

    /// Tells all readers of a change, or of a message. It belongs under the lock of what has changed.
    pub fn emit(&self, (name, data): Change) {
        let is_message = name == "message";
        // A message alone changes nothing.
        let id = match is_message {
            true => self.number(),
            false => self.number.fetch_add(1, Ordering::Relaxed) + 1,
        };
        self.log.add(|| Event {
            is_message,
            bytes: event::json(name, Some(id), &data),
        });
    }

    /// Returns the number of the last change.
    pub fn number(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }

    /// Notes that a draft has all changes up to now, and none after that.
    pub fn mark(&self, draft: &mut Draft) {
        draft.number = self.number();
        draft.place = self.log.next();
    }

    /// Returns whether there are readers.
    pub fn is_read(&self) -> bool {
        self.log.is_read()
    }

    /// Drops what is kept for readers that may come when it is old.
    pub fn forget(&self) {
        self.snapshots.forget();
    }

    /// Returns what readers share.
    #[cfg(test)]
    pub const fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// Returns everything, as JSON: as new as the request.
    ///
    /// # Errors
    /// The answer when it cannot be made.
    pub async fn network(&self, source: impl Source) -> Result<Response, Response> {
        let asked = Instant::now();
        let good =
            |own: &Snapshot| own.is_after(asked) || (own.number == self.number() && own.is_young());
        let got = self.snapshots.get(good, move |draft| source.write(draft));
        Ok(got.await?.response())
    }

    /// Returns the events for a new reader: first everything, then what changes, with or without `messages`.
    ///
    /// # Errors
    /// The answer when it cannot be made.
    pub async fn stream(
        self: &Arc<Self>,
        messages: bool,
        source: impl Source,
    ) -> Result<mpsc::Receiver<Bytes>, Response> {
        let (sender, receiver) = mpsc::channel(MAX_QUEUED);
        let mut reader = self.log.reader();
        let first = self.begin(&mut reader, &source).await?;
        let feed = Arc::clone(self);
        tokio::spawn(async move { feed.send(first, messages, (reader, source), sender).await });
        Ok(receiver)
    }

    /// Returns everything, and moves a reader to the first event after that.
    async fn begin(
        &self,
        reader: &mut Reader,
        source: &impl Source,
    ) -> Result<Arc<Snapshot>, Response> {
        let asked = Instant::now();
        let good = |own: &Snapshot| {
            let is_new = own.is_young() || own.is_after(asked);
            is_new && self.log.reaches(own.place)
        };
        let source = source.clone();
        let got = self.snapshots.get(good, move |draft| source.write(draft));
        let snapshot = got.await?;
        reader.go(snapshot.place);
        Ok(snapshot)
    }

    /// Sends events until the reader leaves, or takes too long for what it has begun: then it comes again.
    async fn send(
        &self,
        first: Arc<Snapshot>,
        messages: bool,
        (mut reader, source): (Reader, impl Source),
        sender: mpsc::Sender<Bytes>,
    ) {
        let mut begun = Some(first);
        loop {
            if let Some(snapshot) = begun.take()
                && send_snapshot(&snapshot, &sender).await.is_none()
            {
                return;
            }
            let next = tokio::select! {
                () = sender.closed() => return,
                next = reader.read() => next,
            };
            let bytes = match next {
                Read::Event(event) if event.is_message && !messages => continue,
                Read::Event(event) => event.bytes.clone(),
                Read::Missed(count) => {
                    // States were among them.
                    let Ok(snapshot) = self.begin(&mut reader, &source).await else {
                        return;
                    };
                    begun = Some(snapshot);
                    event::json("dropped", None, &json!({ "n": count }))
                }
            };
            if sender.send(bytes).await.is_err() {
                return;
            }
        }
    }
}
