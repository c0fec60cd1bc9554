//! The last events, for all readers: each reads at its own pace, from its own place.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::watch;

use crate::tools::gateway::page::lock::lock;

/// Maximum number of events that wait for the slowest reader, and of their bytes. It is told how many it
/// has missed.
pub(super) const MAX_EVENTS: usize = 1_024;
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// An event, as it goes out.
#[derive(Debug)]
pub(super) struct Event {
    pub is_message: bool,
    pub bytes: Bytes,
}

/// The last events.
#[derive(Debug)]
pub(super) struct Log {
    events: Mutex<Events>,
    /// Number of the next event.
    next: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Events {
    last: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Number of the next event.
    next: u64,
    readers: usize,
}

/// A reader of the log, at its place.
#[derive(Debug)]
pub(super) struct Reader {
    log: Arc<Log>,
    next: watch::Receiver<u64>,
    place: u64,
}

/// What a reader gets.
#[derive(Debug)]
pub(super) enum Read {
    Event(Arc<Event>),
    /// This number of events is gone. The reader needs another place.
    Missed(u64),
}

impl Events {
    /// Returns the number of the first event that there is.
    fn first(&self) -> u64 {
        self.next.saturating_sub(self.last.len() as u64)
    }

    fn drop_first(&mut self) {
        if let Some(first) = self.last.pop_front() {
            self.bytes = self.bytes.saturating_sub(first.bytes.len());
        }
    }
}

impl Log {
    pub fn new() -> Self {
        Self {
            events: Mutex::default(),
            next: watch::channel(0).0,
        }
    }

    fn events(&self) -> MutexGuard<'_, Events> {
        lock(&self.events)
    }

    /// Returns the number of the next event.
    pub fn next(&self) -> u64 {
        self.events().next
    }

    /// Returns whether all events from `place` on are there.
    pub fn reaches(&self, place: u64) -> bool {
        self.events().first() <= place
    }

    /// Returns whether there are readers.
    pub fn is_read(&self) -> bool {
        self.events().readers > 0
    }

    /// Adds an event. It is made only if there are readers.
    pub fn add(&self, event: impl FnOnce() -> Event) {
        let mut events = self.events();
        events.next += 1;
        if events.readers == 0 {
            events.last.clear();
            events.bytes = 0;
            return;
        }
        let event = event();
        events.bytes += event.bytes.len();
        events.last.push_back(Arc::new(event));
        while events.last.len() > MAX_EVENTS || events.bytes > MAX_BYTES {
            events.drop_first();
        }
        self.next.send_replace(events.next);
    }

    /// Returns a reader whose place is the next event. From now on events are kept.
    pub fn reader(self: &Arc<Self>) -> Reader {
        let mut events = self.events();
        events.readers += 1;
        Reader {
            log: Arc::clone(self),
            next: self.next.subscribe(),
            place: events.next,
        }
    }
}

impl Reader {
    /// Moves it to `place`.
    pub fn go(&mut self, place: u64) {
        self.place = place;
    }

    /// Waits for the event at its place, and moves on. May be dropped before that.
    pub async fn read(&mut self) -> Read {
        loop {
            // An event that comes after this look is seen by the wait.
            self.next.borrow_and_update();
            if let Some(read) = self.look() {
                return read;
            }
            // The log has the sender, and we have the log.
            let _ = self.next.changed().await;
        }
    }

    fn look(&mut self) -> Option<Read> {
        let events = self.log.events();
        let first = events.first();
        if self.place < first {
            return Some(Read::Missed(first - self.place));
        }
        let at = usize::try_from(self.place - first).ok()?;
        let event = events.last.get(at)?;
        self.place += 1;
        Some(Read::Event(Arc::clone(event)))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut events = self.log.events();
        events.readers = events.readers.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(length: usize) -> Event {
        Event {
            is_message: false,
            bytes: vec![b'x'; length].into(),
        }
    }

    #[tokio::test]
    async fn every_reader_gets_every_event_once() {
        let log = Arc::new(Log::new());
        log.add(|| panic!("there is no reader"));
        let mut first = log.reader();
        for length in 1..=3 {
            log.add(|| event(length));
        }
        let mut second = log.reader();
        second.go(2);
        for (reader, lengths) in [(&mut first, 1..=3), (&mut second, 2..=3)] {
            for length in lengths {
                let Read::Event(event) = reader.read().await else {
                    panic!("missed");
                };
                assert_eq!(event.bytes.len(), length);
            }
            assert!(reader.look().is_none());
        }
        assert!(log.reaches(1) && !log.reaches(0));
        drop((first, second));
        log.add(|| panic!("there is no reader"));
        assert!(log.reaches(5) && !log.reaches(4));
    }

    #[tokio::test]
    async fn a_reader_that_waits_is_woken() {
        let log = Arc::new(Log::new());
        let mut reader = log.reader();
        let task = tokio::spawn(async move { reader.read().await });
        tokio::task::yield_now().await;
        log.add(|| event(7));
        let read = task.await.expect("task");
        assert!(matches!(read, Read::Event(event) if event.bytes.len() == 7));
    }

    #[tokio::test]
    async fn events_are_bounded_in_number_and_bytes() {
        let log = Arc::new(Log::new());
        let mut reader = log.reader();
        for _ in 0..MAX_EVENTS + 5 {
            log.add(|| event(1));
        }
        assert!(matches!(reader.read().await, Read::Missed(5)));
        for _ in 0..3 {
            log.add(|| event(MAX_BYTES / 2));
        }
        assert!(
            matches!(reader.read().await, Read::Missed(missed) if missed == MAX_EVENTS as u64 + 6)
        );
        reader.go(log.next());
        log.add(|| event(9));
        assert!(matches!(reader.read().await, Read::Event(event) if event.bytes.len() == 9));
    }
}
