//! A retained message as a promise: the broker holds it, or is told it.

use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::error::{Error, Kind, Result};
use crate::model::message::{Message, Properties, Qos};
use crate::model::topic::Filter;
use crate::model::{duration, marker, status};
use crate::net::mqtt::{Refused, Settings, Token};
use crate::net::session::{Event, Session, Subscriptions};
use crate::os::host;
use crate::tools::message::{Draft, MAX_INCOMING, Options, sender};
use crate::tools::{check_stdout, print, print_json};

/// Time after our own message, or after a subscription without it, in which a broker may still send
/// what it retains.
const QUIET: Duration = Duration::from_millis(400);

/// Makes sure that the broker retains the message, and prints `kept` if it did before, or `repaired`.
///
/// # Errors
/// 69 when no broker could be reached, or it retains nothing; 75 when it does not answer in time; 77
/// when it does not authorise us.
pub(super) async fn keep(options: &Options, as_json: bool) -> Result<ExitCode> {
    check_stdout()?;
    let message = Draft::new(options).message(options.attributes.clone(), host::new_id());
    let wrong = |e| Error::usage(format!("keep message: {e}"));
    let marker = marker::topic(&options.root, &host::new_id());
    let subscriptions = Subscriptions {
        required: vec![Filter::new(&options.topic).map_err(wrong)?],
        optional: vec![Filter::new(&marker).map_err(wrong)?],
        // At a higher QoS the broker would wait for acknowledgements in between.
        qos: Qos::AtMostOnce,
    };
    let size = u32::try_from(message.payload.len()).unwrap_or(u32::MAX);
    let settings = Settings {
        // A larger message is not the wanted one.
        max_packet: MAX_INCOMING.saturating_add(size),
        ..sender(&options.broker)
    };
    let mut session = Session::new(settings, subscriptions).announced();
    let mut was_online = false;
    let deadline = Instant::now() + options.timeout;
    // The present user is told, and two users may make one promise.
    let ignored: &[&str] = match options.attributes.contains_key(status::USER) {
        true => &[],
        false => &[status::USER],
    };
    let promise = Promise {
        message: &message,
        ignored,
        marker: &marker,
    };
    let work = work(&mut session, &promise, &mut was_online);
    let outcome = match timeout_at(deadline, work).await {
        Ok(outcome) => outcome?,
        Err(_) if !was_online => return Err(session.unreachable(options.timeout)),
        Err(_) => {
            let (what, hint) = match session.offer().acknowledges() {
                true => ("no answer", "try again"),
                false => (
                    "the broker takes QoS 0 only and confirms nothing, and the message has not come back",
                    "may we publish and read there?",
                ),
            };
            return Err(Error::new(
                Kind::TryAgain,
                format!(
                    "keep '{}' at {}: {what} within {}; {hint}",
                    options.topic,
                    options.broker.address(),
                    duration::text(options.timeout)
                ),
            ));
        }
    };
    match as_json {
        true => print_json(&json!({"outcome": outcome}))?,
        false => print(outcome)?,
    }
    session.close().await;
    Ok(ExitCode::SUCCESS)
}

/// What is kept.
struct Promise<'a> {
    message: &'a Message,
    /// Attributes that may differ.
    ignored: &'a [&'a str],
    /// Topic of the marker.
    marker: &'a str,
}

/// Returns the outcome.
async fn work(
    session: &mut Session,
    promise: &Promise<'_>,
    was_online: &mut bool,
) -> Result<&'static str> {
    let (message, marker) = (promise.message, promise.marker);
    let is_same =
        |payload: &[u8]| status::is_same_message(payload, &message.payload, promise.ignored);
    // When all that the broker retains has come.
    let mut quiet: Option<Instant> = None;
    // The message, if it was sent on this connection.
    let mut sent: Option<Token> = None;
    loop {
        let event = tokio::select! {
            event = session.next() => event?,
            () = sleep_until(quiet.unwrap_or_else(Instant::now)), if quiet.is_some() => {
                quiet = None;
                sent = session.publish(message.clone());
                continue;
            }
        };
        match event {
            Event::Online if !session.offer().retain => {
                let cause = format!("keep '{}': the broker retains no messages", message.topic);
                return Err(Error::new(Kind::Unavailable, cause));
            }
            // After a broken connection all begins anew.
            Event::Online => {
                *was_online = true;
                quiet = Some(Instant::now() + QUIET);
                session.publish(Message {
                    topic: marker.to_owned(),
                    payload: Bytes::new(),
                    qos: Qos::AtMostOnce,
                    retain: false,
                    properties: Properties::default(),
                });
            }
            Event::Offline => (quiet, sent) = (None, None),
            Event::Received(received) if quiet.is_some() => {
                let delivery = received.delivery;
                if delivery.topic == marker.as_bytes() {
                    // Some brokers look for retained messages in the background.
                    quiet = Some(Instant::now() + QUIET);
                } else if delivery.retained && delivery.topic == message.topic.as_bytes() {
                    let left = delivery.properties.message_expiry;
                    let lasts = lasts(left, message.properties.message_expiry);
                    if lasts && is_same(&delivery.payload) {
                        return Ok("kept");
                    }
                    quiet = None;
                    sent = session.publish(message.clone());
                }
            }
            // Without an acknowledgement it must come back.
            Event::Received(received) if sent.is_some() && !session.offer().acknowledges() => {
                let delivery = received.delivery;
                if delivery.topic == message.topic.as_bytes() && is_same(&delivery.payload) {
                    return Ok("repaired");
                }
            }
            Event::Published(token, result) if sent == Some(token) => {
                let topic = &message.topic;
                let wrong = |Refused(e, _): Refused| e.context(format_args!("keep '{topic}'"));
                result.map_err(wrong)?;
                if session.offer().acknowledges() {
                    return Ok("repaired");
                }
            }
            _ => {}
        }
    }
}

/// Returns whether a message with `left` seconds until it expires lasts as long as one with the `wanted`
/// expiry: for ever, or for half of it at least. The next promise comes before the other half is over.
const fn lasts(left: Option<u32>, wanted: Option<u32>) -> bool {
    match (left, wanted) {
        (None, None) => true,
        (Some(left), Some(wanted)) => left >= wanted.div_ceil(2) && left <= wanted,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_lasts_for_half_of_the_wanted_time_at_least() {
        for (left, wanted, is_kept) in [
            (None, None, true),
            (Some(u32::MAX), None, false),
            (None, Some(60), false),
            (Some(60), Some(60), true),
            (Some(30), Some(60), true),
            (Some(29), Some(60), false),
            (Some(61), Some(60), false),
            (Some(0), Some(1), false),
        ] {
            assert_eq!(lasts(left, wanted), is_kept, "{left:?} of {wanted:?}");
        }
    }
}
