//! Work queues: the queues that triggers take from, and the letters that go to them.

mod expiry;
mod held;
mod letter_box;
mod messages;
mod open;
mod source;

use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, timeout};
use tracing::warn;

use crate::engine::commit::receipt::QueueAck;
use crate::engine::commit::step::Steps;
use crate::engine::config::Config;
use crate::engine::pipeline::Pipeline;
use crate::engine::queue::source::{LaneLoad, Source};
use crate::engine::work::lanes::Lanes;
use crate::error::Result;
use crate::model::queue::{MAX_PREFETCH, QueueSource};
use crate::model::trigger::Trigger;
use crate::net::amqp::queue::QueueOptions;
use crate::store::ledger::queues::{OpenMessage, waiting_letters};
use crate::store::ledger::{EventKey, Posted};

pub use crate::engine::queue::messages::Found;
pub use crate::engine::queue::source::QueueView;
pub use crate::net::amqp::queue::QueueEvent;

/// Maximum time to send the last acknowledgements when the client stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// All queues of a client.
#[derive(Debug)]
pub struct Queues {
    sources: Vec<Source>,
    /// Those that the configuration does not name any more, until their last message is settled.
    leaving: Vec<Source>,
    /// Events of all, with their numbers.
    events: UnboundedReceiver<(u32, QueueEvent)>,
    /// For new ones.
    sender: UnboundedSender<(u32, QueueEvent)>,
    /// Number of sources so far.
    numbers: u32,
}

impl Default for Queues {
    fn default() -> Self {
        let (sender, events) = unbounded_channel();
        Self {
            sources: Vec::new(),
            leaving: Vec::new(),
            events,
            sender,
            numbers: 0,
        }
    }
}

/// Returns what the session of `trigger` needs to know, if it takes from a queue.
fn options(config: &Config, trigger: &Trigger) -> Option<(QueueOptions, Arc<QueueSource>)> {
    let queue = trigger.queue.as_ref()?;
    let jobs = u16::try_from(trigger.policy.jobs).unwrap_or(MAX_PREFETCH);
    let options = QueueOptions {
        url: queue.url.clone(),
        access: config.queues.clone(),
        settle: queue.settle,
        limit: queue.prefetch.unwrap_or(jobs).clamp(1, MAX_PREFETCH),
        declare: queue.declare,
        dead_letter: queue.dead_letter(),
        name: format!("{}@{}", config.who, config.host),
    };
    Some((options, Arc::clone(queue)))
}

