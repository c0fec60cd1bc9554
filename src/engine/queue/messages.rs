//! The messages of one queue: which of them are new, which come again, and which must wait.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::time::{Duration, Instant};
use tracing::info;

use crate::engine::commit::receipt::{QueueAck, Tag};
use crate::engine::intake::queued::Queued;
use crate::engine::pipeline::Pipeline;
use crate::engine::queue::expiry::Expiry;
use crate::engine::queue::held::{Held, HeldMessages};
use crate::engine::queue::open::{OpenMessages, Place};
use crate::model::claim::{Answer, Claim, Fate};
use crate::model::queue::{QueueSource, Settle};
use crate::model::queue_delivery::QueueDelivery;
use crate::model::text::printable;
use crate::os::hooks;
use crate::os::logging::SENDERS;
use crate::store::ledger::queues::{OpenMessage, known_message};
use crate::store::ledger::{EventKey, Reader};

/// Interval of the heartbeats of AMQP, and of claims.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Time that a message waits that the broker delivers again, and that this client does not know. A client
/// that has lost its connection notices that within two heartbeats, and is back by then.
const GRACE: Duration = Duration::from_secs(30);

/// What a message of a queue is.
#[derive(Debug)]
pub enum Found {
    /// A new event, or one that the ledger knows by its id.
    Offer(Queued, QueueAck),
    /// The message that made this unit has come again.
    Again(QueueAck, String),
}

/// The messages of one queue.
#[derive(Debug)]
pub struct Messages {
    /// Number of the source, for receipts.
    source: u32,
    /// Name of the trigger.
    pub trigger: String,
    queue: Arc<QueueSource>,
    /// Number of the connection, if there is one.
    connection: Option<u64>,
    /// Number of deliveries, and of acknowledgements on the connection.
    received: u64,
    acknowledged: u64,
    /// Deliveries of the connection that were passed on, and are not acknowledged.
    owed: HashSet<Tag>,
    held: HeldMessages,
    open: OpenMessages,
    /// Messages without an id that wait until the acknowledgement of an equal one is handled: no more
    /// than the prefetch.
    behind: Vec<(Queued, Tag)>,
    /// Whether the session must say when the broker has handled the acknowledgements so far.
    asks_handled: bool,
    expiry: Expiry,
}

/// Returns whether `unit`, or a retry of it, has not ended.
fn runs(reader: &Reader, unit: &str) -> bool {
    matches!(reader.unfinished(unit), Ok(Some(_)))
}

impl Messages {
    /// Returns those that `source` takes from `queue` for `trigger`. An earlier client has left the `open`
    /// ones.
    pub fn new(
        source: u32,
        trigger: &str,
        queue: &Arc<QueueSource>,
        open: Vec<OpenMessage>,
    ) -> Self {
        let grace = hooks::queue_grace().unwrap_or(GRACE);
        Self {
            source,
            trigger: trigger.to_owned(),
            queue: Arc::clone(queue),
            connection: None,
            received: 0,
            acknowledged: 0,
            owed: HashSet::new(),
            held: HeldMessages::new(grace, grace.min(HEARTBEAT) / 3),
            open: OpenMessages::of_ledger(open),
            behind: Vec::new(),
            asks_handled: false,
            expiry: Expiry::new(grace),
        }
    }

    /// Takes the configuration of a queue whose session can go on.
    pub fn reconfigure(&mut self, queue: &Arc<QueueSource>) {
        self.queue = Arc::clone(queue);
    }

    /// Returns the name of the queue.
    pub fn name(&self) -> &str {
        &self.queue.url.queue
    }

    /// Returns whether the queue can be taken from.
    pub const fn is_online(&self) -> bool {
        self.connection.is_some()
    }

    /// Returns how many deliveries have come.
    pub const fn received(&self) -> u64 {
        self.received
    }

    /// Returns how many wait because another client may run them.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Returns how many wait here, and have no unit.
    pub fn waiting(&self) -> usize {
        self.held.len() + self.behind.len()
    }

    /// Returns whether deliveries were passed on that are not acknowledged.
    pub fn owes(&self) -> bool {
        !self.owed.is_empty()
    }

    /// Returns whether the session must say when the broker has handled the acknowledgements so far.
    pub const fn asks_handled(&mut self) -> bool {
        std::mem::replace(&mut self.asks_handled, false)
    }

    // --- The connection ---

    /// Notes that the queue can be taken from, on the connection with this number.
    pub fn connected(&mut self, number: u64) {
        self.connection = Some(number);
        self.look_later();
    }

    /// Notes that the connection is gone.
    pub fn disconnected(&mut self) {
        self.connection = None;
        self.owed.clear();
        self.give_back();
        self.open.disconnected();
        self.acknowledged = 0;
        self.expiry.disconnected();
    }

    /// Forgets the messages that wait here. Returns their deliveries.
    pub fn give_back(&mut self) -> Vec<Tag> {
        let behind = std::mem::take(&mut self.behind).into_iter();
        let behind = behind.map(|(_, tag)| tag);
        self.held.clear().chain(behind).collect()
    }

