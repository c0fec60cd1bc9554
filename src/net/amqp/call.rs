//! Calls: methods that have an answer.
//!
//! A channel sends a call when the one before has its answer, as the standard means synchronous methods
//! (AMQP 0-9-1, section 2.2.1). RabbitMQ would take more at once, but its
//! classic queues answer for their consumers beside the channel, in another order, and a cancel before
//! the answer to its consume crashes the channel (seen with 3.10.8).

use tokio::sync::oneshot;

use crate::net::amqp::failure::Failure;
use crate::net::amqp::message::{Declared, Delivery};
use crate::net::amqp::method::Method;

/// What a call waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// `channel.open-ok`
    Open,
    /// `channel.close-ok`
    Close,
    /// `channel.flow-ok`
    Flow,
    /// `exchange.declare-ok`
    Exchange,
    /// `queue.declare-ok`
    Queue,
    /// `queue.bind-ok`
    Bind,
    /// `queue.purge-ok`
    Purge,
    /// `queue.delete-ok`
    Delete,
    /// `basic.qos-ok`
    Qos,
    /// `basic.consume-ok`
    Consume,
    /// `basic.cancel-ok`
    Cancel,
    /// `basic.get-ok` with a message, or `basic.get-empty`
    Get,
    /// `confirm.select-ok`
    Confirm,
}

/// Answer to a call.
#[derive(Debug)]
pub enum Answer {
    /// It is done.
    Done,
    /// Name and figures of a queue.
    Queue(String, Declared),
    /// Number of messages.
    Messages(u32),
    /// A message, if there is one.
    Message(Option<Box<Delivery>>),
}

/// A call that waits for its answer.
#[derive(Debug)]
pub struct Call {
    wanted: Wanted,
    /// Tag of the consumer that it begins.
    consumer: Option<String>,
    /// Whether that consumer ends when it has begun.
    ends: bool,
    reply: oneshot::Sender<Result<Answer, Failure>>,
}

impl Call {
    /// Returns the call that `method` is, and the way of its answer.
    pub fn new(method: &Method, wanted: Wanted) -> (Self, Answers) {
        let (reply, answers) = oneshot::channel();
        let consumer = match method {
            Method::BasicConsume { tag, .. } => Some(tag.clone()),
            _ => None,
        };
        let call = Self {
            wanted,
            consumer,
            ends: false,
            reply,
        };
        (call, answers)
    }

    /// Returns what it waits for.
    pub const fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// Ends the consumer as soon as it has begun. Returns whether this call begins it.
    pub fn end_consumer(&mut self, tag: &str) -> bool {
        let is_begun = self.consumer.as_deref() == Some(tag);
        self.ends |= is_begun;
        is_begun
    }

    /// Returns the tag of the consumer that must end now that it has begun.
    pub fn take_ended(&mut self) -> Option<String> {
        self.consumer.take().filter(|_| self.ends)
    }

    /// Hands the answer to the caller, who may have gone.
    ///
    /// # Errors
    /// The answer, if the caller has gone.
    pub fn finish(self, answer: Result<Answer, Failure>) -> Result<(), Result<Answer, Failure>> {
        self.reply.send(answer)
    }
}

/// Way for the answer to a call.
pub type Answers = oneshot::Receiver<Result<Answer, Failure>>;

impl Answer {
    /// Returns what `method` answers, and the answer.
    ///
    /// # Errors
    /// The method, if it is no answer.
    pub fn new(method: Method) -> Result<(Wanted, Self), Method> {
        Ok(match method {
            Method::ChannelOpenOk { .. } => (Wanted::Open, Self::Done),
            Method::ChannelFlowOk { .. } => (Wanted::Flow, Self::Done),
            Method::ExchangeDeclareOk {} => (Wanted::Exchange, Self::Done),
            Method::QueueDeclareOk {
                queue,
                messages,
                consumers,
            } => {
                let figures = Declared {
                    messages,
                    consumers,
                };
                (Wanted::Queue, Self::Queue(queue, figures))
            }
            Method::QueueBindOk {} => (Wanted::Bind, Self::Done),
            Method::QueuePurgeOk { messages } => (Wanted::Purge, Self::Messages(messages)),
            Method::QueueDeleteOk { messages } => (Wanted::Delete, Self::Messages(messages)),
            Method::BasicQosOk {} => (Wanted::Qos, Self::Done),
            Method::BasicConsumeOk { .. } => (Wanted::Consume, Self::Done),
            Method::BasicCancelOk { .. } => (Wanted::Cancel, Self::Done),
            Method::BasicGetEmpty { .. } => (Wanted::Get, Self::Message(None)),
            Method::ConfirmSelectOk {} => (Wanted::Confirm, Self::Done),
            other => return Err(other),
        })
    }
}
