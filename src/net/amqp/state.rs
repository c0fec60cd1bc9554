//! The state of a connection, which its handles share with the task that owns the socket. Nothing here
//! waits for the network: calls append to the output, and frames become answers and happenings.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use tokio::sync::Notify;

use crate::model::text::printable;
use crate::net::amqp::call::{Answers, Wanted};
use crate::net::amqp::channel_state::{ChannelState, by_us, not_open, read_method};
use crate::net::amqp::content::MAX_BODY;
use crate::net::amqp::failure::{Failure, FailureKind, Violation, codes};
use crate::net::amqp::frame::{Frame, HEARTBEAT, Kind, Output};
use crate::net::amqp::load::Load;
use crate::net::amqp::message::{Happening, Publish};
use crate::net::amqp::method::Method;
use crate::net::amqp::wire::fitting;

/// Maximum size of happenings that wait for the user, bytes. Beyond it the socket is not read until half
/// of them are taken, and RabbitMQ ends a connection that has not been read for half a minute (`send_timeout`).
pub const MAX_HELD: usize = 64 << 20;

/// Maximum size of happenings that wait for the user while a call waits for its answer, bytes: the
/// answer may come after two of the largest messages. Beyond it the call waits until the user takes
/// happenings.
pub const MAX_HELD_IN_CALL: usize = MAX_HELD + 2 * (MAX_BODY as usize);

/// Size of output beyond which `publish` waits, bytes.
pub const MAX_UNSENT: usize = 8 << 20;

/// Maximum size of acknowledgements and calls in the output, bytes. More means that the broker takes
/// nothing, and ends the connection.
pub const MAX_SMALL: usize = 8 << 20;

/// Maximum number of characters of a reason of the broker to keep.
const MAX_REASON: usize = 200;

/// Why the task ends.
#[derive(Debug)]
pub enum Stop {
    /// The broker has closed the connection; our answer is in the output.
    ByBroker(Failure),
    /// The broker has answered our `close`.
    ByUs,
    /// The broker breaks the protocol.
    Violation(Violation),
}

impl From<Violation> for Stop {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// What the task has to know.
#[derive(Debug, Clone, Copy)]
pub struct Status {
    /// The user is slow: do not read.
    pub paused: bool,
    /// The broker does not read, and has said so.
    pub blocked: bool,
    /// No handle exists, or the connection has failed.
    pub ended: bool,
}

/// The state of a connection.
pub struct State {
    channels: BTreeMap<u16, ChannelState>,
    channel_max: u16,
    frame_max: usize,
    load: Load,
    out: Vec<u8>,
    /// Bytes that the task has taken and not sent yet.
    unsent: usize,
    /// Bytes of acknowledgements and calls in `out`.
    small: usize,
    /// Reason for which the broker blocks publishers.
    blocked: Option<String>,
    /// The socket is not read.
    paused: bool,
    /// We have sent `connection.close`.
    closing: bool,
    closed: Option<Failure>,
    abandoned: bool,
}

impl State {
    /// Returns the state of a connection without channels.
    pub fn new(channel_max: u16, frame_max: usize) -> Self {
        Self {
            channels: BTreeMap::new(),
            channel_max,
            frame_max,
            load: Load::default(),
            out: Vec::new(),
            unsent: 0,
            small: 0,
            blocked: None,
            paused: false,
            closing: false,
            closed: None,
            abandoned: false,
        }
    }

    /// Moves the output into `taken`, which is empty.
    pub fn take_output(&mut self, taken: &mut Vec<u8>) {
        std::mem::swap(&mut self.out, taken);
        self.small = 0;
        self.unsent = taken.len();
    }

    /// Returns what the task has to know.
    pub fn status(&mut self) -> Status {
        let limit = match self.load.calls() {
            0 => MAX_HELD,
            _ => MAX_HELD_IN_CALL,
        };
        // It goes on at half, so that it does not stop again at once.
        let limit = if self.paused { limit / 2 } else { limit };
        self.paused = self.load.held() > limit && !self.closing;
        Status {
            paused: self.paused,
            blocked: self.blocked.is_some(),
            ended: self.abandoned || self.closed.is_some(),
        }
    }

    /// Notes that `count` bytes are sent. Returns whether `publish` had no room and has some now.
    pub const fn note_sent(&mut self, count: usize) -> bool {
        let had_room = self.has_room();
        self.unsent = self.unsent.saturating_sub(count);
        !had_room && self.has_room()
    }

    /// Appends a heartbeat.
    pub fn put_heartbeat(&mut self) {
        self.out.extend_from_slice(&HEARTBEAT);
    }

