//! `tael queue push`: publishes messages, and ends when the broker has confirmed and routed each of
//! them, or when each has ended.

use std::cell::RefCell;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use crate::error::{Error, Kind, Result};
use crate::model::duration;
use crate::model::queue::QueueType;
use crate::net::attempts::unreachable;
use crate::os::logging::say;
use crate::os::signals::{self, Stop};
use crate::tools::queue::bodies::Bodies;
use crate::tools::queue::progress::{Progress, rate};
use crate::tools::queue::pusher::{Job, Pusher};
use crate::tools::queue::replies::Replies;
use crate::tools::queue::tally::{Hindrance, Tally};
use crate::tools::queue::target::Target;
use crate::tools::queue::waiting;
use crate::tools::{print, print_json, runtime};

/// Maximum time until the first connection, unless the operator has set a limit for all.
const CONNECT: Duration = Duration::from_secs(10);

/// Maximum time without a confirm, unless the operator has set a limit for all.
const STALL: Duration = Duration::from_secs(60);

/// Minimum pause between two looks at the time without progress.
const MIN_PAUSE: Duration = Duration::from_millis(50);

/// Exit code after SIGINT or SIGTERM, as a shell reports SIGINT.
const INTERRUPTED: u8 = 128 + 2;

/// Exit code when messages have failed.
const FAILED: u8 = 1;

/// Maximum time of our end after a signal.
const FAREWELL: Duration = Duration::from_secs(10);

/// Options of the command.
#[derive(Debug)]
pub struct Options {
    /// The queue.
    pub target: Target,
    /// Bodies of the messages.
    pub bodies: Bodies,
    /// Priority of the messages.
    pub priority: Option<u8>,
    /// Type to declare the queue as; by default it must be there.
    pub declare: Option<QueueType>,
    /// Whether to wait until each message has ended.
    pub wait: bool,
    /// Maximum time for everything.
    pub timeout: Option<Duration>,
    /// Whether to print a JSON object.
    pub json: bool,
}

/// How it has ended.
enum End {
    Done,
    Interrupted,
}

/// Pushes the messages.
///
/// # Errors
/// 65 when the queue does not exist or input cannot be read, 69 when the broker cannot be reached, 75
/// when the time is over, 77 when the broker does not authorise us, 78 when the queue is declared
/// otherwise.
pub fn run(options: Options) -> Result<ExitCode> {
    // Nothing may read what is printed.
    signals::give_up_after(FAREWELL)?;
    runtime()?.block_on(push(options))
}

async fn push(options: Options) -> Result<ExitCode> {
    let Options { target, json, .. } = &options;
    let (target, json) = (target.clone(), *json);
    let begun = Instant::now();
    let tally = RefCell::new(Tally::new(options.bodies.total(), options.wait));
    let replies = options.wait.then(Replies::new);
    let progress = Progress::new(json, options.wait);
    let mut stop = Stop::listen(false)?;
    let timeout = options.timeout;
    let end = tokio::select! {
        biased;
        done = work(options, replies.as_ref(), &tally) => done.map(|()| End::Done),
        () = stop.requested() => Ok(End::Interrupted),
        error = limit(timeout, begun, &target, &tally) => Err(error),
        never = progress.show(|| shown(&tally.borrow(), begun, &progress)) => match never {},
    };
    progress.clear();
    if let Some(replies) = replies {
        replies.delete(&target).await;
    }
    let tally = tally.into_inner();
    // After an error before the first message there is nothing to say.
    if json || end.is_ok() || tally.confirmed > 0 {
        report(&tally, &target, json)?;
    }
    let pushed = || match tally.waits() {
        false => format!("{} messages are confirmed", tally.confirmed),
        true => format!(
            "{} messages are confirmed, {}",
            tally.confirmed,
            tally.ends()
        ),
    };
    match end {
        Ok(End::Done) if tally.failed + tally.canceled > 0 => Ok(ExitCode::from(FAILED)),
        Ok(End::Done) => Ok(ExitCode::SUCCESS),
        Ok(End::Interrupted) => {
            say(&format!("interrupted: {}", pushed()));
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) if tally.confirmed > 0 => {
            Err(Error::new(error.kind(), format!("{error}; {}", pushed())))
        }
        Err(error) => Err(error),
    }
}

