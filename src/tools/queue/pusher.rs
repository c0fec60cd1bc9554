//! Publishes messages to a queue until the broker has confirmed each, through as many connections as it
//! takes.

use std::cell::RefCell;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::warn;

use crate::error::{Error, Result};
use crate::model::message::property;
use crate::model::queue::QueueType;
use crate::model::text::printable;
use crate::net::amqp::{
    Channel, Connection, Failure, Happening, PERSISTENT, Properties, Publish, Table,
};
use crate::net::backoff::backoff;
use crate::os::host;
use crate::tools::message::origin;
use crate::tools::queue::bodies::{Bodies, media_type};
use crate::tools::queue::outbox::{Message, Outbox};
use crate::tools::queue::tally::{Hindrance, MAX_AWAITED, Tally};
use crate::tools::queue::target::{MAX_DOUBLINGS, Target, goodbye};

/// Pause before a message is sent again that the broker did not take, as when the queue is full.
const REFUSED: Duration = Duration::from_secs(1);

/// Program that has published a message: property `app_id`.
const APP: &str = "tael";

/// Maximum length of a text of the broker, characters.
const MAX_TEXT: usize = 200;

/// Returns the headers of messages: where they come from, as in MQTT.
fn headers() -> Table {
    let mut headers = Table::new();
    for (name, value) in origin() {
        if name != property::ID {
            headers.push(&name, value.as_str());
        }
    }
    headers
}

/// What to publish, and where.
#[derive(Debug)]
pub struct Job {
    /// The queue.
    pub target: Target,
    /// Bodies of the messages.
    pub bodies: Bodies,
    /// Type to declare the queue as; by default it must be there.
    pub declare: Option<QueueType>,
    /// Priority of the messages.
    pub priority: Option<u8>,
    /// Queue for reports of their ends.
    pub reply_to: Option<String>,
}

/// Publishes messages, through as many connections as it takes.
pub struct Pusher<'a> {
    target: Target,
    declare: Option<QueueType>,
    /// Properties that all messages have.
    template: Properties,
    bodies: Bodies,
    outbox: Outbox,
    tally: &'a RefCell<Tally>,
    /// Whether it was said that the broker does not take a message.
    refused: bool,
    /// Media type of the last body, and where that is: bodies are often the same.
    content_type: Option<(Bytes, &'static str)>,
}

/// Why a connection has ended.
enum Broken {
    /// It must be opened again.
    Lost(String),
    /// Another one would not help.
    Fatal(Error),
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

impl<'a> Pusher<'a> {
    /// Returns one that notes its progress in `tally`.
    pub fn new(job: Job, tally: &'a RefCell<Tally>) -> Self {
        Self {
            target: job.target,
            declare: job.declare,
            template: Properties {
                delivery_mode: Some(PERSISTENT),
                priority: job.priority,
                reply_to: job.reply_to,
                app_id: Some(APP.to_owned()),
                headers: headers(),
                ..Properties::default()
            },
            bodies: job.bodies,
            outbox: Outbox::default(),
            tally,
            refused: false,
            content_type: None,
        }
    }

    /// Publishes until the broker has confirmed everything.
    ///
    /// # Errors
    /// When another connection would not help.
    pub async fn run(&mut self) -> Result<()> {
        let mut failures = 0;
        loop {
            let cause = match self.session(&mut failures).await {
                Ok(()) => return Ok(()),
                Err(Broken::Fatal(error)) => return Err(error),
                Err(Broken::Lost(cause)) => cause,
            };
            if failures == 0 && self.tally.borrow().confirmed > 0 {
                warn!("lost {}: {cause}; reconnecting", self.target.url.broker());
            }
            self.tally.borrow_mut().lost(cause);
            self.outbox.lost();
            sleep(backoff(failures.min(MAX_DOUBLINGS))).await;
            failures += 1;
        }
    }

    fn broken(&self, failure: Failure) -> Broken {
        match failure.is_passing() {
            true => Broken::Lost(failure.text),
            false => Broken::Fatal(self.target.failed(&self.target.url.queue, failure)),
        }
    }

    /// Publishes over one connection.
    async fn session(&mut self, failures: &mut u32) -> Result<(), Broken> {
        let opened = Connection::open(&self.target.options()).await;
        let connection = opened.map_err(|failure| match failure.is_passing() {
            true => Broken::Lost(failure.text),
            false => Broken::Fatal(self.target.refused(failure)),
        })?;
        let declared = self.target.declare(&connection, self.declare).await;
        declared.map_err(|failure| self.broken(failure))?;
        let channel = async {
            let channel = connection.channel().await?;
            channel.confirm_select().await?;
            Ok(channel)
        };
        let channel = channel.await.map_err(|failure| self.broken(failure))?;
        self.tally.borrow_mut().hindrance = None;
        let before = self.tally.borrow().confirmed;
        let tally = self.tally;
        let served = tokio::select! {
            biased;
            served = self.serve(&channel) => served,
            never = blocked(&connection, tally) => match never {},
        };
        if self.tally.borrow().confirmed > before {
            *failures = 0;
        }
        if served.is_ok() {
            goodbye(connection).await;
        }
        served
    }

