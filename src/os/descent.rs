//! The processes of a run: every process that descends from its command.
//!
//! A process may leave the group and the session of its command (`timeout(1)`, `setsid(1)`, a shell
//! with job control), and its parent may end before it. A supervisor is a child subreaper
//! (`PR_SET_CHILD_SUBREAPER(2const)`), and so stays the ancestor of all of them. After the end of
//! the supervisor, a variable in their environment names their run.

use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{self, Signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, Uid, User};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::os::proc::{Process, all, start_time, with_descendants};

/// Interval between two checks of processes that are being ended. There is no notification of the
/// last one.
const CHECK: Duration = Duration::from_millis(20);

/// The interval between two checks is at least this many times the duration of a check. Otherwise a
/// host with many processes would keep a core busy.
const REST: u32 = 4;

/// Maximum time for processes to disappear after KILL. One that waits for a device may take longer.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// The same for processes without a supervisor: their client does nothing else during that time.
const ORPHAN_LIMIT: Duration = Duration::from_secs(1);

/// Maximum number of processes to name that could not be ended.
const MAX_NAMED: usize = 3;

/// Makes this process the new parent of every descendant whose parent ends.
pub fn adopt_descendants() {
    // Without it (before Linux 3.4) they become children of init, and only their group finds them.
    let _ = prctl::set_child_subreaper(true);
}

/// Reaps children that have ended, except `command`: orphans of the run have no other parent.
pub fn reap_orphans(command: u32) {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Ok(status) = waitid(Id::All, flags) {
        match status.pid() {
            Some(pid) if pid.as_raw().cast_unsigned() != command => {
                let _ = waitpid(pid, None);
            }
            _ => break,
        }
    }
}

