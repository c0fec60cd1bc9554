//! Scripts of a facts.d folder: run within bounds, and killed with everything they have started.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::model::facts::own::MAX_TEXT;
use crate::model::text::printable_bytes;
use crate::os::facts::guard::{self, LOOK, has_ended};
use crate::os::process::poll_until;
use crate::os::program::DEFAULT_PATH;

/// Maximum time of a script.
pub const MAX_TIME: Duration = Duration::from_secs(5);

/// Maximum time for a script to disappear after KILL, with everything it has started. One that waits for
/// a device may take longer: it is left to its fate.
const KILL_LIMIT: Duration = Duration::from_secs(1);

/// Bytes of the standard error that are kept for people.
const MAX_ERROR: usize = 400;

/// Bytes of one read.
const PIECE: usize = 16 * 1024;

/// Runs the script at `path` for `limit` at most, or until `ends` is set, and returns what it has
/// printed. It gets a clean environment, `/` as its folder, and nothing to read.
///
/// # Errors
/// A text for the user: how it failed.
pub fn run(path: &Path, limit: Duration, ends: &AtomicBool) -> Result<Vec<u8>, String> {
    // This program even after another has taken its path.
    let child = Command::new("/proc/self/exe")
        .arg0("tael")
        .arg(guard::ARGUMENT)
        .arg(path)
        .env_clear()
        .env("PATH", DEFAULT_PATH)
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = child.map_err(|e| format!("it cannot be started: {e}"))?;
    // It closes when this process ends, in any way.
    let ends_it = child.stdin.take();
    let heard = listen(&mut child, Instant::now() + limit, ends);
    drop(ends_it);
    let status = reap(&mut child);
    let heard = heard?;
    match status {
        Some(status) if status.success() => Ok(heard.output),
        Some(status) => Err(failed(status, &heard.error)),
        None => Err("it does not end, not even by KILL".to_owned()),
    }
}

fn failed(status: ExitStatus, error: &[u8]) -> String {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("it exited with {code}"),
        (None, signal) => format!("it was ended by signal {}", signal.unwrap_or_default()),
    };
    let mut lines = error.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let line = lines.find(|line| !line.is_empty());
    let is_ours = status.code() == Some(guard::CANNOT_EXECUTE.into());
    match (line, line.and_then(|line| line.strip_prefix(b"tael: "))) {
        (_, Some(ours)) if is_ours => printable_bytes(ours, 120),
        (Some(line), _) => format!("{how}: {}", printable_bytes(line, 120)),
        (None, _) => how,
    }
}

/// What a script has printed.
#[derive(Debug, Default)]
struct Heard {
    output: Vec<u8>,
    error: Vec<u8>,
}

/// Reads both streams of `child` until it has ended, until `deadline`, or until `ends` is set.
fn listen(child: &mut Child, deadline: Instant, ends: &AtomicBool) -> Result<Heard, String> {
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let mut heard = Heard::default();
    let mut piece = vec![0; PIECE];
    loop {
        let has_ended = has_ended(child);
        if stdout.is_none() && stderr.is_none() && has_ended {
            return Ok(heard);
        }
        let now = Instant::now();
        if ends.load(Ordering::Relaxed) {
            return Err("it was ended with us".to_owned());
        }
        if now >= deadline {
            return match has_ended {
                true => Ok(heard),
                false => Err("it ran too long".to_owned()),
            };
        }
        // What it has written is there now; its children may hold the pipes for ever.
        let until = if has_ended {
            now
        } else {
            deadline.min(now + LOOK)
        };
        let (out_ready, error_ready) = {
            let out = stdout.as_ref().map(AsFd::as_fd);
            let error = stderr.as_ref().map(AsFd::as_fd);
            let fds = [out, error].into_iter().flatten();
            let mut fds: Vec<PollFd<'_>> = fds
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
                .collect();
            if fds.is_empty() {
                thread::sleep(LOOK.min(Duration::from_millis(2)));
                continue;
            }
            if poll_until(&mut fds, Some(until)).is_err() {
                thread::sleep(LOOK);
            }
            let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
            let mut next = |is_open: bool| is_open && ready.next().unwrap_or_default();
            (next(stdout.is_some()), next(stderr.is_some()))
        };
        if has_ended && !out_ready && !error_ready {
            return Ok(heard);
        }
        if out_ready && let Some(pipe) = &mut stdout {
            match pipe.read(&mut piece) {
                Ok(0) | Err(_) => stdout = None,
                Ok(n) => heard.output.extend(piece.iter().take(n)),
            }
            if heard.output.len() > MAX_TEXT {
                return Err(format!("it printed more than {} KiB", MAX_TEXT >> 10));
            }
        }
        if error_ready && let Some(pipe) = &mut stderr {
            match pipe.read(&mut piece) {
                Ok(0) | Err(_) => stderr = None,
                Ok(n) => {
                    let room = MAX_ERROR.saturating_sub(heard.error.len());
                    heard.error.extend(piece.iter().take(n.min(room)));
                }
            }
        }
    }
}

/// Reaps `child`, which was told to end; `None` if it does not.
fn reap(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + KILL_LIMIT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
            _ => {
                let _ = child.kill();
                return None;
            }
        }
    }
}
