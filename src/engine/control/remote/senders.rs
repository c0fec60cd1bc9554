//! Output of units on its way to other nodes.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;

use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, sleep_until};
use tracing::{info, warn};

use crate::engine::control::remote::answers;
use crate::engine::control::remote::sender::{Finished, Hashed, Identity, Last, Sender, Step};
use crate::engine::report::reply::ReplyTo;
use crate::error::Error;
use crate::model::message::Message;
use crate::model::remote::wire;
use crate::os::slow::SlowReads;
use crate::os::watch::{Watch, Watched};
use crate::store::ledger::Record;
use crate::store::unit_dir::UnitDir;

/// Maximum number of requesters that output goes to. Further ones are refused.
const MAX_SENDERS: usize = 4096;

/// Time after which a requester that acknowledges nothing gives its place to another.
const IDLE: Duration = Duration::from_secs(60);

/// Maximum size of messages with output that the broker has not acknowledged, bytes.
const MAX_UNACKNOWLEDGED: usize = 2 * 1024 * 1024;

/// Interval between two looks at the output of units whose folders cannot be watched, because the
/// system has no more watches. Runners use watches too.
const LOOK: Duration = Duration::from_millis(500);

/// Time without a message from a requester after which it is reminded. It doubles with each reminder.
const PATIENCE: Duration = Duration::from_secs(10);

/// Maximum number of reminders in a row: the last one goes out after three quarters of an hour.
const MAX_REMINDERS: u32 = 8;

/// Maximum number of answers to requesters whose output has ended early that do not go out. The oldest
/// gives its place to another: its requester asks again.
const MAX_REFUSALS: usize = 1024;

/// Units whose output goes to other nodes. `T` identifies a publish.
///
/// There may be thousands that say nothing, so that nothing here looks at all of them for an event of
/// one.
#[derive(Debug)]
pub struct Senders<T> {
    /// All of them, by number.
    all: BTreeMap<u64, Sender<T>>,
    /// Numbers by unit.
    units: HashMap<String, Vec<u64>>,
    /// Numbers by watched folder. A folder that is watched for several requesters is one.
    watched: HashMap<Watched, Vec<u64>>,
    watch: Watch,
    /// Numbers of those whose folders cannot be watched, when they are looked at, and whether that was
    /// logged.
    unwatched: BTreeSet<u64>,
    look_at: Instant,
    is_logged: bool,
    /// Numbers of those that may have something to send, each in its turn. Some may be gone.
    turns: VecDeque<u64>,
    /// When requesters that say nothing are reminded, and numbers of their senders.
    reminders: BTreeSet<(Instant, u64)>,
    /// Messages that the broker has not acknowledged: their sizes, and numbers of their senders.
    unacknowledged: HashMap<T, (usize, u64)>,
    /// Sum of these sizes.
    unacknowledged_bytes: usize,
    /// Reads of whole output for its digests.
    reads: SlowReads,
    hashed: mpsc::UnboundedSender<Hashed>,
    hashes: mpsc::UnboundedReceiver<Hashed>,
    /// Whether something may be sent.
    due: bool,
    /// Whether the last message did not go out: there was no connection, or no room.
    is_blocked: bool,
    /// Number of requesters so far.
    numbers: u64,
    /// Answers that did not go out to requesters whose output has ended early.
    refusals: VecDeque<Message>,
}

impl<T> Default for Senders<T> {
    fn default() -> Self {
        let (hashed, hashes) = mpsc::unbounded_channel();
        Self {
            all: BTreeMap::new(),
            units: HashMap::new(),
            watched: HashMap::new(),
            watch: Watch::default(),
            unwatched: BTreeSet::new(),
            look_at: Instant::now(),
            is_logged: false,
            turns: VecDeque::new(),
            reminders: BTreeSet::new(),
            unacknowledged: HashMap::new(),
            unacknowledged_bytes: 0,
            reads: SlowReads::default(),
            hashed,
            hashes,
            due: false,
            is_blocked: false,
            numbers: 0,
            refusals: VecDeque::new(),
        }
    }
}

