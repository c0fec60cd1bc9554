//! A running pipeline: the loop in which events come, runs start and end, and reports go.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::engine::commit::batch::Later;
use crate::engine::commit::permit::Word;
use crate::engine::config::{Config, Home};
use crate::engine::connect;
use crate::engine::control::reload::Reload;
use crate::engine::intake::backlog::Backlog;
use crate::engine::intake::judge::Admission;
use crate::engine::intake::names::Names;
use crate::engine::intake::pace::Pace;
use crate::engine::intake::pressure::Pressure;
use crate::engine::intake::redelivery::Redelivery;
use crate::engine::intake::silence::Silence;
use crate::engine::observe::health::Health;
use crate::engine::observe::metrics::Metrics;
use crate::engine::report::last::LastEnd;
use crate::engine::report::outbox::Outbox;
use crate::engine::report::reply::ReplyTo;
use crate::engine::work::cleanup::Cleanup;
use crate::engine::work::job::{warn_of_what_is_missing, warn_without_holes};
use crate::engine::work::lanes::Queue;
use crate::engine::work::pool::Runners;
use crate::engine::work::recovery;
use crate::error::Result;
use crate::model::message::Message;
use crate::model::status::Presence;
use crate::model::topic::PipelineTopics;
use crate::model::trigger::Trigger;
use crate::model::unit::Unit;
use crate::net::mqtt::Token;
use crate::net::session::{Session, SessionAck};
use crate::os::hooks;
use crate::os::host_lock::HostLock;
use crate::os::notify::Notify;
use crate::os::signals::Stop;
use crate::store::aside::sweep;
use crate::store::identity::Identity;
use crate::store::ledger::{Acceptance, Done, Ledger, OnDisk, Op, Reader};
use crate::store::unit_dir::{RUNNERS, UnitDir};

/// Operations that may wait for the ledger before no more messages are taken, and the bytes of
/// the messages among them.
const MAX_UNCOMMITTED: usize = connect::RECEIVE_MAXIMUM as usize;
const MAX_UNCOMMITTED_BYTES: usize = 16 * 1024 * 1024;

/// Maximum number of network events that are dealt with in a row.
const MAX_TAKEN_IN: usize = 128;

/// Counts since the client started.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub accepted: u64,
    pub duplicates: u64,
    pub refused: u64,
    pub ignored: u64,
}

/// What is to happen once an operation is on disk.
#[derive(Debug)]
pub(crate) enum Then {
    Accepted {
        admission: Box<Admission>,
        /// For the parts that start at once, by their place.
        words: Vec<(usize, Word)>,
        ack: Option<SessionAck>,
        reply: Option<ReplyTo>,
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
            hooks::failpoint("spawn.before");
            word.give(begin);
            hooks::failpoint("spawn.after");
        };
        match (self, done) {
            (Self::Accepted { words, .. }, Done::Accepted { parts, .. }) => {
                for (place, word) in words {
                    give(word, parts.get(*place) == Some(&Acceptance::Fresh));
                }
            }
            (Self::Start(_, Some(word)), done) => {
                give(word, matches!(done, Done::Changed { applied: true, .. }));
            }
            _ => {}
        }
    }
}

