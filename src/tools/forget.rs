//! `tael forget`: clears what the broker retains about pipelines that are gone for good.

use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Kind, Result};
use crate::model::message::{Message, Properties, Qos};
use crate::model::network::{Network, Seen};
use crate::model::roots::Content;
use crate::model::text::printable;
use crate::model::topic::{Filter, PipelineTopics};
use crate::net::mqtt::Refused;
use crate::net::options::BrokerOptions;
use crate::net::retained::{self, Query};
use crate::net::session::{Event, Session, Subscriptions};
use crate::os::logging::say;
use crate::tools::message::sender;
use crate::tools::{MAX_PAYLOAD, listener, roots};

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// Broker, and our credentials.
    pub broker: BrokerOptions,
    /// The root of the pipelines.
    pub root: String,
    /// Names of the pipelines.
    pub who: Vec<String>,
    /// Whether to forget also a pipeline that is online.
    pub force: bool,
    /// Maximum time for the broker to answer, each time.
    pub timeout: Duration,
}

/// Forgets the pipelines, and prints a line for each. If one must not be forgotten, forgets none.
///
/// # Errors
/// 65 when one is online or nothing is retained about it; those of the broker.
pub fn run(options: &Options) -> Result<ExitCode> {
    super::check_stdout()?;
    let forgotten = super::runtime()?.block_on(async {
        let network = network(options).await?;
        let mut found = Vec::new();
        for who in &options.who {
            let Some(seen) = network.pipeline(who) else {
                return Err(not_found(options, who).await);
            };
            found.push(may_forget(options, who, seen)?);
        }
        let (broker, root) = (&options.broker, &options.root);
        forget(broker, root, &found, options.timeout).await?;
        Ok::<_, Error>(found.into_iter().cloned().collect::<Vec<_>>())
    })?;
    for seen in &forgotten {
        super::print(&format!("forgot {}", shown(seen)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns `align, offline on node7`.
pub(super) fn shown(seen: &Seen) -> String {
    let on = match seen.host.as_str() {
        "" => String::new(),
        host => format!(" on {}", printable(host, 80)),
    };
    let (who, state) = (printable(&seen.who, 80), printable(&seen.state, 40));
    format!("{who}, {state}{on}")
}

/// Returns the error for a pipeline that is not below the root.
async fn not_found(options: &Options, who: &str) -> Error {
    let root = &options.root;
    let content = Content::Pipeline(who.to_owned());
    let hint = roots::hint(&options.broker, &content, root).await;
    Error::data(format!(
        "forget {who}: nothing is retained about it below {root}; {hint}"
    ))
}

fn may_forget<'a>(options: &Options, who: &str, seen: &'a Seen) -> Result<&'a Seen> {
    if !options.force && ["online", "paused"].contains(&seen.state.as_str()) {
        return Err(Error::data(format!(
            "forget {who}: it is {} on {}; stop its client first, or give --force",
            seen.state,
            printable(&seen.host, 80)
        )));
    }
    Ok(seen)
}

/// Returns what the broker retains about the pipelines.
async fn network(options: &Options) -> Result<Network> {
    let wrong = |e| Error::new(Kind::Usage, e);
    let topics = options.who.iter().flat_map(|who| {
        let topics = PipelineTopics::new(&options.root, who);
        [topics.presence(), topics.last()]
    });
    let query = Query {
        filters: topics
            .map(Filter::new)
            .collect::<Result<_, _>>()
            .map_err(wrong)?,
        root: options.root.clone(),
        limit: options.timeout,
        patience: options.timeout,
    };
    let found = retained::retained(listener(&options.broker), query).await?;
    if let Some(cause) = found.cut {
        return Err(Error::data(cause));
    }
    let mut network = Network::default();
    for delivery in &found.messages {
        network.add_message(&options.root, delivery, MAX_PAYLOAD);
    }
    Ok(network)
}

/// Clears the retained presence and last end of `pipelines`, one after another.
///
/// # Errors
/// As [`clear`].
pub(super) async fn forget(
    broker: &BrokerOptions,
    root: &str,
    pipelines: &[&Seen],
    limit: Duration,
) -> Result<()> {
    let topics = pipelines.iter().flat_map(|seen| {
        let topics = PipelineTopics::new(root, &seen.who);
        // The presence comes last: without it, the pipeline is not found any more.
        [topics.last(), topics.presence()]
    });
    clear(broker, &topics.collect::<Vec<_>>(), limit).await
}

/// Clears what is retained on `topics`, one after another.
///
/// # Errors
/// 69 when no broker could be reached, 75 when it did not confirm one within `limit`, 77 when it does
/// not authorise us.
pub(super) async fn clear(
    broker: &BrokerOptions,
    topics: &[String],
    limit: Duration,
) -> Result<()> {
    let none = Subscriptions {
        required: Vec::new(),
        optional: Vec::new(),
        qos: Qos::AtMostOnce,
    };
    let mut session = Session::new(sender(broker), none).announced();
    let mut left = topics.iter().peekable();
    let (mut sent, mut reached) = (None, false);
    let mut deadline = Instant::now() + limit;
    while let Some(topic) = left.peek() {
        if sent.is_none() {
            sent = session.publish(empty(topic));
        }
        let event = match timeout_at(deadline, session.next()).await {
            Ok(event) => event?,
            Err(_) if reached => {
                let address = broker.address();
                let cause = format!("forget: {address} did not confirm '{topic}' in time");
                return Err(Error::new(Kind::TryAgain, cause));
            }
            Err(_) => return Err(session.unreachable(limit)),
        };
        match event {
            Event::Online => reached = true,
            // On the next connection it is sent again.
            Event::Offline => sent = None,
            Event::Published(token, result) if sent == Some(token) => {
                if let Err(Refused(e, _)) = result {
                    return Err(e.context(format_args!("publish to '{topic}'")));
                }
                left.next();
                sent = None;
                deadline = Instant::now() + limit;
            }
            _ => {}
        }
    }
    session.close().await;
    Ok(())
}

/// Returns the message that clears a retained one (MQTT 5.0, section 3.3.1.3).
fn empty(topic: &str) -> Message {
    Message {
        topic: topic.to_owned(),
        payload: Bytes::new(),
        qos: Qos::AtLeastOnce,
        retain: true,
        properties: Properties::default(),
    }
}

/// Names pipelines that a prune leaves alone, because it does not know since when they are gone.
pub(super) fn say_left(left: &[&Seen]) {
    if left.is_empty() {
        return;
    }
    let names = left.iter().take(MAX_NAMED).map(|seen| {
        let who = printable(&seen.who, 80);
        format!("{who} ({})", printable(&seen.state, 40))
    });
    let more = match left.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let names: Vec<String> = names.collect();
    say(&format!(
        "left alone, gone since an unknown time: {}{more}; tael forget NAME forgets one",
        names.join(", ")
    ));
}

/// Maximum number of pipelines that a line names.
const MAX_NAMED: usize = 10;