    /// Appends `connection.close`.
    pub fn put_close(&mut self, code: u16, text: &str) {
        let close = Method::ConnectionClose {
            code,
            text: fitting(text).to_owned(),
            class: 0,
            method: 0,
        };
        // It fits: the text is short.
        let _ = self.output().1.method(0, &close);
    }

    /// Takes the frames in `input`, and leaves an incomplete one there.
    ///
    /// # Errors
    /// When the connection ends.
    pub fn receive(&mut self, input: &mut BytesMut) -> Result<(), Stop> {
        let mut taken = 0;
        let done = loop {
            let rest = input.get(taken..).unwrap_or_default();
            match Frame::read(rest, self.frame_max) {
                Ok(Some((frame, size))) => {
                    taken += size;
                    if let Err(stop) = self.take(frame) {
                        break Err(stop);
                    }
                }
                Ok(None) => break Ok(()),
                Err(flaw) => {
                    break Err(Violation::new(codes::FRAME_ERROR, flaw.to_string()).into());
                }
            }
        };
        input.advance(taken);
        done
    }

    /// Ends the connection: every call and every channel fails. The first failure stays.
    pub fn fail(&mut self, failure: &Failure) {
        if self.closed.is_some() {
            return;
        }
        self.closed = Some(failure.clone());
        for channel in self.channels.values_mut() {
            channel.fail(failure, &mut self.load);
        }
    }

    /// Notes that no handle exists any more.
    pub const fn abandon(&mut self) {
        self.abandoned = true;
    }

    /// Returns whether no handle exists any more.
    pub const fn is_abandoned(&self) -> bool {
        self.abandoned
    }

    /// Returns the failure that has ended the connection.
    pub const fn closed(&self) -> Option<&Failure> {
        self.closed.as_ref()
    }

    /// Returns the size of all happenings that wait for the user, bytes.
    pub const fn held(&self) -> usize {
        self.load.held()
    }

    /// Returns the reason for which the broker blocks publishers.
    pub fn blocked(&self) -> Option<&str> {
        self.blocked.as_deref()
    }

    /// Begins to close the connection.
    pub fn close(&mut self) {
        if !self.closing && self.closed.is_none() {
            self.put_close(codes::OK, "bye");
            self.closing = true;
        }
    }

    /// Opens a channel; returns its number, what wakes who waits for happenings, and the way of the
    /// answer.
    ///
    /// # Errors
    /// When the connection is closed, or has all the channels that the broker allows.
    pub fn open_channel(&mut self) -> Result<(u16, Arc<Notify>, Answers), Failure> {
        self.check()?;
        let free = (1..=self.channel_max).find(|number| !self.channels.contains_key(number));
        let Some(number) = free else {
            return Err(Failure::of_channel(
                FailureKind::Full,
                format!(
                    "all {} channels of the connection are open",
                    self.channel_max
                ),
            ));
        };
        let (load, mut out) = self.output();
        let (channel, answers) = ChannelState::open(number, load, &mut out)?;
        let news = channel.news();
        self.channels.insert(number, channel);
        Ok((number, news, answers))
    }

    /// Sends a method that has an answer; `None` while another call on the channel waits for its
    /// answer.
    ///
    /// # Errors
    /// When the channel is closed, or the method cannot be sent.
    pub fn call(
        &mut self,
        number: u16,
        method: &Method,
        wanted: Wanted,
    ) -> Result<Option<Answers>, Failure> {
        self.small(number, |channel, load, out| {
            channel.call(method, wanted, load, out)
        })
    }

    /// Sends a method.
    ///
    /// # Errors
    /// When the channel is closed, or the method cannot be sent.
    pub fn send(&mut self, number: u16, method: &Method) -> Result<(), Failure> {
        self.small(number, |channel, _, out| channel.send(method, out))
    }

    /// Ends a consumer, without an answer.
    ///
    /// # Errors
    /// When the channel is closed, or the method cannot be sent.
    pub fn cancel(&mut self, number: u16, tag: &str) -> Result<(), Failure> {
        self.small(number, |channel, _, out| channel.cancel(tag, out))
    }

    /// Gives a message back whose caller has gone.
    pub fn give_back(&mut self, number: u16, tag: u64) {
        let _ = self.small(number, |channel, _, out| {
            channel.give_back(tag, out);
            Ok(())
        });
    }

    /// Begins to close a channel; returns the way of the answer.
    ///
    /// # Errors
    /// When it is closed.
    pub fn close_channel(&mut self, number: u16) -> Result<Answers, Failure> {
        self.small(number, ChannelState::close)
    }

