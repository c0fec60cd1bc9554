//! One queue that a trigger takes from: what is delivered, held and open, and its letters.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Duration, Instant};
use tracing::{info, warn};

use crate::engine::commit::receipt::{QueueAck, Tag};
use crate::engine::commit::step::{Step, Steps};
use crate::engine::intake::queued::Queued;
use crate::engine::pipeline::Pipeline;
use crate::engine::queue::held::{Held, HeldMessages};
use crate::engine::queue::letter_box::LetterBox;
use crate::engine::queue::open::{OpenMessages, Place};
use crate::error::Result;
use crate::model::claim::{Answer, Claim, Fate};
use crate::model::queue::{QueueSource, Settle};
use crate::model::queue_delivery::QueueDelivery;
use crate::model::text::printable;
use crate::net::amqp::queue::{QueueEvent, QueueOptions, Room};
use crate::net::amqp::session::QueueSession;
use crate::os::hooks;
use crate::os::logging::SENDERS;
use crate::store::ledger::queues::{OpenMessage, known_message, open_messages};
use crate::store::ledger::{EventKey, Op, Posted, Reader};

/// Interval of the heartbeats of AMQP, and of claims.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Time that a message waits that the broker delivers again, and that this client does not know. A client
/// that has lost its connection notices that within two heartbeats, and is back by then.
const GRACE: Duration = Duration::from_secs(30);

/// Time after which a message that was open when the connection was lost, and whose unit has ended, is
/// not expected again, in graces: 10 minutes. An equal message that another host has lost is taken for it
/// meanwhile.
const LOST_GRACES: u32 = 20;

/// Number of new messages in that time after which it is not expected again either, although there was
/// no room for most of the time: RabbitMQ delivers what it takes back before what is new.
const NEW_BEFORE: u64 = 1000;

/// Maximum number of units of a lane that wait for a retry. Beyond it nothing more is taken.
const MAX_RETRIES_WAITING: usize = 1000;

/// What a message of a queue is.
#[derive(Debug)]
pub enum Found {
    /// A new event, or one that the ledger knows by its id.
    Offer(Queued, QueueAck),
    /// The message that made this unit has come again.
    Again(QueueAck, String),
}

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
    /// Name of the trigger.
    pub trigger: String,
    queue: Arc<QueueSource>,
    options: QueueOptions,
    session: QueueSession,
    /// Name in the ledger.
    key: String,
    /// Whether it can be taken from.
    is_online: bool,
    /// Last trouble that was logged.
    said: Option<String>,
    /// Number of the connection, of deliveries, and of acknowledgements on it.
    connection: u64,
    received: u64,
    acknowledged: u64,
    held: HeldMessages,
    open: OpenMessages,
    /// Messages without an id that wait until the acknowledgement of an equal one is handled: no more
    /// than the prefetch.
    behind: Vec<(Queued, Tag)>,
    letters: LetterBox,
    /// Deliveries whose acknowledgement waits for a letter.
    waiting: Vec<(u64, Tag)>,
    room: Option<Room>,
    /// Time that a lost message is expected for, and when lost messages are looked at.
    lost: Duration,
    look: Option<Instant>,
    /// How long there was room for messages on the connection, and since when there is now.
    asked: Duration,
    asking: Option<Instant>,
    /// Number of new messages on the connection.
    new: u64,
}

