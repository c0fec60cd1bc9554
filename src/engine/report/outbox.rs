//! Messages that the ledger holds until the broker has acknowledged them. As many as fit are in
//! memory; the ledger keeps the others until there is room.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::answer;
use crate::model::message::Message;
use crate::store::ledger::Queued;

/// Maximum number of messages in flight.
const WINDOW: usize = 32;

/// Maximum number of messages in memory, and of messages that are read from the ledger at once.
pub const MAX_ROWS: usize = 1024;

/// Maximum memory of them, bytes; a larger one is there alone.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;

/// Maximum number of messages that wait, in memory and in the ledger; beyond it the oldest are
/// dropped.
pub const MAX_WAITING: usize = 100_000;

/// Delay before a message is sent again that the broker could not take now: the first delay, which
/// doubles.
const RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(30);

/// Maximum number of doublings of that delay.
const MAX_DOUBLINGS: u32 = 5;

/// Number of times that a message is sent again soon, about 8 minutes. Later it waits like one that
/// access rules refuse.
const MAX_TRIES: u32 = 20;

/// Delay before a message is sent again that access rules refuse: the first delay, which doubles.
const REFUSED: Duration = Duration::from_secs(60);
const MAX_REFUSED: Duration = Duration::from_secs(60 * 60);

/// Maximum number of doublings of that delay.
const MAX_REFUSED_DOUBLINGS: u32 = 6;

/// Maximum number of connections that one message may end, when the broker reports a wrong packet
/// of ours.
const MAX_COSTS: u32 = 2;

/// Maximum number of connections that end without a reason while one message is alone in flight.
const MAX_SILENT_COSTS: u32 = 8;

/// Number of connections in a row that end with messages in flight and none acknowledged. After
/// that, messages go out one at a time.
const FRUITLESS: u32 = 3;

/// End of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The broker reported a wrong packet of ours.
    Packet,
    /// Another reason, or none.
    Link,
}

#[derive(Debug)]
struct Row<T> {
    queued: Queued,
    /// Token of its publish, while it is in flight on this connection.
    token: Option<T>,
    /// When it may be sent again.
    not_before: Option<Instant>,
    tries: u32,
    /// How often its publish was refused in a way that an operator can mend.
    refused: u32,
    costs: u32,
    silent_costs: u32,
}

/// A message that the broker refuses, and that waits.
#[derive(Debug, PartialEq, Eq)]
pub struct Waits<'a> {
    /// The message.
    pub message: &'a Message,
    /// Whether it is refused for the first time.
    pub first: bool,
    /// Delay before it is sent again on this connection.
    pub delay: Duration,
}

/// The outbox in memory, in the order of the ledger. `T` identifies a publish on a connection.
#[derive(Debug)]
pub struct Outbox<T> {
    rows: VecDeque<Row<T>>,
    bytes: usize,
    /// Sequence number of the last message that was in memory.
    last: u64,
    /// Number of messages after it that only the ledger has; `None` without a ledger.
    behind: Option<u64>,
    /// Maximum number of messages in flight now.
    window: usize,
    /// Connections in a row that ended with messages in flight and none acknowledged.
    fruitless: u32,
    /// Whether another publish must be answered on this connection before ours go out.
    waits_for_other: bool,
    /// When the next message may go out, after one that the broker could not take.
    paused_until: Option<Instant>,
    dropped: u64,
}

impl<T> Default for Outbox<T> {
    fn default() -> Self {
        Self {
            rows: VecDeque::new(),
            bytes: 0,
            last: 0,
            behind: None,
            window: WINDOW,
            fruitless: 0,
            waits_for_other: false,
            paused_until: None,
            dropped: 0,
        }
    }
}

impl<T: Copy + PartialEq> Outbox<T> {
    /// Returns the outbox of a ledger that holds `waiting` messages, none of them in memory.
    pub fn of_ledger(waiting: u64) -> Self {
        Self {
            behind: Some(waiting),
            ..Self::default()
        }
    }

    /// Adds messages that were just written to the ledger, in its order. Messages without room stay
    /// there.
    pub fn extend(&mut self, queued: impl IntoIterator<Item = Queued>) {
        for queued in queued {
            // It was read from the ledger meanwhile.
            if self.behind.is_some() && queued.seq <= self.last {
                continue;
            }
            let full = self.is_full();
            match &mut self.behind {
                Some(behind) if *behind > 0 || full => *behind += 1,
                _ => self.push(queued),
            }
        }
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= MAX_ROWS || self.bytes >= MAX_BYTES
    }