/// A unit that a runner has.
pub(crate) struct Live {
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
    pub(crate) config: Config,
    pub(crate) home: Home,
    pub(crate) topics: PipelineTopics,
    pub(crate) since: Timestamp,
    pub(crate) reader: Reader,
    pub(crate) queue: Queue,
    pub(crate) pressure: Pressure,
    pub(crate) outbox: Outbox,
    pub(crate) counts: Counts,
    pub(crate) session: Session,
    pub(crate) identity: Identity,
    /// Keeps others on this host from using our client identifier.
    _id_lock: HostLock,
    pub(crate) redelivery: Redelivery,
    pub(crate) names: Names,
    pub(crate) boot: String,
    pub(crate) ledger: Ledger<Then>,
    pub(crate) uncommitted: usize,
    pub(crate) uncommitted_bytes: usize,
    pub(crate) later: Later,
    pub(crate) runners: Runners,
    pub(crate) live: HashMap<String, Live>,
    pub(crate) adopted: (
        mpsc::UnboundedSender<String>,
        mpsc::UnboundedReceiver<String>,
    ),
    /// Whether whatever starts is to end: the client stops with its units.
    pub(crate) cancels_all: bool,
    pub(crate) online: bool,
    pub(crate) cleanup: Cleanup,
    pub(crate) backlog: Backlog,
    /// Whether runners have just not been able to begin, and until when none tries again.
    pub(crate) refusing: bool,
    pub(crate) held_until: Option<Instant>,
    /// Where our own clock begins.
    begin: Instant,
    /// Whether it was said that others cannot see how we are.
    pub(crate) unseen: bool,
    /// Whether it was said that the broker cannot take statuses for now.
    pub(crate) refusing_statuses: bool,
    /// Whether it was said how bridges keep the properties of messages.
    pub(crate) bridge_said: bool,
    pub(crate) pace: Pace,
    /// Whether it was said that messages wait, in case they are a loop.
    pub(crate) loop_said: bool,
    pub(crate) health: Health,
    pub(crate) silence: Silence,
    pub(crate) metrics: Option<Metrics>,
    pub(crate) last: LastEnd,
}

pub(crate) fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

impl Pipeline {
    /// Opens the pipeline's state, and takes up what an earlier client has left.
    ///
    /// # Errors
    /// When the state is damaged or newer; it is then untouched.
    pub fn open(mut config: Config, home: Home, notify: Notify) -> Result<Self> {
        warn_of_what_is_missing(&config);
        let mut identity = connect::identify(&mut config, &home.path)?;
        let id_lock = connect::hold_id(&config)?;
        warn_without_holes(&config, &home.path.join(RUNNERS));
        let (ledger, reader) = Ledger::open(&home.path)?;
        let boot = crate::os::process::boot_id();
        let topics = PipelineTopics::new(&config.root, &config.who);
        let since = Timestamp::now();
        // The first flush reads them.
        let outbox = Outbox::of_ledger(reader.waiting_messages()?);
        let redelivery = Redelivery::new(reader.answered()?, reader.last_accepted()?);
        sweep(&home.path, &reader)?;
        let left = recovery::survey(&home.path, &reader, &boot)?;
        let runners = home.path.join(RUNNERS);
        let mut silence = Silence::default();
        silence.take_up(&config.triggers, &reader.heard()?, now_ms());
        let metrics = config.metrics.clone().map(Metrics::new);
        let last = LastEnd::read(&reader)?;
        let names = Names::read(&reader)?;
        let mut queue = Queue::new(&config.triggers);
        queue.pause(home.path.join("paused").exists());
        let mut pipeline = Self {
            session: connect::session(&config, &topics, since, &mut identity)?,
            identity,
            _id_lock: id_lock,
            config,
            home,
            topics,
            since,
            reader,
            queue,
            pressure: Pressure::default(),
            outbox,
            counts: Counts::default(),
            redelivery,
            names,
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
            cleanup: Cleanup::default(),
            backlog: Backlog::default(),
            refusing: false,
            held_until: None,
            begin: Instant::now(),
            unseen: false,
            refusing_statuses: false,
            bridge_said: false,
            pace: Pace::default(),
            loop_said: false,
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
            self.take_held();
            self.start_waiting()?;
            if !self.outbox.is_empty() {
                hooks::failpoint("publish.before");
            }
            self.flush_outbox()?;
            self.check_health();
            self.check_metrics(false);
            let wake = self.wake();
            tokio::select! {
                biased;
                () = stop.requested() => break,
                Some(()) = reload.requests.recv() => self.reload(&reload.read),
                committed = self.ledger.committed() => {
                    self.on_committed(committed.map_err(|f| f.0)?);
                    while let Some(committed) = self.ledger.try_committed() {
                        self.on_committed(committed.map_err(|f| f.0)?);
                    }
                }
                report = self.runners.next() => self.on_report(report),
                Some(unit) = self.adopted.1.recv() => self.on_unknown(&unit),
                Some(removed) = self.cleanup.next() => self.on_removed(removed),
                event = self.session.next(), if self.takes_more() => {
                    self.on_session(event?);
                    self.take_in().await?;
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    self.on_time();
                }
            }
        }
        self.stop().await
    }

