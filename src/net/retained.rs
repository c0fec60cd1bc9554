//! Reads the retained messages of a broker, once.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use crate::error::{Error, Kind, Result};
use crate::model::marker;
use crate::model::message::{Delivery, Message, Properties, Qos};
use crate::model::topic::Filter;
use crate::net::mqtt::Settings;
use crate::net::retained_end::RetainedEnd;
use crate::net::session::{Event, Session, Subscriptions};
use crate::os::host;

/// Maximum time for a goodbye.
const GOODBYE: Duration = Duration::from_millis(400);

/// Maximum number of retained messages to take: two for each of ten thousand pipelines.
const MAX_MESSAGES: usize = 20_000;

/// Maximum memory of the retained messages, bytes.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// A request for retained messages.
#[derive(Debug)]
pub struct Query {
    /// Filters, at least one.
    pub filters: Vec<Filter>,
    /// Root for the topic of the marker, which shows the end of the retained messages.
    pub root: String,
    /// Maximum time for the broker to answer.
    pub limit: Duration,
    /// Maximum time after the subscription until the first message or the marker comes. A broker
    /// may refuse both without an answer.
    pub patience: Duration,
}

/// Retained messages.
#[derive(Debug, Default)]
pub struct Retained {
    /// The messages, in the order in which they came.
    pub messages: Vec<Delivery>,
    /// Why messages may be missing, if they may.
    pub cut: Option<String>,
}

/// Messages so far, up to the limits.
#[derive(Debug, Default)]
struct Found {
    retained: Retained,
    bytes: usize,
}

impl Found {
    /// Adds a message; `false` if there is no room.
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

/// Returns all retained messages that match the filters of `query`.
///
/// # Errors
/// 69 when no broker could be reached within the limit, 77 when it does not authorise us.
pub async fn retained(settings: Settings, query: Query) -> Result<Retained> {
    let marker = marker::topic(&query.root, &host::new_id());
    let own = Filter::new(&marker).map_err(|e| Error::new(Kind::Usage, e))?;
    let subscriptions = Subscriptions {
        required: query.filters,
        optional: vec![own],
        // At a higher QoS the broker would wait for acknowledgements in between.
        qos: Qos::AtMostOnce,
    };
    let mut session = Session::new(settings, subscriptions).announced();
    let mut found = Found::default();
    // There is one while there is a connection.
    let mut end: Option<RetainedEnd> = None;
    let mut is_late = false;
    let deadline = Instant::now() + query.limit;
    loop {
        tokio::select! {
            event = session.next() => match event? {
                Event::Online => {
                    end = Some(RetainedEnd::new(Instant::now(), query.patience));
                    session.publish(Message {
                        topic: marker.clone(),
                        payload: Bytes::new(),
                        qos: Qos::AtMostOnce,
                        retain: false,
                        properties: Properties::default(),
                    });
                }
                Event::Received(received) => {
                    let (delivery, now) = (received.delivery, Instant::now());
                    if delivery.topic == marker.as_bytes() {
                        if end.as_mut().is_some_and(|end| end.marker(now)) {
                            break;
                        }
                    } else if delivery.retained {
                        if !found.add(delivery) {
                            break;
                        }
                        if let Some(end) = &mut end {
                            end.message(now);
                        }
                    }
                }
                Event::Offline => {
                    // The broker sends all of them again on the next connection.
                    end = None;
                    found = Found::default();
                }
                Event::Published(..) | Event::Subscribed(_) | Event::Holds(_) | Event::Left => {}
            },
            () = sleep_until(end.map_or(deadline, |end| end.at().min(deadline))) => {
                is_late = end.is_some_and(|end| end.at() > deadline);
                break;
            }
        }
    }
    let Some(end) = end else {
        return Err(session.unreachable(query.limit));
    };
    if is_late && !found.retained.messages.is_empty() {
        found.retained.cut = Some(
            "the broker has not sent all that it retains within --timeout: the rest is left out"
                .to_owned(),
        );
    } else if !end.is_marked() && found.retained.cut.is_none() {
        debug!("no marker came back on '{marker}': the broker may not allow it");
    }
    // The result does not depend on a goodbye.
    let _ = timeout(GOODBYE, session.close()).await;
    Ok(found.retained)
}
/// Returns the next message that matches `filter` and is not retained, within `limit`; `None` if
/// there was a connection and none came.
///
/// # Errors
/// As [`retained`].
pub async fn next(settings: Settings, filter: Filter, limit: Duration) -> Result<Option<Delivery>> {
    let subscriptions = Subscriptions {
        required: vec![filter],
        optional: Vec::new(),
        qos: Qos::AtMostOnce,
    };
    let mut session = Session::new(settings, subscriptions).announced();
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
    // Without a connection there is no result.
    Err(session.unreachable(limit))
}