/// Returns whether `unit`, or a retry of it, has not ended.
fn runs(reader: &Reader, unit: &str) -> bool {
    matches!(reader.unfinished(unit), Ok(Some(_)))
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
        let open = OpenMessages::of_ledger(open_messages(&pipeline.reader, &key)?);
        let grace = hooks::queue_grace().unwrap_or(GRACE);
        Ok(Self {
            id,
            trigger: trigger.to_owned(),
            queue: Arc::clone(queue),
            session: QueueSession::start(options.clone(), id, events),
            options,
            key,
            is_online: false,
            said: None,
            connection: 0,
            received: 0,
            acknowledged: 0,
            held: HeldMessages::new(grace, grace.min(HEARTBEAT) / 3),
            open,
            behind: Vec::new(),
            letters: LetterBox::default(),
            waiting: Vec::new(),
            room: None,
            lost: grace * LOST_GRACES,
            look: None,
            asked: Duration::ZERO,
            asking: None,
            new: 0,
        })
    }

    /// Returns its number.
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Returns what its session was started with.
    pub const fn options(&self) -> &QueueOptions {
        &self.options
    }

    /// Returns it for observers.
    pub fn view(&self) -> QueueView<'_> {
        QueueView {
            name: &self.queue.url.queue,
            is_online: self.is_online,
            held: self.held.len(),
            letters: self.letters.len(),
        }
    }

    /// Returns its name in the ledger.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Takes the configuration of a queue whose session can go on.
    pub fn reconfigure(&mut self, queue: &Arc<QueueSource>) {
        self.queue = Arc::clone(queue);
    }

    /// Ends the session in good order.
    pub async fn stop(self) {
        self.session.stop().await;
    }

    // --- What comes ---

    /// Handles an event of the session. Returns the messages that can be taken now.
    pub fn on_event(
        &mut self,
        pipeline: &Pipeline,
        event: QueueEvent,
        steps: &mut Steps,
    ) -> Vec<Found> {
        match event {
            QueueEvent::Online(number) => {
                self.is_online = true;
                self.connection = number;
                self.said = None;
                self.look_later();
                info!("taking from queue {}", self.key);
            }
            QueueEvent::Warning(text) => warn!("queue {}: {text}", self.key),
            QueueEvent::Offline(cause) => {
                if self.said.as_ref() != Some(&cause) {
                    warn!("queue {}: {cause}; trying again", self.key);
                    self.said = Some(cause);
                }
                self.disconnected();
            }
            QueueEvent::Delivered(tag, delivery, _) => {
                let found = self.delivered(&pipeline.reader, tag, *delivery);
                return found.into_iter().collect();
            }
            QueueEvent::Handled(connection, number) if connection == self.connection => {
                let closed = self.open.handled(number);
                self.close(closed, steps);
                return self.take_behind();
            }
            QueueEvent::Handled(..) => {}
            QueueEvent::Claim(heard) => self.on_claim(pipeline, &heard.body),
            QueueEvent::Answer(heard) => self.on_answer(&heard.body),
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
        Vec::new()
    }

    fn disconnected(&mut self) {
        self.is_online = false;
        self.held.clear();
        self.behind.clear();
        self.open.disconnected();
        self.waiting.clear();
        self.acknowledged = 0;
        self.look = None;
        (self.asked, self.asking, self.new) = (Duration::ZERO, None, 0);
    }

    /// Plans when lost messages are looked at, if there are some.
    fn look_later(&mut self) {
        let is_lost = self.is_online && self.open.lost_since().is_some();
        self.look = is_lost.then(|| Instant::now() + self.lost);
    }

    /// Forgets lost messages that do not come again: the broker could have delivered them.
    fn look(&mut self, reader: &Reader, steps: &mut Steps) {
        let asking = self.asking.map_or(Duration::ZERO, |since| since.elapsed());
        if self.asked + asking >= self.lost / 2 || self.new >= NEW_BEFORE {
            let closed = self.open.expire(self.lost, |unit| runs(reader, unit));
            self.close(closed, steps);
        }
        self.look_later();
    }

    /// Notes whether there is room for messages now.
    fn ask(&mut self, asks: bool) {
        if !asks {
            let asked = self.asking.take().map(|since| since.elapsed());
            self.asked += asked.unwrap_or_default();
        } else if self.is_online && self.asking.is_none() {
            self.asking = Some(Instant::now());
        }
    }

    fn delivered(&mut self, reader: &Reader, tag: Tag, delivery: QueueDelivery) -> Option<Found> {
        self.received += 1;
        let message = Queued {
            trigger: self.trigger.clone(),
            source: Arc::clone(&self.queue),
            delivery,
        };
        if !message.delivery.redelivered {
            self.new += 1;
            return self.take(message, tag);
        }
        if message.delivery.message_id.is_none() {
            if let Some(unit) = self.bind(reader, &message, tag) {
                return Some(Found::Again(self.ack(tag), unit));
            }
        } else if self.is_known(reader, &message.key(String::new())) {
            return Some(Found::Offer(message, self.ack(tag)));
        }
        self.held.add(message, tag);
        None
    }

    /// Returns a message that is not known as an offer. One that equals another one whose
    /// acknowledgement is on its way waits for that: after a crash in between, the broker could deliver
    /// this one again, and it would be taken for the other one.
    fn take(&mut self, message: Queued, tag: Tag) -> Option<Found> {
        let has_id = message.delivery.message_id.is_some();
        if has_id || !self.open.is_settling(&message.digest()) {
            return Some(Found::Offer(message, self.ack(tag)));
        }
        self.behind.push((message, tag));
        self.session.ask_handled();
        None
    }

    /// Returns the messages that need not wait for others any more.
    fn take_behind(&mut self) -> Vec<Found> {
        let behind = std::mem::take(&mut self.behind).into_iter();
        behind
            .filter_map(|(message, tag)| self.take(message, tag))
            .collect()
    }

    /// Returns the unit of a message without an id that comes again, if it is one of ours.
    fn bind(&mut self, reader: &Reader, message: &Queued, tag: Tag) -> Option<String> {
        let digest = message.digest();
        self.open.bind(&digest, tag, |unit| runs(reader, unit))
    }

    /// Returns whether the ledger knows a message with an id. One that cannot be read is not known.
    fn is_known(&self, reader: &Reader, key: &EventKey) -> bool {
        matches!(known_message(reader, key, &self.trigger), Ok(Some(_)))
    }

    const fn ack(&self, tag: Tag) -> QueueAck {
        QueueAck {
            source: self.id,
            tag,
            at_end: matches!(self.options.settle, Settle::Done),
        }
    }

    /// Handles what another client says to a claim of ours.
    fn on_answer(&mut self, bytes: &[u8]) {
        let Ok(answer) = serde_json::from_slice::<Answer>(bytes) else {
            return;
        };
        if let Some(held) = self.held.answered(&answer.claim, answer.fate) {
            info!(target: SENDERS,
                "a message that came again from queue {} has run on host {}; not run here",
                self.queue.url.queue,
                printable(&answer.host, 100)
            );
            self.acknowledge(held.tag);
        }
    }

    /// Answers another client that claims a message, if that runs here or has run here.
    fn on_claim(&mut self, pipeline: &Pipeline, bytes: &[u8]) {
        let Ok(claim) = serde_json::from_slice::<Claim>(bytes) else {
            return;
        };
        if claim.queue != self.queue.url.queue || self.held.has_claim(&claim.claim) {
            return;
        }
        let Some(digest) = claim.digest() else {
            return;
        };
        let reader = &pipeline.reader;
        let unit = match &claim.id {
            None => self
                .open
                .claimed(&digest, &claim.claim, |unit| runs(reader, unit)),
            Some(id) => {
                let key = EventKey {
                    id: String::new(),
                    sender: Some(id.clone()),
                    digest,
                    packet: 0,
                    again: None,
                    replay: false,
                    request: false,
                    is_new: false,
                    open: None,
                };
                match known_message(reader, &key, &self.trigger) {
                    Ok(Some(known)) => Some(known.unit.unwrap_or_default()),
                    _ => None,
                }
            }
        };
        let Some(unit) = unit else { return };
        let fate = match runs(reader, &unit) {
            true => Fate::Running,
            false => Fate::Done,
        };
        let answer = Answer {
            claim: claim.claim,
            fate,
            host: pipeline.config.host.clone(),
        };
        self.session.answer(claim.reply_to, &answer);
    }

    // --- What goes back ---

    /// Notes that a message is in the ledger, and can come again. `tag` is its delivery, if that is one
    /// of this session.
    pub fn opened(&mut self, message: OpenMessage, tag: Option<Tag>, steps: &mut Steps) {
        let place = match tag.filter(|tag| self.is_current(*tag)) {
            Some(tag) => Place::Here(tag),
            // The broker has taken it back meanwhile.
            None => Place::Lost(Instant::now()),
        };
        let forgotten = self.open.add(message, place);
        if self.look.is_none() {
            self.look_later();
        }
        self.close(forgotten.into_iter().collect(), steps);
    }

    const fn is_current(&self, tag: Tag) -> bool {
        self.is_online && tag.connection == self.connection
    }

    /// Acknowledges a delivery, after the broker has answered `letter`, if there is one.
    pub fn settle(&mut self, tag: Tag, letter: Option<u64>) {
        match letter.filter(|seq| self.letters.is_under_way(*seq)) {
            Some(seq) => self.waiting.push((seq, tag)),
            None => self.acknowledge(tag),
        }
    }

    fn acknowledge(&mut self, tag: Tag) {
        // Otherwise the broker has taken it back.
        if self.is_current(tag) {
            self.acknowledged += 1;
            let has_equals = self.open.acknowledged(tag, self.acknowledged);
            self.session.acknowledge(tag);
            if has_equals {
                self.session.ask_handled();
            }
        }
    }

    /// Acknowledges deliveries that have waited for the letter `seq`.
    fn release(&mut self, seq: u64) {
        let ready = self.waiting.extract_if(.., |(letter, _)| *letter == seq);
        let ready: Vec<Tag> = ready.map(|(_, tag)| tag).collect();
        ready.into_iter().for_each(|tag| self.acknowledge(tag));
    }

    fn close(&self, units: Vec<String>, steps: &mut Steps) {
        if !units.is_empty() {
            steps.push_back(Step::Commit(Op::MessagesClosed(units)));
        }
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
        let is_full = load.later >= MAX_RETRIES_WAITING;
        let free = match is_paused || is_full {
            true => 0,
            false => limit.saturating_sub(load.busy + self.held.len() + self.behind.len()),
        };
        self.ask(free > 0);
        let room = Room {
            received: self.received,
            free,
            is_paused,
        };
        if self.room != Some(room) {
            self.room = Some(room);
            self.session.room(room);
        }
        let session = &self.session;
        self.letters.flush(reader, &self.key, |seq, letter| {
            session.send(seq, letter.clone());
        })
    }

    /// Returns when work is due without an event.
    pub fn wake(&self) -> Option<Instant> {
        let times = [self.held.wake(), self.letters.wake(), self.look];
        times.into_iter().flatten().min()
    }

    /// Does the work that is due. Returns messages that have waited long enough.
    pub fn on_time(&mut self, reader: &Reader, steps: &mut Steps) -> Vec<Found> {
        for claim in self.held.claims() {
            self.session.claim(claim);
        }
        if self.look.is_some_and(|look| look <= Instant::now()) {
            self.look(reader, steps);
        }
        let due = self.held.due();
        // The ledger may have got it only after it came again.
        let found = |Held { message, tag, .. }| {
            let known = match message.delivery.message_id {
                Some(_) => None,
                None => self.bind(reader, &message, tag),
            };
            match known {
                Some(unit) => Some(Found::Again(self.ack(tag), unit)),
                None => self.take(message, tag),
            }
        };
        due.into_iter().filter_map(found).collect()
    }
}
