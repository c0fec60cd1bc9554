//! A queue that a trigger takes from: its session, its messages and its letters.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::engine::commit::receipt::Tag;
use crate::engine::commit::step::{Step, Steps};
use crate::engine::pipeline::Pipeline;
use crate::engine::queue::letter_box::LetterBox;
use crate::engine::queue::messages::{Found, Messages};
use crate::error::Result;
use crate::model::queue::QueueSource;
use crate::model::text::printable;
use crate::net::amqp::queue::{QueueEvent, QueueOptions, Room};
use crate::net::amqp::session::QueueSession;
use crate::os::logging::SENDERS;
use crate::store::ledger::queues::{OpenMessage, open_messages};
use crate::store::ledger::{Op, Posted, Reader};

/// Maximum number of units of a lane that wait for a retry. Beyond it nothing more is taken.
const MAX_RETRIES_WAITING: usize = 1000;

/// A queue as others see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueView<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether it can be taken from.
    pub is_online: bool,
    /// Number of messages that wait because another client may run them.
    pub held: usize,
    /// Number of letters in memory that wait for the broker.
    pub letters: usize,
}

/// Load of a lane.
#[derive(Debug, Clone, Copy)]
pub struct LaneLoad {
    /// Number of units that run or want a job.
    pub busy: usize,
    /// Number of units that wait for their time.
    pub later: usize,
}

/// A queue.
#[derive(Debug)]
pub struct Source {
    id: u32,
    options: QueueOptions,
    session: QueueSession,
    /// Name in the ledger.
    key: String,
    /// Last trouble that was logged.
    said: Option<String>,
    messages: Messages,
    letters: LetterBox,
    /// Deliveries whose acknowledgement waits for a letter.
    waiting: Vec<(u64, Tag)>,
    /// What the session was told last.
    room: Option<Room>,
    /// Whether the configuration names another queue now.
    is_leaving: bool,
}

