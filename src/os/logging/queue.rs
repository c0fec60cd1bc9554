//! Lines for a target that may hang: a stopped terminal, a pipe without a reader, a hung journald.
//! The process goes on. Lines without room are dropped and counted.

use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Maximum size of all lines that wait, bytes; further ones are dropped and counted.
const MAX_WAITING_BYTES: usize = 1024 * 1024;

/// Stack of a thread that may log, bytes. The first line of a process reads the time zone, which
/// takes up to 300 KiB. Unused pages take no memory.
pub const STACK: usize = 1024 * 1024;

/// Target of the lines of a queue.
#[derive(Debug, Clone, Copy)]
pub struct Sink {
    /// Writes one line; may block.
    pub write: fn(&[u8]) -> io::Result<()>,
    /// Returns whether writing never blocks, as for a file on a disk.
    pub never_blocks: fn() -> bool,
    /// Returns whether it can write one line now without blocking.
    pub is_ready: fn() -> bool,
    /// Returns the line that says how many lines were lost.
    pub lost: fn(u64) -> Vec<u8>,
}

/// A bounded queue with a thread that writes.
#[derive(Debug)]
pub struct Queue {
    sink: Sink,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    lines: VecDeque<Vec<u8>>,
    /// Bytes of `lines` and of the line that is being written.
    bytes: usize,
    /// Number of lines that were dropped since that was last logged.
    lost: u64,
    is_writing: bool,
    has_thread: bool,
}

impl State {
    fn is_idle(&self) -> bool {
        self.lines.is_empty() && !self.is_writing
    }

    fn add(&mut self, line: Vec<u8>) {
        self.bytes += line.len();
        self.lines.push_back(line);
    }
}

impl Queue {
    /// Returns an empty queue. Its thread starts with the first line that may block.
    pub const fn new(sink: Sink) -> Self {
        Self {
            sink,
            state: Mutex::new(State {
                lines: VecDeque::new(),
                bytes: 0,
                lost: 0,
                is_writing: false,
                has_thread: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line; never blocks. If the queue is full, the line is dropped and counted.
    pub fn push(&'static self, line: Vec<u8>) {
        let mut state = self.lock();
        if state.is_idle() && (self.sink.never_blocks)() {
            // A log on a full disk cannot report that.
            let _ = (self.sink.write)(&line);
            return;
        }
        if state.bytes + line.len() > MAX_WAITING_BYTES {
            state.lost += 1;
            return;
        }
        if let Some(lost) = take(&mut state.lost) {
            state.add((self.sink.lost)(lost));
        }
        state.add(line);
        if !state.has_thread {
            let thread = thread::Builder::new().name("log".into()).stack_size(STACK);
            state.has_thread = thread.spawn(|| self.work()).is_ok();
        }
        if !state.has_thread {
            // Without a thread, lines are written here while that does not block.
            while (self.sink.is_ready)()
                && let Some(line) = state.lines.pop_front()
            {
                state.bytes -= line.len();
                let _ = (self.sink.write)(&line);
            }
        }
        self.changed.notify_all();
    }

    /// Waits until all lines are written, for `limit` at most. Returns whether they are.
    pub fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while !state.is_idle() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !state.has_thread {
                return false;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            let Some(line) = state.lines.pop_front() else {
                let waited = self.changed.wait(state);
                state = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.is_writing = true;
            drop(state);
            let written = (self.sink.write)(&line);
            state = self.lock();
            state.is_writing = false;
            state.bytes -= line.len();
            match written {
                Ok(()) if state.lines.is_empty() => {
                    if let Some(lost) = take(&mut state.lost) {
                        state.add((self.sink.lost)(lost));
                    }
                }
                Ok(()) => {}
                Err(_) => state.lost += 1,
            }
            self.changed.notify_all();
        }
    }
}

/// Takes a count that is not 0.
fn take(count: &mut u64) -> Option<u64> {
    Some(std::mem::take(count)).filter(|count| *count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written lines, and whether writing blocks.
    static WRITTEN: Mutex<(Vec<String>, bool)> = Mutex::new((Vec::new(), true));
    static GO: Condvar = Condvar::new();

    fn write(line: &[u8]) -> io::Result<()> {
        let state = WRITTEN.lock().expect("lock");
        let mut state = GO.wait_while(state, |state| state.1).expect("lock");
        state.0.push(String::from_utf8_lossy(line).into_owned());
        Ok(())
    }

    static QUEUE: Queue = Queue::new(Sink {
        write,
        never_blocks: || false,
        is_ready: || false,
        lost: |count| format!("{count} lost").into_bytes(),
    });

    #[test]
    fn a_sink_that_blocks_costs_lines_and_says_how_many() {
        const LINES: usize = 10;
        let long = vec![b'x'; MAX_WAITING_BYTES / LINES];
        for _ in 0..LINES + 7 {
            QUEUE.push(long.clone());
        }
        assert!(!QUEUE.flush(Duration::from_millis(20)));
        WRITTEN.lock().expect("lock").1 = false;
        GO.notify_all();
        // The line about the lost ones may come after the queue was empty once.
        while WRITTEN.lock().expect("lock").0.len() <= LINES {
            QUEUE.flush(Duration::from_secs(60));
        }
        QUEUE.push(b"after".to_vec());
        assert!(QUEUE.flush(Duration::from_secs(60)));
        let written = WRITTEN.lock().expect("lock").0.clone();
        assert_eq!(written.len(), LINES + 2);
        assert_eq!(written[LINES..], ["7 lost", "after"]);
    }
}
