//! Copies bytes between the streams of an end and the other end.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use crate::error::{Error, Kind, Result};
use crate::model::pair::{
    Broken, Claim, End as LetterEnd, Key, Kind as LetterKind, Letter, MISSING, Received, Transfer,
};
use crate::tools::pair::end::{End, Heard};
use crate::tools::pair::streams::{Input, Running, Streams, Taken};

/// Time for the output of a command to go on, and for its input to be taken, after the command has ended: a
/// process that it has left behind may hold them.
const DRAIN: Duration = Duration::from_secs(2);

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
    /// When the other end has been gone for too long.
    missing: Option<Instant>,
    /// What remains of the command, when it has ended.
    over: Option<Remains>,
    /// When our input is read no longer, which the other end does not want; `None` if it is still wanted, or
    /// is read no longer.
    unwanted: Option<Instant>,
    /// Whether there was more input when the other end took no more.
    untaken: bool,
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
            missing: None,
            over: None,
            unwanted: None,
            untaken: false,
        }
    }

    /// Copies until both directions have ended.
    ///
    /// # Errors
    /// 69 when the pair is broken; 65 and 73 when our input or output fails.
    pub async fn run(&mut self) -> Result<Ended> {
        while !self.transfer.is_done() {
            // What was read, and not sent, has not been taken either.
            let can_read = self.unwanted.is_some() || self.transfer.can_send();
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
                    Some(Err(_)) if self.unwanted.is_some() => self.input_ended()?,
                    Some(Err(e)) => return Err(Error::data(format!("read the input: {e}"))),
                    None => self.input_ended()?,
                },
                () = command_ends(&mut self.streams.command), if self.over.is_none() => {
                    self.over = Some(Remains { untaken: Instant::now() + DRAIN, drained: None });
                    // What it has taken is known when the writer has ended.
                    self.streams.output = None;
                    if self.streams.input.is_none() {
                        self.say_end()?;
                    }
                }
                () = at(untaken) => self.refuse()?,
                () = at(self.unwanted) => self.input_ended()?,
                () = at(drained) => match self.streams.input.as_mut().and_then(Input::ready) {
                    // We stood still meanwhile.
                    Some(part) => self.send(part)?,
                    None => self.input_ended()?,
                },
                () = at(self.missing) => return Err(self.broken("it is gone")),
            }
        }
        if self.untaken || self.transfer.is_cut_short() {
            return Err(self.broken(&match self.other_code {
                Some(code @ 1..) => {
                    format!("its command has ended with code {code}, and has not taken everything")
                }
                _ => "it has not taken everything".into(),
            }));
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

    /// Returns the error over a command of the other end that has failed, although the pair has ended in
    /// good order.
    pub fn failed_command(&self) -> Option<Error> {
        let code = self.other_code.filter(|&code| code != 0)?;
        let other = self.other.holder();
        Some(Error::new(
            Kind::Unavailable,
            format!("the command of the other end, {other}, has ended with code {code}"),
        ))
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
        if self.unwanted.is_some() {
            self.untaken = true;
            return self.input_ended();
        }
        self.sent += part.len() as u64;
        if let Some(over) = &mut self.over {
            over.drained = None;
        }
        let letter = self.transfer.data(&part);
        self.end.send(letter, part)
    }

    /// Our input has ended, or is read no longer.
    fn input_ended(&mut self) -> Result<()> {
        self.streams.input = None;
        self.unwanted = None;
        self.say_end()
    }

    /// Tells the other end that our input has ended, and the command, if there is one.
    fn say_end(&mut self) -> Result<()> {
        let end = match &self.streams.command {
            Some(command) if !command.has_ended() => LetterEnd::Runs,
            Some(command) => command.code().map_or(LetterEnd::Plain, LetterEnd::Exited),
            None => LetterEnd::Plain,
        };
        match self.transfer.end(end) {
            Some(letter) => self.end.send(letter, Bytes::from(end.payload())),
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
            Received::End(end) => {
                self.streams.output = None;
                if let LetterEnd::Exited(code) = end {
                    self.other_code = Some(code);
                }
            }
            Received::Progress if self.transfer.is_unwanted() => {
                if let Some(input) = &mut self.streams.input {
                    input.stop();
                    self.unwanted.get_or_insert_with(|| Instant::now() + DRAIN);
                }
            }
            Received::Progress => {}
        }
        Ok(())
    }
}

/// Returns the next part of the input; `None` at its end.
async fn next(input: &mut Option<Input>) -> Option<std::io::Result<Bytes>> {
    match input {
        Some(input) => input.next().await,
        None => None,
    }
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