    fn push(&mut self, queued: Queued) {
        self.last = queued.seq;
        self.bytes += queued.message.memory();
        self.rows.push_back(Row {
            queued,
            token: None,
            not_before: None,
            tries: 0,
            refused: 0,
            costs: 0,
            silent_costs: 0,
        });
    }

    /// Returns the sequence number after which to read messages from the ledger, if there is room.
    pub fn wants(&self) -> Option<u64> {
        let room = self.rows.len() <= MAX_ROWS / 2 && self.bytes <= MAX_BYTES / 2;
        (room && self.behind.is_some_and(|behind| behind > 0)).then_some(self.last)
    }

    /// Adds messages of the ledger after [`Outbox::wants`]; it has `left` more.
    pub fn load(&mut self, queued: Vec<Queued>, left: u64) {
        for queued in queued {
            self.push(queued);
        }
        self.behind = Some(left);
    }

    /// Passes messages that may go out now to `publish`, which returns the token of each, or `None`
    /// if no more can go out.
    pub fn flush(&mut self, mut publish: impl FnMut(&Message) -> Option<T>) {
        self.flush_by(|queued| publish(&queued.message));
    }

    fn flush_by(&mut self, mut publish: impl FnMut(&Queued) -> Option<T>) {
        let now = Instant::now();
        self.paused_until = self.paused_until.filter(|until| *until > now);
        // Also of those that do not go out yet: what is due now is no reason to wake up again.
        for row in &mut self.rows {
            row.not_before = row.not_before.filter(|at| *at > now);
        }
        if self.waits_for_other || self.paused_until.is_some() {
            return;
        }
        let mut room = self.window.saturating_sub(self.under_way());
        for row in &mut self.rows {
            if room == 0 {
                return;
            }
            if row.token.is_some() || row.not_before.is_some() {
                continue;
            }
            row.token = publish(&row.queued);
            if row.token.is_none() {
                return;
            }
            room -= 1;
        }
    }

    fn under_way(&self) -> usize {
        self.rows.iter().filter(|row| row.token.is_some()).count()
    }

    /// Returns when [`Outbox::flush`] can do more without an event.
    pub fn wake(&self) -> Option<Instant> {
        let rows = self.rows.iter().filter_map(|row| row.not_before).min();
        match (self.paused_until, rows) {
            (Some(paused), Some(row)) => Some(paused.max(row)),
            (paused, row) => paused.or(row),
        }
    }

    /// Notes that the broker has answered a publish on this connection, also one of others.
    pub const fn answered(&mut self) {
        self.waits_for_other = false;
    }

    /// Notes the end of the connection: nothing is in flight. Returns a message that has ended too
    /// many connections; it is not sent again.
    pub fn lost(&mut self, loss: Loss) -> Option<Queued> {
        let mut suspects = self.rows.iter_mut().filter(|row| row.token.is_some());
        let only = match (suspects.next(), suspects.next()) {
            (Some(only), None) => Some(only),
            (first, _) => {
                if first.is_some() {
                    self.fruitless = self.fruitless.saturating_add(1);
                }
                None
            }
        };
        let mut guilty = None;
        if let Some(row) = only {
            self.fruitless = self.fruitless.saturating_add(1);
            match loss {
                Loss::Packet => row.costs += 1,
                Loss::Link => row.silent_costs += 1,
            }
            if row.costs >= MAX_COSTS || row.silent_costs >= MAX_SILENT_COSTS {
                guilty = Some(row.queued.seq);
            }
        }
        if loss == Loss::Packet || self.fruitless >= FRUITLESS {
            self.window = 1;
        }
        // A message that goes out alone must not be blamed for others.
        self.waits_for_other = self.window == 1 && self.behind.is_some();
        self.paused_until = None;
        for row in &mut self.rows {
            row.token = None;
        }
        // The rules may be other ones when the broker is back.
        self.try_again();
        let place = self
            .rows
            .iter()
            .position(|row| Some(row.queued.seq) == guilty)?;
        self.remove(place)
    }

    fn remove(&mut self, place: usize) -> Option<Queued> {
        let row = self.rows.remove(place)?;
        self.bytes = self.bytes.saturating_sub(row.queued.message.memory());
        Some(row.queued)
    }

