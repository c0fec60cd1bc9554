//! Output of one unit on its way to one requester.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::engine::control::remote::answers;
use crate::engine::control::remote::digest::{self, Digest};
use crate::engine::report::reply::ReplyTo;
use crate::model::message::Message;
use crate::model::remote::WINDOW;
use crate::model::remote::wire::{self, Answer, End, State, StreamName};
use crate::model::signature::{self, Signer};
use crate::model::unit::{self, Outcome};
use crate::os::slow::SlowReads;
use crate::os::watch::{Watch, Watched};
use crate::store::ledger::Record;
use crate::store::unit_dir::UnitDir;
use crate::store::unit_dir::reader::{Chunk, Ended, OutputReader, output};
use crate::store::unit_dir::stream::Stream;

/// The last message for a requester, or why there is none.
#[derive(Debug)]
pub struct Hashed {
    /// Number of its sender.
    pub number: u64,
    /// The message.
    pub end: io::Result<Bytes>,
}

/// Name and key of the node, for what it confirms.
pub type Identity<'a> = (&'a str, Option<&'a Arc<Signer>>);

/// A unit whose output goes to a requester.
#[derive(Debug)]
pub struct Sender<T> {
    number: u64,
    /// Whether its turn comes.
    pub is_queued: bool,
    /// When its requester was last heard of.
    pub touched: Instant,
    /// Number of reminders since then.
    pub reminders: u32,
    /// Whether one is planned.
    pub is_timed: bool,
    /// The unit.
    pub unit: String,
    /// Where its output goes.
    pub reply: ReplyTo,
    dir: UnitDir,
    state: Box<State>,
    /// Whether the requester was told this state.
    is_told: bool,
    streams: [Sending; 2],
    /// Its folder, while something may be written there.
    pub watched: Option<Watched>,
    ended: Option<Finished>,
    /// Its last message.
    pub last: Last<T>,
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

/// What a sender has done in its turn.
#[derive(Debug)]
pub enum Step<T> {
    /// It has sent a message of this size.
    Sent(T, usize),
    /// It has nothing to send now.
    Nothing,
    /// It has something to send, and nothing goes out now.
    Blocked,
}

impl<T> Step<T> {
    fn of(sent: Option<T>, size: usize) -> Self {
        sent.map_or(Self::Blocked, |token| Self::Sent(token, size))
    }
}

/// The way of the last message.
#[derive(Debug)]
pub enum Last<T> {
    /// The output is not sent yet, or the digests are not known.
    Open {
        /// Whether they are being found out.
        hashing: bool,
    },
    /// This is the message.
    Ready(Bytes),
    /// This publish carries it.
    Sent(Bytes, T),
    /// The broker has it. The requester has not said so.
    Told(Bytes),
}

impl<T> Last<T> {
    /// Returns whether it is still to be sent.
    pub const fn is_open(&self) -> bool {
        !matches!(self, Self::Sent(..) | Self::Told(_))
    }
}

const STREAMS: [(Stream, StreamName); 2] = [
    (Stream::Stdout, StreamName::Stdout),
    (Stream::Stderr, StreamName::Stderr),
];

impl<T: Copy> Sender<T> {
    /// Returns a sender with this `number`, which has sent nothing. `digests` are those of an earlier
    /// sender to the same requester.
    pub fn new(
        number: u64,
        dir: UnitDir,
        record: &Record,
        reply: ReplyTo,
        from: [u64; 2],
        digests: [Digest; 2],
    ) -> Self {
        let sending = |(stream, _), offset, digest| Sending {
            reader: output(&dir, stream, offset),
            acked: offset,
            done: false,
            digest,
        };
        let ([out, err], [out_from, err_from], [out_digest, err_digest]) = (STREAMS, from, digests);
        Self {
            number,
            is_queued: false,
            touched: Instant::now(),
            reminders: 0,
            is_timed: false,
            unit: record.unit.id.clone(),
            reply,
            streams: [
                sending(out, out_from, out_digest),
                sending(err, err_from, err_digest),
            ],
            state: Box::new(answers::state(record)),
            is_told: false,
            watched: None,
            ended: Finished::of(record),
            last: Last::Open { hashing: false },
            dir,
        }
    }

    /// Returns what was hashed of both streams.
    pub fn digests(&self) -> [Digest; 2] {
        self.streams.each_ref().map(|stream| stream.digest.clone())
    }

