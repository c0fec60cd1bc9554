//! Runs that were shown as accepted and have not ended. Their ends are shown when they come.

use std::collections::VecDeque;
use std::path::PathBuf;

use crate::model::note::{Fate, Note};
use crate::store::ledger::Reader;
use crate::store::ledger::received::{Now, now};

/// Maximum number of runs that are looked for. The ends of older ones are not shown.
pub const MAX_RUNS: usize = 1000;

/// A run whose end is awaited.
#[derive(Debug, Clone)]
pub struct Awaited {
    /// Number of its pipeline.
    pub who: usize,
    /// The note about its event; it names the unit.
    pub note: Note,
    unit: String,
}

/// The runs, oldest first.
#[derive(Debug, Default)]
pub struct Runs {
    open: VecDeque<Awaited>,
    /// Number of runs that had no room.
    forgotten: u64,
}

impl Runs {
    /// Adds the run of an accepted message. Returns whether it is the first one for which another had
    /// to be forgotten.
    pub fn add(&mut self, who: usize, note: &Note) -> bool {
        let Some(unit) = note.unit.clone().filter(|_| note.fate == Fate::Accepted) else {
            return false;
        };
        if self.open.iter().any(|run| run.unit == unit) {
            return false;
        }
        self.open.push_back(Awaited {
            who,
            note: note.clone(),
            unit,
        });
        if self.open.len() <= MAX_RUNS {
            return false;
        }
        self.open.pop_front();
        self.forgotten += 1;
        self.forgotten == 1
    }

    /// Takes the runs that have ended, as far as the ledgers of `pipelines` can be read, with their
    /// ends. The retry of one is awaited instead.
    pub fn ended(&mut self, pipelines: &[(String, PathBuf)]) -> Vec<(Awaited, Now)> {
        let mut ended = Vec::new();
        for (who, (_, folder)) in pipelines.iter().enumerate() {
            if !self.open.iter().any(|run| run.who == who) {
                continue;
            }
            // One that cannot be read now is read at the next look.
            let Ok(reader) = Reader::open(folder) else {
                continue;
            };
            self.open.retain(|run| {
                if run.who != who {
                    return true;
                }
                match now(&reader, &run.unit) {
                    Ok(Now::Open) | Err(_) => true,
                    Ok(now) => {
                        ended.push((run.clone(), now));
                        false
                    }
                }
            });
        }
        for (run, now) in &ended {
            if let Now::Ended(end) = now
                && end.retry.is_some()
            {
                let note = Note {
                    unit: end.retry.clone(),
                    ..run.note.clone()
                };
                self.add(run.who, &note);
            }
        }
        ended.sort_by_key(|(_, now)| now.ended_at());
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_and_that_is_told_once() {
        let note = |n: usize, fate| Note {
            at: 0,
            fate,
            trigger: String::new(),
            topic: String::new(),
            event: String::new(),
            unit: Some(n.to_string()),
            why: String::new(),
            aside: false,
        };
        let mut runs = Runs::default();
        for n in 0..MAX_RUNS {
            assert!(!runs.add(0, &note(n, Fate::Accepted)));
        }
        assert!(!runs.add(0, &note(5, Fate::Accepted)), "it is there");
        assert!(!runs.add(0, &note(MAX_RUNS, Fate::Duplicate)), "it is over");
        assert!(runs.add(0, &note(MAX_RUNS, Fate::Accepted)));
        assert!(!runs.add(0, &note(MAX_RUNS + 1, Fate::Accepted)));
        assert_eq!(runs.open.len(), MAX_RUNS);
        assert_eq!(runs.open.front().map(|run| &*run.unit), Some("2"));
    }
}
