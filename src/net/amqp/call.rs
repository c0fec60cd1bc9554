//! Calls: methods that have an answer.

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

/// Way to a caller, who may have gone.
pub type Reply = oneshot::Sender<Result<Answer, Failure>>;

/// Way for the answer to a call.
pub type Answers = oneshot::Receiver<Result<Answer, Failure>>;

impl Answer {
    /// Returns the answer that `method` is, and what it answers.
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
