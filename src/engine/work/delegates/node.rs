//! A node that runs units for us, or that someone asks: its topics, and whether it is there.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::engine::pipeline::Pipeline;
use crate::engine::work::delegates::offer;
use crate::error::{Error, Kind};
use crate::model::message::{Message, Properties, Qos};
use crate::model::remote::wire::{self, Request};
use crate::model::topic::{PipelineTopic, PipelineTopics};
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
    /// Its topics.
    pub topics: PipelineTopics,
    /// Topic of its answers.
    pub reply: String,
    /// Whether the broker sends us its answers.
    pub is_subscribed: bool,
    /// Since when it is away.
    pub away: Option<Instant>,
    /// Whether it has said that it is there.
    pub is_here: bool,
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
            is_subscribed: false,
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
            let parts = PipelineTopic::parse(&self.reply);
            let name = parts.map_or("", |parts| parts.who);
            // A broker may keep it for a node that is away; to ask again makes another one.
            let now = Timestamp::now().as_second();
            let signed = request.sign_with(key, (name, &self.reply), (now, Some(EXPIRY)), new_id());
            signed.map_err(|e| Error::new(Kind::Config, format!("sign a request: {e}")))?;
        }
        Ok(Message {
            topic: self.topics.work(),
            payload: wire::write(&request, body),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: Properties {
                response_topic: Some(self.reply.clone()),
                message_expiry: u32::try_from(EXPIRY.as_secs()).ok(),
                ..Properties::default()
            },
        })
    }
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
