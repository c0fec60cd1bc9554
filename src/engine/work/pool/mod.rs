//! The runners of a client: started ahead, for one unit at a time each.

mod handle;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use crate::engine::commit::permit::StartPermit;
use crate::model::outcome::parse_outcome;
use crate::model::unit::Outcome;
use crate::runner::{FILE, Job};
use crate::store::unit_dir::UnitDir;
use handle::{Handle, Line, RunnerState};

/// Maximum length of a job in a pipe, bytes; a longer one goes through a file, and so does one that
/// a small pipe does not take at once, with the permit that follows. The client must not wait for a
/// runner that was stopped.
const MAX_LINE: usize = 32 * 1024;

/// Time that surplus runners stay idle.
const LINGER: Duration = Duration::from_secs(2);

/// Time after a shortage of processes in which units begin one after the other. Otherwise their
/// runners would take the processes that commands need.
const CAUTION: Duration = Duration::from_secs(10);

/// Report of a runner about a unit.
#[derive(Debug)]
pub enum Report {
    /// Its command has started, at this time (milliseconds since 1970).
    Started(String, i64),
    /// Its command has written something, and a reader waits for that.
    Wrote(String),
    /// It has ended.
    Ended(String, Outcome),
    /// Its runner failed at this, and has not begun it.
    Refused(String, String),
    /// Its runner is gone or did not accept it; the folder of the unit knows more.
    Unknown(String),
}

/// The runners of a client.
pub struct Pool {
    handles: Vec<Handle>,
    lines: mpsc::UnboundedReceiver<Line>,
    /// Lines that came too early; they precede the next ones.
    held: VecDeque<Line>,
    line_tx: mpsc::UnboundedSender<Line>,
    started: u64,
    /// Until when units begin one after the other.
    careful_until: Option<Instant>,
    program: PathBuf,
    dir: PathBuf,
}

impl Pool {
    /// Returns an empty pool; `dir` is the folder for other files of runners.
    pub fn new(dir: PathBuf) -> Self {
        let (line_tx, lines) = mpsc::unbounded_channel();
        Self {
            handles: Vec::new(),
            lines,
            held: VecDeque::new(),
            line_tx,
            started: 0,
            careful_until: None,
            // The running image, also if an upgrade has replaced its file.
            program: PathBuf::from("/proc/self/exe"),
            dir,
        }
    }

