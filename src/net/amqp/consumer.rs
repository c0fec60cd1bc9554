//! The task of a session that takes messages from its queue.

use std::ops::ControlFlow;
use std::pin::pin;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use crate::model::claim::Claim;
use crate::model::queue::Settle;
use crate::net::amqp::link::{Claims, Link, explained};
use crate::net::amqp::publisher::Post;
use crate::net::amqp::queue::{Events, QueueEvent, QueueOptions, Room, Tag};
use crate::net::amqp::received;
use crate::net::amqp::{Delivery, Failure, FailureKind, Happening};
use crate::net::backoff::backoff;

/// Maximum time for a goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// Time after which a connection has proved that the queue can be taken from. After a shorter one without
/// deliveries the next wait is longer.
const PROVED: Duration = Duration::from_secs(5);

/// What a session is asked to do.
#[derive(Debug)]
pub enum Command {
    /// There is so much room.
    Room(Room),
    /// Acknowledge a delivery.
    Acknowledge(Tag),
    /// Give a delivery back to the queue.
    GiveBack(Tag),
    /// Say how many acknowledgements the broker has handled.
    AskHandled,
    /// Publish a claim.
    Claim(Claim),
    /// End in good order, and say so.
    Stop(oneshot::Sender<()>),
}

/// Why a connection has ended.
enum End {
    Failed(Failure),
    Stopped(Option<oneshot::Sender<()>>),
}

