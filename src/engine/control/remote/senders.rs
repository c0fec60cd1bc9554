//! Output of units on its way to other nodes.

use std::collections::HashMap;

use tokio::sync::mpsc;
use tokio::time::Duration;
use tracing::warn;

use crate::engine::control::remote::answers;
use crate::engine::control::remote::sender::{Finished, Hashed, Identity, Last, Sender};
use crate::engine::report::reply::ReplyTo;
use crate::error::Error;
use crate::model::message::Message;
use crate::model::remote::wire;
use crate::os::watch::Watch;
use crate::store::ledger::Record;
use crate::store::unit_dir::UnitDir;

/// Maximum number of requesters that output goes to. Further ones are refused.
const MAX_SENDERS: usize = 4096;

/// Time after which a requester that acknowledges nothing gives its place to another.
const IDLE: Duration = Duration::from_secs(60);

/// Maximum size of messages with output that the broker has not acknowledged, bytes.
const MAX_UNACKNOWLEDGED: usize = 2 * 1024 * 1024;

/// Units whose output goes to other nodes. `T` identifies a publish.
#[derive(Debug)]
pub struct Senders<T> {
    list: Vec<Sender<T>>,
    watch: Watch,
    /// Messages that the broker has not acknowledged: their sizes, and numbers of their senders.
    unacknowledged: HashMap<T, (usize, u64)>,
    /// Sum of these sizes.
    unacknowledged_bytes: usize,
    hashed: mpsc::UnboundedSender<Hashed>,
    hashes: mpsc::UnboundedReceiver<Hashed>,
    /// Whether something may be sent.
    due: bool,
    /// Whether the last message did not go out: there was no connection, or no room.
    is_blocked: bool,
    /// Number of requesters so far.
    numbers: u64,
    /// Answers to requesters whose output the broker does not take.
    refusals: Vec<Message>,
}

