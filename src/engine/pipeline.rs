//! A running pipeline: the loop in which events come, runs start and end, and reports go.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, error, info, warn};

use crate::engine::admit::{self, Admission};
use crate::engine::failpoint;
use crate::engine::outbox::Outbox;
use crate::engine::queue::Queue;
use crate::engine::recovery::{self, Left};
use crate::engine::runner::Job;
use crate::engine::runners::{Report, Runners};
use crate::engine::settle;
use crate::error::{Error, Kind, Result};
use crate::model::message::{Delivery, Message, Properties, Qos};
use crate::model::status::{self, Presence};
use crate::model::text::printable_bytes;
use crate::model::topic::{Filter, PipelineTopics};
use crate::model::trigger::Trigger;
use crate::model::unit::{End, Outcome, Recovery, State, Stopped, Trace, Unit};
use crate::net::mqtt::{Refused, Settings, Token};
use crate::net::options::BrokerOptions;
use crate::net::session::{Event, Session, SessionAck, Subscriptions};
use crate::os::lock::Lock;
use crate::os::signals::Stop;
use crate::store::ledger::{Committed, Done, Ledger, Op, Part, Reader};
use crate::store::streams::{Stream, UnitDir, create_private_dir};

/// How long the broker keeps what is sent while we are away.
const SESSION_EXPIRY: Duration = Duration::from_secs(7 * 24 * 3600);

/// Deliveries that the broker may have under way, unacknowledged.
const RECEIVE_MAXIMUM: u16 = 64;

/// Operations that may wait for the ledger before no more messages are taken.
const MAX_UNCOMMITTED: usize = 4096;

/// How long the reports that are still to be told may hold up a stop.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Wait before a unit that found no space for its folder is started again.
const NO_SPACE_RETRY: Duration = Duration::from_secs(1);

/// So often a unit is handed to a runner that dies before it begins.
const MAX_HANDOVERS: u32 = 3;

/// Units that end between two prunings.
const PRUNE_EVERY: u32 = 256;

/// How much of a failed run's output is logged.
const TAIL_BYTES: u64 = 2048;
const TAIL_LINES: usize = 10;

/// Token of messages whose acknowledgement nobody waits for; the outbox's begin at 1.
const UNTRACKED: Token = 0;

/// A pipeline, as its operator wants it.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name.
    pub who: String,
    /// The root of its topics.
    pub root: String,
    /// This host.
    pub host: String,
    /// Its triggers, at least one, of different names.
    pub triggers: Vec<Trigger>,
    /// The largest payload of an event, bytes.
    pub max_payload: usize,
    /// Bytes kept of each output stream of a run; 0 keeps all.
    pub max_output: u64,
    /// How long ended units and events are remembered.
    pub keep: Duration,
    /// How many units are remembered at most.
    pub keep_units: u64,
    /// Whether stopping the client cancels its runs.
    pub stop_units: bool,
    /// How to reach the broker.
    pub broker: BrokerOptions,
}

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
        ack: SessionAck,
        reply: Option<Message>,
    },
    Start {
        trigger: String,
        unit: String,
    },
    Settled {
        retry: Option<Box<Unit>>,
    },
    Nothing,
}

struct Live {
    unit: Unit,
    /// Whether its start has been told.
    said: bool,
    started: Option<i64>,
    handovers: u32,
}

/// A pipeline's folder, held by this process alone.
#[derive(Debug)]
pub struct Home {
    path: PathBuf,
    _lock: Lock,
}

impl Home {
    /// Creates and locks the folder of pipeline `who` below `state`; `None` if a client of
    /// that name runs already.
    ///
    /// # Errors
    /// When it cannot be created (73).
    pub fn acquire(state: &Path, who: &str) -> Result<Option<Self>> {
        let path = state.join(who);
        create_private_dir(&path.join("units"))?;
        let lock = Lock::try_acquire(&path.join("lock"))?;
        Ok(lock.map(|_lock| Self { path, _lock }))
    }
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
    /// When an event that the broker may send twice was accepted at the earliest.
    pub(super) redelivery_since: i64,
    boot: String,
    ledger: Ledger<Then>,
    uncommitted: usize,
    runners: Runners,
    live: HashMap<String, Live>,
    adopted: (
        mpsc::UnboundedSender<String>,
        mpsc::UnboundedReceiver<String>,
    ),
    online_since: Option<Instant>,
    ended: u32,
}

