//! The state of one channel: its calls, and what the frames of the broker mean. Nothing here waits for
//! the network.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::net::amqp::call::{Answer, Answers, Call, Wanted};
use crate::net::amqp::content::{Announced, Assembly};
use crate::net::amqp::failure::{Failure, FailureKind, Violation, codes};
use crate::net::amqp::frame::{Frame, Kind, Output};
use crate::net::amqp::happenings::Happenings;
use crate::net::amqp::load::Load;
use crate::net::amqp::message::{Delivery, Happening, Publish, Returned};
use crate::net::amqp::method::{Method, bits};
use crate::net::amqp::wire::{Malformed, Reader, Ticket, Unused};

#[derive(Debug)]
enum Phase {
    Open,
    /// We have sent `close`: everything but its answer is ignored.
    Closing,
    Closed(Failure),
}

/// The state of one channel.
pub struct ChannelState {
    number: u16,
    phase: Phase,
    /// The call that waits for its answer, though its caller may have gone.
    call: Option<Call>,
    /// The call that closes the channel.
    closing: Option<Call>,
    /// What waits for the user.
    happenings: Happenings,
    /// Wakes who waits for a happening, or to send a call.
    news: Arc<Notify>,
    assembly: Option<Assembly>,
    /// Number of messages published since confirms were asked for.
    published: Option<u64>,
    /// Whether a handle exists.
    leased: bool,
}

impl ChannelState {
    /// Opens channel `number`; returns the way of the answer, too.
    ///
    /// # Errors
    /// Never: the method fits.
    pub fn open(
        number: u16,
        load: &mut Load,
        out: &mut Output<'_>,
    ) -> Result<(Self, Answers), Failure> {
        let mut channel = Self {
            number,
            phase: Phase::Open,
            call: None,
            closing: None,
            happenings: Happenings::default(),
            news: Arc::new(Notify::new()),
            assembly: None,
            published: None,
            leased: true,
        };
        let open = Method::ChannelOpen {
            out_of_band: Unused,
        };
        channel.send(&open, out)?;
        let (call, answers) = Call::new(&open, Wanted::Open);
        channel.call = Some(call);
        load.called();
        Ok((channel, answers))
    }

    /// Returns what wakes who waits for a happening.
    pub fn news(&self) -> Arc<Notify> {
        Arc::clone(&self.news)
    }

    /// Returns whether its number is free again: it is closed and has no handle.
    pub const fn is_over(&self) -> bool {
        !self.leased && matches!(self.phase, Phase::Closed(_))
    }

    /// Returns the failure of a call now.
    ///
    /// # Errors
    /// When the channel is not open.
    pub fn check(&self) -> Result<(), Failure> {
        match &self.phase {
            Phase::Open => Ok(()),
            Phase::Closing => Err(by_us()),
            Phase::Closed(failure) => Err(failure.clone()),
        }
    }

    /// Sends a method that has an answer; `None` while another call waits for its answer.
    ///
    /// # Errors
    /// When the channel is closed, or the method cannot be sent.
    pub fn call(
        &mut self,
        method: &Method,
        wanted: Wanted,
        load: &mut Load,
        out: &mut Output<'_>,
    ) -> Result<Option<Answers>, Failure> {
        self.check()?;
        if self.call.is_some() {
            return Ok(None);
        }
        self.send(method, out)?;
        let (call, answers) = Call::new(method, wanted);
        self.call = Some(call);
        load.called();
        if wanted == Wanted::Confirm {
            // RabbitMQ counts from the first.
            self.published.get_or_insert(0);
        }
        Ok(Some(answers))
    }

    /// Ends a consumer, without an answer; one that begins when it has begun.
    ///
    /// # Errors
    /// When the channel is closed, or the method cannot be sent.
    pub fn cancel(&mut self, tag: &str, out: &mut Output<'_>) -> Result<(), Failure> {
        self.check()?;
        if self
            .call
            .as_mut()
            .is_some_and(|call| call.end_consumer(tag))
        {
            return Ok(());
        }
        let cancel = Method::BasicCancel {
            tag: tag.into(),
            no_wait: true,
        };
        self.send(&cancel, out)
    }

    /// Sends a method.
    ///
    /// # Errors
    /// When the channel is closed, or the method cannot be sent.
    pub fn send(&self, method: &Method, out: &mut Output<'_>) -> Result<(), Failure> {
        self.check()?;
        out.method(self.number, method).map_err(Failure::unsendable)
    }

    /// Begins to close the channel; returns the way of the answer.
    ///
    /// # Errors
    /// When it is closed.
    pub fn close(&mut self, load: &mut Load, out: &mut Output<'_>) -> Result<Answers, Failure> {
        let close = Method::ChannelClose {
            code: codes::OK,
            text: String::new(),
            class: 0,
            method: 0,
        };
        self.send(&close, out)?;
        let (call, answers) = Call::new(&close, Wanted::Close);
        self.closing = Some(call);
        load.called();
        self.phase = Phase::Closing;
        self.assembly = None;
        self.happenings.forget(load);
        self.news.notify_waiters();
        Ok(answers)
    }