    /// Watches the folder of the unit, if there is one and the unit has not ended. Returns its number if
    /// it was not watched before.
    ///
    /// # Errors
    /// When the system has no more watches.
    pub fn watch(&mut self, watch: &mut Watch) -> io::Result<Option<Watched>> {
        if self.ended.is_some() || self.watched.is_some() {
            return Ok(None);
        }
        self.watched = match watch.add(self.dir.path()) {
            Ok(watched) => Some(watched),
            // A unit that waits has no folder yet.
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        Ok(self.watched)
    }

    /// Notes that the requester has output up to these offsets. It may have more than was sent: a
    /// request for it was delivered late.
    pub fn acked(&mut self, at: [u64; 2]) {
        (self.touched, self.reminders) = (Instant::now(), 0);
        for ((sending, (stream, _)), at) in self.streams.iter_mut().zip(STREAMS).zip(at) {
            if at > sending.reader.offset() && !sending.done {
                sending.reader = output(&self.dir, stream, at);
            }
            sending.acked = sending.acked.max(at.min(sending.reader.offset()));
        }
    }

    /// Returns whether output waits for an acknowledgement.
    pub fn is_stalled(&self) -> bool {
        let full = |sending: &Sending| {
            !sending.done && sending.reader.offset().saturating_sub(sending.acked) >= WINDOW
        };
        self.streams.iter().any(full)
    }

    /// Notes that the unit has begun.
    pub fn started(&mut self) {
        if self.waits() {
            let running = unit::State::Running.to_string();
            self.state.detail.clone_from(&running);
            self.state.state = running;
            self.is_told = false;
        }
    }

    /// Returns whether the unit waits: its output comes when it has begun, after the news of that.
    fn waits(&self) -> bool {
        self.ended.is_none() && self.state.state == unit::State::Pending.name()
    }

    /// Goes back to what the requester has acknowledged.
    pub fn go_back(&mut self) {
        self.is_told = false;
        for (sending, (stream, _)) in self.streams.iter_mut().zip(STREAMS) {
            if sending.reader.offset() != sending.acked {
                sending.reader = output(&self.dir, stream, sending.acked);
                sending.done = false;
            }
        }
        let sent = Last::Open { hashing: false };
        self.last = match std::mem::replace(&mut self.last, sent) {
            Last::Sent(end, _) | Last::Told(end) => Last::Ready(end),
            other => other,
        };
    }

    /// Notes that the broker has the message of this publish.
    pub fn published(&mut self, token: T)
    where
        T: Eq,
    {
        if let Last::Sent(end, last) = &mut self.last
            && *last == token
        {
            self.last = Last::Told(std::mem::take(end));
        }
    }

    /// Returns whether output up to the offsets `at` is all of a unit that has ended.
    pub fn is_all(&self, at: [u64; 2]) -> bool {
        let (Last::Ready(end) | Last::Sent(end, _) | Last::Told(end)) = &self.last else {
            return false;
        };
        let covers = |end: &End| at.iter().zip(end.lengths).all(|(at, length)| *at >= length);
        matches!(wire::read_answer(end), Ok((Answer::End(end), _)) if covers(&end))
    }

    /// Returns whether nothing goes on without a message from the requester.
    pub fn is_waiting(&self) -> bool {
        self.is_stalled() || matches!(self.last, Last::Told(_))
    }

    /// Says again what the requester has not answered: a broker may drop messages. One that hears its
    /// state again asks for what it lacks.
    pub fn remind(&mut self) {
        self.reminders += 1;
        let open = Last::Open { hashing: false };
        match std::mem::replace(&mut self.last, open) {
            Last::Told(end) => self.last = Last::Ready(end),
            other => (self.last, self.is_told) = (other, false),
        }
    }

    /// Notes that the unit has ended.
    pub fn ended(&mut self, finished: &Finished) {
        self.ended.get_or_insert_with(|| finished.clone());
    }

    /// Returns whether all output was sent.
    fn is_sent(&self) -> bool {
        self.ended.is_some() && self.streams.iter().all(|stream| stream.done)
    }

    /// Sends the next message. `publish` returns `None` if nothing goes out now.
    ///
    /// # Errors
    /// When the output cannot be read.
    pub fn step(&mut self, publish: &mut impl FnMut(Message) -> Option<T>) -> io::Result<Step<T>> {
        if !self.is_told {
            let state = wire::write(&Answer::State((*self.state).clone()), b"");
            let size = state.len();
            let token = publish(self.reply.clone().carrying(state));
            self.is_told = token.is_some();
            return Ok(Step::of(token, size));
        }
        if self.waits() {
            return Ok(Step::Nothing);
        }
        for (sending, (stream, name)) in self.streams.iter_mut().zip(STREAMS) {
            let offset = sending.reader.offset();
            if sending.done || offset.saturating_sub(sending.acked) >= WINDOW {
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
            return Ok(Step::of(token, size));
        }
        if self.is_sent()
            && let Last::Ready(end) = &self.last
        {
            let (end, size) = (end.clone(), end.len());
            let token = publish(self.reply.clone().carrying(end.clone()));
            if let Some(token) = token {
                self.last = Last::Sent(end, token);
            }
            return Ok(Step::of(token, size));
        }
        Ok(Step::Nothing)
    }

    /// Finds out lengths and digests of the streams, and confirms the end, when all output was sent.
    /// That is done beside the loop: a requester that has the beginning did not get it from here, and
    /// it is read now.
    pub fn hash(
        &mut self,
        reads: &SlowReads,
        hashed: &mpsc::UnboundedSender<Hashed>,
        (node, key): Identity<'_>,
    ) {
        if !self.is_sent() || !matches!(self.last, Last::Open { hashing: false }) {
            return;
        }
        let Some(Finished { state, outcome }) = self.ended.clone() else {
            return;
        };
        let hashed = hashed.clone();
        self.last = Last::Open { hashing: true };
        let (number, dir) = (self.number, self.dir.clone());
        let digests = self.digests();
        let sent = self.streams.each_ref().map(|s| s.reader.offset());
        let (node, key) = (node.to_owned(), key.cloned());
        reads.run(move || {
            let kept = digest::finish(digests, &dir, outcome.as_ref(), sent);
            let end = kept.and_then(|[out, err]| {
                let mut end = End {
                    state,
                    lengths: [out.length, err.length],
                    sha256: [out.sha256, err.sha256],
                    dropped: [out.dropped, err.dropped],
                    signature: None,
                };
                if let Some(key) = key {
                    let token = signature::sign(&key, &end.confirmation(&node));
                    end.signature = Some(token.map_err(io::Error::other)?);
                }
                Ok(wire::write(&Answer::End(end), b""))
            });
            let _ = hashed.send(Hashed { number, end });
        });
    }
}

impl Finished {
    /// Returns the end of a unit, if it has ended.
    pub fn of(record: &Record) -> Option<Self> {
        let state = record.state.is_end().then(|| answers::state(record))?;
        let outcome = record.outcome.clone();
        Some(Self { state, outcome })
    }
}
