//! `tael check`: checks a beacon or a pipeline for a monitoring system.

use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::model::check::{self, Level, Limits, Report, beat_time};
use crate::model::control::Action;
use crate::model::duration;
use crate::model::event::{Attributes, attributes};
use crate::model::message::Delivery;
use crate::model::network::{Network, Seen};
use crate::model::roots::Content;
use crate::model::topic::{self, Filter, PipelineTopics};
use crate::net::options::BrokerOptions;
use crate::net::retained::{self, Query};
use crate::tools::{MAX_PAYLOAD, control, listener, roots};

/// Subject of a check.
#[derive(Debug, Clone)]
pub enum Subject {
    /// A beacon that publishes on this topic.
    Beacon {
        /// The topic.
        topic: String,
        /// Wait for its next beat instead of reading the last one.
        wait: bool,
    },
    /// A pipeline.
    Pipeline {
        /// Its name.
        who: String,
        /// What else it must fulfil.
        wanted: Wanted,
    },
}

/// What a pipeline must fulfil, besides the limits of every check.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Result if its last run failed.
    pub failed: Level,
    /// Maximum age of the last success.
    pub success_within: Option<Duration>,
    /// Maximum number of runs that wait. Its client is asked for it.
    pub max_waiting: Option<u64>,
}

/// Options of the command.
#[derive(Debug, Clone)]
pub struct Options {
    /// Broker, and our credentials.
    pub broker: BrokerOptions,
    /// The root of Tael's topics.
    pub root: String,
    /// Subject of a check.
    pub subject: Subject,
    /// Maximum difference between its clock and ours.
    pub max_skew: Duration,
    /// Maximum ages of the last beat, or of the last end.
    pub limits: Limits,
    /// Maximum time for the broker to answer.
    pub timeout: Duration,
}

/// Prints one line, and returns its exit code.
///
/// # Errors
/// When the broker does not answer.
pub fn run(options: &Options) -> Result<ExitCode> {
    let report = super::runtime()?.block_on(async {
        match &options.subject {
            Subject::Beacon { topic, wait } => beacon(options, topic, *wait).await,
            Subject::Pipeline { who, wanted } => pipeline(options, who, wanted).await,
        }
    })?;
    super::print(&report.line())?;
    Ok(ExitCode::from(report.level() as u8))
}

/// Prints in the same form why nothing could be checked.
///
/// # Errors
/// When stdout cannot be written.
pub fn unknown(error: &Error) -> Result<ExitCode> {
    let report = Report::new("TAEL").with(Level::Unknown, error.to_string());
    super::print(&report.line())?;
    Ok(ExitCode::from(report.level() as u8))
}

fn filter(text: String) -> Result<Filter> {
    Filter::new(text).map_err(|e| Error::new(Kind::Usage, e))
}

fn read(delivery: &Delivery) -> Option<Attributes> {
    attributes(&delivery.payload, MAX_PAYLOAD).ok()
}

#[allow(clippy::cast_precision_loss)] // a time in seconds is far below 2^53
async fn beacon(options: &Options, topic: &str, wait: bool) -> Result<Report> {
    let report = Report::new("BEACON");
    let found = if wait {
        let patience = options.limits.critical.unwrap_or(options.timeout);
        let settings = listener(&options.broker);
        retained::next(settings, filter(topic.to_owned())?, patience).await?
    } else {
        let last = filter(topic::last_beat(topic))?;
        let found = found(options, vec![last]).await?;
        found.into_iter().next_back()
    };
    let Some(delivery) = found else {
        let text = if wait {
            let patience = options.limits.critical.unwrap_or(options.timeout);
            format!("{topic} is silent for {}", duration::text(patience))
        } else {
            let last = topic::last_beat(topic);
            let usual = *topic == topic::beacon(&options.root);
            let hint = match usual {
                true => roots::hint(&options.broker, &Content::Beacon, &options.root).await,
                false => "is the topic right?".to_owned(),
            };
            format!("nothing is retained on {last}: no beacon has ever sent to {topic}; {hint}")
        };
        return Ok(report.with(Level::Critical, text));
    };
    let now = Timestamp::now().as_millisecond() as f64 / 1000.0;
    let Some(sent) = read(&delivery).and_then(|beat| beat_time(&beat)) else {
        // A beat of another program, without a time.
        let (level, text) = match wait {
            true => (Level::Ok, format!("{topic} beats")),
            false => (
                Level::Unknown,
                format!("the last beat of {topic} does not say when"),
            ),
        };
        return Ok(report.with(level, text));
    };
    let age = now - sent as f64;
    let max_skew = options.max_skew.as_secs_f64();
    // A beat has its time to the second. The age of one that has just come is its travel time, and
    // the difference of the clocks.
    let skew = if wait {
        Some(age)
    } else {
        (age < 0.0).then_some(age)
    };
    let seconds = Duration::try_from_secs_f64(age).unwrap_or_default();
    let level = if wait {
        Level::Ok
    } else {
        options.limits.judge(seconds)
    };
    let ago = duration::brief(Duration::from_secs(seconds.as_secs()));
    let mut report = report
        .with(level, format!("{topic} beat {ago} ago"))
        .figure(options.limits.figure("age", age.max(0.0).floor()));
    if let Some(skew) = skew.filter(|skew| skew.abs() > max_skew + 1.0) {
        let text = format!(
            "its clock differs from ours by {}",
            duration::text(Duration::try_from_secs_f64(skew.abs().round()).unwrap_or_default())
        );
        report = report.with(Level::Warning, text);
    }
    if let Some(skew) = skew {
        let limit = Limits {
            warning: Some(Duration::from_secs_f64(max_skew)),
            critical: None,
        };
        report = report.figure(limit.figure("skew", skew));
    }
    Ok(report)
}