/// Reaps all children that have ended. Returns whether any are left.
#[must_use]
pub fn children_left() -> bool {
    loop {
        match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::StillAlive) => return true,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// Ends every process that descends from this one, a child subreaper: TERM, up to `grace` for all
/// to end, then KILL. `command` is a child that was not reaped, and the leader of a process group.
/// Calls `pause` to wait; it must take the given time.
///
/// Returns what could not be ended, for people; `None` if all are gone.
#[must_use]
pub fn end_run(command: u32, grace: Duration, mut pause: impl FnMut(Duration)) -> Option<String> {
    let group = Pid::from_raw(command.cast_signed());
    let deadline = Instant::now() + grace;
    // A group without members answers ESRCH: it is gone already.
    let _ = signal::killpg(group, Signal::SIGTERM);
    let others = living(Some(command)).unwrap_or_default();
    for process in others.iter().filter(|process| process.group != command) {
        let _ = send(process, Signal::SIGTERM);
        let _ = send(process, Signal::SIGCONT);
    }
    // A stopped command would not see the TERM.
    let _ = signal::killpg(group, Signal::SIGCONT);
    loop {
        let begun = Instant::now();
        let gone = match living(Some(command)) {
            Some(list) => list.is_empty(),
            // Without /proc zombies count too, which only makes the wait longer.
            None => signal::killpg(group, None).is_err(),
        };
        if gone {
            return None;
        }
        if Instant::now() >= deadline {
            return kill_run(Some(command), pause);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        pause(CHECK.max(begun.elapsed() * REST).min(left));
    }
}

/// Kills every process that descends from this one, a child subreaper, and the process group of
/// `command`, if that was not reaped. Returns what could not be ended, for people.
#[must_use]
pub fn kill_run(command: Option<u32>, pause: impl FnMut(Duration)) -> Option<String> {
    let look = || {
        if let Some(command) = command {
            let group = Pid::from_raw(command.cast_signed());
            let _ = signal::killpg(group, Signal::SIGKILL);
        }
        living(command).unwrap_or_default()
    };
    kill_all(look, KILL_LIMIT, pause).1
}

/// Kills the rest of a run that has lost its supervisor: processes with `variable`, a `NAME=VALUE`,
/// in their environment; the process `noted`, an id with a start time, and its group; and their
/// descendants. Returns how many processes were killed, and what could not be ended.
#[must_use]
pub fn kill_orphans(variable: &str, noted: Option<(u32, u64)>) -> (usize, Option<String>) {
    let look = || {
        let mut list = all().unwrap_or_default();
        list.retain(|process| !process.ended);
        let leader = noted.filter(|(pid, start)| start_time(*pid) == Some(*start));
        // A command may have started the client that looks for it.
        with_descendants(&list, Some(std::process::id()), |process| {
            leader.is_some_and(|(pid, _)| process.group == pid || process.pid == pid)
                || process.has(variable)
        })
    };
    kill_all(look, ORPHAN_LIMIT, thread::sleep)
}

/// Returns the values that variable `name` has in the environments of all processes that we may
/// see.
#[must_use]
pub fn values_of(name: &str) -> HashSet<String> {
    let list = all().unwrap_or_default();
    list.iter()
        .filter_map(|process| process.value_of(name))
        .collect()
}

/// Kills what `look` finds until it finds nothing.
fn kill_all(
    mut look: impl FnMut() -> Vec<Process>,
    limit: Duration,
    mut pause: impl FnMut(Duration),
) -> (usize, Option<String>) {
    let deadline = Instant::now() + limit;
    let mut killed = 0;
    loop {
        let begun = Instant::now();
        let list = look();
        let sent = list
            .iter()
            .map(|process| (*process, send(process, Signal::SIGKILL)));
        let sent: Vec<_> = sent.collect();
        let refused = |sent: &Result<(), Errno>| matches!(sent, Err(e) if *e != Errno::ESRCH);
        killed = killed.max(sent.iter().filter(|(_, sent)| sent.is_ok()).count());
        if sent.is_empty() {
            return (killed, None);
        }
        if sent.iter().all(|(_, sent)| refused(sent)) || Instant::now() >= deadline {
            return (killed, Some(describe(&sent)));
        }
        pause(CHECK.max(begun.elapsed() * REST));
    }
}

/// Describes what could not be ended, for people.
fn describe(sent: &[(Process, Result<(), Errno>)]) -> String {
    let texts = sent.iter().take(MAX_NAMED).map(|(process, sent)| {
        let cause = match sent {
            Ok(()) => "it does not go",
            Err(e) => e.desc(),
        };
        let owner = owner(process.pid);
        format!(
            "process {} ({owner}) could not be ended: {cause}",
            process.pid
        )
    });
    let mut text = texts.collect::<Vec<_>>().join("; ");
    if let Some(more) = sent.len().checked_sub(MAX_NAMED).filter(|more| *more > 0) {
        text += &format!("; and {more} more");
    }
    text
}

/// Returns the user of process `pid`, by name if there is one.
fn owner(pid: u32) -> String {
    use std::os::unix::fs::MetadataExt;
    let uid = std::fs::metadata(format!("/proc/{pid}")).map(|meta| meta.uid());
    let Ok(uid) = uid else {
        return "gone now".into();
    };
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => format!("uid {uid}"),
    }
}

/// Returns the descendants of this process that have not ended. Reaps the others, except `command`.
fn living(command: Option<u32>) -> Option<Vec<Process>> {
    let own = std::process::id();
    let list = all()?;
    let descendants = with_descendants(&list, Some(own), |process| process.parent == own);
    for process in &descendants {
        if process.ended && process.parent == own && Some(process.pid) != command {
            let pid = Pid::from_raw(process.pid.cast_signed());
            let _ = waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
        }
    }
    Some(
        descendants
            .into_iter()
            .filter(|process| !process.ended)
            .collect(),
    )
}

/// Sends a signal to this very process, not to another that has got its number meanwhile.
fn send(process: &Process, signal: Signal) -> Result<(), Errno> {
    let pid = rustix::process::Pid::from_raw(process.pid.cast_signed()).ok_or(Errno::ESRCH)?;
    let errno = |e: rustix::io::Errno| Errno::from_raw(e.raw_os_error());
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(errno)?;
    // The descriptor was opened before this look: if the process is the one that we mean now, it
    // was so then.
    if start_time(process.pid) != Some(process.start) {
        return Err(Errno::ESRCH);
    }
    let signal = match signal {
        Signal::SIGTERM => rustix::process::Signal::TERM,
        Signal::SIGCONT => rustix::process::Signal::CONT,
        _ => rustix::process::Signal::KILL,
    };
    pidfd_send_signal(pidfd, signal).map_err(errno)
}
