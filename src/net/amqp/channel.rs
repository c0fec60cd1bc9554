//! A channel: calls, messages, and what the broker says.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::net::amqp::call::{Answer, Answers, Wanted};
use crate::net::amqp::channel_state::by_us;
use crate::net::amqp::failure::{Failure, FailureKind};
use crate::net::amqp::message::{Declare, Declared, Delivery, Happening, Publish};
use crate::net::amqp::method::{Method, bits};
use crate::net::amqp::shared::{Handles, Shared};
use crate::net::amqp::state::State;
use crate::net::amqp::value::Table;
use crate::net::amqp::wire::Ticket;

/// Time limit for the answer to `close`.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// A channel of a connection. Clones share it; it closes with the last.
///
/// A channel sends one call at a time: later ones wait for its answer. A call that is dropped before its
/// answer may be done, and changes nothing for later calls. After the broker has closed the channel, every call fails with the reason and sends nothing.
#[derive(Clone)]
pub struct Channel(Arc<Lease>);

/// The right to use a channel.
struct Lease {
    number: u16,
    news: Arc<Notify>,
    shared: Arc<Shared>,
    /// Keeps the connection alive.
    _handles: Arc<Handles>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.change(|state| state.drop_channel(self.number));
    }
}

/// A `get` that waits. If it is dropped, its message goes back.
struct Getting<'a> {
    answers: Answers,
    lease: &'a Lease,
}

impl Drop for Getting<'_> {
    fn drop(&mut self) {
        self.answers.close();
        if let Ok(Ok(Answer::Message(Some(delivery)))) = self.answers.try_recv() {
            let number = self.lease.number;
            let give_back = |state: &mut State| state.give_back(number, delivery.tag);
            self.lease.shared.change(give_back);
        }
    }
}

/// Waits for an answer.
async fn answer(answers: Answers) -> Result<Answer, Failure> {
    answers.await.unwrap_or_else(|_| Err(by_us()))
}

/// Returns the failure of an answer that does not fit its call, which `call.rs` excludes.
fn misfit() -> Failure {
    Failure::of_channel(FailureKind::Refused, "the answer does not fit the call")
}

impl Channel {
    /// Opens a channel of the connection that `handles` keep alive.
    ///
    /// # Errors
    /// When the connection is closed, or has all the channels that the broker allows.
    pub(super) async fn open(handles: &Arc<Handles>) -> Result<Self, Failure> {
        let shared = Arc::clone(&handles.0);
        let (number, news, answers) = shared.change(State::open_channel)?;
        // From here on the channel closes if this call is dropped.
        let channel = Self(Arc::new(Lease {
            number,
            news,
            shared,
            _handles: Arc::clone(handles),
        }));
        answer(answers).await?;
        Ok(channel)
    }

    /// Sends a call as soon as the one before has its answer.
    async fn begin(&self, method: &Method, wanted: Wanted) -> Result<Answers, Failure> {
        let number = self.0.number;
        loop {
            let mut news = pin!(self.0.news.notified());
            news.as_mut().enable();
            let call = |state: &mut State| state.call(number, method, wanted);
            if let Some(answers) = self.0.shared.change(call)? {
                return Ok(answers);
            }
            news.await;
        }
    }

    async fn call(&self, method: &Method, wanted: Wanted) -> Result<Answer, Failure> {
        answer(self.begin(method, wanted).await?).await
    }

    fn send(&self, method: &Method) -> Result<(), Failure> {
        self.0
            .shared
            .change(|state| state.send(self.0.number, method))
    }

    async fn queue(&self, method: &Method) -> Result<(String, Declared), Failure> {
        match self.call(method, Wanted::Queue).await? {
            Answer::Queue(name, figures) => Ok((name, figures)),
            _ => Err(misfit()),
        }
    }

    async fn messages(&self, method: &Method, wanted: Wanted) -> Result<u32, Failure> {
        match self.call(method, wanted).await? {
            Answer::Messages(count) => Ok(count),
            _ => Err(misfit()),
        }
    }

    /// Returns the figures of a queue.
    ///
    /// # Errors
    /// When it does not exist (404), is of another connection only (405), or may not be read (403);
    /// each closes the channel.
    pub async fn declare_passive(&self, queue: &str) -> Result<Declared, Failure> {
        let method = Method::QueueDeclare {
            ticket: Ticket,
            queue: queue.into(),
            bits: bits::PASSIVE,
            arguments: Table::new(),
        };
        Ok(self.queue(&method).await?.1)
    }