    /// Notes that no handle exists any more, and closes the channel.
    pub fn drop_handle(&mut self, load: &mut Load, out: &mut Output<'_>) {
        self.leased = false;
        // It may be closed already.
        let _ = self.close(load, out);
        self.happenings.forget(load);
    }

    /// Sends a message; returns its number for the confirm, 0 without confirms.
    ///
    /// # Errors
    /// When the channel is closed, or the message cannot be sent.
    pub fn publish(&mut self, publish: &Publish, out: &mut Output<'_>) -> Result<u64, Failure> {
        self.check()?;
        let method = Method::BasicPublish {
            ticket: Ticket,
            exchange: publish.exchange.clone(),
            key: publish.routing_key.clone(),
            bits: match publish.mandatory {
                true => bits::MANDATORY,
                false => 0,
            },
        };
        out.content(self.number, &method, &publish.properties, &publish.body)
            .map_err(Failure::unsendable)?;
        Ok(self.published.as_mut().map_or(0, |count| {
            *count += 1;
            *count
        }))
    }

    /// Returns the oldest happening, if there is one. The last is that the channel is closed.
    pub fn next(&mut self, load: &mut Load) -> Option<Happening> {
        let happening = self.happenings.take(load);
        happening.or_else(|| self.check().err().map(Happening::Closed))
    }

    /// Closes the channel: all calls fail.
    pub fn fail(&mut self, failure: &Failure, load: &mut Load) {
        if !matches!(self.phase, Phase::Closed(_)) {
            self.phase = Phase::Closed(failure.clone());
        }
        self.assembly = None;
        for call in [self.call.take(), self.closing.take()]
            .into_iter()
            .flatten()
        {
            load.answered();
            // The caller may have gone.
            let _ = call.finish(Err(failure.clone()));
        }
        self.news.notify_waiters();
    }

    /// Takes a frame of the broker.
    ///
    /// # Errors
    /// When the broker breaks the protocol.
    pub fn take(
        &mut self,
        frame: Frame<'_>,
        load: &mut Load,
        out: &mut Output<'_>,
    ) -> Result<(), Violation> {
        match (&self.phase, frame.kind) {
            (Phase::Closed(_), _) => Err(not_open(self.number)),
            (_, Kind::Method) => {
                let (method, flaw) = read_method(frame.payload)?;
                match self.take_close(method, load, out)? {
                    Some(method) => self.take_method(method, flaw, load, out),
                    None => Ok(()),
                }
            }
            (Phase::Closing, _) => Ok(()),
            (Phase::Open, kind) => {
                let Some(assembly) = &mut self.assembly else {
                    let cause = format!("channel {} gets the content of no message", self.number);
                    return Err(Violation::new(codes::UNEXPECTED_FRAME, cause));
                };
                let is_complete = match kind {
                    Kind::Header => assembly.head(frame.payload)?,
                    _ => assembly.body(frame.payload)?,
                };
                if is_complete {
                    self.take_content(load, out);
                }
                Ok(())
            }
        }
    }

    /// Takes a method if it closes the channel, or if the channel is closing; returns others.
    fn take_close(
        &mut self,
        method: Method,
        load: &mut Load,
        out: &mut Output<'_>,
    ) -> Result<Option<Method>, Violation> {
        let is_closing = matches!(self.phase, Phase::Closing);
        match method {
            Method::ChannelClose { code, text, .. } => {
                // If both sides close, both answer.
                let _ = out.method(self.number, &Method::ChannelCloseOk {});
                if !is_closing {
                    self.fail(&Failure::channel_closed(code, &text), load);
                }
                Ok(None)
            }
            Method::ChannelCloseOk {} if is_closing => {
                if let Some(close) = self.closing.take() {
                    load.answered();
                    let _ = close.finish(Ok(Answer::Done));
                }
                self.fail(&by_us(), load);
                Ok(None)
            }
            _ if is_closing => Ok(None),
            other => Ok(Some(other)),
        }
    }

