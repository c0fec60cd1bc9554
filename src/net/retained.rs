//! What a broker retains: asked for once.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use crate::error::{Error, Kind, Result};
use crate::model::message::{Delivery, Message, Properties, Qos};
use crate::model::topic::Filter;
use crate::model::{duration, marker};
use crate::net::mqtt::Settings;
use crate::net::session::{Event, Session, Subscriptions, unreachable};
use crate::os::host;

/// Silence after which all has come that will, if no marker comes: some brokers send retained
/// messages a little after the answer to a subscription, and one that takes no marker of ours
/// says nothing at all. Also how long a first message may follow a marker.
const QUIET: Duration = Duration::from_millis(400);

/// Maximum number of retained messages taken: two for each of ten thousand pipelines.
const MAX_MESSAGES: usize = 20_000;

/// Maximum memory of the retained messages taken, bytes.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// What was asked for.
#[derive(Debug)]
pub struct Query {
    /// Filters, at least one.
    pub filters: Vec<Filter>,
    /// Root below which the marker is published that tells the end of the retained messages.
    pub root: String,
    /// How long the broker may take to answer.
    pub limit: Duration,
}

/// Retained messages.
#[derive(Debug, Default)]
pub struct Retained {
    /// The messages, in the order in which they came.
    pub messages: Vec<Delivery>,
    /// Why there may be more, if there may.
    pub cut: Option<String>,
}

/// Messages as they come, up to the limits.
#[derive(Debug, Default)]
struct Found {
    retained: Retained,
    bytes: usize,
}

impl Found {
    /// Adds a message; `false` when there is no room for it.
    fn add(&mut self, delivery: Delivery) -> bool {
        self.bytes += delivery.memory();
        let messages = &mut self.retained.messages;
        if messages.len() < MAX_MESSAGES && self.bytes <= MAX_BYTES {
            messages.push(delivery);
            return true;
        }
        self.retained.cut = Some(format!(
            "the broker retains more than {} messages or {} MiB there: the rest is left out",
            MAX_MESSAGES,
            MAX_BYTES >> 20
        ));
        false
    }
}

/// All retained messages that match the filters of `query`.
///
/// # Errors
/// 69 when no broker could be reached within the limit, 77 when it does not authorise us.
pub async fn retained(settings: Settings, query: Query) -> Result<Retained> {
    let address = settings.broker.address();
    let marker = marker::topic(&query.root, &host::new_id());
    let own = Filter::new(&marker).map_err(|e| Error::new(Kind::Usage, e))?;
    let subscriptions = Subscriptions {
        required: query.filters,
        optional: vec![own],
        // At a higher one the broker would wait for acknowledgements in between.
        qos: Qos::AtMostOnce,
    };
    let mut session = Session::new(settings, subscriptions);
    let mut found = Found::default();
    let mut online = false;
    let mut marked = false;
    let deadline = Instant::now() + query.limit;
    // Nothing found is no answer until the marker says so.
    let mut quiet = deadline;
    loop {
        tokio::select! {
            event = session.next() => match event? {
                Event::Online => {
                    online = true;
                    session.publish(Message {
                        topic: marker.clone(),
                        payload: Bytes::new(),
                        qos: Qos::AtMostOnce,
                        retain: false,
                        properties: Properties::default(),
                    });
                }
                Event::Received(received) => {
                    let delivery = received.delivery;
                    if delivery.topic == marker.as_bytes() {
                        marked = true;
                        if !found.retained.messages.is_empty() {
                            break;
                        }
                        // Some brokers look for retained messages beside their other work.
                        quiet = Instant::now() + QUIET;
                    } else if delivery.retained {
                        if !found.add(delivery) {
                            break;
                        }
                        quiet = Instant::now() + QUIET;
                    }
                }
                Event::Offline => {
                    online = false;
                    // The next connection is sent all of it again.
                    found = Found::default();
                    quiet = deadline;
                }
                Event::Published(..) | Event::Subscribed(_) | Event::Holds(_) | Event::Left => {}
            },
            () = sleep_until(quiet.min(deadline)) => break,
        }
    }
    if !online {
        let late = format!("no answer within {}", duration::text(query.limit));
        return Err(unreachable(&address, session.cause().unwrap_or(&late)));
    }
    if !marked && found.retained.cut.is_none() {
        debug!("no marker came back on '{marker}': the broker may not allow it");
    }
    // What is found does not depend on a goodbye.
    let _ = timeout(QUIET, session.close()).await;
    Ok(found.retained)
}
/// The next message that matches `filter` and is not a retained one, within `limit`; none if
/// nothing has come though there was a connection.
///
/// # Errors
/// As [`retained`].
pub async fn next(settings: Settings, filter: Filter, limit: Duration) -> Result<Option<Delivery>> {
    let address = settings.broker.address();
    let subscriptions = Subscriptions {
        required: vec![filter],
        optional: Vec::new(),
        qos: Qos::AtMostOnce,
    };
    let mut session = Session::new(settings, subscriptions);
    let deadline = Instant::now() + limit;
    let mut online = false;
    loop {
        tokio::select! {
            event = session.next() => match event? {
                Event::Received(received) if !received.delivery.retained => {
                    return Ok(Some(received.delivery));
                }
                Event::Online => online = true,
                Event::Offline => online = false,
                _ => {}
            },
            () = sleep_until(deadline) => break,
        }
    }
    if online {
        return Ok(None);
    }
    // Without a connection nobody knows.
    let late = format!("no answer within {}", duration::text(limit));
    Err(unreachable(&address, session.cause().unwrap_or(&late)))
}