impl Queues {
    /// Takes from the queues of the configuration, and from no others. Sessions whose options stay go on.
    /// A queue that is not named any more keeps its session until the messages of its runs are settled.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn configure(&mut self, pipeline: &Pipeline) -> Result<()> {
        let mut old = std::mem::take(&mut self.sources);
        old.append(&mut self.leaving);
        for trigger in pipeline.config.triggers.iter() {
            let Some((options, queue)) = options(&pipeline.config, trigger) else {
                continue;
            };
            let same =
                |source: &Source| source.trigger() == trigger.name && *source.options() == options;
            let source = match old.iter().position(same) {
                Some(place) => {
                    let mut source = old.swap_remove(place);
                    source.reconfigure(&queue);
                    source
                }
                None => {
                    self.numbers += 1;
                    let events = self.sender.clone();
                    let id = self.numbers;
                    Source::start(pipeline, id, &trigger.name, options, &queue, events)?
                }
            };
            self.sources.push(source);
        }
        for mut source in old {
            if self.sources.iter().any(|new| new.key() == source.key()) {
                // Its messages come again to the new session, which knows them.
                tokio::spawn(source.stop());
            } else {
                source.leave();
                self.leaving.push(source);
            }
        }
        Ok(())
    }

    /// Warns of letters for queues that no trigger takes from: they stay in the ledger.
    pub fn warn_of_strangers(&self, pipeline: &Pipeline) {
        // What cannot be read is read when the first letter goes out.
        let waiting = waiting_letters(&pipeline.reader).unwrap_or_default();
        for (key, count) in waiting {
            if self.sources.iter().all(|source| source.key() != key) {
                warn!(
                    "{count} messages for the broker of queue {key} wait in the ledger: no trigger takes \
                     from that queue any more"
                );
            }
        }
    }

    /// Returns whether there is a queue.
    pub fn has_any(&self) -> bool {
        !self.sources.is_empty() || !self.leaving.is_empty()
    }

    /// All queues, also those that are left.
    fn all(&mut self) -> impl Iterator<Item = &mut Source> {
        self.sources.iter_mut().chain(&mut self.leaving)
    }

    /// Returns the queues, for observers.
    pub fn views(&self) -> impl Iterator<Item = QueueView<'_>> {
        self.sources.iter().map(Source::view)
    }

    /// Returns the next event of a queue. Cancel safe.
    pub async fn next(&mut self) -> (u32, QueueEvent) {
        match self.events.recv().await {
            Some(event) => event,
            // We have a sender ourselves.
            None => std::future::pending().await,
        }
    }

    /// Returns the next event of a queue, if there is one already.
    pub fn try_next(&mut self) -> Option<(u32, QueueEvent)> {
        self.events.try_recv().ok()
    }

    fn source(&mut self, id: u32) -> Option<&mut Source> {
        self.all().find(|source| source.id() == id)
    }

    /// Handles an event. Returns the messages that can be taken now.
    pub fn on_event(
        &mut self,
        pipeline: &Pipeline,
        (id, event): (u32, QueueEvent),
        steps: &mut Steps,
    ) -> Vec<Found> {
        match self.source(id) {
            Some(source) => source.on_event(pipeline, event, steps),
            // Its session has ended; the broker has its messages.
            None => Vec::new(),
        }
    }

    /// Notes that the message of `ack`, an event of this `key`, has made `unit`.
    pub fn accepted(&mut self, ack: &QueueAck, key: &EventKey, unit: &str, steps: &mut Steps) {
        let Some(name) = &key.open else { return };
        let message = OpenMessage {
            unit: unit.to_owned(),
            digest: key.digest,
        };
        if let Some(source) = self.source(ack.source) {
            return source.opened(message, Some(ack.tag), steps);
        }
        // A reload has ended its session since, and the ledger did not have it yet: the message comes
        // again to the new one.
        if let Some(source) = self.all().find(|source| source.key() == name) {
            source.opened(message, None, steps);
        }
    }

    /// Acknowledges a message, after the broker has answered `letter`, if there is one.
    pub fn settle(&mut self, ack: &QueueAck, letter: Option<u64>) {
        if let Some(source) = self.source(ack.source) {
            source.settle(ack.tag, letter);
        }
    }

    /// Acknowledges the message of `unit`, which has ended, after the broker has answered its dead
    /// letter.
    pub fn ended(&mut self, ack: &QueueAck, unit: &str) {
        if let Some(source) = self.source(ack.source) {
            let letter = source.dead_letter(unit);
            source.settle(ack.tag, letter);
        }
    }

    /// Adds letters that are on disk.
    pub fn posted(&mut self, letters: Vec<Posted>) {
        for posted in letters {
            let key = &posted.letter.source;
            if let Some(source) = self.all().find(|source| source.key() == key) {
                source.posted([posted]);
            }
        }
    }

    /// Says to the sessions how many messages the `lanes` take, and sends letters.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn update(&mut self, pipeline: &Pipeline, lanes: &Lanes, is_full: bool) -> Result<()> {
        for source in self.leaving.extract_if(.., |source| source.is_left()) {
            tokio::spawn(source.stop());
        }
        for source in self.all() {
            let (busy, later) = lanes.load(source.trigger());
            let is_paused = lanes.is_paused() || is_full;
            source.update(&pipeline.reader, LaneLoad { busy, later }, is_paused)?;
        }
        Ok(())
    }

    /// Returns when work is due without an event.
    pub fn wake(&self) -> Option<Instant> {
        let all = self.sources.iter().chain(&self.leaving);
        all.filter_map(Source::wake).min()
    }

    /// Does the work that is due. Returns messages that have waited long enough.
    pub fn on_time(&mut self, pipeline: &Pipeline, steps: &mut Steps) -> Vec<Found> {
        self.all()
            .flat_map(|source| source.on_time(&pipeline.reader, steps))
            .collect()
    }

    /// Ends all sessions in good order, within a bounded time.
    pub async fn stop(self) {
        let mut stopping = JoinSet::new();
        for source in self.sources.into_iter().chain(self.leaving) {
            stopping.spawn(source.stop());
        }
        let all = async { while stopping.join_next().await.is_some() {} };
        // The broker takes back what is not acknowledged.
        let _ = timeout(STOP_TIMEOUT, all).await;
    }
}