    /// Notes whether there is room for messages now.
    pub fn asks(&mut self, asks: bool) {
        // Room without a connection brings nothing.
        if !asks || self.is_online() {
            self.expiry.asks(asks);
        }
    }

    fn look_later(&mut self) {
        let has_lost = self.is_online() && self.open.lost_since().is_some();
        self.expiry.plan(has_lost);
    }

    // --- Deliveries ---

    /// Takes a delivery. Returns the message, unless it must wait.
    pub fn delivered(
        &mut self,
        reader: &Reader,
        tag: Tag,
        delivery: QueueDelivery,
    ) -> Option<Found> {
        self.received += 1;
        let message = Queued {
            trigger: self.trigger.clone(),
            source: Arc::clone(&self.queue),
            delivery,
        };
        if !message.delivery.redelivered {
            self.expiry.came_new();
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
        self.asks_handled = true;
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

    /// Returns the receipt of a delivery that is passed on now.
    fn ack(&mut self, tag: Tag) -> QueueAck {
        if self.is_current(tag) {
            self.owed.insert(tag);
        }
        QueueAck {
            source: self.source,
            tag,
            at_end: matches!(self.queue.settle, Settle::Done),
        }
    }

    /// Returns the messages that have waited long enough.
    pub fn due(&mut self, reader: &Reader) -> Vec<Found> {
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

    // --- Claims ---

    /// Returns the claims that are due.
    pub fn claims(&mut self) -> Vec<Claim> {
        self.held.claims()
    }

    /// Handles what another client says to a claim of ours. Returns the delivery if the message has run
    /// there.
    pub fn on_answer(&mut self, bytes: &[u8]) -> Option<Tag> {
        let answer = serde_json::from_slice::<Answer>(bytes).ok()?;
        let held = self.held.answered(&answer.claim, answer.fate)?;
        info!(target: SENDERS,
            "a message that came again from queue {} has run on host {}; not run here",
            self.name(),
            printable(&answer.host, 100)
        );
        Some(held.tag)
    }

    /// Returns the answer to another client that claims a message, and its queue, if the message runs here
    /// or has run here.
    pub fn on_claim(&mut self, pipeline: &Pipeline, bytes: &[u8]) -> Option<(String, Answer)> {
        let claim = serde_json::from_slice::<Claim>(bytes).ok()?;
        if claim.queue != self.name() || self.held.has_claim(&claim.claim) {
            return None;
        }
        let digest = claim.digest()?;
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
                    ..EventKey::default()
                };
                match known_message(reader, &key, &self.trigger) {
                    Ok(Some(known)) => Some(known.unit.unwrap_or_default()),
                    _ => None,
                }
            }
        };
        let fate = match runs(reader, &unit?) {
            true => Fate::Running,
            false => Fate::Done,
        };
        let answer = Answer {
            claim: claim.claim,
            fate,
            host: pipeline.config.host.clone(),
        };
        Some((claim.reply_to, answer))
    }

    // --- Open messages ---

    /// Notes that a message is in the ledger, and can come again. `tag` is its delivery, if that is one
    /// of this session. Returns a unit whose message is forgotten for it.
    pub fn opened(&mut self, message: OpenMessage, tag: Option<Tag>) -> Option<String> {
        let place = match tag.filter(|tag| self.is_current(*tag)) {
            Some(tag) => Place::Here(tag),
            // The broker has taken it back meanwhile.
            None => Place::Lost(Instant::now()),
        };
        let forgotten = self.open.add(message, place);
        if self.expiry.look().is_none() {
            self.look_later();
        }
        forgotten
    }

    fn is_current(&self, tag: Tag) -> bool {
        self.connection == Some(tag.connection)
    }

    /// Notes that a delivery is acknowledged now. Returns whether it can be: otherwise the broker has taken
    /// it back.
    pub fn acknowledge(&mut self, tag: Tag) -> bool {
        let is_current = self.is_current(tag);
        if is_current {
            self.owed.remove(&tag);
            self.acknowledged += 1;
            self.asks_handled |= self.open.acknowledged(tag, self.acknowledged);
        }
        is_current
    }

    /// Notes that the broker has handled the acknowledgements on a connection, up to `number`. Returns the
    /// units whose messages are forgotten, and the messages that can be taken now.
    pub fn handled(&mut self, connection: u64, number: u64) -> (Vec<String>, Vec<Found>) {
        if self.connection != Some(connection) {
            return Default::default();
        }
        (self.open.handled(number), self.take_behind())
    }

    /// Forgets lost messages that do not come again, if it is time to look. Returns their units.
    pub fn expire(&mut self, reader: &Reader) -> Vec<String> {
        if self.expiry.look().is_none_or(|look| look > Instant::now()) {
            return Vec::new();
        }
        let expired = match self.expiry.is_over() {
            true => self
                .open
                .expire(self.expiry.time(), |unit| runs(reader, unit)),
            false => Vec::new(),
        };
        self.look_later();
        expired
    }

    /// Returns when work is due without an event.
    pub fn wake(&self) -> Option<Instant> {
        [self.held.wake(), self.expiry.look()]
            .into_iter()
            .flatten()
            .min()
    }
}
