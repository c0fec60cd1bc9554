//! The task of a session that publishes: letters, which the broker confirms, and claims.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep_until, timeout};

use crate::model::claim::{Answer, Claim, EXCHANGE};
use crate::model::letter::Letter;
use crate::model::text::printable;
use crate::net::amqp::queue::{Events, QueueEvent};
use crate::net::amqp::received;
use crate::net::amqp::{
    AmqpOptions, Channel, Confirm, Connection, Failure, FailureKind, Happening, Publish,
    Unconfirmed, codes,
};
use crate::net::backoff::backoff;

/// Time after which a connection without work is closed.
const IDLE: Duration = Duration::from_secs(60);

/// Maximum time for a goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// Maximum number of claims and answers that wait. Later ones are dropped, and come again.
const MAX_TRANSIENT: usize = 4096;

/// A message to publish.
#[derive(Debug)]
pub enum Post {
    /// The letter of this number.
    Letter(u64, Box<Letter>),
    /// A claim or an answer: it is not missed for long.
    Transient(Box<Publish>),
}

impl Post {
    fn transient(exchange: &str, routing_key: String, body: String) -> Self {
        Self::Transient(Box::new(Publish {
            exchange: exchange.to_owned(),
            routing_key,
            mandatory: false,
            properties: received::json(),
            body: Bytes::from(body),
        }))
    }

    /// Returns the message with a claim.
    pub fn claim(claim: &Claim) -> Self {
        Self::transient(EXCHANGE, String::new(), json!(claim).to_string())
    }

    /// Returns the message with an answer, for the queue `to`.
    pub fn answer(to: String, answer: &Answer) -> Self {
        Self::transient("", to, json!(answer).to_string())
    }
}

/// The task.
pub struct Publisher {
    options: AmqpOptions,
    events: Events,
    posts: UnboundedReceiver<Post>,
    /// What is not sent on this connection.
    waiting: VecDeque<Post>,
    /// What is sent and not confirmed: few letters, as the client bounds them.
    sent: Unconfirmed<(u64, Box<Letter>)>,
    /// Last trouble that was told.
    said: Option<String>,
}

/// Returns whether the broker ends a channel or connection because of a letter, and not by order of an
/// operator, or because it is gone.
fn is_about_letters(failure: &Failure) -> bool {
    let said = failure
        .code
        .is_some_and(|code| code != codes::CONNECTION_FORCED);
    said || failure.is_channel_only()
}

impl Publisher {
    /// Returns the task of a session.
    pub(super) fn new(
        options: AmqpOptions,
        events: Events,
        posts: UnboundedReceiver<Post>,
    ) -> Self {
        Self {
            options,
            events,
            posts,
            waiting: VecDeque::new(),
            sent: Unconfirmed::default(),
            said: None,
        }
    }

    /// Publishes until no handle is left.
    pub async fn run(mut self) {
        let mut failures = 0;
        loop {
            if self.waiting.is_empty() {
                match self.posts.recv().await {
                    Some(post) => self.add(post),
                    None => return,
                }
            }
            let Err(failure) = self.connect(&mut failures).await else {
                continue;
            };
            self.say(format!("{failure}; messages for queues wait"));
            for (number, letter) in self.sent.take().rev() {
                match is_about_letters(&failure) {
                    // One of them is not allowed, or the broker fails at it. The client sends each
                    // again later.
                    true => {
                        let cause = failure.text.clone();
                        self.events.tell(QueueEvent::Unsent(number, cause));
                    }
                    // In the order of their numbers, before all others.
                    false => self.waiting.push_front(Post::Letter(number, letter)),
                }
            }
            self.waiting.retain(|post| matches!(post, Post::Letter(..)));
            if self.waiting.is_empty() {
                continue;
            }
            let until = Instant::now() + backoff(failures);
            failures = failures.saturating_add(1);
            loop {
                tokio::select! {
                    () = sleep_until(until) => break,
                    post = self.posts.recv() => match post {
                        Some(post) => self.add(post),
                        None => return,
                    },
                }
            }
        }
    }

    fn add(&mut self, post: Post) {
        if matches!(post, Post::Letter(..)) || self.waiting.len() < MAX_TRANSIENT {
            self.waiting.push_back(post);
        }
    }

    /// Tells the client what is wrong, unless it knows.
    fn say(&mut self, text: String) {
        if self.said.as_ref() != Some(&text) {
            self.events.tell(QueueEvent::Warning(text.clone()));
            self.said = Some(text);
        }
    }

    /// Connects, and publishes as long as there is work.
    async fn connect(&mut self, failures: &mut u32) -> Result<(), Failure> {
        let connection = Connection::open(&self.options).await?;
        let mut channel = connection.channel().await?;
        channel.confirm_select().await?;
        let ended = self.serve(&connection, &mut channel, failures).await;
        if ended.is_ok() {
            let _ = timeout(GOODBYE, connection.close()).await;
        }
        ended
    }

    async fn serve(
        &mut self,
        connection: &Connection,
        channel: &mut Channel,
        failures: &mut u32,
    ) -> Result<(), Failure> {
        let mut idle_since = Instant::now();
        loop {
            let blocked = connection.blocked();
            if let Some(reason) = &blocked {
                let reason = printable(reason, 200);
                self.say(format!(
                    "the broker takes no messages now ({reason}): dead letters and reports wait"
                ));
            }
            while blocked.is_none()
                && let Some(post) = self.waiting.pop_front()
            {
                self.publish(channel, post).await?;
                idle_since = Instant::now();
            }
            let is_idle = self.waiting.is_empty() && self.sent.is_empty();
            tokio::select! {
                biased;
                happening = channel.next() => {
                    self.happened(happening)?;
                    *failures = 0;
                }
                failure = connection.closed() => return Err(failure),
                _ = connection.changed(blocked.is_some()) => {}
                post = self.posts.recv() => match post {
                    Some(post) => self.add(post),
                    None => return Ok(()),
                },
                () = sleep_until(idle_since + IDLE), if is_idle => return Ok(()),
            }
        }
    }

    async fn publish(&mut self, channel: &Channel, post: Post) -> Result<(), Failure> {
        match post {
            Post::Letter(number, letter) => {
                let message = received::publish(&letter);
                match channel.publish(&message).await {
                    Ok(place) => self.sent.add(place, &message, (number, letter)),
                    // The others go on.
                    Err(failure) if failure.kind == FailureKind::Invalid => {
                        self.events.tell(QueueEvent::Unsent(number, failure.text));
                    }
                    Err(failure) => {
                        self.waiting.push_front(Post::Letter(number, letter));
                        return Err(failure);
                    }
                }
            }
            Post::Transient(publish) => match channel.publish(&publish).await {
                Ok(_) => {}
                Err(failure) if failure.kind == FailureKind::Invalid => {}
                Err(failure) => return Err(failure),
            },
        }
        Ok(())
    }

    fn happened(&mut self, happening: Happening) -> Result<(), Failure> {
        for ((number, _), confirm) in self.sent.happened(happening)? {
            self.said = None;
            self.events.tell(match confirm {
                Confirm::Kept => QueueEvent::Sent(number),
                Confirm::Returned(cause) => QueueEvent::Unsent(number, cause),
                Confirm::Dropped => {
                    QueueEvent::Unsent(number, "the broker could not keep it".to_owned())
                }
            });
        }
        Ok(())
    }
}
