//! `tael beacon`: a sign of life that people and monitors can see.

use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::error::Result;
use crate::model::message::{Message, Properties, Qos};
use crate::model::status;
use crate::net::mqtt::Refused;
use crate::net::oneshot;
use crate::net::options::BrokerOptions;
use crate::net::session::{Event, Session, Subscriptions};
use crate::os::signals::Stop;
use crate::tools::message::{origin, sender};

/// What the command needs.
#[derive(Debug, Clone)]
pub struct Options {
    /// How to reach the broker.
    pub broker: BrokerOptions,
    /// A checked topic name.
    pub topic: String,
    /// Quality of service; a daemon sends at 1 at most.
    pub qos: Qos,
    /// Send one beat and leave, within this time; for ever without.
    pub once: Option<Duration>,
    /// Time between two beats.
    pub interval: Duration,
}

/// Sends one beat, or one at every interval until told to stop.
///
/// # Errors
/// As [`oneshot::publish`] for one beat; for a daemon only what will not pass.
pub fn run(options: &Options) -> Result<ExitCode> {
    let runtime = super::runtime()?;
    match options.once {
        Some(limit) => {
            let beat = beat(options, options.qos);
            runtime.block_on(oneshot::publish(&sender(&options.broker), &beat, limit))?;
        }
        None => runtime.block_on(beats(options))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn beat(options: &Options, qos: Qos) -> Message {
    Message {
        topic: options.topic.clone(),
        payload: Bytes::from(status::beacon(Timestamp::now())),
        qos,
        retain: false,
        properties: Properties {
            user: origin(),
            ..Properties::default()
        },
    }
}

async fn beats(options: &Options) -> Result<()> {
    let mut stop = Stop::listen()?;
    let nothing = Subscriptions {
        required: Vec::new(),
        optional: Vec::new(),
        qos: Qos::AtMostOnce,
    };
    let mut session = Session::new(sender(&options.broker), nothing);
    let qos = options.qos.min(Qos::AtLeastOnce);
    let mut next = Instant::now();
    // A beat says "now": one that could not be sent is not made up for later.
    let mut online = false;
    loop {
        tokio::select! {
            () = stop.requested() => break,
            () = sleep_until(next), if online => {
                session.publish(beat(options, qos), 1);
                next = Instant::now() + options.interval;
            }
            event = session.next() => match event? {
                Event::Online => online = true,
                Event::Offline => online = false,
                Event::Published(_, Err(Refused(e))) => warn!("beat on '{}': {e}", options.topic),
                Event::Published(_, Ok(())) => info!("beat"),
                Event::Received(_) => {}
            },
        }
    }
    session.close().await;
    Ok(())
}
