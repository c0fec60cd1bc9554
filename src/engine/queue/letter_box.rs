//! Letters for one broker of queues. As many as fit are in memory; the ledger holds all.
//!
//! A letter can make the broker close the connection, and then nothing says which one it was. A letter
//! that was refused, or that looks like that, goes out alone. So it cannot hold up the others.

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

/// Maximum number of refused letters in memory, and of their bytes. Others are in the ledger only, and
/// are read again after a time, so that there is room for letters to other queues.
const MAX_REFUSED: usize = MAX_ROWS / 4;
const MAX_REFUSED_BYTES: usize = MAX_BYTES / 4;
const READ_AGAIN: Duration = Duration::from_secs(600);

/// Maximum number of refusals of a report. After that its sender hears nothing: after four hours it does
/// not wait any more.
const MAX_REPORT_REFUSALS: u32 = 8;

/// Beginning of the name under which RabbitMQ sends to a connection that waits for an answer (RabbitMQ,
/// "Direct Reply-to"). RabbitMQ 3.10 closes our connection if the rest of the name is forged.
const DIRECT: &str = "amq.rabbitmq.reply-to";

/// Maximum number of queues whose refusals are remembered, so that each is logged once.
const MAX_SAID: usize = 16;

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

impl Row {
    fn size(&self) -> usize {
        self.posted.letter.body.len()
    }

    fn is_refused(&self) -> bool {
        matches!(self.stage, Stage::Refused(_))
    }

    /// Returns whether it may go out now.
    fn may_go(&self, now: Instant) -> bool {
        match self.stage {
            Stage::Waits => true,
            Stage::Sent => false,
            Stage::Refused(until) => until <= now,
        }
    }

    /// Returns whether it goes out alone.
    fn is_alone(&self) -> bool {
        self.refusals > 0 || self.posted.letter.key.starts_with(DIRECT)
    }

    /// Returns whether it is given up: a report that the broker does not take.
    fn is_over(&self) -> bool {
        let letter = &self.posted.letter;
        let max = match letter.key.starts_with(DIRECT) {
            true => 1,
            false => MAX_REPORT_REFUSALS,
        };
        !letter.dead && self.refusals >= max
    }
}

/// What becomes of a letter that the broker does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Name of its queue, if that is not logged yet.
    pub say: Option<String>,
    /// Whether it is given up.
    pub is_over: bool,
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
    /// When the ledger is read from its beginning again: it holds letters that are not in memory.
    read_again: Option<Instant>,
    /// Whether one that goes alone has the next turn.
    alone_next: bool,
    /// Queues whose refusals were logged.
    said: Vec<String>,
}

