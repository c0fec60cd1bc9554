//! Copies bytes between the streams of an end and the other end.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use crate::error::{Error, Kind, Result};
use crate::model::pair::{
    Broken, Claim, Key, Kind as LetterKind, Letter, MISSING, Received, Transfer, end_code,
    end_payload,
};
use crate::tools::pair::end::{End, Heard};
use crate::tools::pair::streams::{Running, Streams, Taken};

/// Time for the output of a command to go on, and for its input to be taken, after the command has ended: a
/// process that it has left behind may hold them.
const DRAIN: Duration = Duration::from_secs(2);

/// Maximum time from the end of a command's output to its own end, for which the other end waits: so it
/// learns the code.
const CODE: Duration = Duration::from_millis(100);

/// How an end has ended in good order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Both directions have ended.
    Both,
    /// The reader of our standard output is gone.
    Unread,
}

/// The end with which we are a pair.
pub(super) struct Partner {
    /// Its claim.
    pub claim: Claim,
    /// Public key of its hello.
    pub public: String,
    /// The key of the pair.
    pub key: Key,
}

/// The copy of one end.
pub(super) struct Copier<'a> {
    end: &'a mut End,
    other: Claim,
    streams: &'a mut Streams,
    transfer: Transfer,
    /// Bytes of the input that were sent.
    pub sent: u64,
    /// Bytes for the output that came.
    pub received: u64,
    /// Exit code of the command of the other end, if it has told that.
    pub other_code: Option<u8>,
    /// When to say that our input has ended, although its command still runs.
    ending: Option<Instant>,
    /// When the other end has been gone for too long.
    missing: Option<Instant>,
    /// What remains of the command, when it has ended.
    over: Option<Remains>,
}

/// Deadlines of the streams of a command that has ended.
struct Remains {
    /// When its input is refused, although it is not closed.
    untaken: Instant,
    /// When its output is read no longer. None while the window is full: then we do not know whether it has
    /// ended.
    drained: Option<Instant>,
}

impl<'a> Copier<'a> {
    /// Returns the copy between `streams` of `end` and the other end.
    pub fn new(end: &'a mut End, other: Partner, streams: &'a mut Streams) -> Self {
        let (own, public) = (end.claim.id.clone(), other.public);
        let other_id = other.claim.id.clone();
        let transfer = Transfer::new(own, other_id, other.key, public);
        Self {
            end,
            other: other.claim,
            streams,
            transfer,
            sent: 0,
            received: 0,
            other_code: None,
            ending: None,
            missing: None,
            over: None,
        }
    }

    /// Copies until both directions have ended.
    ///
    /// # Errors
    /// 69 when the pair is broken; 65 and 73 when our input or output fails.
    pub async fn run(&mut self) -> Result<Ended> {
        while !self.transfer.is_done() {
            let can_read = self.transfer.can_send() && self.ending.is_none();
            let (untaken, drained) = self.deadlines(can_read);
            // In no order: strangers who flood the topic must not hold our own streams.
            tokio::select! {
                heard = self.end.next() => self.heard(heard?)?,
                Some(taken) = self.streams.taken.recv() => {
                    if let Some(ended) = self.took(taken)? {
                        return Ok(ended);
                    }
                }
                part = next(&mut self.streams.input), if can_read => match part {
                    Some(Ok(part)) => self.send(part)?,
                    Some(Err(e)) => return Err(Error::data(format!("read the input: {e}"))),
                    None => self.input_ended()?,
                },
                () = command_ends(&mut self.streams.command), if self.over.is_none() => {
                    self.over = Some(Remains { untaken: Instant::now() + DRAIN, drained: None });
                    // What it has taken is known when the writer has ended.
                    self.streams.output = None;
                    if self.ending.is_some() {
                        self.say_end()?;
                    }
                }
                () = at(self.ending) => self.say_end()?,
                () = at(untaken) => self.refuse()?,
                () = at(drained) => match ready(&mut self.streams.input) {
                    // We stood still meanwhile.
                    Some(part) => self.send(part)?,
                    None => self.input_ended()?,
                },
                () = at(self.missing) => return Err(self.broken("it is gone")),
            }
        }
        if self.transfer.is_cut_short() {
            return Err(self.broken("it has not taken everything"));
        }
        Ok(Ended::Both)
    }

    /// Returns when a command that has ended takes no more input, and gives no more output; `can_read` says
    /// whether there is room for that.
    fn deadlines(&mut self, can_read: bool) -> (Option<Instant>, Option<Instant>) {
        let Some(over) = &mut self.over else {
            return (None, None);
        };
        let untaken = (!self.transfer.is_received()).then_some(over.untaken);
        over.drained = can_read.then(|| over.drained.unwrap_or_else(|| Instant::now() + DRAIN));
        (untaken, over.drained)
    }

    /// Tells the other end that we leave before its time.
    pub fn leave(&mut self) {
        let letter = self.transfer.leave();
        // Without a connection it learns that from our claim.
        let _ = self.end.send(letter, Bytes::new());
    }

