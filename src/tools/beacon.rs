//! `tael beacon`: publishes a heartbeat.

use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::error::Result;
use crate::model::message::{Message, Properties, Qos};
use crate::model::{duration, status, topic};
use crate::net::mqtt::Refused;
use crate::net::oneshot;
use crate::net::options::BrokerOptions;
use crate::net::session::{Event, Session, Subscriptions};
use crate::os::notify::Notify;
use crate::os::signals::Stop;
use crate::tools::message::{origin, sender};

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// Broker, and our credentials.
    pub broker: BrokerOptions,
    /// A checked topic name.
    pub topic: String,
    /// Quality of service; a daemon uses 1 at most.
    pub qos: Qos,
    /// Maximum time to publish one beat and exit; `None` to beat at the interval.
    pub once: Option<Duration>,
    /// Time between two beats.
    pub interval: Duration,
}

/// Publishes one beat, or one at every interval until it is stopped.
///
/// # Errors
/// As [`oneshot::publish`] for one beat; for a daemon final failures only.
pub fn run(options: &Options) -> Result<ExitCode> {
    let runtime = super::runtime()?;
    match options.once {
        Some(limit) => {
            let settings = sender(&options.broker);
            let [beat, last] = beats_of(options, options.qos);
            runtime.block_on(oneshot::publish(&settings, &beat, Some(&last), limit))?;
        }
        None => runtime.block_on(beats(options))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the two messages of a beat: one for subscribers now, one retained for later.
fn beats_of(options: &Options, qos: Qos) -> [Message; 2] {
    let payload = Bytes::from(status::beacon(Timestamp::now()));
    let beat = |topic: String, retain| Message {
        topic,
        payload: payload.clone(),
        qos,
        retain,
        properties: Properties {
            user: origin(),
            ..Properties::default()
        },
    };
    let last = topic::last_beat(&options.topic);
    [beat(options.topic.clone(), false), beat(last, true)]
}

async fn beats(options: &Options) -> Result<()> {
    let mut stop = Stop::listen(false)?;
    let notify = Notify::from_environment();
    let mut watchdog = notify.watchdog();
    let nothing = Subscriptions {
        required: Vec::new(),
        optional: Vec::new(),
        qos: Qos::AtMostOnce,
    };
    let mut session = Session::new(sender(&options.broker), nothing).lasting();
    let qos = options.qos.min(Qos::AtLeastOnce);
    info!(
        "a beat on '{}' every {}",
        options.topic,
        duration::text(options.interval)
    );
    let mut next = Instant::now();
    // A beat is about now, so a missed one is not published later.
    let mut online = false;
    let mut beat_token = None;
    loop {
        tokio::select! {
            () = stop.requested() => break,
            () = sleep_until(next), if online => {
                let [beat, last] = beats_of(options, qos);
                beat_token = session.publish(beat);
                session.publish(last);
                next = Instant::now() + options.interval;
            }
            () = watchdog.due() => {
                if !session.is_stalled() {
                    notify.alive();
                }
            }
            event = session.next() => match event? {
                Event::Online => {
                    online = true;
                    notify.ready();
                }
                Event::Offline => online = false,
                Event::Published(token, Err(Refused(e, _))) if Some(token) == beat_token => {
                    warn!("beat on '{}': {e}", options.topic);
                }
                Event::Published(token, Ok(_)) if Some(token) == beat_token => info!("beat"),
                Event::Published(_, Err(Refused(e, _))) => debug!("retained beat: {e}"),
                Event::Published(_, Ok(_)) => {}
                Event::Received(_) | Event::Subscribed(_) | Event::Holds(_) | Event::Left => {}
            },
        }
    }
    session.close().await;
    Ok(())
}