/// Returns how far it is, for the line on a terminal.
fn shown(tally: &Tally, begun: Instant, progress: &Progress) -> String {
    let hindrance = match &tally.hindrance {
        Some(Hindrance::Lost(_)) => "; no connection",
        Some(Hindrance::Blocked(_)) => "; the broker is blocked",
        None => "",
    };
    match tally.total {
        Some(total) if total == tally.confirmed && tally.waits() => {
            let ended = total - tally.left().min(total);
            format!("{}{}{hindrance}", progress.bar(ended, total), tally.ends())
        }
        Some(total) => format!(
            "{}{} of {total} confirmed, {}/s{hindrance}",
            progress.bar(tally.confirmed, total),
            tally.confirmed,
            rate(tally.confirmed, begun)
        ),
        None if tally.waits() => {
            format!("{} confirmed, {}{hindrance}", tally.confirmed, tally.ends())
        }
        None => format!(
            "{} confirmed, {}/s{hindrance}",
            tally.confirmed,
            rate(tally.confirmed, begun)
        ),
    }
}

/// Prints what became of the messages, if that was asked for.
fn report(tally: &Tally, target: &Target, json: bool) -> Result<()> {
    if json {
        let failures = tally.bad.iter().map(|(id, report)| report.json(id));
        let mut object = json!({"queue": target.url.queue, "confirmed": tally.confirmed});
        if let (Some(object), true) = (object.as_object_mut(), tally.waits()) {
            for (key, count) in [
                ("finished", tally.finished),
                ("failed", tally.failed),
                ("canceled", tally.canceled),
                ("unreported", tally.unreported),
                ("left", tally.left()),
            ] {
                object.insert(key.into(), json!(count));
            }
            object.insert("failures".into(), Value::Array(failures.collect()));
        }
        return print_json(&object);
    }
    if !tally.waits() {
        return Ok(());
    }
    for (id, report) in &tally.bad {
        print(&report.line(id))?;
    }
    let listed = u64::try_from(tally.bad.len()).unwrap_or(u64::MAX);
    if let more @ 1.. = (tally.failed + tally.canceled).saturating_sub(listed) {
        print(&format!("{more} more have failed or were canceled"))?;
    }
    print(&tally.ends())
}

/// Returns how long there may be no progress yet; `None` if there was none for too long.
fn patience(tally: &Tally) -> Option<Duration> {
    // The ends of messages have no limit of ours.
    if tally.total == Some(tally.confirmed) {
        return Some(STALL);
    }
    let is_lost = matches!(tally.hindrance, Some(Hindrance::Lost(_)));
    let limit = match is_lost && tally.confirmed == 0 {
        true => CONNECT,
        false => STALL,
    };
    let left = limit.checked_sub(tally.rest())?;
    Some(left.max(MIN_PAUSE))
}

/// Waits until there is no time left; returns why there was no progress.
async fn limit(
    timeout: Option<Duration>,
    begun: Instant,
    target: &Target,
    tally: &RefCell<Tally>,
) -> Error {
    match timeout {
        Some(limit) => sleep_until(begun + limit).await,
        None => loop {
            let patience = patience(&tally.borrow());
            let Some(patience) = patience else { break };
            sleep(patience).await;
        },
    }
    let tally = tally.borrow();
    let rest = duration::text(timeout.unwrap_or_else(|| tally.rest()));
    let about = format!("push to queue '{}'", target.shown());
    match &tally.hindrance {
        Some(Hindrance::Lost(cause)) => {
            unreachable(&target.options().address(), cause).context(about)
        }
        Some(Hindrance::Blocked(reason)) => Error::new(
            Kind::TryAgain,
            format!(
                "{about}: the broker takes no messages ({reason}), for {rest}: try again later"
            ),
        ),
        None => Error::new(Kind::TryAgain, format!("{about}: not done within {rest}")),
    }
}

/// Publishes all messages, and waits for their ends if that is wanted.
async fn work(options: Options, replies: Option<&Replies>, tally: &RefCell<Tally>) -> Result<()> {
    let target = options.target.clone();
    let job = Job {
        target: options.target,
        bodies: options.bodies,
        declare: options.declare,
        priority: options.priority,
        reply_to: replies.map(|replies| replies.name().to_owned()),
    };
    let mut pusher = Pusher::new(job, tally);
    let Some(replies) = replies else {
        return pusher.run().await;
    };
    let connection = target.connect(options.timeout.unwrap_or(CONNECT)).await?;
    let channel = replies.open(&connection).await;
    let channel = channel.map_err(|failure| replies.failed(&target, failure))?;
    let news = Notify::new();
    let ends = async {
        pusher.run().await?;
        waiting::wait(&target, tally, &news).await
    };
    tokio::select! {
        biased;
        never = replies.collect(&target, (connection, channel), tally, &news) => match never? {},
        done = ends => done,
    }
}
