//! Output of units on its way to other nodes.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Duration, Instant};
use tracing::warn;

use crate::engine::control::remote::digest::{self, Digest};
use crate::engine::report::reply::ReplyTo;
use crate::error::Error;
use crate::model::message::Message;
use crate::model::remote::WINDOW;
use crate::model::remote::wire::{self, Answer, End, State, StreamName};
use crate::model::signature::{self, Signer};
use crate::model::unit::Outcome;
use crate::os::watch::{Watch, Watched};
use crate::store::ledger::Record;
use crate::store::unit_dir::UnitDir;
use crate::store::unit_dir::reader::{Chunk, Ended, OutputReader, output};
use crate::store::unit_dir::stream::Stream;

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

/// The last message for a requester, or why there is none.
#[derive(Debug)]
struct Hashed {
    /// Number of its sender.
    number: u64,
    end: io::Result<Bytes>,
}

/// Name and key of the node, for what it confirms.
pub type Identity<'a> = (&'a str, Option<&'a Arc<Signer>>);

/// A unit whose output goes to a requester.
#[derive(Debug)]
struct Sender<T> {
    number: u64,
    /// When its requester was last heard of.
    touched: Instant,
    unit: String,
    reply: ReplyTo,
    dir: UnitDir,
    streams: [Sending; 2],
    watched: Option<Watched>,
    ended: Option<Finished>,
    last: Last<T>,
}

/// A stream that is sent.
#[derive(Debug)]
struct Sending {
    reader: OutputReader,
    acked: u64,
    done: bool,
    digest: Digest,
}

/// A unit that has ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its last state.
    pub state: State,
    /// Its outcome, if it has run.
    pub outcome: Option<Outcome>,
}

/// The way of the last message.
#[derive(Debug)]
enum Last<T> {
    /// The output is not sent yet, or the digests are not known.
    Open { hashing: bool },
    /// This is the message.
    Ready(Bytes),
    /// This publish carries it.
    Sent(Bytes, T),
}

