//! A node that runs units for us, or that someone asks: its topics, and whether it is there.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::engine::pipeline::Pipeline;
use crate::engine::work::delegates::offer;
use crate::engine::work::delegates::phase::mark;
use crate::error::{Error, Kind};
use crate::model::json;
use crate::model::message::{Delivery, Message, Properties, Qos};
use crate::model::remote::wire::{self, Request};
use crate::model::status::Presence;
use crate::model::topic::{Filter, PipelineTopics};
use crate::os::hooks;
use crate::os::host::new_id;

/// Time for which a broker keeps a request for a node that is away. A node that comes back is asked
/// again.
const EXPIRY: Duration = Duration::from_secs(60);

/// Time after which the units of a node that is away are called lost.
const LOST: Duration = Duration::from_secs(60);

/// Nodes by their names.
pub type Nodes = HashMap<String, Node>;

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    name: String,
    /// Its topics.
    pub topics: PipelineTopics,
    /// Topic of its answers.
    pub reply: String,
    /// Whether the broker was asked for its answers.
    pub is_subscribed: bool,
    /// Whether the broker has refused its answers.
    is_refused: bool,
    /// Since when it is away.
    pub away: Option<Instant>,
    /// Whether it has said that it is there.
    is_here: bool,
    /// Whether its units are called lost.
    pub is_lost: bool,
}

impl Node {
    /// Returns the node called `name`, of which nothing is known.
    pub fn of(pipeline: &Pipeline, name: &str) -> Self {
        let topics = PipelineTopics::new(&pipeline.config.root, name);
        Self {
            reply: topics.reply(&pipeline.config.who),
            topics,
            name: name.to_owned(),
            is_subscribed: false,
            is_refused: false,
            away: None,
            is_here: false,
            is_lost: false,
        }
    }

    /// Returns when its units will be called lost: if it is away, and they are not yet.
    pub fn lost_at(&self) -> Option<Instant> {
        let since = self.away.filter(|_| !self.is_lost)?;
        Some(since + hooks::lost().unwrap_or(LOST))
    }

    /// Notes that the broker has answered for its topics. `is_refused` is whether it has refused a filter.
    pub fn subscribed(&mut self, is_refused: impl Fn(&Filter) -> bool) {
        self.is_subscribed = true;
        let answers = Filter::new(self.reply.clone());
        self.is_refused = answers.is_ok_and(|filter| is_refused(&filter));
    }

    /// Returns why no answer of it can come, if the broker has refused them.
    pub fn refusal(&self) -> Option<String> {
        self.is_refused.then(|| {
            format!(
                "the broker refuses '{}', where node {} answers; allow it there and reload",
                self.reply, self.name
            )
        })
    }

    /// Returns what people read of a unit that is not offered to it now, if so. One that `is_canceled`
    /// goes on without an answer: the node must hear of that.
    pub fn offers_wait(&self, is_canceled: bool) -> Option<String> {
        if self.away.is_some() {
            return Some(away_note(&self.name));
        }
        let refusal = self.refusal().filter(|_| !is_canceled)?;
        Some(format!("waits: {refusal}"))
    }

    /// Takes its presence.
    pub fn on_presence(&mut self, delivery: &Delivery) -> Heard {
        let presence = json::parse(&delivery.payload).unwrap_or_default();
        let state = presence.get("state").and_then(|state| state.as_str());
        let is_away = state.is_some_and(Presence::is_away);
        // Nothing is said any more of one that was cleared.
        self.is_here = state.is_some() && !is_away;
        if is_away {
            self.away.get_or_insert_with(Instant::now);
            return Heard::Away;
        }
        self.is_lost = false;
        match self.away.take().is_none() && delivery.retained {
            true => Heard::Same,
            false => Heard::Back,
        }
    }

    /// Returns the message with a request for it.
    ///
    /// # Errors
    /// 78 if it must be signed and cannot be.
    pub fn request(
        &self,
        pipeline: &Pipeline,
        is_signed: bool,
        (request, body): &offer::Message,
    ) -> Result<Message, Error> {
        let mut request = request.clone();
        if is_signed {
            let Some(key) = &pipeline.config.signer else {
                return Err(Error::new(
                    Kind::Config,
                    "it is signed work, and there is no key to sign with any more",
                ));
            };
            // A broker may keep it for a node that is away; to ask again makes another one.
            let now = Timestamp::now().as_second();
            let signed = request.sign_with(
                key,
                (&self.name, &self.reply),
                (now, Some(EXPIRY)),
                new_id(),
            );
            signed.map_err(|e| Error::new(Kind::Config, format!("sign a request: {e}")))?;
        }
        Ok(Message {
            topic: self.topics.work(),
            payload: wire::write(&request, body),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: Properties {
                response_topic: Some(self.reply.clone()),
                correlation_data: Some(Bytes::from_static(mark(&request))),
                message_expiry: u32::try_from(EXPIRY.as_secs()).ok(),
                ..Properties::default()
            },
        })
    }
}

/// What the presence of a node says.
pub enum Heard {
    /// Nothing new.
    Same,
    /// It is away.
    Away,
    /// It is back: what it was asked before may be lost.
    Back,
}

/// Returns what people read of a unit that the node called `name` has not accepted, and that waits for it.
pub fn away_note(name: &str) -> String {
    format!("waits: node {name} is away")
}

/// Adds the node called `name`, unless it is known.
pub fn know(nodes: &mut Nodes, pipeline: &Pipeline, name: &str) {
    if !nodes.contains_key(name) {
        nodes.insert(name.to_owned(), Node::of(pipeline, name));
    }
}

/// Returns the names of the nodes that have said that they are there.
pub fn here(nodes: &Nodes) -> Vec<&str> {
    let here = nodes.values().filter(|node| node.is_here);
    let mut here: Vec<&str> = here.map(|node| node.name.as_str()).collect();
    here.sort_unstable();
    here
}

/// Returns the filters of the answers and the presence of all nodes.
///
/// # Errors
/// 65 if a topic is too long.
pub fn filters(nodes: &Nodes) -> Result<Vec<Filter>, Error> {
    let nodes = nodes.values();
    let topics = nodes.flat_map(|node| [node.reply.clone(), node.topics.presence()]);
    let filters = topics.map(|topic| Filter::new(topic).map_err(Error::data));
    filters.collect()
}

/// Returns whether the node called `name` is away, as far as it is known.
pub fn is_away(nodes: &Nodes, name: &str) -> bool {
    nodes.get(name).is_some_and(|node| node.away.is_some())
}

/// Returns the nodes that are called lost from now on, and what people read of their units.
pub fn lost(nodes: &mut Nodes, now: Instant) -> Vec<(String, String)> {
    let mut lost = Vec::new();
    for (name, node) in nodes {
        if node.lost_at().is_some_and(|at| at <= now) {
            node.is_lost = true;
            let since = Timestamp::now();
            let note = format!("lost: node {name} is away (noted {since:.0})");
            lost.push((name.clone(), note));
        }
    }
    lost
}

/// Returns the name of the place before a request goes out, or after it.
pub const fn place(request: &Request, is_after: bool) -> &'static str {
    match (request, is_after) {
        (Request::Submit(_), false) => "offer.before",
        (Request::Submit(_), true) => "offer.after",
        (Request::Results { .. }, false) => "results.before",
        (Request::Results { .. }, true) => "results.after",
        (Request::Payload { .. }, _) => "piece.after",
        (Request::Cancel(_), _) => "cancel.after",
        (Request::Release(_), false) => "debt.before",
        (Request::Release(_), true) => "debt.after",
        _ => "request",
    }
}
