//! A running pipeline: the loop in which events come, runs start and end, and reports go.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::{Level, debug, enabled, error, warn};

use crate::engine::admit::{self, Admission};
use crate::engine::config::{Config, Home, RUNNERS};
use crate::engine::connect;
use crate::engine::failpoint;
use crate::engine::health::Health;
use crate::engine::last::LastEnd;
use crate::engine::later::Later;
use crate::engine::metrics::Metrics;
use crate::engine::outbox::Outbox;
use crate::engine::queue::Queue;
use crate::engine::recovery;
use crate::engine::redelivery::Redelivery;
use crate::engine::reload::Reload;
use crate::engine::runners::Runners;
use crate::engine::silence::Silence;
use crate::engine::word::Word;
use crate::error::{Kind, Result};
use crate::model::message::{Delivery, Message};
use crate::model::status::Presence;
use crate::model::topic::PipelineTopics;
use crate::model::trigger::Trigger;
use crate::model::unit::Unit;
use crate::net::mqtt::{Refused, Token};
use crate::net::session::{Event, Session, SessionAck};
use crate::os::notify::Notify;
use crate::os::signals::Stop;
use crate::store::ledger::{Done, Ledger, OnDisk, Op, Part, Reader};
use crate::store::streams::UnitDir;

/// Operations that may wait for the ledger before no more messages are taken, and the bytes of
/// the messages among them.
const MAX_UNCOMMITTED: usize = 4096;
const MAX_UNCOMMITTED_BYTES: usize = 16 * 1024 * 1024;

/// Token of messages whose acknowledgement nobody waits for; the outbox's begin at 1.
pub(super) const UNTRACKED: Token = 0;

/// Counts since the client started.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub accepted: u64,
    pub duplicates: u64,
    pub refused: u64,
    pub ignored: u64,
}

/// What is to happen once an operation is on disk.
#[derive(Debug)]
pub(super) enum Then {
    Accepted {
        admission: Box<Admission>,
        /// For the parts that start at once, by their place.
        words: Vec<(usize, Word)>,
        ack: Option<SessionAck>,
        reply: Option<Message>,
        bytes: usize,
    },
    Start(Arc<Unit>, Option<Word>),
    Settled {
        retry: Option<Box<Unit>>,
        /// The status of the end.
        last: Box<Value>,
    },
    Nothing,
}

impl OnDisk for Then {
    /// Has runners begin, which saves the way through the loop.
    fn on_disk(&self, done: &Done) {
        let give = |word: &Word, begin| {
            failpoint::reached("spawn.before");
            word.give(begin);
            failpoint::reached("spawn.after");
        };
        match (self, done) {
            (Self::Accepted { words, .. }, Done::Accepted { fresh, .. }) => {
                for (place, word) in words {
                    give(word, fresh.get(*place) == Some(&true));
                }
            }
            (Self::Start(_, Some(word)), Done::Changed { applied, .. }) => give(word, *applied),
            _ => {}
        }
    }
}

/// A unit that a runner has.
pub(super) struct Live {
    pub unit: Unit,
    /// Whether its start has been told.
    pub said: bool,
    pub started: Option<i64>,
    pub handovers: u32,
    /// Whether another client's runner has begun it.
    pub adopted: bool,
}

/// A pipeline at work.
pub struct Pipeline {
    pub(super) config: Config,
    pub(super) home: Home,
    pub(super) topics: PipelineTopics,
    pub(super) since: Timestamp,
    pub(super) reader: Reader,
    pub(super) queue: Queue,
    pub(super) outbox: Outbox,
    pub(super) counts: Counts,
    pub(super) session: Session,
    pub(super) redelivery: Redelivery,
    pub(super) boot: String,
    pub(super) ledger: Ledger<Then>,
    pub(super) uncommitted: usize,
    pub(super) uncommitted_bytes: usize,
    pub(super) later: Later,
    pub(super) runners: Runners,
    pub(super) live: HashMap<String, Live>,
    pub(super) adopted: (
        mpsc::UnboundedSender<String>,
        mpsc::UnboundedReceiver<String>,
    ),
    /// Whether whatever starts is to end: the client stops with its units.
    pub(super) cancels_all: bool,
    online: bool,
    pub(super) ended: u32,
    /// Whether runners have just not been able to begin.
    pub(super) refusing: bool,
    /// Whether it was said that others cannot see how we are.
    unseen: bool,
    pub(super) health: Health,
    pub(super) silence: Silence,
    pub(super) metrics: Option<Metrics>,
    pub(super) last: LastEnd,
}

pub(super) fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