    /// Closes the channel of a handle that was dropped.
    pub fn drop_channel(&mut self, number: u16) {
        // With a connection that is closed, the channel is closed.
        let mut out = Output {
            bytes: &mut self.out,
            max: self.frame_max,
        };
        if let Some(channel) = self.channels.get_mut(&number) {
            channel.drop_handle(&mut self.load, &mut out);
            if channel.is_over() {
                self.channels.remove(&number);
            }
        }
    }

    /// Returns whether `publish` need not wait.
    pub const fn has_room(&self) -> bool {
        self.out.len() + self.unsent < MAX_UNSENT
    }

    /// Returns whether nothing is in the output.
    pub const fn is_idle(&self) -> bool {
        self.out.is_empty()
    }

    /// Sends a message; returns its number for the confirm, 0 without confirms.
    ///
    /// # Errors
    /// When the channel is closed, or the message cannot be sent.
    pub fn publish(&mut self, number: u16, publish: &Publish) -> Result<u64, Failure> {
        self.with(number, |channel, _, out| channel.publish(publish, out))
    }

    /// Fails when the channel is not open.
    ///
    /// # Errors
    /// The failure of a call now.
    pub fn check_channel(&self, number: u16) -> Result<(), Failure> {
        self.check()?;
        self.channels
            .get(&number)
            .map_or_else(|| Err(by_us()), ChannelState::check)
    }

    /// Returns the oldest happening of a channel, if there is one. The last is that it is closed.
    pub fn next(&mut self, number: u16) -> Option<Happening> {
        match self.channels.get_mut(&number) {
            Some(channel) => channel.next(&mut self.load),
            None => Some(Happening::Closed(by_us())),
        }
    }

    fn output(&mut self) -> (&mut Load, Output<'_>) {
        let out = Output {
            bytes: &mut self.out,
            max: self.frame_max,
        };
        (&mut self.load, out)
    }

    fn check(&self) -> Result<(), Failure> {
        match &self.closed {
            Some(failure) => Err(failure.clone()),
            None if self.closing => Err(closed_by_us()),
            None => Ok(()),
        }
    }

