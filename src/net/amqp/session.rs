//! A queue that a client takes from. One task holds the connection, and connects again for ever;
//! another one publishes, on a connection of its own: a broker that is short of memory reads nothing
//! any more from those that publish, not even acknowledgements.

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::model::claim::{Answer, Claim};
use crate::model::letter::Letter;
use crate::net::amqp::consumer::{Command, Consumer};
use crate::net::amqp::publisher::{Post, Publisher};
use crate::net::amqp::queue::{Events, QueueEvent, QueueOptions, Room, Tag};

/// Handle of a session. It ends with it.
#[derive(Debug)]
pub struct QueueSession {
    commands: UnboundedSender<Command>,
    posts: UnboundedSender<Post>,
    tasks: [AbortHandle; 2],
}

impl QueueSession {
    /// Starts a session, whose events go to `events` with `id`.
    #[must_use]
    pub fn start(
        options: QueueOptions,
        id: u32,
        events: UnboundedSender<(u32, QueueEvent)>,
    ) -> Self {
        let (commands, commands_rx) = unbounded_channel();
        let (posts, posts_rx) = unbounded_channel();
        let events = Events::new(id, events);
        let publisher = Publisher::new(options.connection(), events.clone(), posts_rx);
        let consumer = Consumer::new(options, events, commands_rx, posts.clone());
        let tasks = [
            tokio::spawn(publisher.run()).abort_handle(),
            tokio::spawn(consumer.run()).abort_handle(),
        ];
        Self {
            commands,
            posts,
            tasks,
        }
    }

    fn command(&self, command: Command) {
        // The task ends only when it is asked to.
        let _ = self.commands.send(command);
    }

    /// Says how much room there is.
    pub fn room(&self, room: Room) {
        self.command(Command::Room(room));
    }

    /// Acknowledges a delivery.
    pub fn acknowledge(&self, tag: Tag) {
        self.command(Command::Acknowledge(tag));
    }

    /// Gives a delivery back to the queue.
    pub fn give_back(&self, tag: Tag) {
        self.command(Command::GiveBack(tag));
    }

    /// Asks the broker whether it has handled the acknowledgements so far: `Handled` follows.
    pub fn ask_handled(&self) {
        self.command(Command::AskHandled);
    }

    /// Publishes a claim, whose answers go to us.
    pub fn claim(&self, claim: Claim) {
        self.command(Command::Claim(claim));
    }

    /// Sends the letter of this number.
    pub fn send(&self, number: u64, letter: Letter) {
        let _ = self.posts.send(Post::Letter(number, Box::new(letter)));
    }

    /// Sends an answer to the claim of another client to the queue `to`.
    pub fn answer(&self, to: String, answer: &Answer) {
        let _ = self.posts.send(Post::answer(to, answer));
    }

    /// Ends the session in good order: what was acknowledged before is sent, and the broker takes the
    /// rest back.
    pub async fn stop(self) {
        let (done, wait) = oneshot::channel();
        self.command(Command::Stop(done));
        // It ends also when the task has gone.
        let _ = wait.await;
    }
}

impl Drop for QueueSession {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}
