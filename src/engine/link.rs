//! The link of a pipeline to its broker: the session, the identifier, and the presence.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tracing::{info, warn};

use crate::engine::config::{Config, RECEIVE_MAXIMUM, SESSION_EXPIRY};
use crate::engine::pipeline::Pipeline;
use crate::error::{Error, Kind, Result};
use crate::model::message::{Message, Properties, Qos};
use crate::model::remote::{MAX_HEADER, MAX_PIECE};
use crate::model::status::{self, Presence};
use crate::model::text::printable;
use crate::model::topic::{Filter, PipelineTopics, minimal};
use crate::model::trigger::waits_for;
use crate::net::mqtt::Settings;
use crate::net::session::{Session, Subscriptions};
use crate::os::host_lock::HostLock;
use crate::os::logging::SENDERS;
use crate::store::identity::Identity;
use crate::store::ledger;

pub use crate::net::mqtt::Token;

/// Returns the retained message that says that the pipeline is here, and whether it is paused.
pub fn here(pipeline: &Pipeline, paused: bool) -> Message {
    let state = match paused {
        true => Presence::Paused,
        false => Presence::Online,
    };
    presence(pipeline, state)
}

/// Returns the retained message with the state of the pipeline.
pub fn presence(pipeline: &Pipeline, state: Presence) -> Message {
    presence_of(&pipeline.config, &pipeline.topics, state, pipeline.since)
}

fn presence_of(
    config: &Config,
    topics: &PipelineTopics,
    state: Presence,
    since: Timestamp,
) -> Message {
    let times = (since, Timestamp::now());
    let (who, host) = (&config.who, &config.host);
    let payload = status::presence(state, who, host, &config.triggers, &config.work, times);
    Message {
        topic: topics.presence(),
        payload: Bytes::from(payload.to_string()),
        qos: Qos::AtLeastOnce,
        retain: true,
        properties: Properties::default(),
    }
}

/// The session with the broker, and what the broker keeps for it.
pub struct Link {
    /// The session.
    pub session: Session,
    identity: Identity,
    /// Keeps other processes of this host from using our client identifier.
    _id_lock: HostLock,
    online: bool,
    /// What was logged last about the messages that the client waits for.
    said: String,
    goodbye: Goodbye,
    /// Answers that wait until the session is online.
    answers: Vec<Message>,
}

/// Maximum number of answers that wait, and of their bytes in memory. Later ones are dropped, and
/// their requesters give up.
const MAX_ANSWERS: usize = 64;
const MAX_ANSWERS_BYTES: usize = 1024 * 1024;

/// Whether the broker knows that the client stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goodbye {
    /// It was not told.
    Unsaid,
    /// This publish tells it.
    Sent(Token),
    /// It has answered.
    Answered,
}

impl Link {
    /// Returns the link of a pipeline with this `identity`, whose client has started at `since`. It
    /// starts to connect when the session is asked for its first event.
    ///
    /// # Errors
    /// When the control topic is too long, or the file of the identity cannot be written.
    pub fn open(
        config: &Config,
        since: Timestamp,
        mut identity: Identity,
        id_lock: HostLock,
    ) -> Result<Self> {
        let topics = PipelineTopics::new(&config.root, &config.who);
        // Those to other nodes follow when the ledger is read.
        let subscriptions = subscriptions(config, &topics, Vec::new())?;
        // Before the new ones are noted, which the broker does not hold yet.
        let (held, expected) = identity.held(&config.broker.client_id, &config.broker.address());
        will_hold(&mut identity, config, &subscriptions)?;
        let settings = settings(config, &topics, since);
        Ok(Self {
            session: Session::new(settings, subscriptions)
                .resume(held, expected)
                .lasting(),
            identity,
            _id_lock: id_lock,
            online: false,
            said: String::new(),
            goodbye: Goodbye::Unsaid,
            answers: Vec::new(),
        })
    }

    /// Returns whether the broker is connected and has our subscriptions.
    pub const fn is_online(&self) -> bool {
        self.online
    }

    /// Notes that the session is online. Returns the answers that have waited for that.
    #[must_use]
    pub fn went_online(&mut self) -> Vec<Message> {
        self.online = true;
        std::mem::take(&mut self.answers)
    }

    /// Logs what the client waits for, if that has changed.
    pub fn say_what_it_waits_for(&mut self, config: &Config) {
        let waits = waits_for(&config.triggers, &config.work);
        if waits != self.said {
            info!("{waits}");
            self.said = waits;
        }
    }

    /// Notes that the session is offline. Returns whether the other side has dropped a connection
    /// that was online.
    pub fn went_offline(&mut self) -> bool {
        let was_online = self.online;
        self.online = false;
        // Their requests are not acknowledged, and come again.
        self.answers.clear();
        was_online && self.session.was_cut()
    }

    /// Keeps an answer for a session that is about to come online. Without a connection, the
    /// request comes again; and a broker that takes no more answers gets no more.
    pub fn owe(&mut self, answer: Message) {
        if self.online || !self.session.has_connection() {
            return;
        }
        let held: usize = self.answers.iter().map(Message::memory).sum();
        if self.answers.len() < MAX_ANSWERS && held + answer.memory() <= MAX_ANSWERS_BYTES {
            self.answers.push(answer);
        } else {
            warn!(target: SENDERS, "answer to a request dropped: too many wait for the broker");
        }
    }

    /// Returns whether the goodbye must be published.
    pub fn owes_goodbye(&self) -> bool {
        self.goodbye == Goodbye::Unsaid
    }

    /// Returns whether the broker has answered the goodbye.
    pub fn has_said_goodbye(&self) -> bool {
        self.goodbye == Goodbye::Answered
    }