    /// Does something with a channel, while the connection lives.
    fn with<T>(
        &mut self,
        number: u16,
        act: impl FnOnce(&mut ChannelState, &mut Load, &mut Output<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.check()?;
        let mut out = Output {
            bytes: &mut self.out,
            max: self.frame_max,
        };
        match self.channels.get_mut(&number) {
            Some(channel) => act(channel, &mut self.load, &mut out),
            None => Err(by_us()),
        }
    }

    /// As [`Self::with`], for what never waits for room: more than [`MAX_SMALL`] of it ends the
    /// connection.
    fn small<T>(
        &mut self,
        number: u16,
        act: impl FnOnce(&mut ChannelState, &mut Load, &mut Output<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let before = self.out.len();
        let done = self.with(number, act);
        self.small += self.out.len() - before;
        if self.small > MAX_SMALL {
            let cause = "the broker takes nothing: 8 MiB of acknowledgements wait";
            let failure = Failure::new(FailureKind::Unreachable, cause);
            self.fail(&failure);
            return Err(failure);
        }
        done
    }

    fn take(&mut self, frame: Frame<'_>) -> Result<(), Stop> {
        if frame.kind == Kind::Heartbeat {
            return Ok(());
        }
        if frame.channel == 0 {
            return self.take_own(frame);
        }
        if self.closing {
            return Ok(());
        }
        let mut out = Output {
            bytes: &mut self.out,
            max: self.frame_max,
        };
        let Some(channel) = self.channels.get_mut(&frame.channel) else {
            return Err(not_open(frame.channel).into());
        };
        channel.take(frame, &mut self.load, &mut out)?;
        if channel.is_over() {
            self.channels.remove(&frame.channel);
        }
        Ok(())
    }

    /// Takes a frame of the connection itself.
    fn take_own(&mut self, frame: Frame<'_>) -> Result<(), Stop> {
        if frame.kind != Kind::Method {
            let cause = "a content comes on channel 0";
            return Err(Violation::new(codes::UNEXPECTED_FRAME, cause).into());
        }
        match read_method(frame.payload)?.0 {
            Method::ConnectionClose { code, text, .. } => {
                let _ = self.output().1.method(0, &Method::ConnectionCloseOk {});
                Err(Stop::ByBroker(Failure::connection_closed(code, &text)))
            }
            Method::ConnectionCloseOk {} if self.closing => Err(Stop::ByUs),
            Method::ConnectionBlocked { reason } => {
                self.blocked = Some(printable(&reason, MAX_REASON));
                Ok(())
            }
            Method::ConnectionUnblocked {} => {
                self.blocked = None;
                Ok(())
            }
            _ if self.closing => Ok(()),
            other => {
                let cause = format!("{} comes on channel 0", other.name());
                Err(Violation::new(codes::COMMAND_INVALID, cause).into())
            }
        }
    }
}

/// Returns the failure of a connection that this side has closed.
pub fn closed_by_us() -> Failure {
    Failure::new(FailureKind::Closed, "this client has closed the connection")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::amqp::frame;
    use crate::net::amqp::properties::Properties;
    use crate::net::amqp::wire::{Ticket, Unused};
    use bytes::Bytes;
    use proptest::prelude::*;

    const MAX_FRAME: usize = 4096;

    /// Returns frames of a broker: right ones, right ones at a wrong time, and wrong ones.
    fn frames() -> impl Strategy<Value = Vec<u8>> {
        let method = |method: Method| (1..4_u16, Just(method));
        let deliver = Method::BasicDeliver {
            consumer: "c".into(),
            tag: 1,
            redelivered: false,
            exchange: String::new(),
            key: "q".into(),
        };
        let got = Method::BasicGetOk {
            tag: 2,
            redelivered: false,
            exchange: String::new(),
            key: "q".into(),
            messages: 0,
        };
        let close = |code| Method::ChannelClose {
            code,
            text: "no".into(),
            class: 0,
            method: 0,
        };
        let methods = prop_oneof![
            method(deliver.clone()),
            method(got.clone()),
            method(Method::BasicGetEmpty { cluster: Unused }),
            method(Method::ChannelOpenOk { id: Bytes::new() }),
            method(Method::ChannelFlowOk { active: true }),
            method(Method::BasicAck {
                tag: 1,
                multiple: true
            }),
            method(close(404)),
            method(Method::ChannelCloseOk {}),
        ];
        let methods = methods.prop_map(|(channel, method)| {
            let mut bytes = Vec::new();
            let mut out = Output {
                bytes: &mut bytes,
                max: MAX_FRAME,
            };
            let _ = out.method(channel, &method);
            bytes
        });
        let contents = (
            1..3_u16,
            prop_oneof![Just(deliver), Just(got)],
            0..9000_usize,
        );
        let contents = contents.prop_map(|(channel, method, size)| {
            let mut bytes = Vec::new();
            let mut out = Output {
                bytes: &mut bytes,
                max: MAX_FRAME,
            };
            let _ = out.content(channel, &method, &Properties::default(), &vec![0; size]);
            bytes
        });
        let any = prop::collection::vec(any::<u8>(), 0..20);
        prop_oneof![
            6 => methods,
            4 => contents,
            1 => Just(frame::HEARTBEAT.to_vec()),
            1 => any,
        ]
    }

    /// Returns a state with two channels, which wait for a message.
    fn state() -> State {
        let mut state = State::new(8, MAX_FRAME);
        let get = Method::BasicGet {
            ticket: Ticket,
            queue: "q".into(),
            no_ack: false,
        };
        for _ in 0..2 {
            let (number, _, _) = state.open_channel().expect("channel");
            let mut opened = Vec::new();
            let mut out = Output {
                bytes: &mut opened,
                max: MAX_FRAME,
            };
            let open = Method::ChannelOpenOk { id: Bytes::new() };
            out.method(number, &open).expect("it fits");
            let mut opened = BytesMut::from(&opened[..]);
            state.receive(&mut opened).expect("it is open");
            let call = state.call(number, &get, Wanted::Get).expect("call");
            drop(call.expect("no other call waits"));
        }
        state
    }

    /// Returns how it ends, and what the channels say.
    fn outcome(mut state: State, pieces: &[&[u8]]) -> (String, Vec<Happening>, Vec<u8>) {
        let mut input = BytesMut::new();
        let mut end = String::new();
        for piece in pieces {
            input.extend_from_slice(piece);
            if let Err(stop) = state.receive(&mut input) {
                end = format!("{stop:?}");
                break;
            }
        }
        let mut happenings = Vec::new();
        for number in 1..3 {
            while let Some(happening) = state.next(number) {
                let is_last = matches!(happening, Happening::Closed(_));
                happenings.push(happening);
                if is_last {
                    break;
                }
            }
        }
        assert_eq!(state.held(), 0);
        let mut out = Vec::new();
        state.take_output(&mut out);
        (end, happenings, out)
    }

    proptest! {
        #[test]
        fn a_stream_means_the_same_in_any_pieces(
            frames in prop::collection::vec(frames(), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let stream = frames.concat();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut start = 0;
            for end in cuts.into_iter().chain([stream.len()]) {
                pieces.push(&stream[start..end]);
                start = end;
            }
            prop_assert_eq!(outcome(state(), &pieces), outcome(state(), &[&stream]));
        }
    }
}