impl Source {
    /// Begins to take from a queue for `trigger`. Events come to `events` with `id`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn start(
        pipeline: &Pipeline,
        id: u32,
        trigger: &str,
        options: QueueOptions,
        queue: &Arc<QueueSource>,
        events: UnboundedSender<(u32, QueueEvent)>,
    ) -> Result<Self> {
        let key = queue.url.to_string();
        let open = open_messages(&pipeline.reader, &key)?;
        Ok(Self {
            id,
            session: QueueSession::start(options.clone(), id, events),
            options,
            key,
            said: None,
            messages: Messages::new(id, trigger, queue, open),
            letters: LetterBox::default(),
            waiting: Vec::new(),
            room: None,
            is_leaving: false,
        })
    }

    /// Returns its number.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Returns the name of its trigger.
    pub fn trigger(&self) -> &str {
        &self.messages.trigger
    }

    /// Returns what its session was started with.
    pub const fn options(&self) -> &QueueOptions {
        &self.options
    }

    /// Returns it for observers.
    pub fn view(&self) -> QueueView<'_> {
        QueueView {
            name: self.messages.name(),
            is_online: self.messages.is_online(),
            held: self.messages.held(),
            letters: self.letters.len(),
        }
    }

    /// Returns its name in the ledger.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Takes the configuration of a queue whose session can go on.
    pub fn reconfigure(&mut self, queue: &Arc<QueueSource>) {
        self.is_leaving = false;
        self.messages.reconfigure(queue);
    }

    /// Takes no more messages, and gives those back that wait here. The session goes on for those that
    /// were passed on: another host would run them again.
    pub fn leave(&mut self) {
        if std::mem::replace(&mut self.is_leaving, true) {
            return;
        }
        // Before they are given back: the broker would deliver them to us again.
        self.say_room(0, true);
        for tag in self.messages.give_back() {
            self.session.give_back(tag);
        }
    }

    /// Returns whether it was left, and every message that was passed on is acknowledged or with the
    /// broker.
    pub fn is_left(&self) -> bool {
        self.is_leaving && !self.messages.owes()
    }

    /// Ends the session in good order.
    pub async fn stop(self) {
        self.session.stop().await;
    }

    // --- Messages ---

    /// Handles an event of the session. Returns the messages that can be taken now.
    pub fn on_event(
        &mut self,
        pipeline: &Pipeline,
        event: QueueEvent,
        steps: &mut Steps,
    ) -> Vec<Found> {
        let mut found = Vec::new();
        match event {
            QueueEvent::Online(number) => {
                self.messages.connected(number);
                self.said = None;
                info!("taking from queue {}", self.key);
            }
            QueueEvent::Warning(text) => warn!("queue {}: {text}", self.key),
            QueueEvent::Offline(cause) => {
                if self.said.as_ref() != Some(&cause) {
                    warn!("queue {}: {cause}; trying again", self.key);
                    self.said = Some(cause);
                }
                self.messages.disconnected();
                self.waiting.clear();
            }
            QueueEvent::Delivered(tag, ..) if self.is_leaving => self.session.give_back(tag),
            QueueEvent::Delivered(tag, delivery, _) => {
                let message = self.messages.delivered(&pipeline.reader, tag, *delivery);
                found.extend(message);
            }
            QueueEvent::Handled(connection, number) => {
                let (closed, free) = self.messages.handled(connection, number);
                close(closed, steps);
                found = free;
            }
            QueueEvent::Claim(heard) => {
                if let Some((to, answer)) = self.messages.on_claim(pipeline, &heard.body) {
                    self.session.answer(to, &answer);
                }
            }
            QueueEvent::Answer(heard) => {
                if let Some(tag) = self.messages.on_answer(&heard.body) {
                    self.acknowledge(tag);
                }
            }
            QueueEvent::Sent(seq) => {
                self.letters.sent(seq);
                steps.push_back(Step::Commit(Op::LettersSent(vec![seq])));
                self.release(seq);
            }
            QueueEvent::Unsent(seq, cause) => {
                self.refused(seq, &cause, steps);
                self.release(seq);
            }
        }
        self.ask_handled();
        found
    }

    /// Notes that a message is in the ledger, and can come again. `tag` is its delivery, if that is one
    /// of this session.
    pub fn opened(&mut self, message: OpenMessage, tag: Option<Tag>, steps: &mut Steps) {
        let forgotten = self.messages.opened(message, tag);
        close(forgotten.into_iter().collect(), steps);
    }

    /// Acknowledges a delivery, after the broker has answered `letter`, if there is one.
    pub fn settle(&mut self, tag: Tag, letter: Option<u64>) {
        match letter.filter(|seq| self.letters.is_under_way(*seq)) {
            Some(seq) => self.waiting.push((seq, tag)),
            None => self.acknowledge(tag),
        }
    }

    fn acknowledge(&mut self, tag: Tag) {
        if self.messages.acknowledge(tag) {
            self.session.acknowledge(tag);
            self.ask_handled();
        }
    }

    fn ask_handled(&mut self) {
        if self.messages.asks_handled() {
            self.session.ask_handled();
        }
    }

    /// Acknowledges deliveries that have waited for the letter `seq`.
    fn release(&mut self, seq: u64) {
        let ready = self.waiting.extract_if(.., |(letter, _)| *letter == seq);
        let ready: Vec<Tag> = ready.map(|(_, tag)| tag).collect();
        ready.into_iter().for_each(|tag| self.acknowledge(tag));
    }

    // --- Letters ---

    /// Adds letters that are on disk.
    pub fn posted(&mut self, letters: impl IntoIterator<Item = Posted>) {
        self.letters.extend(letters);
    }

    /// Notes that the broker does not take a letter, for this cause.
    fn refused(&mut self, seq: u64, cause: &str, steps: &mut Steps) {
        let Some(refusal) = self.letters.refused(seq) else {
            return;
        };
        if let Some(key) = refusal.say {
            let key = printable(&key, 255);
            match refusal.is_over {
                true => warn!(target: SENDERS,
                    "the broker does not take a report for queue '{key}': {cause}; it is dropped"
                ),
                false => warn!(
                    "the broker does not take a message for queue '{key}': {cause}; it and others like \
                     it stay in the ledger, and are sent again"
                ),
            }
        }
        if refusal.is_over {
            steps.push_back(Step::Commit(Op::LettersSent(vec![seq])));
        }
    }

    /// Returns the number of the dead letter about `unit`, if the broker may still take it.
    pub fn dead_letter(&self, unit: &str) -> Option<u64> {
        self.letters.dead(unit)
    }

    // --- The time ---

    /// Says to the session how many messages the lane takes, and sends letters.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn update(&mut self, reader: &Reader, load: LaneLoad, is_paused: bool) -> Result<()> {
        let limit = usize::from(self.options.limit);
        let is_paused = is_paused || self.is_leaving;
        let is_full = load.later >= MAX_RETRIES_WAITING;
        let free = match is_paused || is_full {
            true => 0,
            false => limit.saturating_sub(load.busy + self.messages.waiting()),
        };
        self.messages.asks(free > 0);
        self.say_room(free, is_paused);
        let session = &self.session;
        self.letters.flush(reader, &self.key, |seq, letter| {
            session.send(seq, letter.clone());
        })
    }

    fn say_room(&mut self, free: usize, is_paused: bool) {
        let room = Room {
            received: self.messages.received(),
            free,
            is_paused,
        };
        if self.room != Some(room) {
            self.room = Some(room);
            self.session.room(room);
        }
    }

    /// Returns when work is due without an event.
    pub fn wake(&self) -> Option<Instant> {
        let times = [self.messages.wake(), self.letters.wake()];
        times.into_iter().flatten().min()
    }

    /// Does the work that is due. Returns messages that have waited long enough.
    pub fn on_time(&mut self, reader: &Reader, steps: &mut Steps) -> Vec<Found> {
        for claim in self.messages.claims() {
            self.session.claim(claim);
        }
        close(self.messages.expire(reader), steps);
        let due = self.messages.due(reader);
        self.ask_handled();
        due
    }
}

/// Makes the ledger forget the messages of `units`, if there are any.
fn close(units: Vec<String>, steps: &mut Steps) {
    if !units.is_empty() {
        steps.push_back(Step::Commit(Op::MessagesClosed(units)));
    }
}
