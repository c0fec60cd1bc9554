//! Publishes one message: connects, waits until the broker has it, and leaves.

use std::cell::Cell;
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use crate::error::{Error, Kind, Result};
use crate::model::duration;
use crate::model::message::Message;
use crate::net::attempts::unreachable;
use crate::net::mqtt::{Audience, Connection, Event, Failure, Refused, Settings, Token};
use crate::net::notice::Notice;

/// Wait between two attempts to connect within the deadline.
const RETRY: Duration = Duration::from_millis(250);

/// Maximum time of a goodbye after the message is safe.
const GOODBYE: Duration = Duration::from_secs(1);

/// Publishes `message`, and then `also` if the broker accepts it, within `limit`. Uses the highest
/// QoS that the broker offers, up to the one of the message. A broker that cannot be reached is
/// tried again until then; a person at a terminal is told so. Returns what the broker says of the
/// subscribers of `message`.
///
/// # Errors
/// 69 when no broker could be reached, 75 when it did not acknowledge in time, 77 when it does not
/// authorise us, 65 when it refuses the message.
pub async fn publish(
    settings: &Settings,
    message: &Message,
    also: Option<&Message>,
    limit: Duration,
) -> Result<Audience> {
    let deadline = Instant::now() + limit;
    let address = settings.broker.address();
    let mut earlier: Option<String> = None;
    let mut notice = Notice::new();
    let mut turn = 0;
    loop {
        let mut connection = Connection::open(settings, turn, false)?;
        let connected = Cell::new(false);
        let attempt = {
            let trying = attempt(&mut connection, message, also, &connected);
            let mut trying = pin!(timeout_at(deadline, trying));
            loop {
                tokio::select! {
                    biased;
                    done = &mut trying => break done,
                    () = notice.wait() => match connected.get() {
                        true => notice.drop_it(),
                        false => notice.say(&address, earlier.as_deref()),
                    },
                }
            }
        };
        let connected = connected.get();
        let cause = match attempt {
            Ok(Ok(audience)) => {
                // The message is safe in any case.
                goodbye(connection).await;
                return Ok(audience);
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
        turn += 1;
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
    connected: &Cell<bool>,
) -> Result<Audience, Failure> {
    let main = Token::new();
    let mut done = None;
    loop {
        match connection.next().await {
            Event::Connected(_) => {
                connected.set(true);
                connection.publish(message.clone(), main);
            }
            Event::Published(token, Ok(audience)) if token == main => match also {
                Some(also) => {
                    done = Some(audience);
                    connection.publish(also.clone(), Token::new());
                }
                None => return Ok(audience),
            },
            Event::Published(token, Err(Refused(e, _))) if token == main => {
                return Err(Failure::Fatal(e));
            }
            Event::Published(..) => return Ok(done.unwrap_or_default()),
            Event::Failed(failure) => return done.ok_or(failure),
            Event::Closed if done.is_some() => return Ok(done.unwrap_or_default()),
            Event::Closed => return Err(Failure::Passing("the connection was closed".into())),
            Event::Subscribed(..) | Event::Unsubscribed(_) | Event::Received(_) => {}
        }
    }
}