    /// Notes that this publish is the goodbye.
    pub const fn says_goodbye(&mut self, token: Token) {
        self.goodbye = Goodbye::Sent(token);
    }

    /// Notes that a publish has ended.
    pub fn published(&mut self, token: Token) {
        if self.goodbye == Goodbye::Sent(token) {
            self.goodbye = Goodbye::Answered;
        }
    }

    /// Notes what the broker holds for us now. If that fails, the file names more filters.
    pub fn held(&mut self, config: &Config, filters: Vec<Filter>) {
        let broker = &config.broker;
        let outlives = !config.triggers.are_shared();
        let identity = &mut self.identity;
        let held = identity.holds(&broker.client_id, &broker.address(), filters, outlives);
        if let Err(e) = held {
            warn!("{e}; it names more than the broker holds until the next change");
        }
    }

    /// Notes what the broker will hold for a pipeline with this `config`, and with these filters of
    /// `nodes` that run its work, and returns the subscriptions.
    ///
    /// # Errors
    /// When the control topic is too long, or the file of the identity cannot be written.
    pub fn prepare(
        &mut self,
        config: &Config,
        topics: &PipelineTopics,
        nodes: Vec<Filter>,
    ) -> Result<Subscriptions> {
        let subscriptions = subscriptions(config, topics, nodes)?;
        will_hold(&mut self.identity, config, &subscriptions)?;
        Ok(subscriptions)
    }

    /// Changes subscriptions and settings. Returns whether the broker must answer first.
    pub fn reconfigure(&mut self, pipeline: &Pipeline, subscriptions: Subscriptions) -> bool {
        let asked = self.session.subscribe(subscriptions);
        let settings = settings(&pipeline.config, &pipeline.topics, pipeline.since);
        self.session.reconfigure(settings);
        asked
    }
}

/// Returns the settings for the connection of a pipeline.
fn settings(config: &Config, topics: &PipelineTopics, since: Timestamp) -> Settings {
    Settings {
        broker: config.broker.clone(),
        // A stopped worker must take no share.
        session_expiry: match config.triggers.are_shared() {
            true => Duration::ZERO,
            false => SESSION_EXPIRY,
        },
        clean_start: false,
        will: Some(presence_of(config, topics, Presence::Lost, since)),
        max_packet: max_packet(config.max_payload.max(MAX_HEADER + MAX_PIECE)),
        receive_maximum: RECEIVE_MAXIMUM,
    }
}

/// Reads the identity of the pipeline in the state folder `home`, and uses it, unless the operator
/// has chosen another identifier.
///
/// # Errors
/// When the file cannot be read (73) or comes from a newer version (78).
pub fn identify(config: &mut Config, home: &Path) -> Result<Identity> {
    let mut identity = Identity::open(home)?;
    if !config.chosen_id {
        let used = ledger::file(home).exists();
        let earlier = used.then_some(config.broker.client_id.as_str());
        let id = identity.own_id(earlier, &config.who).to_owned();
        config.broker.client_id = id;
        if !used {
            // Before the ledger exists: a ledger without this file comes from an earlier version.
            identity.save()?;
        }
    }
    Ok(identity)
}

/// Reserves the client identifier for this process on this host: two clients of one identifier take
/// the session from each other.
///
/// # Errors
/// When another process has it (73), or one of another user (75).
pub fn hold_id(config: &Config) -> Result<HostLock> {
    let broker = &config.broker;
    HostLock::acquire(&["client", &broker.address(), &broker.client_id]).map_err(|holder| {
        let id = printable(&broker.client_id, 80);
        Error::new(
            holder.kind(),
            format!("start client: {holder} uses client identifier '{id}'; choose another --id"),
        )
    })
}

/// Notes what the broker will hold, before the request.
///
/// # Errors
/// When the file cannot be written (73).
fn will_hold(
    identity: &mut Identity,
    config: &Config,
    subscriptions: &Subscriptions,
) -> Result<()> {
    let filters = minimal(&subscriptions.all());
    identity.will_hold(&config.broker.client_id, &config.broker.address(), &filters)
}

/// Returns the subscriptions of a pipeline.
///
/// # Errors
/// When its control topic is too long.
fn subscriptions(
    config: &Config,
    topics: &PipelineTopics,
    nodes: Vec<Filter>,
) -> Result<Subscriptions> {
    let control = Filter::new(topics.control()).map_err(|e| Error::new(Kind::Usage, e))?;
    let mut optional = vec![control];
    optional.extend(nodes);
    if !config.work.is_empty() {
        optional.push(Filter::new(topics.work()).map_err(|e| Error::new(Kind::Usage, e))?);
    }
    let filters = config
        .triggers
        .iter()
        .flat_map(|trigger| trigger.filters.iter().cloned());
    Ok(Subscriptions {
        required: filters.collect(),
        optional,
        qos: Qos::AtLeastOnce,
    })
}

/// Returns the maximum size of a packet from the broker, bytes. It is larger than the largest
/// payload, so that a message that is slightly too large is received, refused and recorded. The
/// broker does not send larger ones (MQTT 5.0, section 3.1.2.11.4). It is not larger still, because
/// a packet full of short properties takes sixteen times its size in memory.
fn max_packet(max_payload: usize) -> u32 {
    let packet = max_payload.saturating_mul(2).saturating_add(MIN_MARGIN);
    u32::try_from(packet).unwrap_or(u32::MAX).min(MAX_PACKET)
}

/// Minimum room in a packet beside the largest payload, bytes: topic, properties, and a payload
/// that is too large.
const MIN_MARGIN: usize = 64 * 1024;

/// Maximum size of an MQTT packet, bytes (MQTT 5.0, section 2.1.4).
const MAX_PACKET: u32 = 268_435_455;