impl<T> Default for Senders<T> {
    fn default() -> Self {
        let (hashed, hashes) = mpsc::unbounded_channel();
        Self {
            list: Vec::new(),
            watch: Watch::default(),
            unacknowledged: HashMap::new(),
            unacknowledged_bytes: 0,
            hashed,
            hashes,
            due: false,
            is_blocked: false,
            numbers: 0,
            refusals: Vec::new(),
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
        let is_it = |sender: &Sender<T>| sender.unit == unit && sender.reply == reply;
        let earlier = self.list.iter().find(|sender| is_it(sender));
        let digests = earlier.map(Sender::digests).unwrap_or_default();
        self.remove(is_it);
        if self.list.len() >= MAX_SENDERS {
            self.remove(|sender| sender.is_stalled() && sender.touched.elapsed() > IDLE);
        }
        if self.list.len() >= MAX_SENDERS {
            return Err(format!("output goes to {MAX_SENDERS} requesters already"));
        }
        self.numbers += 1;
        let mut sender = Sender::new(self.numbers, dir, record, reply, from, digests);
        sender.watch(&mut self.watch);
        self.list.push(sender);
        self.due = true;
        Ok(())
    }

    fn remove(&mut self, ends: impl Fn(&Sender<T>) -> bool) {
        let mut place = 0;
        while let Some(sender) = self.list.get(place) {
            if !ends(sender) {
                place += 1;
                continue;
            }
            let sender = self.list.swap_remove(place);
            let watched = sender.watched;
            // Folders that are watched for several requesters have one number.
            if let Some(watched) = watched
                && !self.list.iter().any(|other| other.watched == Some(watched))
            {
                self.watch.remove(watched);
            }
        }
    }

    /// Returns whether the output of `unit` goes to a requester.
    pub fn has(&self, unit: &str) -> bool {
        !self.list.is_empty() && self.list.iter().any(|sender| sender.unit == unit)
    }

    /// Notes that `unit` has begun, so that its folder exists.
    pub fn started(&mut self, unit: &str) {
        for sender in self.list.iter_mut().filter(|sender| sender.unit == unit) {
            sender.started();
            sender.watch(&mut self.watch);
            self.due = true;
        }
    }

    /// Notes that `unit` has ended; without `finished` it was released.
    pub fn ended(&mut self, unit: &str, finished: Option<&Finished>) {
        let Some(finished) = finished else {
            return self.released(unit);
        };
        for sender in self.list.iter_mut().filter(|sender| sender.unit == unit) {
            sender.ended(finished);
            self.due = true;
        }
    }

    /// Tells the requesters of a unit that it is gone. The end of one may be on its way.
    fn released(&mut self, unit: &str) {
        let is_open = |sender: &&Sender<T>| sender.unit == unit && sender.last.is_open();
        for sender in self.list.iter().filter(is_open) {
            let gone = wire::write(&answers::refused(unit, &answers::unknown(unit)), b"");
            self.refusals.push(sender.reply.clone().carrying(gone));
            self.due = true;
        }
        self.remove(|sender| sender.unit == unit);
    }

    /// Notes that a requester has output up to these offsets.
    pub fn acked(&mut self, unit: &str, reply: &ReplyTo, at: [u64; 2]) {
        let of = |sender: &&mut Sender<T>| sender.unit == unit && sender.reply == *reply;
        for sender in self.list.iter_mut().filter(of) {
            sender.acked(at);
            self.due = true;
        }
    }

    /// Notes that a publish is complete: it has come to the broker, and `heard` is whether anyone
    /// subscribes to it; or the broker does not take it. Returns the unit whose end it was: its
    /// requester has all of it.
    pub fn published(&mut self, token: T, heard: Result<bool, &Error>) -> Option<String> {
        self.due |= self.is_blocked;
        let (size, number) = self.unacknowledged.remove(&token)?;
        self.unacknowledged_bytes -= size;
        self.due = true;
        // A requester that comes back asks again.
        if heard == Ok(false) {
            self.remove(|sender| sender.number == number);
            return None;
        }
        if let Err(e) = heard {
            self.fail(number, e);
            return None;
        }
        let told = |sender: &Sender<T>| matches!(sender.last, Last::Sent(_, last) if last == token);
        let unit = self.list.iter().find(|sender| told(sender));
        let unit = unit.map(|sender| sender.unit.clone());
        if unit.is_some() {
            self.remove(told);
        }
        unit
    }

    /// Tells the requester with this `number` why it gets no more, and forgets it.
    fn fail(&mut self, number: u64, error: &Error) {
        if let Some(sender) = self.list.iter().find(|sender| sender.number == number) {
            warn!(TAEL_UNIT = sender.unit, "cannot send its output: {error}");
            let kind = error.kind();
            let error = Error::new(kind, format!("its output cannot be sent: {error}"));
            let refused = wire::write(&answers::refused(&sender.unit, &error), b"");
            self.refusals.push(sender.reply.clone().carrying(refused));
            self.due = true;
        }
        self.remove(|sender| sender.number == number);
    }

    /// Notes that there is a connection.
    pub const fn went_online(&mut self) {
        self.due = true;
    }

    /// Notes that the connection is gone: what was not acknowledged is sent again.
    pub fn went_offline(&mut self) {
        self.unacknowledged.clear();
        self.unacknowledged_bytes = 0;
        for sender in &mut self.list {
            sender.go_back();
        }
        self.due = true;
    }

    /// Waits until something was written, or digests are known. Cancel safe.
    pub async fn next(&mut self) {
        tokio::select! {
            // Reading takes all of them.
            _ = self.watch.next() => {}
            Some(hashed) = self.hashes.recv() => self.take_hashed(hashed),
        }
        self.due = true;
    }

    fn take_hashed(&mut self, hashed: Hashed) {
        let is_it = |sender: &Sender<T>| sender.number == hashed.number;
        let Some(sender) = self.list.iter_mut().find(|sender| is_it(sender)) else {
            return;
        };
        match hashed.end {
            Ok(end) => {
                if let Last::Open { .. } = &sender.last {
                    sender.last = Last::Ready(end);
                }
            }
            Err(e) => {
                self.fail(hashed.number, &Error::state(&e, format!("read it: {e}")));
            }
        }
    }

    /// Sends what may be sent. `publish` returns `None` if nothing goes out now.
    pub fn send(&mut self, node: Identity<'_>, mut publish: impl FnMut(Message) -> Option<T>) {
        if !std::mem::take(&mut self.due) {
            return;
        }
        let mut is_blocked = false;
        let mut publish = |message| {
            let token = publish(message);
            is_blocked |= token.is_none();
            token
        };
        for refusal in self.refusals.drain(..) {
            // A requester that does not hear of it asks again.
            let _ = publish(refusal);
        }
        let (mut sent, mut failed, mut is_full) = (true, Vec::new(), false);
        // A message of each in turn, so that none waits for all output of another.
        while std::mem::take(&mut sent) && !is_full {
            for sender in &mut self.list {
                is_full = self.unacknowledged_bytes >= MAX_UNACKNOWLEDGED;
                if is_full {
                    break;
                }
                match sender.step(&mut publish) {
                    Ok(Some((token, size))) => {
                        self.unacknowledged.insert(token, (size, sender.number));
                        self.unacknowledged_bytes += size;
                        sent = true;
                    }
                    Ok(None) => {}
                    Err(e) => failed.push((sender.number, e)),
                }
                if sender.is_sent() && matches!(sender.last, Last::Open { hashing: false }) {
                    sender.hash(self.hashed.clone(), node);
                }
            }
        }
        for (number, e) in failed {
            self.fail(number, &Error::state(&e, format!("read it: {e}")));
        }
        self.is_blocked = is_blocked;
        // One in front would always come first.
        if !self.list.is_empty() {
            self.list.rotate_left(1);
        }
    }
}
