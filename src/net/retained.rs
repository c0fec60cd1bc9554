//! What a broker retains: asked for once.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use crate::error::Result;
use crate::model::message::{Delivery, Qos};
use crate::model::topic::Filter;
use crate::net::mqtt::Settings;
use crate::net::session::{Event, Session, Subscriptions, unreachable};

/// Retained messages follow the answer to a subscription (MQTT 5.0, section 3.8.4), some
/// brokers send them a little later: so long nothing has come when all has.
const QUIET: Duration = Duration::from_millis(400);

/// All retained messages that match `filters`, of which there is one at least.
///
/// # Errors
/// 69 when no broker could be reached within `limit`, 77 when it does not authorise us.
pub async fn retained(
    settings: Settings,
    filters: Vec<Filter>,
    limit: Duration,
) -> Result<Vec<Delivery>> {
    let address = settings.broker.address();
    let subscriptions = Subscriptions {
        required: filters,
        optional: Vec::new(),
        // At a higher one the broker would wait for acknowledgements in between.
        qos: Qos::AtMostOnce,
    };
    let mut session = Session::new(settings, subscriptions);
    let mut found = Vec::new();
    let mut online = false;
    let deadline = Instant::now() + limit;
    let mut quiet = deadline;
    loop {
        tokio::select! {
            event = session.next() => match event? {
                Event::Online => {
                    online = true;
                    quiet = Instant::now() + QUIET;
                }
                Event::Received(received) => {
                    if received.delivery.retained {
                        found.push(received.delivery);
                        quiet = Instant::now() + QUIET;
                    }
                }
                Event::Offline => online = false,
                Event::Published(..) | Event::Subscribed(_) | Event::Holds(_) | Event::Left => {}
            },
            () = sleep_until(quiet.min(deadline)) => break,
        }
    }
    if !online {
        let late = format!("no answer within {} s", limit.as_secs_f32());
        return Err(unreachable(&address, session.cause().unwrap_or(&late)));
    }
    // What is found does not depend on a goodbye.
    let _ = timeout(QUIET, session.close()).await;
    Ok(found)
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
    let late = format!("no answer within {} s", limit.as_secs_f32());
    Err(unreachable(&address, session.cause().unwrap_or(&late)))
}