    fn place(&self, token: T) -> Option<usize> {
        self.rows.iter().position(|row| row.token == Some(token))
    }

    /// Returns whether a publish is one of ours.
    pub fn holds(&self, token: T) -> bool {
        self.place(token).is_some()
    }

    /// Removes the message that the broker has answered.
    pub fn complete(&mut self, token: T) -> Option<Queued> {
        let place = self.place(token)?;
        self.progressed();
        self.remove(place)
    }

    /// Notes that the broker works on our messages.
    fn progressed(&mut self) {
        self.fruitless = 0;
        self.window = (self.window * 2).min(WINDOW);
        for row in &mut self.rows {
            row.silent_costs = 0;
        }
    }

    /// Notes that the broker refuses a message in a way that an operator can mend, as access rules do.
    /// It stays, and others overtake it. It is sent again after a delay that grows, on the next
    /// connection, and by [`Outbox::try_again`]. `None` if the publish is not ours.
    pub fn refuse(&mut self, token: T) -> Option<Waits<'_>> {
        let place = self.place(token)?;
        self.progressed();
        let row = self.rows.get_mut(place)?;
        row.token = None;
        let delay = REFUSED.saturating_mul(1 << row.refused.min(MAX_REFUSED_DOUBLINGS));
        let delay = delay.min(MAX_REFUSED);
        row.not_before = Some(Instant::now() + delay);
        row.refused = row.refused.saturating_add(1);
        Some(Waits {
            message: &row.queued.message,
            first: row.refused == 1,
            delay,
        })
    }

    /// Lets all messages go out again that were refused.
    pub fn try_again(&mut self) {
        for row in self.rows.iter_mut().filter(|row| row.refused > 0) {
            row.not_before = None;
        }
    }

    /// Returns how many messages in memory wait because they were refused.
    pub fn refused(&self) -> usize {
        let waits = |row: &&Row<T>| row.refused > 0 && row.not_before.is_some();
        self.rows.iter().filter(waits).count()
    }

    /// Returns whether no message is in the ledger only.
    pub fn is_whole(&self) -> bool {
        self.behind.unwrap_or_default() == 0
    }

    /// Returns whether the message of this publish is an answer.
    pub fn is_answer(&self, token: T) -> bool {
        let mut rows = self.rows.iter();
        rows.any(|row| row.token == Some(token) && answer::is_answer(&row.queued.message))
    }

    /// Returns whether so many messages were refused that no others are read from the ledger.
    pub fn is_blocked(&self) -> bool {
        self.behind.is_some_and(|behind| behind > 0)
            && self.wants().is_none()
            && self.refused() == self.rows.len()
    }

    /// Notes that the broker could not take a message now; it is sent again soon. After too many
    /// attempts it waits as in [`Outbox::refuse`], and is returned. `None` also if the publish is not
    /// ours.
    pub fn retry(&mut self, token: T) -> Option<Waits<'_>> {
        let place = self.place(token)?;
        if self.rows.get(place)?.tries >= MAX_TRIES {
            return self.refuse(token);
        }
        let now = Instant::now();
        self.window = 1;
        self.paused_until = Some(now + RETRY);
        let row = self.rows.get_mut(place)?;
        row.token = None;
        let delay = RETRY.saturating_mul(1 << row.tries.min(MAX_DOUBLINGS));
        row.not_before = Some(now + delay.min(MAX_RETRY));
        row.tries += 1;
        None
    }

    /// Removes the oldest message, if too many wait and it is not in flight.
    pub fn overflow(&mut self) -> Option<Queued> {
        let too_many = match self.behind {
            Some(_) => self.len() > MAX_WAITING,
            None => self.is_full(),
        };
        let oldest = self.rows.iter().position(|row| row.token.is_none())?;
        let queued = too_many.then(|| self.remove(oldest)).flatten();
        self.dropped += u64::from(queued.is_some());
        queued
    }

    /// Returns how many messages were dropped because too many waited.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Returns how many messages wait.
    pub fn len(&self) -> usize {
        let behind = usize::try_from(self.behind.unwrap_or_default());
        self.rows.len().saturating_add(behind.unwrap_or(usize::MAX))
    }

    /// Returns whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Returns the name of a message for errors.
pub fn shown(message: &Message) -> String {
    format!("'{}' ({} bytes)", message.topic, message.payload.len())
}

#[cfg(test)]
mod tests;