impl Default for LetterBox {
    fn default() -> Self {
        Self {
            rows: VecDeque::new(),
            bytes: 0,
            last: 0,
            // An earlier client may have left some.
            is_behind: true,
            read_again: None,
            alone_next: false,
            said: Vec::new(),
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
        let row = Row {
            posted,
            stage: Stage::Waits,
            refusals: 0,
        };
        self.bytes += row.size();
        self.rows.push_back(row);
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
        send: impl FnMut(u64, &Letter),
    ) -> Result<()> {
        self.read(reader, source)?;
        self.send(Instant::now(), send);
        Ok(())
    }

    fn read(&mut self, reader: &Reader, source: &str) -> Result<()> {
        if self.read_again.is_some_and(|at| at <= Instant::now()) {
            self.read_again = None;
            self.last = 0;
            self.is_behind = true;
        }
        if self.is_behind && self.rows.len() <= MAX_ROWS / 2 && self.bytes <= MAX_BYTES / 2 {
            let list = letters(reader, source, self.last, MAX_ROWS / 2, MAX_BYTES / 2)?;
            self.is_behind = !list.is_empty();
            for posted in list {
                match self.place(posted.seq) {
                    // It has waited here since the ledger was read from its beginning.
                    Some(_) => self.last = posted.seq,
                    None => self.push(posted),
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, now: Instant, mut send: impl FnMut(u64, &Letter)) {
        let sent = |row: &&Row| row.stage == Stage::Sent;
        let mut under_way = self.rows.iter().filter(sent).count();
        if self.rows.iter().any(|row| sent(&row) && row.is_alone()) {
            return;
        }
        let alone = |row: &Row| row.is_alone() && row.may_go(now);
        let waits_alone = self.rows.iter().any(alone);
        if !(waits_alone && self.alone_next) {
            let others = self.rows.iter_mut();
            let others = others.filter(|row| !row.is_alone() && row.may_go(now));
            for row in others.take(WINDOW.saturating_sub(under_way)) {
                send(row.posted.seq, &row.posted.letter);
                row.stage = Stage::Sent;
                under_way += 1;
            }
            self.alone_next = waits_alone;
        }
        if under_way == 0
            && let Some(row) = self.rows.iter_mut().find(|row| alone(row))
        {
            send(row.posted.seq, &row.posted.letter);
            row.stage = Stage::Sent;
            self.alone_next = false;
        }
    }

    /// Returns when [`LetterBox::flush`] has work without an event.
    pub fn wake(&self) -> Option<Instant> {
        let until = |row: &Row| match row.stage {
            Stage::Refused(until) => Some(until),
            Stage::Waits | Stage::Sent => None,
        };
        // Those wait for answers of the broker.
        let is_busy = self.rows.iter().any(|row| row.stage == Stage::Sent);
        let refused = self.rows.iter().filter_map(until).filter(|_| !is_busy);
        refused.chain(self.read_again).min()
    }

    fn place(&self, seq: u64) -> Option<usize> {
        self.rows.iter().position(|row| row.posted.seq == seq)
    }

    fn remove(&mut self, place: usize) -> Option<Row> {
        let row = self.rows.remove(place)?;
        self.bytes = self.bytes.saturating_sub(row.size());
        Some(row)
    }

    /// Removes a letter that the broker has.
    pub fn sent(&mut self, seq: u64) {
        if let Some(row) = self.place(seq).and_then(|place| self.remove(place)) {
            self.said.retain(|key| *key != row.posted.letter.key);
        }
    }

    /// Notes that the broker does not take a letter. It is sent again later, and others overtake it. A
    /// report is given up in the end, and is not here any more.
    pub fn refused(&mut self, seq: u64) -> Option<Refusal> {
        let place = self.place(seq)?;
        let refused = self.rows.iter().filter(|row| row.is_refused());
        let (count, bytes) = refused.fold((0, 0), |(n, bytes), row| (n + 1, bytes + row.size()));
        let row = self.rows.get_mut(place)?;
        let now = Instant::now();
        let delay = FIRST_DELAY.saturating_mul(1 << row.refusals.min(MAX_DOUBLINGS));
        row.stage = Stage::Refused(now + delay);
        row.refusals = row.refusals.saturating_add(1);
        let (is_over, key) = (row.is_over(), row.posted.letter.key.clone());
        if is_over || count >= MAX_REFUSED || bytes + row.size() > MAX_REFUSED_BYTES {
            self.remove(place);
        }
        if !is_over && self.place(seq).is_none() {
            self.read_again.get_or_insert(now + READ_AGAIN);
        }
        let is_known = self.said.contains(&key);
        if !is_known {
            self.said.truncate(MAX_SAID - 1);
            self.said.insert(0, key.clone());
        }
        Some(Refusal {
            say: (!is_known).then_some(key),
            is_over,
        })
    }

    /// Returns the number of the dead letter about `unit`, if the broker may still take it.
    pub fn dead(&self, unit: &str) -> Option<u64> {
        let about = |row: &&Row| {
            let letter = &row.posted.letter;
            letter.dead && letter.unit.as_deref() == Some(unit)
        };
        let row = self.rows.iter().find(about)?;
        (!row.is_refused()).then_some(row.posted.seq)
    }

    /// Returns whether the broker may still take this letter.
    pub fn is_under_way(&self, seq: u64) -> bool {
        let mut rows = self.rows.iter();
        rows.any(|row| row.posted.seq == seq && !row.is_refused())
    }

    /// Returns how many letters are in memory.
    pub fn len(&self) -> usize {
        self.rows.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::letter::LetterProperties;
    use bytes::Bytes;

    fn posted(seq: u64, key: &str, dead: bool) -> Posted {
        Posted {
            seq,
            letter: Letter {
                source: String::new(),
                key: key.to_owned(),
                unit: None,
                dead,
                body: Bytes::from_static(b"{}"),
                properties: LetterProperties::default(),
            },
        }
    }

    fn letter_box(list: impl IntoIterator<Item = Posted>) -> LetterBox {
        let mut letters = LetterBox {
            is_behind: false,
            ..LetterBox::default()
        };
        letters.extend(list);
        letters
    }

    fn sends(letters: &mut LetterBox, now: Instant) -> Vec<u64> {
        let mut list = Vec::new();
        letters.send(now, |seq, _| list.push(seq));
        list
    }

    #[test]
    fn refused_letters_go_out_alone_and_hold_up_nothing() {
        let mut letters = letter_box((1..=3).map(|seq| posted(seq, "dead", true)));
        let now = Instant::now();
        assert_eq!(sends(&mut letters, now), [1, 2, 3]);
        let first = letters.refused(1).expect("letter");
        assert_eq!(first.say.as_deref(), Some("dead"));
        for seq in [2, 3] {
            let refusal = letters.refused(seq).expect("letter");
            assert_eq!((refusal.say, refusal.is_over), (None, false));
        }
        letters.extend([posted(4, "dead", true)]);
        assert_eq!(sends(&mut letters, now), [4]);
        let later = now + 2 * FIRST_DELAY;
        assert_eq!(sends(&mut letters, later), [0; 0], "4 is in flight");
        letters.sent(4);
        letters.extend([posted(5, "dead", true)]);
        assert_eq!(sends(&mut letters, later), [1]);
        assert_eq!(sends(&mut letters, later), [0; 0]);
        letters.sent(1);
        assert_eq!(sends(&mut letters, later), [5], "others in turn");
        letters.sent(5);
        assert_eq!(sends(&mut letters, later), [2]);
        let again = letters.refused(2).expect("letter");
        assert_eq!(again.say.as_deref(), Some("dead"), "one was taken");
        assert_eq!(sends(&mut letters, later), [3]);
        letters.sent(3);
        assert_eq!((letters.len(), letters.bytes), (1, 2));
    }

    #[test]
    fn refused_letters_leave_room_for_others() {
        let count = 4 * MAX_REFUSED as u64;
        let mut letters = letter_box((1..=count).map(|seq| posted(seq, "dead", true)));
        let now = Instant::now();
        for _ in 0..4 {
            for seq in sends(&mut letters, now) {
                letters.refused(seq);
            }
        }
        assert_eq!(letters.len(), MAX_REFUSED);
        let again = letters.read_again.expect("time");
        assert!(again >= now + READ_AGAIN && letters.wake().is_some());
        assert!(!letters.is_under_way(count));
    }

    #[test]
    fn reports_that_are_not_taken_are_given_up() {
        let forged = format!("{DIRECT}.forged");
        let mut letters = letter_box([
            posted(1, "gone", false),
            posted(2, &forged, false),
            posted(3, "dead", true),
        ]);
        let mut now = Instant::now();
        assert_eq!(sends(&mut letters, now), [1, 3]);
        letters.sent(3);
        letters.refused(1);
        assert_eq!(sends(&mut letters, now), [2]);
        assert!(letters.refused(2).expect("letter").is_over);
        for turn in 2..=MAX_REPORT_REFUSALS {
            now += FIRST_DELAY * 200;
            assert_eq!(sends(&mut letters, now), [1]);
            let refusal = letters.refused(1).expect("letter");
            assert_eq!(refusal.is_over, turn == MAX_REPORT_REFUSALS);
        }
        assert_eq!((letters.len(), letters.bytes), (0, 0));
        assert_eq!((letters.read_again, letters.wake()), (None, None));
    }
}
