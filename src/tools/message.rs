//! `tael message`: publishes a message.

use std::env;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use tracing::{Level, enabled};

use crate::error::{Error, Kind, Result};
use crate::model::event::{Attributes, MAX_ID_BYTES};
use crate::model::json;
use crate::model::message::{Message, Properties, Qos, property};
use crate::model::status;
use crate::net::mqtt::{Audience, Settings};
use crate::net::oneshot;
use crate::net::options::BrokerOptions;
use crate::os::host;
use crate::os::logging::say;

/// Maximum size of a packet from the broker, for a client without subscriptions, bytes.
pub(super) const MAX_INCOMING: u32 = 64 * 1024;

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// Broker, and our credentials.
    pub broker: BrokerOptions,
    /// A checked topic name.
    pub topic: String,
    /// Attributes of the message.
    pub attributes: Attributes,
    /// Requested quality of service.
    pub qos: Qos,
    /// Whether the broker retains the message.
    pub retain: bool,
    /// Maximum time for everything.
    pub timeout: Duration,
    /// Whether a message without subscribers is an error.
    pub need_listener: bool,
}

/// Publishes the message, and returns when the broker has it.
///
/// # Errors
/// As [`oneshot::publish`]; 69 when a listener is needed and the broker knows of none.
pub fn run(options: &Options) -> Result<ExitCode> {
    let user = host::username();
    let payload = status::message(&user, options.attributes.clone(), Timestamp::now());
    let message = Message {
        topic: options.topic.clone(),
        payload: Bytes::from(json::to_text(&Value::Object(payload))),
        qos: options.qos,
        retain: options.retain,
        properties: Properties {
            user: origin(),
            ..Properties::default()
        },
    };
    let settings = sender(&options.broker);
    let publish = oneshot::publish(&settings, &message, None, options.timeout);
    if super::runtime()?.block_on(publish)? == Audience::None {
        let (topic, address) = (&options.topic, options.broker.address());
        let cause = format!(
            "publish to '{topic}' at {address}: no client subscribes to it; is the topic right, and \
             does the client run?"
        );
        if options.need_listener {
            return Err(Error::new(Kind::Unavailable, cause));
        }
        // A retained message waits for its readers.
        if !options.retain && enabled!(Level::WARN) {
            say(&cause);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the settings of a connection that only publishes, and leaves no session.
pub(super) fn sender(broker: &BrokerOptions) -> Settings {
    Settings {
        broker: broker.clone(),
        session_expiry: Duration::ZERO,
        clean_start: true,
        will: None,
        max_packet: MAX_INCOMING,
        receive_maximum: 8,
    }
}

/// Returns the origin of a message. Inside a command of a client it is the pipeline and its event,
/// so that loops can be detected.
pub(super) fn origin() -> Vec<(String, String)> {
    let from_env = |name: &str| {
        env::var(name)
            .ok()
            .filter(|v| !v.is_empty() && v.len() <= MAX_ID_BYTES * 4)
    };
    let mut user = vec![
        (property::ID.to_owned(), host::new_id()),
        (property::HOST.to_owned(), host::hostname()),
    ];
    let hops = from_env("TAEL_HOPS").and_then(|hops| hops.parse::<u32>().ok());
    let more = [
        (property::WHO, from_env("TAEL_WHO")),
        (property::CAUSE, from_env("TAEL_EVENT")),
        (
            property::HOPS,
            hops.map(|hops| hops.saturating_add(1).to_string()),
        ),
        (property::TRACEPARENT, from_env("TRACEPARENT")),
    ];
    for (name, value) in more {
        user.extend(value.map(|value| (name.to_owned(), value)));
    }
    user
}
