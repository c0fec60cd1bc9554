//! `tael queue drain`: waits until a queue is empty and nothing works on its messages.

use std::cell::RefCell;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::warn;

use crate::error::{Error, Kind, Result};
use crate::model::duration;
use crate::net::management::Trouble;
use crate::os::logging::say;
use crate::os::signals::{self, Stop};
use crate::tools::queue::progress::Progress;
use crate::tools::queue::target::Target;
use crate::tools::{print_json, runtime};

/// Number of polls in a row that must find nothing.
const POLLS: u32 = 3;

/// Time of these polls beyond two intervals: statistics of a quorum queue were seen to be this late.
const LATE: Duration = Duration::from_secs(3);

/// Maximum time of our end after a signal.
const FAREWELL: Duration = Duration::from_secs(5);

/// Figures of a queue, as the API says them, some seconds late.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Messages that are ready for delivery.
    pub ready: u64,
    /// Messages that consumers hold.
    pub unacked: u64,
}

impl Figures {
    /// Returns the figures in an answer of the API; `None` if it has none yet, as for a new queue.
    #[must_use]
    pub fn of(queue: &Value) -> Option<Self> {
        let field = |name: &str| queue.get(name).and_then(Value::as_u64);
        Some(Self {
            ready: field("messages_ready")?,
            unacked: field("messages_unacknowledged")?,
        })
    }
}

/// Watches a queue until it has been empty for longer than its statistics are late.
#[derive(Debug)]
pub struct Watch {
    interval: Duration,
    /// First of the polls in a row that found nothing, and their number.
    empty: Option<(Instant, u32)>,
}

impl Watch {
    /// Returns the watch of a queue whose broker collects statistics at this `interval`.
    #[must_use]
    pub const fn new(interval: Duration) -> Self {
        Self {
            interval,
            empty: None,
        }
    }

    /// Returns the wait until the next poll.
    #[must_use]
    pub const fn pause(&self) -> Duration {
        self.interval
    }

    /// Forgets the polls so far: there was news.
    pub const fn restart(&mut self) {
        self.empty = None;
    }

    /// Notes what a poll at `now` has found. Returns whether the queue is drained: [`POLLS`] in a row
    /// found nothing, over two intervals and [`LATE`].
    pub fn polled(&mut self, figures: Option<Figures>, now: Instant) -> bool {
        if figures != Some(Figures::default()) {
            self.empty = None;
            return false;
        }
        let (first, count) = self.empty.get_or_insert((now, 0));
        *count += 1;
        *count >= POLLS && now.duration_since(*first) >= 2 * self.interval + LATE
    }
}

/// Options of the command.
#[derive(Debug)]
pub struct Options {
    /// The queue.
    pub target: Target,
    /// Maximum time to wait; by default there is none.
    pub timeout: Option<Duration>,
    /// Whether to print a JSON object.
    pub json: bool,
}

/// Waits until the queue is drained.
///
/// # Errors
/// 69 and 77 when the API does not answer, 65 when the queue does not exist, 75 when the time is over.
pub fn run(options: &Options) -> Result<ExitCode> {
    // Nothing may read what is printed.
    signals::give_up_after(FAREWELL)?;
    runtime()?.block_on(drain(options))
}

async fn drain(options: &Options) -> Result<ExitCode> {
    let progress = Progress::new(options.json, true);
    let latest = RefCell::new(None);
    let mut stop = Stop::listen(false)?;
    let begun = Instant::now();
    let name = options.target.shown();
    let shown = || match *latest.borrow() {
        None => format!("{name}: no figures yet"),
        Some(Figures { ready, unacked }) => format!("{name}: {ready} ready, {unacked} unacked"),
    };
    let late = async {
        match options.timeout {
            Some(limit) => sleep_until(begun + limit).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        biased;
        done = wait(options, &latest) => done.map(|()| ExitCode::SUCCESS),
        () = stop.requested() => Ok(ExitCode::from(128 + 2)),
        () = late => {
            let limit = duration::text(options.timeout.unwrap_or_default());
            Err(Error::new(Kind::TryAgain, format!("drain {} after {limit}: not drained", shown())))
        }
        never = progress.show(shown) => match never {},
    };
    progress.clear();
    let code = ended?;
    if code != ExitCode::SUCCESS {
        say(&format!("interrupted: {}", shown()));
    } else if options.json {
        let took = begun.elapsed().as_secs_f64();
        print_json(&json!({"queue": options.target.url.queue, "seconds": took}))?;
    }
    Ok(code)
}

async fn wait(options: &Options, latest: &RefCell<Option<Figures>>) -> Result<()> {
    let target = &options.target;
    let api = target.api();
    let mut watch = Watch::new(target.interval);
    // The first answer shows what is wrong. Later ones may fail for a while.
    let (mut is_first, mut warned) = (true, false);
    loop {
        match api.queue(&target.url.vhost, &target.url.queue).await {
            Ok(queue) => {
                let figures = Figures::of(&queue);
                *latest.borrow_mut() = figures;
                if watch.polled(figures, Instant::now()) {
                    return Ok(());
                }
                (is_first, warned) = (false, false);
            }
            Err(Trouble::Missing) => {
                return Err(Error::data(format!(
                    "drain queue '{}' at {}: there is no such queue; is the name right?",
                    target.shown(),
                    target.url.broker()
                )));
            }
            Err(e) if is_first => return Err(e.error(&api)),
            Err(e) => {
                watch.restart();
                if !std::mem::replace(&mut warned, true) {
                    warn!(
                        "the management API does not answer: {}; trying again",
                        e.cause()
                    );
                }
            }
        }
        sleep(watch.pause()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_may_be_missing() {
        assert_eq!(Figures::of(&json!({"name": "q"})), None);
        let full = json!({"messages_ready": 2, "messages_unacknowledged": 1});
        assert_eq!(
            Figures::of(&full),
            Some(Figures {
                ready: 2,
                unacked: 1
            })
        );
    }

    #[test]
    fn a_queue_is_drained_after_two_intervals_without_messages() {
        let empty = Some(Figures::default());
        let mut watch = Watch::new(Duration::from_secs(5));
        let begun = Instant::now();
        let mut poll =
            |seconds, figures| watch.polled(figures, begun + Duration::from_secs(seconds));
        for (seconds, figures, drained) in [
            (0, empty, false),
            (5, empty, false),
            (12, empty, false),
            (
                12,
                Some(Figures {
                    ready: 0,
                    unacked: 1,
                }),
                false,
            ),
            (13, empty, false),
            (17, None, false),
            (18, empty, false),
            (32, empty, false),
            (33, empty, true),
        ] {
            assert_eq!(poll(seconds, figures), drained, "{seconds}");
        }
    }
}