impl<T: Copy + Eq + std::hash::Hash> Senders<T> {
    /// Sends the state of a unit to `reply`, and then its output from these offsets on. The same
    /// requester may ask again, and then gets the output from other offsets. Nothing is hashed twice
    /// for it.
    ///
    /// # Errors
    /// When there are too many.
    pub fn begin(
        &mut self,
        dir: UnitDir,
        record: &Record,
        reply: ReplyTo,
        from: [u64; 2],
    ) -> Result<(), String> {
        let unit = record.unit.id.as_str();
        let earlier = self.to(unit, &reply);
        let earlier = earlier.and_then(|number| self.remove(number));
        let digests = earlier.map(|sender| sender.digests()).unwrap_or_default();
        if self.all.len() >= MAX_SENDERS {
            let is_idle =
                |sender: &Sender<T>| sender.is_stalled() && sender.touched.elapsed() > IDLE;
            let idle = self.all.iter().filter(|(_, sender)| is_idle(sender));
            let idle: Vec<u64> = idle.map(|(number, _)| *number).collect();
            for number in idle {
                self.remove(number);
            }
        }
        if self.all.len() >= MAX_SENDERS {
            return Err(format!("output goes to {MAX_SENDERS} requesters already"));
        }
        self.numbers += 1;
        let number = self.numbers;
        let sender = Sender::new(number, dir, record, reply, from, digests);
        self.all.insert(number, sender);
        self.units.entry(unit.to_owned()).or_default().push(number);
        self.watch(number);
        self.ready(number);
        Ok(())
    }

    /// Returns the number of the sender of `unit` to `reply`.
    fn to(&self, unit: &str, reply: &ReplyTo) -> Option<u64> {
        let is_it = |number: &&u64| self.all.get(number).is_some_and(|s| s.reply == *reply);
        self.units.get(unit)?.iter().find(is_it).copied()
    }

    /// Returns the numbers of the senders of `unit`.
    fn of(&self, unit: &str) -> Vec<u64> {
        self.units.get(unit).cloned().unwrap_or_default()
    }

    /// Notes that a sender may have something to send.
    fn ready(&mut self, number: u64) {
        queue(&mut self.all, &mut self.turns, number);
        self.due = true;
    }

    /// Watches the folder of a sender, if there is one and its unit has not ended.
    fn watch(&mut self, number: u64) {
        let Some(sender) = self.all.get_mut(&number) else {
            return;
        };
        match sender.watch(&mut self.watch) {
            Ok(Some(watched)) => self.watched.entry(watched).or_default().push(number),
            Ok(None) => {}
            Err(e) => {
                if !std::mem::replace(&mut self.is_logged, true) {
                    warn!(
                        TAEL_UNIT = sender.unit,
                        "cannot watch its folder: {e}; looking every {LOOK:?} for output that goes \
                         to other nodes (fs.inotify.max_user_instances)"
                    );
                }
                if self.unwatched.is_empty() {
                    self.look_at = Instant::now() + LOOK;
                }
                self.unwatched.insert(number);
            }
        }
    }

