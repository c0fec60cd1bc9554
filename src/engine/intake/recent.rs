//! Notes about the last messages, in memory, and those who read them live.
//!
//! Ignored messages and duplicates leave nothing in the ledger, because they would cost a commit
//! each. The ledger has the others, so these are only for readers that are there now.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::model::note::{Fate, Line, Note};

/// Maximum number of notes to keep.
const MAX_NOTES: usize = 1000;

/// Maximum memory of the notes, bytes.
const MAX_BYTES: usize = 512 * 1024;

/// Maximum number of lines that wait for one reader. It loses the following ones.
const MAX_LINES: usize = 1000;

/// Maximum number of readers.
const MAX_READERS: usize = 8;

/// Notes about the last messages. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Recent(Arc<Mutex<Notes>>);

#[derive(Debug, Default)]
struct Notes {
    kept: VecDeque<Note>,
    bytes: usize,
    forgotten: u64,
    readers: Vec<Reader>,
}

#[derive(Debug)]
struct Reader {
    lines: mpsc::Sender<Arc<str>>,
    /// Number of notes that were not taken in time, and not reported.
    lost: u64,
}

/// What a new reader gets.
#[derive(Debug)]
pub struct Reading {
    /// The notes so far, oldest first.
    pub kept: Vec<Note>,
    /// Number of older notes that were forgotten.
    pub forgotten: u64,
    /// Lines that follow.
    pub lines: mpsc::Receiver<Arc<str>>,
}

impl Recent {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether there is a reader now.
    pub fn is_read(&self) -> bool {
        !self.notes().readers.is_empty()
    }

    /// Adds a note. Readers get it if they keep up; this never waits.
    pub fn add(&self, note: Note) {
        let note = note.bounded();
        let notes = &mut *self.notes();
        if !notes.readers.is_empty() {
            let line: Arc<str> = Line::Note(note.clone()).to_text().into();
            notes.readers.retain_mut(|reader| reader.take(&line));
        }
        if matches!(note.fate, Fate::Accepted | Fate::Refused) {
            // The ledger has it.
            return;
        }
        notes.bytes += note.memory();
        notes.kept.push_back(note);
        while notes.kept.len() > MAX_NOTES || notes.bytes > MAX_BYTES {
            let Some(oldest) = notes.kept.pop_front() else {
                break;
            };
            notes.bytes -= oldest.memory();
            notes.forgotten += 1;
        }
    }

    /// Adds a reader; `None` if there are too many.
    pub fn read(&self) -> Option<Reading> {
        let notes = &mut *self.notes();
        notes.readers.retain(|reader| !reader.lines.is_closed());
        if notes.readers.len() >= MAX_READERS {
            return None;
        }
        let (sender, lines) = mpsc::channel(MAX_LINES);
        notes.readers.push(Reader {
            lines: sender,
            lost: 0,
        });
        Some(Reading {
            kept: notes.kept.iter().cloned().collect(),
            forgotten: notes.forgotten,
            lines,
        })
    }
}

impl Reader {
    /// Gives the reader a line. Returns whether it is still there.
    fn take(&mut self, line: &Arc<str>) -> bool {
        if self.lost > 0 {
            let lost = Line::Lost { count: self.lost };
            match self.lines.try_send(lost.to_text().into()) {
                Ok(()) => self.lost = 0,
                Err(TrySendError::Full(_)) => {
                    self.lost += 1;
                    return true;
                }
                Err(TrySendError::Closed(_)) => return false,
            }
        }
        match self.lines.try_send(Arc::clone(line)) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.lost += 1;
                true
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(fate: Fate, n: usize, topic: usize) -> Note {
        Note {
            at: i64::try_from(n).expect("number"),
            fate,
            trigger: String::new(),
            topic: "t".repeat(topic),
            event: String::new(),
            unit: None,
            why: String::new(),
            aside: false,
        }
    }

    #[test]
    fn the_oldest_are_forgotten_by_number_and_by_size() {
        let recent = Recent::default();
        (0..MAX_NOTES + 5).for_each(|n| recent.add(note(Fate::Ignored, n, 1)));
        let reading = recent.read().expect("reader");
        assert_eq!((reading.kept.len(), reading.forgotten), (MAX_NOTES, 5));
        assert_eq!(reading.kept.first().expect("note").at, 5);
        (0..MAX_NOTES).for_each(|n| recent.add(note(Fate::Duplicate, n, 1000)));
        let kept = recent.read().expect("reader").kept;
        let bytes: usize = kept.iter().map(Note::memory).sum();
        assert!(bytes <= MAX_BYTES && kept.len() > 100 && kept.len() < MAX_NOTES);
        assert_eq!(recent.notes().bytes, bytes);
    }

    #[test]
    fn what_the_ledger_has_is_for_those_who_read_now() {
        let recent = Recent::default();
        recent.add(note(Fate::Accepted, 1, 1));
        let mut reading = recent.read().expect("reader");
        assert!(reading.kept.is_empty() && reading.forgotten == 0);
        assert!(recent.is_read());
        recent.add(note(Fate::Refused, 2, 1));
        let line = reading.lines.try_recv().expect("line");
        assert_eq!(
            Line::parse(&line),
            Some(Line::Note(note(Fate::Refused, 2, 1)))
        );
        drop(reading);
        recent.add(note(Fate::Ignored, 3, 1));
        assert!(!recent.is_read());
    }

    #[test]
    fn a_slow_reader_loses_lines_and_is_told() {
        let recent = Recent::default();
        let mut reading = recent.read().expect("reader");
        (0..MAX_LINES + 7).for_each(|n| recent.add(note(Fate::Ignored, n, 1)));
        let mut next = || Line::parse(&reading.lines.try_recv().expect("line"));
        for n in 0..MAX_LINES {
            assert_eq!(next(), Some(Line::Note(note(Fate::Ignored, n, 1))));
        }
        recent.add(note(Fate::Ignored, 0, 1));
        assert_eq!(next(), Some(Line::Lost { count: 7 }));
        assert_eq!(next(), Some(Line::Note(note(Fate::Ignored, 0, 1))));
    }

    #[test]
    fn readers_are_bounded() {
        let recent = Recent::default();
        let mut readings: Vec<_> = (0..MAX_READERS).map(|_| recent.read()).collect();
        assert!(readings.iter().all(Option::is_some) && recent.read().is_none());
        readings.pop();
        assert!(recent.read().is_some(), "one has left");
    }
}