pub(super) fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

impl Pipeline {
    /// Opens the pipeline's state, and takes up what an earlier client has left.
    ///
    /// # Errors
    /// When the state is damaged or newer; it is then untouched.
    pub fn open(config: Config, home: Home) -> Result<Self> {
        let ledger = Ledger::open(&home.path)?;
        let reader = Reader::open(&home.path)?;
        let boot = crate::os::process::boot_id();
        let topics = PipelineTopics::new(&config.root, &config.who);
        let since = Timestamp::now();
        let mut outbox = Outbox::default();
        outbox.extend(reader.outbox()?);
        let twice = twice_keep_alive(&config.broker);
        let redelivery_since = reader.last_accepted()?.map_or(0, |at| at - twice);
        let left = recovery::survey(&home.path, &reader, &boot)?;
        let mut queue = Queue::new(&config.triggers);
        queue.pause(home.path.join("paused").exists());
        let mut pipeline = Self {
            session: session(&config, &topics, since)?,
            config,
            home,
            topics,
            since,
            reader,
            queue,
            outbox,
            counts: Counts::default(),
            redelivery_since,
            boot,
            ledger,
            uncommitted: 0,
            runners: Runners::new(),
            live: HashMap::new(),
            adopted: mpsc::unbounded_channel(),
            online_since: None,
            ended: 0,
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
    pub async fn run(mut self, stop: &mut Stop) -> Result<()> {
        self.runners.keep_warm();
        loop {
            self.start_waiting();
            self.outbox.flush(&self.session);
            let now = now_ms();
            let due = self.queue.next_due(now).map(|due| due - now);
            let wait = Duration::from_millis(due.unwrap_or(0).cast_unsigned());
            tokio::select! {
                biased;
                () = stop.requested() => break,
                committed = self.ledger.committed() => self.on_committed(committed.map_err(|f| f.0)?),
                report = self.runners.next() => self.on_report(report),
                Some(unit) = self.adopted.1.recv() => self.on_unknown(&unit),
                event = self.session.next(), if self.uncommitted < MAX_UNCOMMITTED => {
                    self.on_session(event?);
                }
                () = sleep(wait), if due.is_some() => {}
            }
        }
        self.stop().await
    }

    pub(super) fn submit(&mut self, op: Op, then: Then) {
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

    fn on_session(&mut self, event: Event) {
        match event {
            Event::Online => {
                self.online_since = Some(Instant::now());
                let presence = self.presence(Presence::Online);
                self.session.publish(presence, UNTRACKED);
            }
            Event::Offline => {
                self.outbox.reset();
                // What the broker has answered a ping after, it knows to be acknowledged.
                let twice = twice_keep_alive(&self.config.broker);
                let long = Duration::from_millis(twice.cast_unsigned());
                if self
                    .online_since
                    .take()
                    .is_some_and(|since| since.elapsed() > long)
                {
                    self.redelivery_since = now_ms() - twice;
                }
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
        let admission = admit::judge(&self.config, delivery, self.redelivery_since);
        if admission.parts.is_empty() {
            self.counts.ignored += 1;
            self.session.acknowledge(ack);
        } else {
            self.accept(admission, ack, None);
        }
    }

    /// Has the ledger accept an event; it is acknowledged once that is on disk.
    pub(super) fn accept(
        &mut self,
        mut admission: Admission,
        ack: SessionAck,
        reply: Option<Message>,
    ) {
        for part in &mut admission.parts {
            if let Part::Run { unit, start } = part {
                *start = self.queue.claim(&unit.trigger, &unit.id);
            }
        }
        let op = Op::Accept {
            key: admission.key.clone(),
            topic: admission.topic.clone(),
            at: now_ms(),
            boot: self.boot.clone(),
            parts: admission.parts.clone(),
        };
        failpoint::reached("commit.before");
        let then = Then::Accepted {
            admission: Box::new(admission),
            ack,
            reply,
        };
        self.submit(op, then);
    }

    fn on_published(&mut self, seq: Token, result: Result<(), Refused>) {
        let Some(message) = self.outbox.complete(seq) else {
            return;
        };
        if let Err(Refused(e)) = result {
            warn!("status on '{}' is given up: {e}", message.topic);
        }
        failpoint::reached("publish.after");
        self.submit(Op::Sent(vec![seq]), Then::Nothing);
    }

    // --- What the ledger has on disk ---

    fn on_committed(&mut self, committed: Committed<Then>) {
        self.uncommitted -= 1;
        match (committed.then, committed.done) {
            (
                Then::Accepted {
                    admission,
                    ack,
                    reply,
                },
                Done::Accepted { fresh, queued },
            ) => {
                failpoint::reached("ack.before");
                self.session.acknowledge(ack);
                failpoint::reached("ack.after");
                self.outbox.extend(queued);
                if let Some(reply) = reply {
                    self.session.publish(reply, UNTRACKED);
                }
                self.on_accepted(*admission, &fresh);
            }
            (Then::Start { trigger, unit }, Done::Changed { applied, .. }) => {
                match self.reader.unit(&unit) {
                    Ok(Some(record)) if applied => self.dispatch(record.unit, None),
                    Ok(_) => self.queue.remove(&trigger, &unit),
                    Err(e) => {
                        error!(TAEL_UNIT = unit, "{e}");
                        self.postpone(&trigger, &unit);
                    }
                }
            }
            (Then::Settled { retry }, Done::Changed { applied, queued }) => {
                failpoint::reached("settle.after");
                self.outbox.extend(queued);
                if let (Some(retry), true) = (retry, applied) {
                    self.queue.wait(&retry.trigger, &retry.id, retry.due);
                }
            }
            (Then::Nothing, Done::Changed { queued, .. }) => self.outbox.extend(queued),
            (Then::Nothing, Done::Pruned(units)) => {
                for unit in units {
                    if let Err(e) = self.dir(&unit).remove() {
                        warn!(
                            TAEL_UNIT = unit,
                            "cannot remove the folder of an old unit: {e}"
                        );
                    }
                }
            }
            (then, done) => debug!("unexpected: {then:?} brought {done:?}"),
        }
    }

    fn on_accepted(&mut self, admission: Admission, fresh: &[bool]) {
        let (event, topic) = (admission.key.id, admission.topic);
        for (part, fresh) in admission.parts.into_iter().zip(fresh) {
            match part {
                Part::Run { unit, start } if !fresh => {
                    self.counts.duplicates += 1;
                    info!(
                        TAEL_EVENT = event,
                        TAEL_TOPIC = topic,
                        "event came again; not run"
                    );
                    if start {
                        self.queue.remove(&unit.trigger, &unit.id);
                    }
                }
                Part::Run { unit, start } => {
                    self.counts.accepted += 1;
                    debug!(
                        TAEL_EVENT = event,
                        TAEL_TOPIC = topic,
                        TAEL_UNIT = unit.id,
                        "accepted"
                    );
                    if start {
                        self.dispatch(*unit, None);
                    } else {
                        self.arrive(&unit);
                    }
                }
                Part::Refuse { refused, .. } => {
                    self.counts.refused += 1;
                    warn!(
                        TAEL_EVENT = event,
                        TAEL_TOPIC = topic,
                        "event refused: {}",
                        refused.detail
                    );
                }
            }
        }
    }

    /// A new unit that has to wait.
    fn arrive(&mut self, unit: &Unit) {
        let displaced = self.queue.arrive(&unit.trigger, &unit.id);
        for dropped in displaced.dropped {
            info!(
                TAEL_UNIT = dropped,
                "not run: another run goes on or came after it"
            );
            let op = settle::dropped(&dropped, "dropped by the overlap policy");
            self.submit(op, Then::Nothing);
        }
        if let Some(running) = displaced.cancel {
            info!(TAEL_UNIT = running, "cancelled for a newer event");
            self.signal(&running);
        }
    }

    /// Asks the runner of `unit` to end it.
    pub(super) fn signal(&self, unit: &str) {
        if let Err(e) = self.dir(unit).cancel() {
            warn!(TAEL_UNIT = unit, "cannot cancel: {e}");
        }
    }

    // --- Starting ---

    fn start_waiting(&mut self) {
        while let Some((trigger, unit)) = self.queue.next(now_ms()) {
            let op = Op::Start {
                unit: unit.clone(),
                boot: self.boot.clone(),
            };
            self.submit(op, Then::Start { trigger, unit });
        }
    }

    /// Hands a unit, which the ledger says is running, to a runner.
    fn dispatch(&mut self, unit: Unit, handovers: Option<u32>) {
        let Some(trigger) = self.trigger(&unit.trigger) else {
            let cause = format!("there is no trigger '{}' any more", unit.trigger);
            return self.finish(unit, false, &settle::not_started(cause));
        };
        let job = job(&self.config, trigger, &unit, &self.dir(&unit.id));
        failpoint::reached("dispatch.before");
        if let Err(e) = self.dir(&unit.id).create(&unit.payload) {
            error!(
                TAEL_UNIT = unit.id,
                "cannot create the unit's folder: {e}; it waits"
            );
            return self.postpone(&unit.trigger, &unit.id);
        }
        if let Err(e) = self.runners.dispatch(&unit.id, &job) {
            error!(
                TAEL_UNIT = unit.id,
                "cannot start a runner: {e}; the unit waits"
            );
            return self.postpone(&unit.trigger, &unit.id);
        }
        let live = Live {
            said: false,
            started: None,
            handovers: handovers.unwrap_or(0) + 1,
            unit,
        };
        self.live.insert(live.unit.id.clone(), live);
    }

    /// Lets a unit that could not be started wait a little.
    fn postpone(&mut self, trigger: &str, unit: &str) {
        self.queue.remove(trigger, unit);
        let op = Op::Unstart {
            unit: unit.to_owned(),
        };
        self.submit(op, Then::Nothing);
        let wait = i64::try_from(NO_SPACE_RETRY.as_millis()).unwrap_or(0);
        self.queue.wait(trigger, unit, now_ms() + wait);
    }

    // --- What runners report ---

    fn on_report(&mut self, report: Report) {
        match report {
            Report::Started(unit, at) => {
                let Some(live) = self.live.get_mut(&unit) else {
                    return;
                };
                (live.said, live.started) = (true, Some(at));
                let op = settle::started(&self.config, &live.unit, at);
                info!(TAEL_UNIT = unit, TAEL_TOPIC = live.unit.topic, "started");
                self.submit(op, Then::Nothing);
            }
            Report::Ended(unit, outcome) => {
                if let Some(live) = self.live.remove(&unit) {
                    self.finish(live.unit, live.said, &outcome);
                }
            }
            Report::Unknown(unit) => self.on_unknown(&unit),
        }
    }

    /// A runner has let go of a unit, and its folder knows why.
    fn on_unknown(&mut self, unit: &str) {
        let Some(live) = self.live.remove(unit) else {
            return;
        };
        match self.dir(unit).trace() {
            Ok(Trace::Ended(outcome)) => self.finish(live.unit, live.said, &outcome),
            Ok(Trace::Alive) => self.adopt(live),
            Ok(Trace::Fresh) if live.handovers < MAX_HANDOVERS => {
                self.dispatch(live.unit, Some(live.handovers));
            }
            Ok(Trace::Fresh) => {
                let cause = "its runner died before it began".to_owned();
                self.finish(live.unit, live.said, &settle::not_started(cause));
            }
            Ok(Trace::Gone) => {
                self.finish(live.unit, live.said, &settle::interrupted(live.started));
            }
            Err(e) => {
                error!(TAEL_UNIT = unit, "{e}");
                self.finish(live.unit, live.said, &settle::interrupted(live.started));
            }
        }
    }

    /// Waits for a run whose runner another client has started.
    fn adopt(&mut self, live: Live) {
        let unit = live.unit.id.clone();
        let (dir, adopted, id) = (self.dir(&unit), self.adopted.0.clone(), unit.clone());
        self.live.insert(unit, live);
        // One thread for each run that was going on when the client started.
        let waiter = std::thread::Builder::new().name("adopted".into());
        let waiting = waiter.stack_size(64 * 1024).spawn(move || {
            if let Err(e) = dir.wait_unlocked() {
                warn!("{e}");
            }
            let _ = adopted.send(id);
        });
        if let Err(e) = waiting {
            error!("cannot wait for an adopted run: {e}");
        }
    }

    /// Books the end of a unit and gives its job back.
    fn finish(&mut self, unit: Unit, said: bool, outcome: &Outcome) {
        self.queue.remove(&unit.trigger, &unit.id);
        self.log_end(&unit, outcome);
        let policy = match self.trigger(&unit.trigger) {
            Some(trigger) => trigger.policy.clone(),
            // Its trigger is gone from the configuration: nothing is tried again.
            None => crate::model::trigger::Policy::default(),
        };
        let (op, retry) = settle::ended(&self.config, &policy, &unit, outcome, !said);
        failpoint::reached("settle.before");
        self.submit(
            op,
            Then::Settled {
                retry: retry.map(Box::new),
            },
        );
        self.ended += 1;
        if self.ended.is_multiple_of(PRUNE_EVERY) {
            self.prune();
        }
    }

    fn log_end(&self, unit: &Unit, outcome: &Outcome) {
        let seconds = Duration::from_micros(outcome.elapsed).as_secs_f64();
        let topic = &unit.topic;
        if outcome.state() == State::Succeeded {
            info!(
                TAEL_UNIT = unit.id,
                TAEL_TOPIC = topic,
                "finished after {seconds:.3} s"
            );
            return;
        }
        let why = match outcome.stopped {
            Some(Stopped::TimedOut) => " (timed out)",
            Some(Stopped::Canceled) => " (cancelled)",
            None => "",
        };
        warn!(
            TAEL_UNIT = unit.id,
            TAEL_TOPIC = topic,
            "failed after {seconds:.3} s: {}{why}",
            outcome.end
        );
        if matches!(outcome.end, End::Exited(_) | End::Signaled(_)) {
            let tail = self.dir(&unit.id).tail(Stream::Stderr, TAIL_BYTES);
            let lines: Vec<&[u8]> = tail
                .split(|b| *b == b'\n')
                .filter(|l| !l.is_empty())
                .collect();
            for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
                warn!(
                    TAEL_UNIT = unit.id,
                    "stderr: {}",
                    printable_bytes(line, 500)
                );
            }
        }
    }

    // --- Taking up what was left ---

    fn take_up(&mut self, left: Left) {
        let Left {
            unit,
            started,
            handed_over,
            recovery,
        } = left;
        let said = started.is_some();
        match recovery {
            Recovery::Queue => {
                if handed_over {
                    let op = Op::Unstart {
                        unit: unit.id.clone(),
                    };
                    self.submit(op, Then::Nothing);
                }
                self.queue.wait(&unit.trigger, &unit.id, unit.due);
            }
            Recovery::Settle(outcome) => self.finish(unit, said, &outcome),
            Recovery::Interrupted => self.finish(unit, said, &settle::interrupted(started)),
            Recovery::Adopt => {
                self.queue.adopt(&unit.trigger, &unit.id);
                self.adopt(Live {
                    said,
                    started,
                    handovers: 1,
                    unit,
                });
            }
        }
    }

    fn prune(&mut self) {
        let keep = i64::try_from(self.config.keep.as_millis()).unwrap_or(i64::MAX);
        let op = Op::Prune {
            before: now_ms().saturating_sub(keep),
            keep: self.config.keep_units,
        };
        self.submit(op, Then::Nothing);
    }

    // --- Stopping ---

    /// Leaves in good order: units stay with their runners, what is to be told is told within
    /// a bounded time.
    async fn stop(mut self) -> Result<()> {
        info!("stopping; {} units go on", self.live.len());
        let mut deadline = Instant::now() + FLUSH_TIMEOUT;
        let wait_for_units = self.config.stop_units;
        self.queue.pause(true);
        if wait_for_units {
            let grace = self.config.triggers.iter().map(|t| t.policy.grace).max();
            deadline += grace.unwrap_or_default();
            for unit in self.live.keys() {
                self.signal(unit);
            }
        } else {
            // Without their pipes idle runners leave now, busy ones when they are done.
            self.runners = Runners::new();
        }
        let mut presence = Some(self.presence(Presence::Offline));
        let mut farewell = false;
        loop {
            let units_done = self.live.is_empty() || !wait_for_units;
            let told = self.uncommitted == 0 && self.outbox.is_empty() && units_done;
            if told && farewell {
                break;
            }
            self.outbox.flush(&self.session);
            if told
                && let Some(message) = presence.take()
                && !self.session.publish(message.clone(), Token::MAX)
            {
                presence = Some(message);
            }
            let step = async {
                tokio::select! {
                    committed = self.ledger.committed() => {
                        self.on_committed(committed.map_err(|f| f.0)?);
                    }
                    report = self.runners.next() => self.on_report(report),
                    Some(unit) = self.adopted.1.recv() => self.on_unknown(&unit),
                    event = self.session.next() => match event? {
                        // Unacknowledged, it comes again to the next client.
                        Event::Received(_) => {}
                        Event::Published(Token::MAX, _) => farewell = true,
                        other => self.on_session(other),
                    },
                }
                Ok::<(), Error>(())
            };
            match timeout_at(deadline, step).await {
                Ok(result) => result?,
                Err(_) => {
                    info!(
                        "stopped; {} statuses wait for the next start",
                        self.outbox.len()
                    );
                    break;
                }
            }
        }
        self.session.close().await;
        Ok(())
    }

    fn presence(&self, state: Presence) -> Message {
        presence(&self.config, &self.topics, state, self.since)
    }
}

fn twice_keep_alive(broker: &BrokerOptions) -> i64 {
    i64::try_from(broker.keep_alive.as_millis() * 2).unwrap_or(i64::MAX)
}

fn presence(
    config: &Config,
    topics: &PipelineTopics,
    state: Presence,
    since: Timestamp,
) -> Message {
    let payload = status::presence(state, &config.who, &config.host, &config.triggers, since);
    Message {
        topic: topics.presence(),
        payload: Bytes::from(payload.to_string()),
        qos: Qos::AtLeastOnce,
        retain: true,
        properties: Properties::default(),
    }
}

fn session(config: &Config, topics: &PipelineTopics, since: Timestamp) -> Result<Session> {
    let packet = config
        .max_payload
        .saturating_mul(4)
        .saturating_add(64 * 1024);
    let settings = Settings {
        broker: config.broker.clone(),
        session_expiry: SESSION_EXPIRY,
        will: Some(presence(config, topics, Presence::Lost, since)),
        // Larger than what is accepted, so that a message too large is seen and refused; what
        // is larger still, the broker does not send at all (MQTT 5.0, section 3.1.2.11.4).
        max_packet: u32::try_from(packet).unwrap_or(u32::MAX).min(MAX_PACKET),
        receive_maximum: RECEIVE_MAXIMUM,
    };
    let control = Filter::new(topics.control()).map_err(|e| Error::new(Kind::Usage, e))?;
    let filters = config
        .triggers
        .iter()
        .flat_map(|trigger| trigger.filters.iter().cloned());
    let subscriptions = Subscriptions {
        required: filters.collect(),
        optional: vec![control],
        qos: Qos::AtLeastOnce,
    };
    Ok(Session::new(settings, subscriptions))
}

/// The largest MQTT packet (MQTT 5.0, section 2.1.4).
const MAX_PACKET: u32 = 268_435_455;

fn job(config: &Config, trigger: &Trigger, unit: &Unit, dir: &UnitDir) -> Job {
    let mut variables = unit.variables.clone();
    let hops = unit.hops.to_string();
    let attempt = unit.attempt.to_string();
    let own = [
        ("TAEL_TOPIC", &unit.topic),
        ("TAEL_REASON", &unit.reason),
        ("TAEL_WHO", &config.who),
        ("TAEL_UNIT", &unit.id),
        ("TAEL_EVENT", &unit.event),
        ("TAEL_ATTEMPT", &attempt),
        ("TAEL_HOPS", &hops),
    ];
    variables.extend(own.map(|(name, value)| (name.to_owned(), value.clone())));
    if let Some(traceparent) = &unit.traceparent {
        variables.push(("TRACEPARENT".into(), traceparent.clone()));
    }
    let owned = |argv: Vec<&str>| argv.into_iter().map(str::to_owned).collect();
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    Job {
        dir: dir.path().to_owned(),
        argv: owned(trigger.command.argv()),
        shell_argv: owned(trigger.command.shell_argv()),
        variables,
        timeout: trigger.policy.timeout.map(millis),
        grace: millis(trigger.policy.grace),
        max_output: config.max_output,
    }
}