    fn remove(&mut self, number: u64) -> Option<Sender<T>> {
        let sender = self.all.remove(&number)?;
        self.unwatched.remove(&number);
        if let Some(numbers) = self.units.get_mut(&sender.unit) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.units.remove(&sender.unit);
            }
        }
        if let Some(watched) = sender.watched
            && let Some(numbers) = self.watched.get_mut(&watched)
        {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.watched.remove(&watched);
                self.watch.remove(watched);
            }
        }
        Some(sender)
    }

    /// Returns whether the output of `unit` goes to a requester.
    pub fn has(&self, unit: &str) -> bool {
        self.units.contains_key(unit)
    }

    /// Notes that `unit` has begun, so that its folder exists.
    pub fn started(&mut self, unit: &str) {
        for number in self.of(unit) {
            if let Some(sender) = self.all.get_mut(&number) {
                sender.started();
            }
            self.watch(number);
            self.ready(number);
        }
    }

    /// Notes that `unit` has ended; without `finished` it was released.
    pub fn ended(&mut self, unit: &str, finished: Option<&Finished>) {
        for number in self.of(unit) {
            match (finished, self.all.get_mut(&number)) {
                (Some(finished), Some(sender)) => sender.ended(finished),
                // The end of one may be on its way.
                (None, Some(sender)) if sender.last.is_open() => {
                    let gone = wire::write(&answers::refused(unit, &answers::unknown(unit)), b"");
                    let gone = sender.reply.clone().carrying(gone);
                    self.remove(number);
                    self.refuse(gone);
                }
                (None, _) => drop(self.remove(number)),
                (Some(_), None) => {}
            }
            self.unwatched.remove(&number);
            self.ready(number);
        }
    }

    /// Notes that a requester has output up to these offsets, and has the `end`. Returns whether that is
    /// all of a unit that has ended.
    pub fn acked(&mut self, unit: &str, reply: &ReplyTo, at: [u64; 2], end: bool) -> bool {
        let Some(number) = self.to(unit, reply) else {
            return false;
        };
        if end {
            return self.remove(number).is_some_and(|sender| sender.is_all(at));
        }
        if let Some(sender) = self.all.get_mut(&number) {
            sender.acked(at);
            self.ready(number);
        }
        false
    }

    // --- Reminders ---

    /// Returns when a requester is reminded.
    pub fn wake(&self) -> Option<Instant> {
        self.reminders.first().map(|(at, _)| *at)
    }

    /// Reminds requesters that have said nothing for long.
    pub fn on_time(&mut self) {
        let now = Instant::now();
        while let Some((at, number)) = self.reminders.first().copied()
            && at <= now
        {
            self.reminders.pop_first();
            let Some(sender) = self.all.get_mut(&number) else {
                continue;
            };
            sender.is_timed = false;
            if !sender.is_waiting() {
                continue;
            }
            if now.duration_since(sender.touched) < PATIENCE {
                remind_later(&mut self.reminders, number, sender);
            } else if sender.reminders < MAX_REMINDERS {
                sender.remind();
                remind_later(&mut self.reminders, number, sender);
                self.ready(number);
            } else {
                info!(
                    TAEL_UNIT = sender.unit,
                    "its output goes to {} no more: it answers no message",
                    sender.reply.topic()
                );
                self.remove(number);
            }
        }
    }

    /// Notes that a publish is complete: it has come to the broker, and `heard` is whether anyone
    /// subscribes to it; or the broker does not take it.
    pub fn published(&mut self, token: T, heard: Result<bool, &Error>) {
        self.due |= self.is_blocked;
        let Some((size, number)) = self.unacknowledged.remove(&token) else {
            return;
        };
        self.unacknowledged_bytes -= size;
        self.due = true;
        match (heard, self.all.get_mut(&number)) {
            // A requester that comes back asks again.
            (Ok(false), _) => drop(self.remove(number)),
            (Err(e), _) => self.fail(number, e),
            (Ok(true), Some(sender)) => {
                sender.published(token);
                if sender.is_waiting() {
                    remind_later(&mut self.reminders, number, sender);
                }
            }
            (Ok(true), None) => {}
        }
    }

    /// Tells the requester with this `number` why it gets no more, and forgets it.
    fn fail(&mut self, number: u64, error: &Error) {
        let Some(sender) = self.remove(number) else {
            return;
        };
        warn!(TAEL_UNIT = sender.unit, "cannot send its output: {error}");
        let kind = error.kind();
        let error = Error::new(kind, format!("its output cannot be sent: {error}"));
        let refused = wire::write(&answers::refused(&sender.unit, &error), b"");
        self.refuse(sender.reply.carrying(refused));
    }

    /// Answers a requester that it gets no more.
    fn refuse(&mut self, refusal: Message) {
        if self.refusals.len() >= MAX_REFUSALS {
            warn!("more than {MAX_REFUSALS} answers wait for the broker: the oldest is dropped");
            self.refusals.pop_front();
        }
        self.refusals.push_back(refusal);
        self.due = true;
    }

    /// Notes that there is a connection.
    pub const fn went_online(&mut self) {
        self.due = true;
    }

    /// Notes that the connection is gone: what was not acknowledged is sent again.
    pub fn went_offline(&mut self) {
        self.unacknowledged.clear();
        self.unacknowledged_bytes = 0;
        for sender in self.all.values_mut() {
            sender.go_back();
            (sender.is_queued, sender.is_timed) = (true, false);
        }
        // What is sent again is a reminder.
        self.reminders.clear();
        self.turns = self.all.keys().copied().collect();
        self.due = true;
    }

    /// Waits until something was written, or digests are known. Cancel safe.
    pub async fn next(&mut self) {
        tokio::select! {
            written = self.watch.next() => {
                let watching = written.iter().filter_map(|watched| self.watched.get(watched));
                for number in watching.flatten() {
                    queue(&mut self.all, &mut self.turns, *number);
                }
                self.due = true;
            }
            () = sleep_until(self.look_at), if !self.unwatched.is_empty() => {
                for number in &self.unwatched {
                    queue(&mut self.all, &mut self.turns, *number);
                }
                self.look_at = Instant::now() + LOOK;
                self.due = true;
            }
            Some(hashed) = self.hashes.recv() => self.take_hashed(hashed),
        }
    }

    fn take_hashed(&mut self, Hashed { number, end }: Hashed) {
        match (end, self.all.get_mut(&number)) {
            (Ok(end), Some(sender)) => {
                if let Last::Open { .. } = &sender.last {
                    sender.last = Last::Ready(end);
                }
                self.ready(number);
            }
            (Err(e), _) => self.fail(number, &unreadable(&e)),
            (Ok(_), None) => {}
        }
    }

    /// Sends what may be sent. `publish` returns `None` if nothing goes out now.
    pub fn send(&mut self, node: Identity<'_>, mut publish: impl FnMut(Message) -> Option<T>) {
        if !std::mem::take(&mut self.due) {
            return;
        }
        self.is_blocked = false;
        while let Some(refusal) = self.refusals.front() {
            if publish(refusal.clone()).is_none() {
                self.is_blocked = true;
                return;
            }
            self.refusals.pop_front();
        }
        // A message of each in turn, so that none waits for all output of another.
        while self.unacknowledged_bytes < MAX_UNACKNOWLEDGED
            && let Some(number) = self.turns.pop_front()
        {
            let Some(sender) = self.all.get_mut(&number) else {
                continue;
            };
            match sender.step(&mut publish) {
                Ok(Step::Sent(token, size)) => {
                    self.unacknowledged.insert(token, (size, number));
                    self.unacknowledged_bytes += size;
                    self.turns.push_back(number);
                }
                Ok(Step::Blocked) => {
                    self.turns.push_front(number);
                    self.is_blocked = true;
                    break;
                }
                Ok(Step::Nothing) => {
                    sender.is_queued = false;
                    sender.hash(&self.reads, &self.hashed, node);
                    if sender.is_waiting() {
                        remind_later(&mut self.reminders, number, sender);
                    }
                }
                Err(e) => self.fail(number, &unreadable(&e)),
            }
        }
    }
}