const STREAMS: [(Stream, StreamName); 2] = [
    (Stream::Stdout, StreamName::Stdout),
    (Stream::Stderr, StreamName::Stderr),
];

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
    /// Sends the output of a unit from these offsets on to `reply`. The same requester may ask
    /// again, and then gets the output from other offsets. Nothing is hashed twice for it.
    ///
    /// # Errors
    /// When there are too many.
    pub fn begin(
        &mut self,
        dir: UnitDir,
        unit: &str,
        reply: ReplyTo,
        from: [u64; 2],
        ended: Option<Finished>,
    ) -> Result<(), String> {
        let is_it = |sender: &Sender<T>| sender.unit == unit && sender.reply == reply;
        let earlier = self.list.iter().find(|sender| is_it(sender));
        let digests = earlier.map(|sender| sender.streams.each_ref().map(|s| s.digest.clone()));
        let [out_digest, err_digest] = digests.unwrap_or_default();
        self.remove(is_it);
        if self.list.len() >= MAX_SENDERS {
            self.remove(|sender| sender.is_stalled() && sender.touched.elapsed() > IDLE);
        }
        if self.list.len() >= MAX_SENDERS {
            return Err(format!("output goes to {MAX_SENDERS} requesters already"));
        }
        let [out, err] = STREAMS.map(|(stream, _)| stream);
        let sending = |stream, offset, digest| Sending {
            reader: output(&dir, stream, offset),
            acked: offset,
            done: false,
            digest,
        };
        let [stdout, stderr] = from;
        self.numbers += 1;
        let mut sender = Sender {
            number: self.numbers,
            touched: Instant::now(),
            unit: unit.to_owned(),
            reply,
            streams: [
                sending(out, stdout, out_digest),
                sending(err, stderr, err_digest),
            ],
            watched: None,
            ended,
            last: Last::Open { hashing: false },
            dir,
        };
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
            sender.watch(&mut self.watch);
            self.due = true;
        }
    }

    /// Notes that `unit` has ended; without `finished` it was released.
    pub fn ended(&mut self, unit: &str, finished: Option<&Finished>) {
        let Some(finished) = finished else {
            return self.remove(|sender| sender.unit == unit);
        };
        for sender in self.list.iter_mut().filter(|sender| sender.unit == unit) {
            sender.ended.get_or_insert_with(|| finished.clone());
            self.due = true;
        }
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
    /// subscribes to it; or the broker does not take it.
    pub fn published(&mut self, token: T, heard: Result<bool, &Error>) {
        self.due |= self.is_blocked;
        let Some((size, number)) = self.unacknowledged.remove(&token) else {
            return;
        };
        self.unacknowledged_bytes -= size;
        self.due = true;
        // A requester that comes back asks again.
        if heard == Ok(false) {
            return self.remove(|sender| sender.number == number);
        }
        if let Err(e) = heard {
            return self.fail(number, e);
        }
        let told = |sender: &Sender<T>| matches!(sender.last, Last::Sent(_, last) if last == token);
        self.remove(told);
    }

    /// Tells the requester with this `number` why it gets no more, and forgets it.
    fn fail(&mut self, number: u64, error: &Error) {
        if let Some(sender) = self.list.iter().find(|sender| sender.number == number) {
            warn!(TAEL_UNIT = sender.unit, "cannot send its output: {error}");
            let refused = Answer::Refused {
                unit: sender.unit.clone(),
                code: error.kind().exit_code(),
                error: format!("its output cannot be sent: {error}"),
            };
            let refused = wire::write(&refused, b"");
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

impl<T: Copy> Sender<T> {
    fn watch(&mut self, watch: &mut Watch) {
        if self.ended.is_none() && self.watched.is_none() {
            self.watched = match watch.add(self.dir.path()) {
                Ok(watched) => Some(watched),
                // A unit that waits has no folder yet.
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => {
                    warn!(
                        TAEL_UNIT = self.unit,
                        "cannot watch its folder: {e}; another node gets its output at its end"
                    );
                    None
                }
            };
        }
    }

    /// Notes that the requester has output up to these offsets. It may have more than was sent: a
    /// request for it was delivered late.
    fn acked(&mut self, at: [u64; 2]) {
        self.touched = Instant::now();
        for ((sending, (stream, _)), at) in self.streams.iter_mut().zip(STREAMS).zip(at) {
            if at > sending.reader.offset() && !sending.done {
                sending.reader = output(&self.dir, stream, at);
            }
            sending.acked = sending.acked.max(at.min(sending.reader.offset()));
        }
    }

    /// Returns whether output waits for an acknowledgement.
    fn is_stalled(&self) -> bool {
        let full = |sending: &Sending| {
            !sending.done && sending.reader.offset() >= sending.acked.saturating_add(WINDOW)
        };
        self.streams.iter().any(full)
    }

    fn go_back(&mut self) {
        for (sending, (stream, _)) in self.streams.iter_mut().zip(STREAMS) {
            if sending.reader.offset() != sending.acked {
                sending.reader = output(&self.dir, stream, sending.acked);
                sending.done = false;
            }
        }
        let sent = Last::Open { hashing: false };
        self.last = match std::mem::replace(&mut self.last, sent) {
            Last::Sent(end, _) => Last::Ready(end),
            other => other,
        };
    }

    /// Returns whether all output was sent.
    fn is_sent(&self) -> bool {
        self.ended.is_some() && self.streams.iter().all(|stream| stream.done)
    }

    /// Sends the next message. Returns its size.
    fn step(
        &mut self,
        publish: &mut impl FnMut(Message) -> Option<T>,
    ) -> io::Result<Option<(T, usize)>> {
        for (sending, (stream, name)) in self.streams.iter_mut().zip(STREAMS) {
            let offset = sending.reader.offset();
            if sending.done || offset >= sending.acked.saturating_add(WINDOW) {
                continue;
            }
            let ended = self.ended.as_ref().map_or(Ended::No, |ended| {
                Ended::with(ended.outcome.as_ref(), stream)
            });
            let unit = self.unit.clone();
            let gap = |bytes| Answer::Gap {
                unit: unit.clone(),
                stream: name,
                offset,
                bytes,
            };
            let chunk = sending.reader.next(ended)?;
            // What is published later is the same, and passed over then.
            sending.digest.take(offset, &chunk);
            let message = match chunk {
                Chunk::Bytes(bytes) => wire::write(
                    &Answer::Output {
                        unit,
                        stream: name,
                        offset,
                    },
                    &bytes,
                ),
                Chunk::Gap(Some(bytes)) => wire::write(&gap(Some(bytes)), b""),
                // The rest cannot be read any more.
                Chunk::Gap(None) | Chunk::Truncated => {
                    sending.done = true;
                    wire::write(&gap(None), b"")
                }
                Chunk::Pending => continue,
                Chunk::End => {
                    sending.done = true;
                    continue;
                }
            };
            let size = message.len();
            let token = publish(self.reply.clone().carrying(message));
            if token.is_none() {
                sending.reader = output(&self.dir, stream, offset);
                sending.done = false;
            }
            return Ok(token.map(|token| (token, size)));
        }
        if self.is_sent()
            && let Last::Ready(end) = &self.last
        {
            let (end, size) = (end.clone(), end.len());
            let token = publish(self.reply.clone().carrying(end.clone()));
            if let Some(token) = token {
                self.last = Last::Sent(end, token);
            }
            return Ok(token.map(|token| (token, size)));
        }
        Ok(None)
    }

    /// Finds out lengths and digests of the streams, and confirms the end, beside the loop: a
    /// requester that has the beginning did not get it from here, and it is read now.
    fn hash(&mut self, hashed: mpsc::UnboundedSender<Hashed>, (node, key): Identity<'_>) {
        let Some(Finished { state, outcome }) = self.ended.clone() else {
            return;
        };
        self.last = Last::Open { hashing: true };
        let (number, dir) = (self.number, self.dir.clone());
        let digests = self.streams.each_ref().map(|s| s.digest.clone());
        let (node, key) = (node.to_owned(), key.cloned());
        // A client that stops does not need it.
        drop(spawn_blocking(move || {
            let end =
                digest::finish(digests, &dir, outcome.as_ref()).and_then(|(lengths, sha256)| {
                    let mut end = End {
                        state,
                        lengths,
                        sha256,
                        signature: None,
                    };
                    if let Some(key) = key {
                        let token = signature::sign(&key, &end.confirmation(&node));
                        end.signature = Some(token.map_err(io::Error::other)?);
                    }
                    Ok(wire::write(&Answer::End(end), b""))
                });
            let _ = hashed.send(Hashed { number, end });
        }));
    }
}

impl Finished {
    /// Returns the end of a unit, if it has ended.
    pub fn of(record: &Record) -> Option<Self> {
        let state = record.state.is_end().then(|| super::state(record))?;
        let outcome = record.outcome.clone();
        Some(Self { state, outcome })
    }
}