    /// Takes a method of an open channel.
    fn take_method(
        &mut self,
        method: Method,
        flaw: Option<Malformed>,
        load: &mut Load,
        out: &mut Output<'_>,
    ) -> Result<(), Violation> {
        if self.assembly.is_some() {
            let cause = format!("channel {} gets a method within a message", self.number);
            return Err(Violation::new(codes::UNEXPECTED_FRAME, cause));
        }
        let unreadable = flaw.map(|flaw| flaw.to_string());
        let announced = match method {
            Method::BasicDeliver {
                consumer,
                tag,
                redelivered,
                exchange,
                key,
            } => Announced::Delivery(Box::new(Delivery {
                consumer,
                tag,
                redelivered,
                exchange,
                routing_key: key,
                unreadable,
                ..Delivery::default()
            })),
            Method::BasicGetOk {
                tag,
                redelivered,
                exchange,
                key,
                messages,
            } => {
                if !self.waits_for(Wanted::Get) {
                    return Err(self.unasked("BasicGetOk"));
                }
                Announced::Delivery(Box::new(Delivery {
                    tag,
                    redelivered,
                    exchange,
                    routing_key: key,
                    unreadable,
                    remaining: Some(messages),
                    ..Delivery::default()
                }))
            }
            Method::BasicReturn {
                code,
                text,
                exchange,
                key,
            } => Announced::Returned(Box::new(Returned {
                code,
                text,
                exchange,
                routing_key: key,
                ..Returned::default()
            })),
            Method::BasicAck { tag, multiple } => {
                self.confirmed(tag, multiple, true, load);
                return Ok(());
            }
            Method::BasicNack { tag, bits: given } => {
                self.confirmed(tag, given & bits::MULTIPLE != 0, false, load);
                return Ok(());
            }
            Method::BasicCancel { tag, no_wait } => {
                if !no_wait {
                    let answer = Method::BasicCancelOk { tag: tag.clone() };
                    let _ = out.method(self.number, &answer);
                }
                self.happen(Happening::Canceled(tag), load);
                return Ok(());
            }
            Method::ChannelFlow { active } => {
                // RabbitMQ blocks the connection instead. The answer is all that is needed.
                let _ = out.method(self.number, &Method::ChannelFlowOk { active });
                return Ok(());
            }
            other => return self.answer(other, load, out),
        };
        self.assembly = Some(Assembly::new(announced));
        Ok(())
    }

    fn waits_for(&self, wanted: Wanted) -> bool {
        self.call
            .as_ref()
            .is_some_and(|call| call.wanted() == wanted)
    }

    /// Returns the call that has its answer now. The next one may be sent.
    fn take_call(&mut self, load: &mut Load) -> Option<Call> {
        let call = self.call.take()?;
        load.answered();
        self.news.notify_waiters();
        Some(call)
    }

    /// Takes the answer to a call.
    fn answer(
        &mut self,
        method: Method,
        load: &mut Load,
        out: &mut Output<'_>,
    ) -> Result<(), Violation> {
        let name = method.name();
        let (wanted, answer) = Answer::new(method).map_err(|_| self.unasked(name))?;
        if !self.waits_for(wanted) {
            return Err(self.unasked(name));
        }
        if let Some(mut call) = self.take_call(load) {
            if let Some(tag) = call.take_ended() {
                // The name fits: it was sent before.
                let _ = self.cancel(&tag, out);
            }
            // The caller may have gone.
            let _ = call.finish(Ok(answer));
        }
        Ok(())
    }

    /// Hands on a complete message.
    fn take_content(&mut self, load: &mut Load, out: &mut Output<'_>) {
        match self.assembly.take().map(Assembly::finish) {
            None => {}
            Some(Announced::Returned(returned)) => {
                self.happen(Happening::Returned(returned), load);
            }
            Some(Announced::Delivery(delivery)) if delivery.remaining.is_none() => {
                self.happen(Happening::Delivery(delivery), load);
            }
            Some(Announced::Delivery(delivery)) => {
                // `take_method` has seen that this call waits for it.
                if let Some(call) = self.take_call(load) {
                    let tag = delivery.tag;
                    if call.finish(Ok(Answer::Message(Some(delivery)))).is_err() {
                        self.give_back(tag, out);
                    }
                }
            }
        }
    }

    /// Gives a message back whose caller has gone.
    pub fn give_back(&self, tag: u64, out: &mut Output<'_>) {
        let nack = Method::BasicNack {
            tag,
            bits: bits::REQUEUE,
        };
        // If the channel is closed, the broker has it back already.
        let _ = self.send(&nack, out);
    }

    fn confirmed(&mut self, number: u64, multiple: bool, ok: bool, load: &mut Load) {
        let happening = Happening::Confirmed {
            number,
            multiple,
            ok,
        };
        self.happen(happening, load);
    }

    fn happen(&mut self, happening: Happening, load: &mut Load) {
        self.happenings.add(happening, load);
        self.news.notify_waiters();
    }

    fn unasked(&self, name: &str) -> Violation {
        let cause = format!("channel {} gets {name}, which is no answer", self.number);
        Violation::new(codes::COMMAND_INVALID, cause)
    }
}

/// Reads the payload of a method frame, and its first flaw.
///
/// # Errors
/// When it is unreadable.
pub fn read_method(payload: &[u8]) -> Result<(Method, Option<Malformed>), Violation> {
    let mut from = Reader::new(payload);
    let method = Method::read(&mut from);
    let method = method.map_err(|flaw| Violation::new(codes::FRAME_ERROR, flaw.to_string()))?;
    Ok((method, from.into_flaw()))
}

/// Returns the violation of a frame on a channel that is not open.
pub fn not_open(number: u16) -> Violation {
    let cause = format!("a frame comes on channel {number}, which is not open");
    Violation::new(codes::CHANNEL_ERROR, cause)
}

/// Returns the failure of a channel that this side has closed.
pub fn by_us() -> Failure {
    Failure::of_channel(FailureKind::Closed, "this client has closed the channel")
}