    fn broken(&self, cause: &str) -> Error {
        let other = self.other.holder();
        Error::new(
            Kind::Unavailable,
            format!(
                "the other end, {other}: {cause}; the pair has ended early, start both ends again"
            ),
        )
    }

    fn send(&mut self, part: Bytes) -> Result<()> {
        self.sent += part.len() as u64;
        if let Some(over) = &mut self.over {
            over.drained = None;
        }
        let letter = self.transfer.data(&part);
        self.end.send(letter, part)
    }

    /// Our input has ended.
    fn input_ended(&mut self) -> Result<()> {
        self.streams.input = None;
        if self
            .streams
            .command
            .as_ref()
            .is_some_and(|command| !command.has_ended())
        {
            self.ending = Some(Instant::now() + CODE);
            return Ok(());
        }
        self.say_end()
    }

    /// Tells the other end that our input has ended.
    fn say_end(&mut self) -> Result<()> {
        self.ending = None;
        let code = self.streams.command.as_ref().and_then(Running::code);
        let payload = Bytes::from(end_payload(code));
        match self.transfer.end(&payload) {
            Some(letter) => self.end.send(letter, payload),
            None => Ok(()),
        }
    }

    /// Our output takes nothing more.
    fn refuse(&mut self) -> Result<()> {
        self.streams.output = None;
        match self.transfer.refuse() {
            Some(letter) => self.end.send(letter, Bytes::new()),
            None => Ok(()),
        }
    }

    fn took(&mut self, taken: Taken) -> Result<Option<Ended>> {
        match taken {
            Taken::Part => self.acknowledge()?,
            // After a stop nothing is acknowledged.
            Taken::Closed if self.transfer.is_received() => {}
            // What came since then was not taken.
            Taken::Closed if self.over.is_some() => self.refuse()?,
            Taken::Closed => self.acknowledge()?,
            Taken::Refused(e) => {
                self.refuse()?;
                if self.streams.command.is_some() {
                    return Ok(None);
                }
                if e.kind() == ErrorKind::BrokenPipe {
                    return Ok(Some(Ended::Unread));
                }
                return Err(Error::cannot_create(format!("write to stdout: {e}")));
            }
        }
        Ok(None)
    }

    fn acknowledge(&mut self) -> Result<()> {
        match self.transfer.took() {
            Some(letter) => self.end.send(letter, Bytes::new()),
            None => Ok(()),
        }
    }

    fn heard(&mut self, heard: Heard) -> Result<()> {
        match heard {
            Heard::Presence(id, there) if id == self.other.id => {
                let by = || Instant::now() + MISSING;
                self.missing = (!there).then(|| self.missing.unwrap_or_else(by));
            }
            Heard::Letter(letter, payload) => self.letter(&letter, payload)?,
            Heard::Cut(cause) => {
                let cause = format!(
                    "lost the broker: {cause}; the pair has ended early, start both ends again"
                );
                return Err(Error::new(Kind::Unavailable, cause));
            }
            Heard::Presence(..) | Heard::Other(_) | Heard::Replaced(_) | Heard::Nothing => {}
        }
        Ok(())
    }

    fn letter(&mut self, letter: &Letter, payload: Bytes) -> Result<()> {
        let received = self.transfer.receive(letter, &payload);
        let received = received.map_err(|broken| {
            self.broken(match broken {
                Broken::Gap => "a message of it is missing",
                Broken::Window => "it sends more than the window allows",
                Broken::Ack => "it acknowledges what was not sent",
                Broken::Forged => {
                    "a message in its name does not have its seal: another program has written or changed it"
                }
                Broken::Left => "it has left",
            })
        })?;
        match received {
            Received::Stray if letter.kind == LetterKind::Hello => {}
            Received::Stray => self.end.stray(),
            Received::Data => {
                self.received += payload.len() as u64;
                // It has room for a window, or is closed.
                if let Some(output) = &self.streams.output {
                    let _ = output.try_send(payload);
                }
            }
            // It closes after the last part.
            Received::End => {
                self.streams.output = None;
                self.other_code = end_code(&payload);
            }
            Received::Progress if self.transfer.is_unwanted() => self.streams.input = None,
            Received::Progress => {}
        }
        Ok(())
    }
}

/// Returns the next part of the input; `None` at its end.
async fn next(
    input: &mut Option<tokio::sync::mpsc::Receiver<std::io::Result<Bytes>>>,
) -> Option<std::io::Result<Bytes>> {
    match input {
        Some(input) => input.recv().await,
        None => None,
    }
}

/// Returns the next part of the input if it is here.
fn ready(input: &mut Option<tokio::sync::mpsc::Receiver<std::io::Result<Bytes>>>) -> Option<Bytes> {
    input.as_mut()?.try_recv().ok()?.ok()
}

/// Returns at `moment`; never without one.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Returns when the command has ended; never without one.
async fn command_ends(command: &mut Option<Running>) {
    match command {
        Some(command) => command.ended().await,
        None => std::future::pending().await,
    }
}
