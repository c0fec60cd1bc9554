//! Letters for one broker of queues. As many as fit are in memory; the ledger holds all.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Result;
use crate::model::letter::Letter;
use crate::store::ledger::queues::letters;
use crate::store::ledger::{Posted, Reader};

/// Maximum number of letters in memory, and of their bytes. One larger letter is there alone.
const MAX_ROWS: usize = 256;
const MAX_BYTES: usize = 8 << 20;

/// Maximum number of letters that are sent and not confirmed.
const WINDOW: usize = 64;

/// Delay before a letter is sent again that the broker does not take: the first one, which doubles.
const FIRST_DELAY: Duration = Duration::from_secs(30);
const MAX_DOUBLINGS: u32 = 7;

/// State of a letter in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It waits for its turn.
    Waits,
    /// It is sent.
    Sent,
    /// The broker does not take it, and it waits until then.
    Refused(Instant),
}

#[derive(Debug)]
struct Row {
    posted: Posted,
    stage: Stage,
    refusals: u32,
}

/// The letters of one source, in order.
#[derive(Debug)]
pub struct LetterBox {
    rows: VecDeque<Row>,
    bytes: usize,
    /// Number of the last letter that was in memory.
    last: u64,
    /// Whether the ledger may hold letters after it.
    is_behind: bool,
}

impl Default for LetterBox {
    fn default() -> Self {
        Self {
            rows: VecDeque::new(),
            bytes: 0,
            last: 0,
            // An earlier client may have left some.
            is_behind: true,
        }
    }
}

impl LetterBox {
    /// Adds letters that are in the ledger now, in its order.
    pub fn extend(&mut self, posted: impl IntoIterator<Item = Posted>) {
        for posted in posted {
            self.is_behind |= self.is_full();
            if !self.is_behind {
                self.push(posted);
            }
        }
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= MAX_ROWS || self.bytes >= MAX_BYTES
    }

    fn push(&mut self, posted: Posted) {
        self.last = posted.seq;
        self.bytes += posted.letter.body.len();
        self.rows.push_back(Row {
            posted,
            stage: Stage::Waits,
            refusals: 0,
        });
    }

    /// Passes the letters that may go out now to `send`. Reads letters of `source` from the ledger as
    /// there is room.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn flush(
        &mut self,
        reader: &Reader,
        source: &str,
        mut send: impl FnMut(u64, &Letter),
    ) -> Result<()> {
        if self.is_behind && self.rows.len() <= MAX_ROWS / 2 && self.bytes <= MAX_BYTES / 2 {
            let list = letters(reader, source, self.last, MAX_ROWS / 2, MAX_BYTES / 2)?;
            self.is_behind = !list.is_empty();
            list.into_iter().for_each(|posted| self.push(posted));
        }
        let now = Instant::now();
        let sent = |row: &&Row| row.stage == Stage::Sent;
        let mut room = WINDOW.saturating_sub(self.rows.iter().filter(sent).count());
        for row in &mut self.rows {
            if room == 0 {
                break;
            }
            let may = match row.stage {
                Stage::Waits => true,
                Stage::Sent => false,
                Stage::Refused(until) => until <= now,
            };
            if may {
                send(row.posted.seq, &row.posted.letter);
                row.stage = Stage::Sent;
                room -= 1;
            }
        }
        Ok(())
    }

    /// Returns when [`LetterBox::flush`] has work without an event.
    pub fn wake(&self) -> Option<Instant> {
        let until = |row: &Row| match row.stage {
            Stage::Refused(until) => Some(until),
            Stage::Waits | Stage::Sent => None,
        };
        self.rows.iter().filter_map(until).min()
    }

    /// Removes a letter that the broker has. Returns whether it was here.
    pub fn sent(&mut self, seq: u64) -> bool {
        let Some(place) = self.rows.iter().position(|row| row.posted.seq == seq) else {
            return false;
        };
        if let Some(row) = self.rows.remove(place) {
            self.bytes = self.bytes.saturating_sub(row.posted.letter.body.len());
        }
        true
    }

    /// Notes that the broker does not take a letter. It stays, is sent again later, and others overtake
    /// it. Returns the name of its queue, if that happens for the first time.
    pub fn refused(&mut self, seq: u64) -> Option<&str> {
        let row = self.rows.iter_mut().find(|row| row.posted.seq == seq)?;
        let delay = FIRST_DELAY.saturating_mul(1 << row.refusals.min(MAX_DOUBLINGS));
        row.stage = Stage::Refused(Instant::now() + delay);
        row.refusals = row.refusals.saturating_add(1);
        (row.refusals == 1).then_some(&*row.posted.letter.key)
    }

    /// Returns the number of the dead letter about `unit`, if the broker may still take it.
    pub fn dead(&self, unit: &str) -> Option<u64> {
        let about = |row: &&Row| {
            let letter = &row.posted.letter;
            letter.dead && letter.unit.as_deref() == Some(unit)
        };
        let row = self.rows.iter().find(about)?;
        (!matches!(row.stage, Stage::Refused(_))).then_some(row.posted.seq)
    }

    /// Returns whether the broker may still take this letter.
    pub fn is_under_way(&self, seq: u64) -> bool {
        let mut rows = self.rows.iter();
        rows.any(|row| row.posted.seq == seq && !matches!(row.stage, Stage::Refused(_)))
    }

    /// Returns how many letters are in memory.
    pub fn len(&self) -> usize {
        self.rows.len()
    }
}