impl Pipeline {
    /// Opens the pipeline's state, and takes up what an earlier client has left.
    ///
    /// # Errors
    /// When the state is damaged or newer; it is then untouched.
    pub fn open(config: Config, home: Home, notify: Notify) -> Result<Self> {
        let ledger = Ledger::open(&home.path)?;
        let reader = Reader::open(&home.path)?;
        let boot = crate::os::process::boot_id();
        let topics = PipelineTopics::new(&config.root, &config.who);
        let since = Timestamp::now();
        let mut outbox = Outbox::default();
        outbox.extend(reader.outbox()?);
        let redelivery = Redelivery::new(reader.answered()?);
        recovery::sweep(&home.path, &reader)?;
        let left = recovery::survey(&home.path, &reader, &boot)?;
        let runners = home.path.join(RUNNERS);
        let mut silence = Silence::default();
        silence.take_up(&config.triggers, &reader.heard()?, now_ms());
        let metrics = config.metrics.clone().map(Metrics::new);
        let last = LastEnd::read(&reader)?;
        let mut queue = Queue::new(&config.triggers);
        queue.pause(home.path.join("paused").exists());
        let mut pipeline = Self {
            session: connect::session(&config, &topics, since)?,
            config,
            home,
            topics,
            since,
            reader,
            queue,
            outbox,
            counts: Counts::default(),
            redelivery,
            boot,
            ledger,
            uncommitted: 0,
            uncommitted_bytes: 0,
            later: Later::default(),
            runners: Runners::new(runners),
            live: HashMap::new(),
            adopted: mpsc::unbounded_channel(),
            cancels_all: false,
            online: false,
            ended: 0,
            refusing: false,
            unseen: false,
            health: Health::new(notify),
            silence,
            metrics,
            last,
        };
        for left in left {
            pipeline.take_up(left);
        }
        pipeline.prune();
        Ok(pipeline)
    }

    /// Works until told to stop.
    ///
    /// # Errors
    /// When the broker turns us away for good, or the state cannot be written any more.
    pub async fn run(mut self, stop: &mut Stop, mut reload: Reload) -> Result<()> {
        self.runners.keep_warm();
        loop {
            self.start_waiting();
            if !self.outbox.is_empty() {
                failpoint::reached("publish.before");
            }
            self.flush_outbox();
            self.check_health();
            self.check_metrics(false);
            let wake = self.wake();
            tokio::select! {
                biased;
                () = stop.requested() => break,
                Some(()) = reload.requests.recv() => self.reload(&reload.read),
                committed = self.ledger.committed() => self.on_committed(committed.map_err(|f| f.0)?),
                report = self.runners.next() => self.on_report(report),
                Some(unit) = self.adopted.1.recv() => self.on_unknown(&unit),
                event = self.session.next(), if self.takes_more() => {
                    self.on_session(event?);
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    self.on_time();
                }
            }
        }
        self.stop().await
    }

    /// Whether the ledger keeps up with what comes.
    const fn takes_more(&self) -> bool {
        self.uncommitted < MAX_UNCOMMITTED && self.uncommitted_bytes < MAX_UNCOMMITTED_BYTES
    }

    /// When something is to be done though nothing happens.
    fn wake(&self) -> Option<Instant> {
        let now = now_ms();
        let due = self.queue.next_due(now).and_then(|due| {
            Instant::now().checked_add(Duration::from_millis((due - now).cast_unsigned()))
        });
        let times = [
            due,
            self.later.due(),
            self.health.wake(),
            self.silence.wake(),
            self.metrics.as_ref().and_then(Metrics::wake),
            self.last.wake(),
        ];
        times.into_iter().flatten().min()
    }

    fn on_time(&mut self) {
        if self.later.due().is_some_and(|due| Instant::now() >= due) {
            self.flush_later();
        }
        self.check_silence();
        self.tell_last();
    }

    /// Whether the broker is there and has our subscriptions.
    pub(super) const fn is_online(&self) -> bool {
        self.online
    }

    /// Tells that we are here.
    pub(super) fn tell_presence(&mut self) {
        let state = match self.queue.is_paused() {
            true => Presence::Paused,
            false => Presence::Online,
        };
        let presence = connect::presence(&self.config, &self.topics, state, self.since);
        if self.session.publish(presence, UNTRACKED) {
            self.redelivery.sent(UNTRACKED, now_ms());
        }
    }

    /// Publishes what may go out now.
    pub(super) fn flush_outbox(&mut self) {
        let redelivery = &mut self.redelivery;
        let sent = |seq| redelivery.sent(seq, now_ms());
        self.outbox.flush(&mut self.session, sent);
    }