    /// Publishes, and takes confirms, until there is nothing left.
    async fn serve(&mut self, channel: &Channel) -> Result<(), Broken> {
        let mut is_read = false;
        let mut pause: Option<Instant> = None;
        loop {
            if is_read && self.outbox.is_empty() {
                return Ok(());
            }
            self.tally.borrow_mut().set_idle(self.outbox.is_empty());
            let is_paused = pause.is_some_and(|until| Instant::now() < until);
            let again = match self.outbox.has_room() && !is_paused {
                true => self.outbox.take_again(),
                false => None,
            };
            if let Some(message) = again {
                self.send(channel, message).await?;
                continue;
            }
            let takes = self.outbox.has_room() && !is_read;
            tokio::select! {
                biased;
                happening = channel.next() => {
                    if self.happened(happening)? {
                        pause = Some(Instant::now() + REFUSED);
                    }
                }
                body = self.bodies.next(), if takes => match body? {
                    Some(body) => {
                        let message = Message { id: host::new_id(), body };
                        self.begin(&message.id)?;
                        self.send(channel, message).await?;
                    }
                    None => {
                        is_read = true;
                        self.tally.borrow_mut().end();
                    }
                },
                () = sleep_until(pause.unwrap_or_else(Instant::now)), if is_paused => pause = None,
            }
        }
    }

    /// Notes a new message.
    fn begin(&self, id: &str) -> Result<()> {
        let mut tally = self.tally.borrow_mut();
        tally.set_idle(false);
        if tally.waits() && tally.left() >= MAX_AWAITED {
            return Err(Error::data(format!(
                "push: --wait waits for {MAX_AWAITED} messages at most"
            )));
        }
        tally.sent(id);
        Ok(())
    }

    async fn send(&mut self, channel: &Channel, message: Message) -> Result<(), Broken> {
        let publish = self.publish(&message);
        match channel.publish(&publish).await {
            Ok(number) => {
                self.outbox.sent(number, message);
                Ok(())
            }
            Err(failure) => {
                self.outbox.put_back(message);
                Err(self.broken(failure))
            }
        }
    }

    fn publish(&mut self, message: &Message) -> Publish {
        let known = self.content_type.as_ref();
        let known = known.filter(|(body, _)| body.as_ptr() == message.body.as_ptr());
        let kind = known.map_or_else(|| media_type(&message.body), |(_, kind)| kind);
        self.content_type = Some((message.body.clone(), kind));
        let now = u64::try_from(Timestamp::now().as_second()).ok();
        let is_awaited = self.template.reply_to.is_some();
        Publish {
            routing_key: self.target.url.queue.clone(),
            mandatory: true,
            properties: Properties {
                content_type: Some(kind.to_owned()),
                message_id: Some(message.id.clone()),
                correlation_id: is_awaited.then(|| message.id.clone()),
                timestamp: now,
                ..self.template.clone()
            },
            body: message.body.clone(),
            ..Publish::default()
        }
    }

    /// Returns whether the broker has refused a message, which is sent again after a pause.
    fn happened(&mut self, happening: Happening) -> Result<bool, Broken> {
        match happening {
            Happening::Confirmed {
                number,
                multiple,
                ok,
            } => {
                let messages = self.outbox.confirmed(number, multiple);
                if ok {
                    self.tally.borrow_mut().confirmed(messages.len());
                    return Ok(false);
                }
                if !std::mem::replace(&mut self.refused, true) {
                    warn!(
                        "the broker does not take messages for queue '{}' (is it full? see \
                         max-length in its policy); trying again",
                        self.target.shown()
                    );
                }
                for message in messages {
                    self.outbox.refused(message);
                }
                let hindrance = "queue full".to_owned();
                self.tally.borrow_mut().hindrance = Some(Hindrance::Blocked(hindrance));
                Ok(true)
            }
            Happening::Returned(returned) => Err(Broken::Fatal(Error::data(format!(
                "push to queue '{}': the broker cannot route a message to it ({} {}); is the queue \
                 still there?",
                self.target.shown(),
                returned.code,
                printable(&returned.text, MAX_TEXT)
            )))),
            Happening::Closed(failure) => Err(self.broken(failure)),
            Happening::Delivery(_) | Happening::Canceled(_) => Ok(false),
        }
    }
}

/// Says once when the broker blocks publishers, for ever.
async fn blocked(connection: &Connection, tally: &RefCell<Tally>) -> Infallible {
    let mut reason = connection.blocked();
    loop {
        if let Some(reason) = &reason {
            let reason = printable(reason, MAX_TEXT);
            warn!("the broker takes no messages at present ({reason}); waiting");
            tally.borrow_mut().hindrance = Some(Hindrance::Blocked(reason));
        } else {
            tally.borrow_mut().hindrance = None;
        }
        reason = connection.changed(reason.is_some()).await;
    }
}