/// Says that the session has ended.
fn stopped(done: Option<oneshot::Sender<()>>) {
    if let Some(done) = done {
        // Its client may have gone.
        let _ = done.send(());
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The task.
pub struct Consumer {
    options: QueueOptions,
    events: Events,
    commands: UnboundedReceiver<Command>,
    posts: UnboundedSender<Post>,
    /// Number of the connection.
    number: u64,
    /// Whether the client knows of the connection.
    is_told: bool,
    /// How many deliveries the client was told of, of all connections and of this one.
    delivered: u64,
    delivered_here: u64,
    room: Room,
    /// Warnings that were given.
    warned: Vec<String>,
}

impl Consumer {
    /// Returns the task of a session.
    pub(super) const fn new(
        options: QueueOptions,
        events: Events,
        commands: UnboundedReceiver<Command>,
        posts: UnboundedSender<Post>,
    ) -> Self {
        Self {
            options,
            events,
            commands,
            posts,
            number: 0,
            is_told: false,
            delivered: 0,
            delivered_here: 0,
            room: Room {
                received: 0,
                free: 0,
                is_paused: true,
            },
            warned: Vec::new(),
        }
    }

    /// Takes messages until it is stopped.
    pub async fn run(mut self) {
        let mut failures = 0;
        loop {
            let since = Instant::now();
            let failure = match self.connect().await {
                End::Failed(failure) => failure,
                End::Stopped(done) => {
                    return stopped(done);
                }
            };
            // A broker that lets us in and does not let us take would be asked all the time otherwise.
            if self.delivered_here > 0 || (self.is_told && since.elapsed() >= PROVED) {
                failures = 0;
            }
            self.events.tell(QueueEvent::Offline(failure.text));
            let until = Instant::now() + backoff(failures);
            failures = failures.saturating_add(1);
            if let ControlFlow::Break(done) = self.wait(sleep_until(until)).await {
                return stopped(done);
            }
        }
    }

    /// Waits for `future`, without a connection.
    async fn wait<T>(
        &mut self,
        future: impl Future<Output = T>,
    ) -> ControlFlow<Option<oneshot::Sender<()>>, T> {
        let mut future = pin!(future);
        loop {
            tokio::select! {
                done = &mut future => return ControlFlow::Continue(done),
                command = self.commands.recv() => match command {
                    Some(Command::Room(room)) => self.room = room,
                    // The broker has taken the deliveries back.
                    Some(
                        Command::Acknowledge(_)
                        | Command::GiveBack(_)
                        | Command::AskHandled
                        | Command::Claim(_),
                    ) => {}
                    Some(Command::Stop(done)) => return ControlFlow::Break(Some(done)),
                    None => return ControlFlow::Break(None),
                },
            }
        }
    }

    /// Connects, and takes messages as long as the connection holds.
    async fn connect(&mut self) -> End {
        (self.is_told, self.delivered_here) = (false, 0);
        let options = self.options.clone();
        let opened = match self.wait(Link::open(&options)).await {
            ControlFlow::Continue(opened) => opened,
            ControlFlow::Break(done) => return End::Stopped(done),
        };
        let (mut link, warnings) = match opened {
            Ok(opened) => opened,
            Err(failure) => return End::Failed(failure),
        };
        self.number += 1;
        for warning in warnings {
            self.warn(warning);
        }
        let Err(end) = self.serve(&mut link).await;
        if let End::Stopped(_) = &end {
            // The broker takes back what is not acknowledged.
            let _ = timeout(GOODBYE, link.connection.close()).await;
        }
        end
    }

    /// Gives a warning, once.
    fn warn(&mut self, warning: String) {
        if !self.warned.contains(&warning) {
            self.warned.push(warning.clone());
            self.events.tell(QueueEvent::Warning(warning));
        }
    }

    /// Returns how many more messages there is room for, besides those that the client has not got yet.
    fn allowed(&self) -> usize {
        let on_the_way = self.delivered.saturating_sub(self.room.received);
        let on_the_way = usize::try_from(on_the_way).unwrap_or(usize::MAX);
        self.room.free.saturating_sub(on_the_way)
    }

    /// Tells the client of the connection, once the broker lets us take.
    fn online(&mut self) {
        if !std::mem::replace(&mut self.is_told, true) {
            self.events.tell(QueueEvent::Online(self.number));
        }
    }

    async fn serve(&mut self, link: &mut Link) -> Result<std::convert::Infallible, End> {
        let taken = self.take(link).await;
        taken.map_err(|end| match end {
            End::Failed(failure) => End::Failed(explained(failure, &self.options)),
            stopped @ End::Stopped(_) => stopped,
        })?;
        self.online();
        loop {
            let planned = link.planned();
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => self.command(link, command).await?,
                    None => return Err(End::Stopped(None)),
                },
                happening = link.channel.next(), if self.events.has_room() => {
                    self.happened(link, happening).await?;
                }
                () = self.events.room(), if !self.events.has_room() => self.take(link).await?,
                claim = Claims::next(&mut link.claims) => match claim {
                    Some((body, event)) => {
                        if !self.events.pass(body, event) {
                            let cause = "claims of other hosts come too fast, or are too large: some are \
                                         dropped; who may write to exchange 'tael.claims'?";
                            self.warn(cause.to_owned());
                        }
                    }
                    None => link.claims = None,
                },
                failure = link.connection.closed() => return Err(failure.into()),
                () = sleep_until(planned.unwrap_or_else(Instant::now)), if planned.is_some() => {
                    let number = link.ping().await?;
                    self.events.tell(QueueEvent::Handled(self.number, number));
                }
            }
        }
    }

    async fn command(&mut self, link: &mut Link, command: Command) -> Result<(), End> {
        match command {
            Command::Room(room) => {
                let was_paused = self.room.is_paused;
                self.room = room;
                match self.options.settle {
                    Settle::Accept if !link.consumes || self.allowed() == 0 => {
                        self.take(link).await?;
                    }
                    Settle::Done if was_paused != room.is_paused => self.take(link).await?,
                    Settle::Accept | Settle::Done => {}
                }
            }
            Command::Acknowledge(tag) if tag.connection == self.number => {
                // In this order, the broker delivers nothing more for the acknowledgement.
                if self.options.settle == Settle::Accept && self.allowed() == 0 {
                    link.cancel()?;
                }
                link.acknowledge(tag.number)?;
                self.make_room(link, tag).await?;
            }
            Command::GiveBack(tag) if tag.connection == self.number => {
                link.channel.nack(tag.number, true)?;
                self.make_room(link, tag).await?;
            }
            Command::Acknowledge(_) | Command::GiveBack(_) => {}
            Command::AskHandled => {
                let number = link.ping_now().await?;
                self.events.tell(QueueEvent::Handled(self.number, number));
            }
            Command::Claim(mut claim) => {
                if let Some(claims) = &link.claims {
                    claim.reply_to.clone_from(&claims.reply_to);
                    let _ = self.posts.send(Post::claim(&claim));
                }
            }
            Command::Stop(done) => return Err(End::Stopped(Some(done))),
        }
        Ok(())
    }

    /// Notes that a delivery is acknowledged or given back. One of an earlier consumer makes room that the
    /// present one does not know of.
    async fn make_room(&mut self, link: &mut Link, tag: Tag) -> Result<(), End> {
        let is_earlier = link.went(tag.number);
        if is_earlier && self.options.settle == Settle::Done && !self.room.is_paused {
            self.consume(link).await?;
        }
        Ok(())
    }

    /// Begins to take as many messages as there is room for beside those that earlier consumers hold.
    async fn consume(&mut self, link: &mut Link) -> Result<(), End> {
        link.cancel_and_wait().await?;
        while let Some(happening) = link.channel.try_next() {
            self.happened(link, happening).await?;
        }
        Ok(link.consume(&self.options).await?)
    }

    async fn happened(&mut self, link: &mut Link, happening: Happening) -> Result<(), End> {
        match happening {
            Happening::Delivery(delivery) => {
                self.deliver(link, *delivery)?;
                // Where one was, more may be.
                self.fetch(link).await?;
            }
            Happening::Canceled(_) => {
                let cause = "the broker has canceled our consumer: was the queue deleted?";
                return Err(Failure::new(FailureKind::Missing, cause).into());
            }
            Happening::Closed(failure) => return Err(explained(failure, &self.options).into()),
            // Nothing is published here.
            Happening::Confirmed { .. } | Happening::Returned(_) => {}
        }
        Ok(())
    }

    /// Begins or ends to take messages, as there is room.
    ///
    /// Messages that are acknowledged when they are accepted are fetched one by one while there are
    /// any, so that no more are taken than there is room for. When the queue is empty, a consumer with
    /// a prefetch of 1 waits for the next one.
    async fn take(&mut self, link: &mut Link) -> Result<(), End> {
        match self.options.settle {
            Settle::Done if self.room.is_paused => link.cancel()?,
            Settle::Done if link.consumes => {}
            Settle::Done => self.consume(link).await?,
            Settle::Accept => {
                self.fetch(link).await?;
                match self.allowed() {
                    0 => link.cancel()?,
                    _ if link.consumes => {}
                    _ => link.consume(&self.options).await?,
                }
            }
        }
        Ok(())
    }

    /// Fetches messages while there are some, and room for them.
    async fn fetch(&mut self, link: &mut Link) -> Result<(), Failure> {
        if self.options.settle == Settle::Done {
            return Ok(());
        }
        while self.allowed() > 0
            && self.events.has_room()
            && let Some(delivery) = link.channel.get(&self.options.url.queue).await?
        {
            self.deliver(link, delivery)?;
        }
        Ok(())
    }

    fn deliver(&mut self, link: &mut Link, delivery: Delivery) -> Result<(), Failure> {
        if let Some(bytes) = delivery.oversized {
            self.events.tell(QueueEvent::Warning(format!(
                "a message of {bytes} bytes is refused: it is too large, and the broker dead-letters \
                 or drops it"
            )));
            return link.channel.nack(delivery.tag, false);
        }
        self.online();
        let tag = Tag {
            connection: self.number,
            number: delivery.tag,
        };
        self.delivered += 1;
        self.delivered_here += 1;
        link.came(tag.number);
        let delivery = Box::new(received::message(delivery));
        self.events.deliver(tag, delivery);
        Ok(())
    }
}