    /// Creates a queue unless it exists. Returns its name, which the broker chooses for an empty one,
    /// and its figures.
    ///
    /// # Errors
    /// When it exists and is declared otherwise (406), or may not be declared (403); each closes the
    /// channel.
    pub async fn declare(
        &self,
        queue: &str,
        declare: &Declare,
    ) -> Result<(String, Declared), Failure> {
        let mut flags = 0;
        for (is_set, bit) in [
            (declare.durable, bits::DURABLE),
            (declare.exclusive, bits::QUEUE_EXCLUSIVE),
            (declare.auto_delete, bits::QUEUE_AUTO_DELETE),
        ] {
            if is_set {
                flags |= bit;
            }
        }
        let method = Method::QueueDeclare {
            ticket: Ticket,
            queue: queue.into(),
            bits: flags,
            arguments: declare.arguments.clone(),
        };
        self.queue(&method).await
    }

    /// Creates an exchange of a `kind`, such as `direct`, unless it exists. With `passive` it must
    /// exist.
    ///
    /// # Errors
    /// When it is declared otherwise (406), missing (404), or may not be declared (403); each closes
    /// the channel.
    pub async fn declare_exchange(
        &self,
        name: &str,
        kind: &str,
        durable: bool,
        passive: bool,
    ) -> Result<(), Failure> {
        let durable = if durable { bits::DURABLE } else { 0 };
        let passive = if passive { bits::PASSIVE } else { 0 };
        let method = Method::ExchangeDeclare {
            ticket: Ticket,
            exchange: name.into(),
            kind: kind.into(),
            bits: durable | passive,
            arguments: Table::new(),
        };
        self.call(&method, Wanted::Exchange).await.map(drop)
    }

    /// Binds a queue to an exchange.
    ///
    /// # Errors
    /// When one does not exist (404) or may not be bound (403); each closes the channel.
    pub async fn bind(&self, queue: &str, exchange: &str, key: &str) -> Result<(), Failure> {
        let method = Method::QueueBind {
            ticket: Ticket,
            queue: queue.into(),
            exchange: exchange.into(),
            key: key.into(),
            no_wait: false,
            arguments: Table::new(),
        };
        self.call(&method, Wanted::Bind).await.map(drop)
    }

    /// Removes all messages that are ready; returns their number.
    ///
    /// # Errors
    /// When the queue does not exist (404) or may not be read (403); each closes the channel.
    pub async fn purge(&self, queue: &str) -> Result<u32, Failure> {
        let method = Method::QueuePurge {
            ticket: Ticket,
            queue: queue.into(),
            no_wait: false,
        };
        self.messages(&method, Wanted::Purge).await
    }

    /// Deletes a queue with its messages; returns their number. A missing queue is no failure.
    ///
    /// # Errors
    /// When it may not be deleted (403), which closes the channel.
    pub async fn delete(&self, queue: &str) -> Result<u32, Failure> {
        let method = Method::QueueDelete {
            ticket: Ticket,
            queue: queue.into(),
            bits: 0,
        };
        self.messages(&method, Wanted::Delete).await
    }

    /// Sets the maximum number of messages without acknowledgement, for each consumer that begins
    /// later; 0 means no maximum.
    ///
    /// # Errors
    /// When the channel is closed.
    pub async fn qos(&self, prefetch: u16) -> Result<(), Failure> {
        let method = Method::BasicQos {
            size: 0,
            count: prefetch,
            global: false,
        };
        self.call(&method, Wanted::Qos).await.map(drop)
    }

    /// Begins to consume a queue under a tag of our choice, which is not empty. Deliveries come from [`Self::next`],
    /// also if this call is dropped.
    ///
    /// # Errors
    /// When the queue does not exist (404), may not be read (403), or has an exclusive consumer
    /// (403); each closes the channel. A tag that is in use closes the connection (530).
    pub async fn consume(
        &self,
        queue: &str,
        tag: &str,
        no_ack: bool,
        exclusive: bool,
        arguments: &Table,
    ) -> Result<(), Failure> {
        if tag.is_empty() {
            // The broker would choose one, which this client does not wait for.
            let cause = "cannot be sent: a consumer needs a tag";
            return Err(Failure::of_channel(FailureKind::Invalid, cause));
        }
        let no_ack = if no_ack { bits::NO_ACK } else { 0 };
        let exclusive = if exclusive { bits::EXCLUSIVE } else { 0 };
        let method = Method::BasicConsume {
            ticket: Ticket,
            queue: queue.into(),
            tag: tag.into(),
            bits: no_ack | exclusive,
            arguments: arguments.clone(),
        };
        self.call(&method, Wanted::Consume).await.map(drop)
    }

    /// Ends a consumer. The deliveries before the answer are happenings. An unknown tag is no
    /// failure.
    ///
    /// # Errors
    /// When the channel is closed.
    pub async fn cancel(&self, tag: &str) -> Result<(), Failure> {
        let method = Method::BasicCancel {
            tag: tag.into(),
            no_wait: false,
        };
        self.call(&method, Wanted::Cancel).await.map(drop)
    }