async fn pipeline(options: &Options, who: &str, wanted: &Wanted) -> Result<Report> {
    let topics = PipelineTopics::new(&options.root, who);
    let filters = vec![filter(topics.presence())?, filter(topics.last())?];
    let found = found(options, filters).await?;
    let mut network = Network::default();
    for delivery in &found {
        network.add_message(&options.root, delivery, MAX_PAYLOAD);
    }
    let report = Report::new("PIPELINE");
    let Some(seen) = network.pipeline(who) else {
        let root = &options.root;
        let content = Content::Pipeline(who.to_owned());
        let hint = roots::hint(&options.broker, &content, root).await;
        let text = format!("nothing is retained about {who} below {root}; {hint}");
        return Ok(report.with(Level::Critical, text));
    };
    let state = match seen.state.as_str() {
        "online" => Level::Ok,
        // It was stopped, or starts nothing.
        "offline" | "paused" => Level::Warning,
        "lost" => Level::Critical,
        _ => Level::Unknown,
    };
    let report = report.with(state, format!("{who} is {} on {}", seen.state, seen.host));
    let told = found.iter().any(|d| d.topic == topics.last().as_bytes());
    let report = last_end(options, report, seen, told, wanted);
    // A client that is not there cannot say it.
    match wanted.max_waiting {
        Some(limit) if ["online", "paused"].contains(&seen.state.as_str()) => {
            Ok(match waiting(options, who, topics).await {
                Ok(waiting) => check::waiting(report, waiting, limit),
                Err(e) => report.with(Level::Unknown, e.to_string()),
            })
        }
        _ => Ok(report),
    }
}

/// Adds the checks of the last end and the last success; `told` is whether something is retained
/// about them.
fn last_end(options: &Options, report: Report, seen: &Seen, told: bool, wanted: &Wanted) -> Report {
    let now = Timestamp::now().as_second();
    let Some(last) = &seen.last else {
        let limited = options.limits != Limits::default() || wanted.success_within.is_some();
        let (level, text) = match (told, limited) {
            (true, _) => (Level::Unknown, "its last end cannot be read"),
            (false, false) => (Level::Ok, "no run has ended yet"),
            (false, true) => (Level::Warning, "no run has ended yet"),
        };
        return report.with(level, text);
    };
    let report = check::end(
        report,
        (last, seen.last_canceled),
        now,
        &options.limits,
        options.max_skew,
        wanted.failed,
    );
    match wanted.success_within {
        Some(limit) => check::success(report, seen.success, Some(last), now, limit),
        None => report,
    }
}

/// Asks the client of the pipeline how many runs wait.
async fn waiting(options: &Options, who: &str, topics: PipelineTopics) -> Result<u64> {
    let answer = control::ask(&control::Options {
        broker: options.broker.clone(),
        root: options.root.clone(),
        topics,
        who: who.to_owned(),
        action: Action::Status,
        timeout: options.timeout,
        json: false,
    })
    .await?;
    let waiting = answer.get("waiting").and_then(Value::as_u64);
    waiting.ok_or_else(|| {
        let cause = super::text(&answer, "error").unwrap_or("it does not say how many runs wait");
        Error::data(format!("status {who}: {cause}"))
    })
}

/// Returns the retained messages for `filters`.
async fn found(options: &Options, filters: Vec<Filter>) -> Result<Vec<Delivery>> {
    let query = Query {
        filters,
        root: options.root.clone(),
        limit: options.timeout,
        patience: options.timeout,
    };
    let found = retained::retained(listener(&options.broker), query).await?;
    match found.cut {
        None => Ok(found.messages),
        Some(cause) => Err(Error::data(cause)),
    }
}