    /// Takes in what else has come already: one commit takes all of it, and only then is anything
    /// started.
    async fn take_in(&mut self) -> Result<()> {
        for _ in 1..MAX_TAKEN_IN {
            if !self.takes_more() {
                break;
            }
            tokio::select! {
                biased;
                event = self.session.next() => self.on_session(event?),
                () = std::future::ready(()) => break,
            }
        }
        Ok(())
    }

    /// Whether the ledger keeps up with what comes.
    pub(crate) const fn keeps_up(&self) -> bool {
        self.uncommitted < MAX_UNCOMMITTED && self.uncommitted_bytes < MAX_UNCOMMITTED_BYTES
    }

    /// Whether what comes can be taken.
    fn takes_more(&self) -> bool {
        self.keeps_up() && self.backlog.takes_more()
    }

    /// When something is to be done though nothing happens.
    fn wake(&self) -> Option<Instant> {
        let now = self.ticks();
        let due = self.queue.next_due(now).and_then(|due| {
            Instant::now().checked_add(Duration::from_millis((due - now).cast_unsigned()))
        });
        let held = self.held_until.or_else(|| self.runners.held_until());
        let held = held.or_else(|| self.pressure.holds_until(Instant::now()));
        let held = held.filter(|_| self.queue.waiting() > 0);
        let times = [
            due,
            held,
            self.later.due(),
            self.health.wake(),
            self.silence.wake(),
            self.metrics.as_ref().and_then(Metrics::wake),
            self.last.wake(),
            self.outbox.wake().filter(|_| self.online),
            self.cleanup.wake(),
            self.backlog.wake(),
        ];
        times.into_iter().flatten().min()
    }

    /// Milliseconds by a clock that never goes back, above 0.
    pub(crate) fn ticks(&self) -> i64 {
        let elapsed = self.begin.elapsed().as_millis();
        i64::try_from(elapsed).unwrap_or(i64::MAX - 1) + 1
    }

    fn on_time(&mut self) {
        self.held_until = self.held_until.filter(|until| Instant::now() < *until);
        if self.later.due().is_some_and(|due| Instant::now() >= due) {
            self.flush_later();
        }
        self.check_silence();
        self.tell_last();
        self.check_cleanup();
    }

    /// Whether the broker is there and has our subscriptions.
    pub(crate) const fn is_online(&self) -> bool {
        self.online
    }

    /// Tells that we are here.
    pub(crate) fn tell_presence(&mut self) {
        let state = match self.queue.is_paused() {
            true => Presence::Paused,
            false => Presence::Online,
        };
        let presence = connect::presence(&self.config, &self.topics, state, self.since);
        self.publish(presence);
    }

    /// Publishes a message that no ledger holds, if there is a connection. The broker's answer
    /// to it tells what the broker knows, as the answer to a status does.
    pub(crate) fn publish(&mut self, message: Message) -> Option<Token> {
        let token = self.session.publish(message)?;
        self.redelivery.sent(token, now_ms());
        Some(token)
    }

    /// Submits what waits for other changes.
    pub(crate) fn flush_later(&mut self) {
        for op in self.later.take() {
            self.uncommitted += 1;
            self.ledger.submit(op, Then::Nothing);
        }
    }

    pub(crate) fn submit(&mut self, op: Op, then: Then) {
        // One transaction takes both.
        self.flush_later();
        self.uncommitted += 1;
        self.ledger.submit(op, then);
    }

    pub(crate) fn trigger(&self, name: &str) -> Option<&Trigger> {
        self.config.triggers.named(name)
    }

    pub(crate) fn dir(&self, unit: &str) -> UnitDir {
        UnitDir::new(&self.home.path, unit)
    }

    pub(crate) fn paused_mark(&self) -> PathBuf {
        self.home.path.join("paused")
    }
}