    /// Ends a consumer, without an answer; one that begins as soon as it has begun.
    ///
    /// # Errors
    /// When the channel is closed.
    pub fn cancel_nowait(&self, tag: &str) -> Result<(), Failure> {
        let number = self.0.number;
        self.0.shared.change(|state| state.cancel(number, tag))
    }

    /// Takes one message from a queue, if it has one. If this call is dropped, its message goes back
    /// into the queue.
    ///
    /// # Errors
    /// When the queue does not exist (404) or may not be read (403); each closes the channel.
    pub async fn get(&self, queue: &str) -> Result<Option<Delivery>, Failure> {
        let method = Method::BasicGet {
            ticket: Ticket,
            queue: queue.into(),
            no_ack: false,
        };
        let mut getting = Getting {
            answers: self.begin(&method, Wanted::Get).await?,
            lease: &self.0,
        };
        let answer = (&mut getting.answers).await;
        match answer.unwrap_or_else(|_| Err(by_us()))? {
            Answer::Message(delivery) => Ok(delivery.map(|delivery| *delivery)),
            _ => Err(misfit()),
        }
    }

    /// Acknowledges a delivery, with `multiple` all before it, too. It is queued, and not confirmed by
    /// the broker: [`Self::ping`] confirms it.
    ///
    /// # Errors
    /// When the channel is closed: the broker delivers again.
    pub fn ack(&self, tag: u64, multiple: bool) -> Result<(), Failure> {
        self.send(&Method::BasicAck { tag, multiple })
    }

    /// Refuses a delivery: the broker puts it back into the queue, or drops or dead-letters it. It is
    /// queued.
    ///
    /// # Errors
    /// When the channel is closed: the broker delivers again.
    pub fn nack(&self, tag: u64, requeue: bool) -> Result<(), Failure> {
        let bits = if requeue { bits::REQUEUE } else { 0 };
        self.send(&Method::BasicNack { tag, bits })
    }

    /// Asks the broker to confirm what is published from now on.
    ///
    /// # Errors
    /// When the channel is closed.
    pub async fn confirm_select(&self) -> Result<(), Failure> {
        let method = Method::ConfirmSelect { no_wait: false };
        self.call(&method, Wanted::Confirm).await.map(drop)
    }

    /// Publishes a message as soon as the output has room. Returns its number, from 1, for
    /// [`Happening::Confirmed`]; 0 if confirms were not asked for. A call that is dropped before has
    /// published nothing.
    ///
    /// # Errors
    /// When the channel is closed, or a name, property or table does not fit.
    pub async fn publish(&self, publish: &Publish) -> Result<u64, Failure> {
        let shared = &self.0.shared;
        loop {
            if let Some(done) = self.try_publish(publish) {
                return done;
            }
            let mut room = pin!(shared.room.notified());
            room.as_mut().enable();
            if let Some(done) = self.try_publish(publish) {
                return done;
            }
            room.await;
        }
    }

    /// Publishes a message; `None` if the output has no room.
    fn try_publish(&self, publish: &Publish) -> Option<Result<u64, Failure>> {
        let number = self.0.number;
        self.0.shared.change(|state| match state.has_room() {
            true => Some(state.publish(number, publish)),
            false => state.check_channel(number).err().map(Err),
        })
    }

    /// Waits until the broker has handled everything that was sent before on this channel.
    ///
    /// # Errors
    /// When the channel is closed.
    pub async fn ping(&self) -> Result<(), Failure> {
        let method = Method::ChannelFlow { active: true };
        self.call(&method, Wanted::Flow).await.map(drop)
    }

    /// Returns what the broker says next. A call that is dropped takes nothing. On a closed channel
    /// the last is [`Happening::Closed`], each time.
    pub async fn next(&self) -> Happening {
        loop {
            let mut news = pin!(self.0.news.notified());
            news.as_mut().enable();
            if let Some(happening) = self.try_next() {
                return happening;
            }
            news.await;
        }
    }

    /// Returns what the broker has said next, if it is here.
    pub fn try_next(&self) -> Option<Happening> {
        let number = self.0.number;
        self.0.shared.change(|state| state.next(number))
    }

    /// Closes the channel, and waits for the answer for at most [`CLOSE_TIMEOUT`]. What it has sent
    /// before is handled by the broker.
    pub async fn close(self) {
        let number = self.0.number;
        let answers = self.0.shared.change(|state| state.close_channel(number));
        if let Ok(answers) = answers {
            // It is closed on this side in any case.
            let _ = timeout(CLOSE_TIMEOUT, answers).await;
        }
    }
}