    /// Submits what waits for other changes.
    pub(super) fn flush_later(&mut self) {
        for op in self.later.take() {
            self.uncommitted += 1;
            self.ledger.submit(op, Then::Nothing);
        }
    }

    pub(super) fn submit(&mut self, op: Op, then: Then) {
        // One transaction takes both.
        self.flush_later();
        self.uncommitted += 1;
        self.ledger.submit(op, then);
    }

    pub(super) fn trigger(&self, name: &str) -> Option<&Trigger> {
        self.config.triggers.iter().find(|t| t.name == name)
    }

    pub(super) fn dir(&self, unit: &str) -> UnitDir {
        UnitDir::new(&self.home.path, unit)
    }

    pub(super) fn paused_mark(&self) -> PathBuf {
        self.home.path.join("paused")
    }

    // --- What the network brings ---

    pub(super) fn on_session(&mut self, event: Event) {
        match event {
            Event::Online => {
                self.online = true;
                self.tell_presence();
                self.silence.online(true);
                self.last.due();
                self.health.ready();
            }
            Event::Subscribed(result) => self.on_subscribed(result),
            Event::Offline => {
                self.online = false;
                self.outbox.reset();
                self.silence.online(false);
                self.redelivery.disconnected();
            }
            Event::Published(seq, result) => self.on_published(seq, result),
            Event::Received(received) => {
                if received.delivery.topic == self.topics.control().as_bytes() {
                    self.on_control(&received.delivery, received.ack);
                } else {
                    self.on_delivery(&received.delivery, received.ack);
                }
            }
        }
    }

    fn on_delivery(&mut self, delivery: &Delivery, ack: SessionAck) {
        let own = std::str::from_utf8(&delivery.topic).is_ok_and(|t| self.topics.own(t));
        if own {
            // A pipeline does not start itself, whoever speaks in its name.
            self.counts.ignored += 1;
            return self.session.acknowledge(&ack);
        }
        if self.silence.is_watched() {
            self.listen(delivery);
        }
        let admission = admit::judge(&self.config, delivery, self.redelivery.since());
        if admission.parts.is_empty() {
            self.counts.ignored += 1;
            if enabled!(Level::DEBUG) {
                let why = admit::objections(&self.config, delivery);
                debug!(TAEL_TOPIC = admission.topic, "ignored: {why}");
            }
            self.session.acknowledge(&ack);
        } else {
            self.accept(admission, Some(ack), None);
        }
    }

    /// Has the ledger accept an event; it is acknowledged once that is on disk.
    pub(super) fn accept(
        &mut self,
        mut admission: Admission,
        ack: Option<SessionAck>,
        reply: Option<Message>,
    ) {
        let (mut words, mut units) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        for (place, part) in admission.parts.iter_mut().enumerate() {
            if let Part::Run { unit, start } = part {
                bytes += unit.payload.len() + unit.exported_bytes();
                *start = self.queue.claim(&unit.trigger, &unit.id);
                // If it fails, it is tried again when the event is on disk.
                if *start && let Ok(word) = self.runners.reserve(&unit.id) {
                    words.push((place, word));
                    units.push(Arc::clone(unit));
                }
            }
        }
        let at = now_ms();
        self.redelivery.came(at);
        let op = Op::Accept {
            key: admission.key.clone(),
            topic: admission.topic.clone(),
            at,
            boot: self.boot.clone(),
            parts: admission.parts.clone(),
        };
        failpoint::reached("commit.before");
        let then = Then::Accepted {
            admission: Box::new(admission),
            words,
            ack,
            reply,
            bytes,
        };
        self.uncommitted_bytes += bytes;
        self.submit(op, then);
        self.make_ready(&units);
    }

    fn on_published(&mut self, seq: Token, result: Result<(), Refused>) {
        let answered = self.redelivery.answered(seq);
        if let Err(Refused(e)) = &result
            && e.kind() == Kind::TryAgain
        {
            // It stays in the ledger, and goes out again with the next connection.
            return warn!("a status has to wait: {e}");
        }
        let Some(message) = self.outbox.complete(seq) else {
            if let Err(Refused(e)) = result
                && !std::mem::replace(&mut self.unseen, true)
            {
                let prefix = self.topics.presence();
                warn!("what is said on '{prefix}' and beside it does not get there: {e}");
            }
            return;
        };
        if let Err(Refused(e)) = result {
            error!("status on '{}' is given up: {e}", message.topic);
        }
        failpoint::reached("publish.after");
        self.later.sent(seq, answered);
    }
}