    /// Starts `program` as runners.
    #[cfg(test)]
    pub fn play(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// Releases all but those that are about to begin: idle ones leave now, busy ones when they are
    /// done.
    pub fn dismiss(&mut self) {
        let is_ready = |handle: &Handle| matches!(handle.state, RunnerState::Ready(..));
        self.handles.retain(is_ready);
    }

    /// Makes sure that one idle runner is ready.
    pub fn keep_warm(&mut self) {
        if self.idle() == 0
            && let Err(e) = self.start()
        {
            debug!("cannot start a runner ahead: {e}");
        }
    }

    fn idle(&self) -> usize {
        self.handles.iter().filter(|h| h.is_idle()).count()
    }

    /// Releases idle runners, except one, after they were idle for `time`: without its pipe a
    /// runner leaves. The first one stays, which is also the first to be used.
    fn thin_out(&mut self, time: Duration) {
        let mut kept = false;
        self.handles.retain(|handle| {
            !handle.is_idle()
                || !std::mem::replace(&mut kept, true)
                || handle.idle_since.elapsed() < time
        });
    }

    /// Returns when the next surplus idle runner is released.
    fn surplus(&self) -> Option<Instant> {
        let idle = self.handles.iter().filter(|h| h.is_idle()).skip(1);
        idle.map(|handle| handle.idle_since + LINGER).min()
    }

    /// Notes a shortage of processes: idle runners are released, and units begin one after the
    /// other for a while.
    pub fn shortage(&mut self) {
        self.careful_until = Some(Instant::now() + CAUTION);
        self.thin_out(Duration::ZERO);
    }

    fn is_careful(&self) -> bool {
        self.careful_until
            .is_some_and(|until| Instant::now() < until)
    }

    /// Returns until when nothing more may begin, unless a runner reports earlier: processes are
    /// short, and a unit is about to begin.
    #[must_use]
    pub fn held_until(&self) -> Option<Instant> {
        let starting =
            |handle: &Handle| matches!(handle.state, RunnerState::Ready(..) | RunnerState::Told(_));
        self.careful_until
            .filter(|_| self.is_careful() && self.handles.iter().any(starting))
    }

    /// Takes a runner for a unit. [`Pool::make_ready`] must follow, and, after the permit,
    /// [`Pool::told`] or [`Pool::dropped`]. They go by the permit, because work that comes again has
    /// the id of the unit that is here.
    ///
    /// # Errors
    /// When no process can be started.
    pub fn reserve(&mut self) -> io::Result<StartPermit> {
        match self.handles.iter().position(Handle::is_idle) {
            Some(place) => self.take(place),
            None => self.reserve_new(),
        }
    }

    /// Starts a runner for a unit, which may begin before the ledger holds the last end. An idle
    /// runner that may begin knows that the ledger does, and uses the folder of that unit again.
    ///
    /// # Errors
    /// As [`Pool::reserve`].
    pub fn reserve_new(&mut self) -> io::Result<StartPermit> {
        let place = self.start()?;
        self.take(place)
    }

    fn take(&mut self, place: usize) -> io::Result<StartPermit> {
        let handle = self.handles.get_mut(place);
        let handle = handle.ok_or(io::ErrorKind::NotFound)?;
        let permit = StartPermit::new(handle.requests.as_fd().try_clone_to_owned()?);
        handle.state = RunnerState::Ready(permit.clone(), Vec::new());
        Ok(permit)
    }

    /// Sends `job` to the runner that waits for `permit`, with the input of its command. The runner
    /// prepares everything, and waits for the permit.
    ///
    /// # Errors
    /// When that runner is gone (`BrokenPipe`), or as the file system.
    pub fn make_ready(
        &mut self,
        permit: &StartPermit,
        job: &Job,
        payload: &[u8],
    ) -> io::Result<()> {
        let capacity = match self.ready(permit) {
            Some(handle) => handle.capacity,
            None => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        let text = self.text(job, payload, MAX_LINE.min(capacity - 1));
        let sent = text.and_then(|text| permit.send(text));
        match &sent {
            // It died while it was idle.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                self.handles.retain(|handle| !handle.waits_for(permit));
            }
            Err(_) => self.let_go(permit),
            Ok(()) => {}
        }
        sent
    }

    /// Releases the runner that waits for `permit` and got no job.
    pub fn let_go(&mut self, permit: &StartPermit) {
        if let Some(handle) = self.ready(permit) {
            permit.forget();
            handle.state = RunnerState::Idle;
        }
    }

    /// Returns what the runner of `job` reads, at most `limit` bytes.
    fn text(&self, job: &Job, payload: &[u8], limit: usize) -> io::Result<Vec<u8>> {
        let mut text = serde_json::to_vec(job)?;
        text.push(b'\n');
        text.extend_from_slice(payload);
        if text.len() > limit {
            let name = format!("{}.job", job.unit);
            let path = self.dir.join(&name);
            let mut options = File::options();
            options.write(true).create(true).truncate(true).mode(0o600);
            let written = options.open(&path).and_then(|mut f| f.write_all(&text));
            if written.is_err() {
                let _ = std::fs::remove_file(&path);
            }
            written?;
            text = format!("{FILE}{name}\n").into_bytes();
        }
        Ok(text)
    }

    /// Returns the runner that waits for `permit`.
    fn ready(&mut self, permit: &StartPermit) -> Option<&mut Handle> {
        let mut handles = self.handles.iter_mut();
        handles.find(|handle| handle.waits_for(permit))
    }

    /// Notes that the runner that prepared `unit` got its `permit`, and reports on it from now on;
    /// `false` if there is none.
    pub fn told(&mut self, unit: &str, permit: &StartPermit) -> bool {
        self.hear(permit, RunnerState::Told(unit.to_owned()))
    }

    /// Notes that the runner that waits for `permit`, if there is one, must not run its unit.
    pub fn dropped(&mut self, permit: &StartPermit) {
        self.hear(permit, RunnerState::Done);
    }

    fn hear(&mut self, permit: &StartPermit, state: RunnerState) -> bool {
        let Some(handle) = self.ready(permit) else {
            return false;
        };
        if let RunnerState::Ready(_, said) = std::mem::replace(&mut handle.state, state) {
            let number = handle.number;
            let said = said.into_iter().map(|text| Line::Said(number, text));
            self.held.extend(said);
        }
        true
    }

    fn start(&mut self) -> io::Result<usize> {
        let handle = Handle::start(self.started + 1, &self.program, &self.dir, &self.line_tx)?;
        self.started += 1;
        self.handles.push(handle);
        Ok(self.handles.len() - 1)
    }

    /// Returns the next report. Cancel safe. There may never be one.
    pub async fn next(&mut self) -> Report {
        loop {
            while let Some(line) = self.held.pop_front() {
                if let Some(report) = self.read(line) {
                    return report;
                }
            }
            let surplus = self.surplus();
            tokio::select! {
                // We hold a sender ourselves, so the channel never ends.
                Some(line) = self.lines.recv() => {
                    if let Some(report) = self.read(line) {
                        return report;
                    }
                }
                () = sleep_until(surplus.unwrap_or_else(Instant::now)), if surplus.is_some() => {
                    self.thin_out(LINGER);
                }
            }
        }
    }

    fn read(&mut self, line: Line) -> Option<Report> {
        match line {
            Line::Gone(number, pid) => {
                // A killed runner has left the folder that it made ahead.
                let _ = UnitDir::at(self.dir.join(pid.to_string())).remove();
                let place = self.handles.iter().position(|h| h.number == number)?;
                let gone = self.handles.remove(place);
                self.keep_warm();
                // A unit that was only prepared is prepared again before it begins.
                gone.state.into_unit().map(Report::Unknown)
            }
            Line::Said(number, text) => {
                let handle = self.handles.iter_mut().find(|h| h.number == number)?;
                if let RunnerState::Ready(_, said) = &mut handle.state {
                    said.push(text);
                    return None;
                }
                let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
                if word == "idle" || word == "leaving" {
                    let next = match word {
                        "idle" => RunnerState::Idle,
                        // A process of its unit still runs, and it takes no other unit.
                        _ => RunnerState::Done,
                    };
                    let last = std::mem::replace(&mut handle.state, next);
                    handle.idle_since = Instant::now();
                    if self.is_careful() {
                        self.thin_out(Duration::ZERO);
                    }
                    self.keep_warm();
                    // It has lost a unit: otherwise it has said what became of it.
                    return last.into_unit().map(Report::Unknown);
                }
                let word = match (word, &mut handle.state) {
                    ("wrote", RunnerState::Told(unit) | RunnerState::Begun(unit)) => {
                        return Some(Report::Wrote(unit.clone()));
                    }
                    ("started", RunnerState::Told(unit) | RunnerState::Begun(unit)) => {
                        let unit = unit.clone();
                        handle.state = RunnerState::Begun(unit.clone());
                        return Some(Report::Started(unit, rest.parse().ok()?));
                    }
                    ("ended" | "refused" | "begun", _) => word,
                    _ => return None,
                };
                let last = std::mem::replace(&mut handle.state, RunnerState::Done);
                let unit = last.into_unit()?;
                Some(match (word, parse_outcome(rest.as_bytes())) {
                    ("ended", Some(outcome)) => Report::Ended(unit, outcome),
                    ("refused", _) => Report::Refused(unit, rest.to_owned()),
                    _ => Report::Unknown(unit),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::outcome::outcome_text;
    use nix::fcntl::{FcntlArg, fcntl};
    use std::process::{Child, Command, Stdio};

    /// Returns a bystander that stands in for the runner of this number.
    fn bystander(number: u64) -> (Handle, Child) {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cat");
        let requests = child.stdin.take().expect("stdin");
        (Handle::new(number, requests), child)
    }

    /// Returns a client with one runner, which prepares a unit.
    fn ready() -> (tempfile::TempDir, Pool, Child, StartPermit) {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut runners = Pool::new(dir.path().to_owned());
        let (handle, child) = bystander(1);
        runners.handles.push(handle);
        let permit = runners.reserve().expect("reserve");
        (dir, runners, child, permit)
    }

    fn say(runners: &mut Pool, text: &str) -> Option<Report> {
        runners.read(Line::Said(1, text.to_owned()))
    }

    #[test]
    fn what_a_runner_says_before_the_loop_knows_of_the_permit_is_kept_in_order() {
        let (_dir, mut runners, mut child, permit) = ready();
        let outcome = Outcome::interrupted(7);
        let ended = format!("ended {}", outcome_text(&outcome));
        for text in ["started 7", &ended, "idle"] {
            assert!(say(&mut runners, text).is_none());
        }
        // Another one for the same unit.
        let other = StartPermit::new(
            runners.handles[0]
                .requests
                .as_fd()
                .try_clone_to_owned()
                .expect("pipe"),
        );
        runners.dropped(&other);
        assert!(!runners.told("u", &other) && runners.told("u", &permit));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(async {
            assert!(matches!(runners.next().await, Report::Started(unit, 7) if unit == "u"));
            let report = runners.next().await;
            assert!(matches!(report, Report::Ended(unit, o) if unit == "u" && o == outcome));
        });
        while let Some(line) = runners.held.pop_front() {
            assert!(runners.read(line).is_none());
        }
        assert_eq!(runners.idle(), 1);
        drop((runners, permit, other));
        child.wait().expect("cat");
    }

    #[test]
    fn a_runner_that_loses_a_unit_without_a_word_is_noticed() {
        let (_dir, mut runners, mut child, mut permit) = ready();
        // One is idle, so that none is started.
        let (idle, mut other) = bystander(2);
        runners.handles.push(idle);
        let outcome = outcome_text(&Outcome::interrupted(7));
        let ended = format!("ended {outcome}");
        for last in ["idle", "leaving"] {
            for (lines, lost) in [
                (&[][..], true),
                (&["started 7"], true),
                (&["started 7", &ended], false),
                (&["refused start a process: none"], false),
                (&["begun"], false),
            ] {
                assert!(runners.told("u", &permit));
                for line in lines {
                    assert!(say(&mut runners, line).is_some(), "{line}");
                }
                let report = say(&mut runners, last);
                let is_lost = matches!(&report, Some(Report::Unknown(unit)) if unit == "u");
                assert_eq!(is_lost, lost, "{lines:?}: {report:?}");
                // What is said of a unit is said once.
                assert!(say(&mut runners, last).is_none());
                runners.handles[0].state = RunnerState::Idle;
                permit = runners.reserve().expect("reserve");
            }
        }
        // It dies when it has told the end.
        assert!(runners.told("u", &permit));
        assert!(say(&mut runners, &ended).is_some());
        let pid = child.id();
        drop(permit);
        assert!(runners.read(Line::Gone(1, pid)).is_none());
        drop(runners);
        for child in [&mut child, &mut other] {
            child.wait().expect("cat");
        }
    }

    /// A user who has many pipes gets small ones (`pipe-user-pages-soft`, pipe(7)).
    #[test]
    fn a_job_that_a_small_pipe_does_not_take_goes_through_a_file() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut runners = Pool::new(dir.path().to_owned());
        // It reads nothing, as if it were stopped.
        let mut child = Command::new("sleep")
            .arg("600")
            .stdin(Stdio::piped())
            .spawn()
            .expect("sleep");
        let requests = child.stdin.take().expect("stdin");
        fcntl(&requests, FcntlArg::F_SETPIPE_SZ(4096)).expect("size");
        runners.handles.push(Handle::new(1, requests));
        let permit = runners.reserve().expect("reserve");
        let job = Job {
            unit: "u".into(),
            stdin: 20_000,
            stdin_file: None,
            is_followed: false,
            argv: vec!["true".into()],
            shell_argv: Vec::new(),
            cwd: None,
            variables: Vec::new(),
            timeout: None,
            grace: 0,
            max_output: 0,
        };
        let (done, sent) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let sent = runners.make_ready(&permit, &job, &[b'x'; 20_000]);
            permit.give(true);
            let _ = done.send(sent.is_ok());
        });
        let sent = sent.recv_timeout(Duration::from_secs(60));
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert_eq!(sent, Ok(true));
        let file = std::fs::metadata(dir.path().join("u.job")).expect("file");
        assert!(file.len() > 20_000);
    }

    #[test]
    fn a_runner_that_got_no_job_is_free_and_hears_nothing() {
        let (_dir, mut runners, mut child, permit) = ready();
        runners.let_go(&permit);
        permit.give(true);
        assert!(permit.send(b"job\n".to_vec()).is_err());
        assert!(runners.idle() == 1 && !runners.told("u", &permit));
        drop((runners, permit));
        child.wait().expect("cat");
    }
}
