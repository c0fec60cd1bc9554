//! One command, watched from its start to its end.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::engine::runner::Job;
use crate::model::unit::{End, Outcome, Stopped};
use crate::os::command::{Running, Usage, Woken};
use crate::os::descent::{children_left, kill_run, reap_orphans};
use crate::os::proc::start_time;
use crate::store::hold::Hold;

/// A command that ends within this time needs no more than that somebody waits for it.
const SHORT: Duration = Duration::from_millis(20);

/// Supervises the command of `job`, which has begun at `began`, by the clock of the host
/// (milliseconds since the epoch) and by one that only goes on; `boot` names this boot of the
/// host. Calls `meanwhile` once if the command takes its time.
///
/// # Errors
/// When the system does not tell how the command has ended.
pub(super) fn supervise(
    job: &Job,
    running: Running,
    hold: &mut Hold,
    (started, clock): (i64, Instant),
    boot: &str,
    meanwhile: impl FnOnce(),
) -> io::Result<Outcome> {
    let limit = job
        .timeout
        .and_then(|limit| clock.checked_add(Duration::from_millis(limit)));
    let mut trim = Trim::new(job.max_output);
    let short = Instant::now() + SHORT;
    let short = limit.map_or(short, |limit| limit.min(short));
    let stopped = match running.wait(None, Some(short)) {
        Ok(Woken::TimedOut) => {
            meanwhile();
            watch(&running, limit, &mut trim, hold, boot)
        }
        // Without a wake-up it is waited for until it ends.
        _ => None,
    };
    let mut remains = None;
    if stopped.is_some() {
        remains = running.terminate(Duration::from_millis(job.grace), thread::sleep);
    }
    let (end, usage) = if remains.is_some() && is_running(&running) {
        // It would be waited for until it likes to end.
        (End::Interrupted, Usage::default())
    } else {
        running.reap()?
    };
    // A process that lost its parent while the last look was taken is ours by now.
    if stopped.is_some() && remains.is_none() && children_left() {
        remains = kill_run(None, thread::sleep);
    }
    trim.check(hold);
    Ok(Outcome {
        end,
        stopped,
        started,
        elapsed: u64::try_from(clock.elapsed().as_micros()).unwrap_or(u64::MAX),
        max_rss: usage.max_rss,
        cpu: usage.cpu,
        dropped: trim.dropped,
        remains,
    })
}

fn is_running(running: &Running) -> bool {
    matches!(
        running.wait(None, Some(Instant::now())),
        Ok(Woken::TimedOut)
    )
}

/// Watches a command that takes its time, until it ends or is to.
fn watch(
    running: &Running,
    limit: Option<Instant>,
    trim: &mut Trim,
    hold: &mut Hold,
    boot: &str,
) -> Option<Stopped> {
    hold.watch();
    // Only needed should we be killed; without it the command would be left alone.
    if let Some(start) = start_time(running.pid()) {
        let _ = hold.note_process(running.pid(), start, boot);
    }
    loop {
        if hold.is_cancelled() {
            return Some(Stopped::Canceled);
        }
        let until = limit.map_or(trim.next, |limit| limit.min(trim.next));
        match running
            .wait(hold.changes(), Some(until))
            .unwrap_or(Woken::Ended)
        {
            Woken::Ended => return None,
            Woken::Changed => {}
            Woken::TimedOut if limit.is_some_and(|limit| Instant::now() >= limit) => {
                return Some(Stopped::TimedOut);
            }
            Woken::TimedOut => {
                trim.check(hold);
                reap_orphans(running.pid());
            }
        }
    }
}

/// Keeps the output streams of a running command within bounds.
struct Trim {
    limit: u64,
    next: Instant,
    dropped: [u64; 2],
}

/// How often the size of the streams is looked at. What a command writes between two looks is
/// on the disk for so long.
const LOOK: Duration = Duration::from_millis(500);

impl Trim {
    fn new(limit: u64) -> Self {
        Self {
            limit,
            next: Instant::now() + LOOK,
            dropped: [0, 0],
        }
    }

    fn check(&mut self, hold: &Hold) {
        self.next = Instant::now() + LOOK;
        if self.limit > 0 {
            for (dropped, bytes) in self.dropped.iter_mut().zip(hold.trim_streams(self.limit)) {
                *dropped = (*dropped).max(bytes);
            }
        }
    }
}