/// Puts a sender at the end of `turns`, unless its turn comes.
fn queue<T>(all: &mut BTreeMap<u64, Sender<T>>, turns: &mut VecDeque<u64>, number: u64) {
    if let Some(sender) = all.get_mut(&number)
        && !std::mem::replace(&mut sender.is_queued, true)
    {
        turns.push_back(number);
    }
}

/// Plans to remind the requester of a sender, unless that is planned.
fn remind_later<T>(reminders: &mut BTreeSet<(Instant, u64)>, number: u64, sender: &mut Sender<T>) {
    if !std::mem::replace(&mut sender.is_timed, true) {
        reminders.insert((Instant::now() + PATIENCE * (1 << sender.reminders), number));
    }
}

fn unreadable(e: &io::Error) -> Error {
    Error::state(e, format!("read it: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn refusal(number: usize) -> Message {
        ReplyTo::at("lab/reply").carrying(Bytes::from(number.to_string()))
    }

    /// Returns what goes out if `most` messages do.
    fn sent(senders: &mut Senders<usize>, most: usize) -> Vec<Message> {
        let mut sent = Vec::new();
        senders.send(("node", None), |message| {
            (sent.len() < most).then(|| {
                sent.push(message);
                sent.len()
            })
        });
        sent
    }

    #[test]
    fn a_refusal_that_does_not_go_out_stays() {
        let mut senders = Senders::default();
        for number in 0..3 {
            senders.refuse(refusal(number));
        }
        assert_eq!(sent(&mut senders, 1), [refusal(0)]);
        // Nothing has changed.
        assert_eq!(sent(&mut senders, 1), []);
        senders.published(1, Ok(true));
        assert_eq!(sent(&mut senders, 1), [refusal(1)]);
        senders.went_offline();
        assert_eq!(sent(&mut senders, 0), []);
        senders.went_online();
        assert_eq!(sent(&mut senders, 9), [refusal(2)]);
        senders.went_online();
        assert_eq!(sent(&mut senders, 9), []);
    }

    #[test]
    fn the_number_of_refusals_is_bounded() {
        let mut senders = Senders::default();
        for number in 0..=MAX_REFUSALS {
            senders.refuse(refusal(number));
        }
        let sent = sent(&mut senders, usize::MAX);
        assert_eq!(sent.len(), MAX_REFUSALS);
        assert_eq!(sent.first(), Some(&refusal(1)));
    }
}
