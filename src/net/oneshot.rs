//! Publishes one message: connects, waits until the broker has it, and leaves.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use crate::error::{Error, Kind, Result};
use crate::model::duration;
use crate::model::message::Message;
use crate::net::mqtt::{Connection, Event, Failure, Refused, Settings, Token};
use crate::net::session::unreachable;

/// Wait between two attempts to connect within the deadline.
const RETRY: Duration = Duration::from_millis(250);

/// Maximum time of a goodbye after the message is safe.
const GOODBYE: Duration = Duration::from_secs(1);

/// Publishes `message`, and then `also` if the broker accepts it, within `limit`. Uses the highest
/// QoS that the broker offers, up to the one of the message. A broker that cannot be reached is
/// tried again until then.
///
/// # Errors
/// 69 when no broker could be reached, 75 when it did not acknowledge in time, 77 when it does not
/// authorise us, 65 when it refuses the message.
pub async fn publish(
    settings: &Settings,
    message: &Message,
    also: Option<&Message>,
    limit: Duration,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    let address = settings.broker.address();
    let mut earlier = None;
    loop {
        let mut connection = Connection::open(settings, false)?;
        let mut connected = false;
        let attempt = timeout_at(
            deadline,
            attempt(&mut connection, message, also, &mut connected),
        )
        .await;
        let cause = match attempt {
            Ok(Ok(())) => {
                // The message is safe in any case.
                goodbye(connection).await;
                return Ok(());
            }
            Ok(Err(Failure::Fatal(e))) if connected => {
                goodbye(connection).await;
                return Err(e.context(format_args!("publish to '{}' at {address}", message.topic)));
            }
            Ok(Err(Failure::Fatal(e))) => {
                return Err(e.context(format_args!("connect to {address}")));
            }
            Ok(Err(Failure::TakenOver)) => "another client uses our identifier".to_owned(),
            Ok(Err(
                Failure::Passing(cause)
                | Failure::Cut(cause)
                | Failure::Packet(cause)
                | Failure::WillRefused(cause),
            )) => cause,
            // The deadline cuts the last attempt short: an earlier one knows more.
            Err(_) => earlier
                .take()
                .unwrap_or_else(|| format!("no answer within {}", duration::text(limit))),
        };
        let next = Instant::now() + RETRY;
        if next < deadline {
            earlier = Some(cause);
            sleep_until(next).await;
        } else if connected {
            return Err(Error::new(
                Kind::TryAgain,
                format!(
                    "publish to '{}' at {address}: not confirmed: {cause}; it may or may not \
                     have arrived, try again",
                    message.topic
                ),
            ));
        } else {
            return Err(unreachable(&address, &cause));
        }
    }
}

/// Ends the connection in good order, within a bounded time.
async fn goodbye(mut connection: Connection) {
    connection.disconnect();
    let closed =
        async { while !matches!(connection.next().await, Event::Closed | Event::Failed(_)) {} };
    let _ = timeout_at(Instant::now() + GOODBYE, closed).await;
}

async fn attempt(
    connection: &mut Connection,
    message: &Message,
    also: Option<&Message>,
    connected: &mut bool,
) -> Result<(), Failure> {
    let main = Token::new();
    let mut done = false;
    loop {
        match connection.next().await {
            Event::Connected(_) => {
                *connected = true;
                connection.publish(message.clone(), main);
            }
            Event::Published(token, Ok(())) if token == main => match also {
                Some(also) => {
                    done = true;
                    connection.publish(also.clone(), Token::new());
                }
                None => return Ok(()),
            },
            Event::Published(token, Err(Refused(e, _))) if token == main => {
                return Err(Failure::Fatal(e));
            }
            Event::Published(..) => return Ok(()),
            Event::Failed(_) | Event::Closed if done => return Ok(()),
            Event::Failed(failure) => return Err(failure),
            Event::Closed => return Err(Failure::Passing("the connection was closed".into())),
            Event::Subscribed(..) | Event::Unsubscribed(_) | Event::Received(_) => {}
        }
    }
}
