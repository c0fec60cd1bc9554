//! The protocol between a runner and its client, with a real runner and without a client. The test
//! writes jobs and words to its standard input, and reads its lines.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write, pipe};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::common::{binary, children_of, wait_until};
use crate::descent::{WAYS_OUT, alive, live};
use nix::fcntl::{FcntlArg, fcntl};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};
use tael::model::unit::{End, Outcome, State, Stopped, Trace};
use tael::runner::{ARGUMENT, BEGIN, DROP, FILE, Job};
use tael::store::unit_dir::locked::LockedDir;
use tael::store::unit_dir::reader::{Chunk, Ended, output};
use tael::store::unit_dir::stream::Stream;
use tael::store::unit_dir::{RUNNERS, UNITS, UnitDir};

/// A runner, and the folder of its pipeline.
struct Runner {
    pipeline: tempfile::TempDir,
    child: Child,
    requests: Option<ChildStdin>,
    reports: BufReader<ChildStdout>,
}

impl Runner {
    fn start() -> Self {
        let pipeline = tempfile::tempdir().expect("tempdir");
        for folder in [UNITS, RUNNERS] {
            fs::create_dir(pipeline.path().join(folder)).expect("folder");
        }
        let mut child = Command::new(binary("tael"))
            .arg(ARGUMENT)
            .arg(pipeline.path().join(RUNNERS))
            .env("OUT", pipeline.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("runner");
        let requests = child.stdin.take();
        let reports = BufReader::new(child.stdout.take().expect("stdout"));
        Self {
            pipeline,
            child,
            requests,
            reports,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.pipeline.path().join(name)
    }

    fn unit(&self, id: &str) -> UnitDir {
        UnitDir::new(self.pipeline.path(), id)
    }

    fn write(&mut self, bytes: &[u8]) {
        let requests = self.requests.as_mut().expect("open");
        requests.write_all(bytes).expect("request");
    }

    /// Sends it a job, and waits until the folder of the unit exists.
    fn prepare(&mut self, job: &Job, payload: &[u8]) -> UnitDir {
        let mut text = serde_json::to_vec(job).expect("json");
        text.push(b'\n');
        text.extend(payload);
        self.write(&text);
        let unit = self.unit(&job.unit);
        wait_until("it is prepared", || unit.record().exists());
        unit
    }

    /// Returns the next line: its first word, and the rest.
    fn line(&mut self) -> (String, String) {
        let mut line = String::new();
        self.reports.read_line(&mut line).expect("report");
        let line = line.trim_end();
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        (word.to_owned(), rest.to_owned())
    }

    /// Returns the rest of the next line, which must begin with `word`.
    #[track_caller]
    fn hears(&mut self, word: &str) -> String {
        let (heard, rest) = self.line();
        assert_eq!(heard, word, "{rest}");
        rest
    }

    /// Lets the prepared unit begin, and returns its outcome.
    #[track_caller]
    fn ended(&mut self) -> Value {
        self.write(&[BEGIN]);
        let started: i64 = self.hears("started").parse().expect("milliseconds");
        assert!(started > 1_700_000_000_000, "{started}");
        self.outcome()
    }

    #[track_caller]
    fn outcome(&mut self) -> Value {
        serde_json::from_str(&self.hears("ended")).expect("outcome")
    }

    /// Prepares a unit, lets it begin, and returns its folder and its outcome.
    #[track_caller]
    fn run(&mut self, job: &Job) -> (UnitDir, Value) {
        let unit = self.prepare(job, b"");
        let outcome = self.ended();
        (unit, outcome)
    }

    /// Changes a limit of the runner, and not of what it has started. By default it is ours.
    fn limit(&self, resource: Resource, current: Option<u64>) {
        let ours = getrlimit(resource);
        let limit = Rlimit {
            current: current.or(ours.current),
            maximum: ours.maximum,
        };
        let pid = Pid::from_child(&self.child);
        prlimit(Some(pid), resource, limit).expect("limit");
    }

    /// Closes its standard input, as the end of a client does, and waits until it has left.
    #[track_caller]
    fn leaves(mut self) -> tempfile::TempDir {
        drop(self.requests.take());
        let status = self.child.wait().expect("wait");
        assert!(status.success(), "{status}");
        let left = fs::read_dir(self.path(RUNNERS)).expect("runners").count();
        assert_eq!(left, 0, "nothing stays beside the units");
        std::mem::replace(&mut self.pipeline, tempfile::tempdir().expect("tempdir"))
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns a job for the shell.
fn job(unit: &str, command: &str) -> Job {
    let argv = ["/bin/sh", "-c", command].map(str::to_owned).to_vec();
    Job {
        unit: unit.into(),
        stdin: 0,
        stdin_file: None,
        is_followed: false,
        shell_argv: argv.clone(),
        argv,
        cwd: None,
        variables: Vec::new(),
        timeout: None,
        grace: 10_000,
        max_output: 0,
    }
}

fn text(unit: &UnitDir, stream: Stream) -> String {
    fs::read_to_string(unit.stream(stream)).unwrap_or_default()
}

fn outcome(unit: &UnitDir) -> Outcome {
    match unit.trace().expect("trace") {
        Trace::Ended(outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_unit_is_prepared_begins_when_it_is_told_and_tells_its_end() {
    let mut runner = Runner::start();
    let command = r#"cat; echo "$NAME" >&2; pwd >"$OUT/ran"; exit 7"#;
    let mut job = job("u1", command);
    job.stdin = 7;
    job.cwd = Some(runner.path(UNITS));
    job.variables = vec![("NAME".into(), "value".into())];
    let unit = runner.prepare(&job, b"payload");
    assert_eq!(unit.trace(), Ok(Trace::Alive), "it holds the lock");
    assert!(!unit.notes().is_begun() && !runner.path("ran").exists());
    let told = runner.ended();
    assert_eq!(told["end"], json!({"exited": 7}));
    runner.hears("idle");
    assert_eq!(text(&unit, Stream::Stdout), "payload");
    assert_eq!(text(&unit, Stream::Stderr), "value\n");
    let ran = fs::read_to_string(runner.path("ran")).expect("ran");
    assert!(ran.trim_end().ends_with(UNITS), "{ran}");
    let noted = outcome(&unit);
    assert_eq!((noted.end, noted.stopped), (End::Exited(7), None));
    assert_eq!(noted.dropped, [0, 0]);
    runner.leaves();
}

#[test]
fn a_unit_that_is_dropped_leaves_nothing_and_the_runner_takes_the_next() {
    let mut runner = Runner::start();
    let unit = runner.prepare(&job("u1", r#"echo 1 >>"$OUT/ran""#), b"");
    runner.write(&[DROP]);
    runner.hears("idle");
    assert!(!unit.path().exists());
    runner.run(&job("u2", r#"echo 2 >>"$OUT/ran""#));
    runner.hears("idle");
    assert_eq!(
        fs::read_to_string(runner.path("ran")).ok(),
        Some("2\n".into())
    );
    runner.leaves();
}

#[test]
fn a_client_that_goes_before_the_word_has_begun_nothing() {
    let mut runner = Runner::start();
    let unit = runner.prepare(&job("u1", r#"echo 1 >>"$OUT/ran""#), b"");
    let state = runner.leaves();
    assert_eq!(unit.trace(), Ok(Trace::Fresh));
    assert!(!state.path().join("ran").exists());
    // A client that ends right after the word: the next one takes the unit up.
    let mut runner = Runner::start();
    let unit = runner.unit("u1");
    let text = serde_json::to_string(&job("u1", r#"echo 1 >>"$OUT/ran""#)).expect("json");
    runner.write(format!("{text}\n!").as_bytes());
    let state = runner.leaves();
    assert!(matches!(
        unit.trace(),
        Ok(Trace::Fresh | Trace::Ended(Outcome { .. }))
    ));
    let begun = unit.trace() != Ok(Trace::Fresh);
    assert_eq!(state.path().join("ran").exists(), begun, "both or neither");
}

#[test]
fn a_run_outlives_its_client_and_leaves_its_outcome() {
    let mut runner = Runner::start();
    let command = r#"until [ -e "$OUT/go" ]; do sleep 0.02; done; echo late; exit 3"#;
    let unit = runner.prepare(&job("u1", command), b"");
    runner.write(&[BEGIN]);
    runner.hears("started");
    assert_eq!(unit.trace(), Ok(Trace::Alive));
    drop(runner.requests.take());
    fs::write(runner.path("go"), "").expect("go");
    let _state = runner.leaves();
    assert_eq!(outcome(&unit).end, End::Exited(3));
    assert_eq!(text(&unit, Stream::Stdout), "late\n");
}

#[test]
fn a_unit_that_another_runner_has_begun_is_not_begun_again() {
    let mut runner = Runner::start();
    let unit = runner.unit("u1");
    let mut other = LockedDir::take(None, unit).expect("take").expect("fresh");
    other.begin().expect("begun");
    let text = serde_json::to_string(&job("u1", r#"echo 1 >>"$OUT/ran""#)).expect("json");
    runner.write(format!("{text}\n").as_bytes());
    // It waits for the lock, and the other runner is killed.
    drop(other);
    runner.hears("begun");
    runner.write(&[BEGIN]);
    runner.hears("idle");
    runner.run(&job("u2", "true"));
    assert!(!runner.path("ran").exists());
    runner.hears("idle");
    runner.leaves();
}

#[test]
fn a_unit_is_canceled_before_it_begins_and_while_it_runs() {
    let mut runner = Runner::start();
    let unit = runner.prepare(&job("u1", r#"echo 1 >>"$OUT/ran""#), b"");
    unit.cancel().expect("cancel");
    runner.write(&[BEGIN]);
    assert_eq!(runner.outcome()["stopped"], "canceled");
    runner.hears("idle");
    assert_eq!(outcome(&unit).stopped, Some(Stopped::Canceled));
    assert!(!runner.path("ran").exists());
    let unit = runner.prepare(&job("u2", "echo begun; exec sleep 600"), b"");
    runner.write(&[BEGIN]);
    runner.hears("started");
    wait_until("it runs", || text(&unit, Stream::Stdout) == "begun\n");
    unit.cancel().expect("cancel");
    let told = runner.outcome();
    assert_eq!(told["end"], json!({"signaled": 15}));
    assert_eq!(told["stopped"], "canceled");
    runner.hears("idle");
    assert_eq!(outcome(&unit).state(), State::Canceled);
    runner.leaves();
}

#[test]
fn a_unit_without_a_folder_is_refused_and_the_runner_goes_on() {
    let mut runner = Runner::start();
    runner.run(&job("u1", "true"));
    runner.hears("idle");
    fs::rename(runner.path(UNITS), runner.path("away")).expect("rename");
    let text = serde_json::to_string(&job("u2", r#"echo 2 >>"$OUT/ran""#)).expect("json");
    runner.write(format!("{text}\n!").as_bytes());
    let cause = runner.hears("refused");
    assert!(cause.starts_with("create the unit's folder"), "{cause}");
    runner.hears("idle");
    fs::rename(runner.path("away"), runner.path(UNITS)).expect("rename");
    runner.run(&job("u2", r#"echo again >>"$OUT/ran""#));
    runner.hears("idle");
    let ran = fs::read_to_string(runner.path("ran"));
    assert_eq!(ran.ok(), Some("again\n".into()));
    runner.leaves();
}

#[test]
fn a_long_job_comes_through_a_file_that_does_not_stay() {
    let mut runner = Runner::start();
    let payload = vec![b'x'; 300_000];
    let mut job = job("u1", "wc -c");
    job.stdin = payload.len();
    let mut file = serde_json::to_vec(&job).expect("json");
    file.push(b'\n');
    file.extend(&payload);
    fs::write(runner.path(RUNNERS).join("u1.job"), file).expect("job");
    runner.write(format!("{FILE}u1.job\n").as_bytes());
    runner.ended();
    runner.hears("idle");
    let unit = runner.unit("u1");
    assert_eq!(text(&unit, Stream::Stdout).trim(), "300000");
    runner.leaves();
}

#[test]
fn a_runner_leaves_at_a_job_that_it_cannot_read() {
    let mut runner = Runner::start();
    runner.write(b"{\"unit\":\n");
    assert_eq!(runner.line(), (String::new(), String::new()), "the end");
    let status = runner.child.wait().expect("wait");
    assert!(status.success(), "{status}");
}

#[test]
fn a_time_limit_ends_a_run_and_what_it_writes_at_its_end_is_kept() {
    let mut runner = Runner::start();
    let command = "trap 'echo END; exit 5' TERM; echo begun; sleep 600 & wait";
    let mut job = job("u1", command);
    job.timeout = Some(300);
    let (unit, told) = runner.run(&job);
    assert_eq!(told["stopped"], "timed-out");
    assert_eq!(told["end"], json!({"exited": 5}));
    assert_eq!(text(&unit, Stream::Stdout), "begun\nEND\n");
    runner.hears("idle");
    runner.leaves();
}

#[test]
fn a_silent_run_has_no_files_and_its_folder_serves_the_next() {
    let mut runner = Runner::start();
    let mut folders = Vec::new();
    for n in 1..=6 {
        let (unit, _) = runner.run(&job(&format!("u{n}"), "true"));
        runner.hears("idle");
        folders.push(fs::metadata(unit.path()).expect("folder").ino());
        let entries = fs::read_dir(unit.path()).expect("folder");
        let names: Vec<_> = entries
            .map(|entry| entry.expect("entry").file_name())
            .collect();
        assert_eq!(names, ["outcome"]);
    }
    // A folder is free when the next unit begins, so that two take turns.
    assert!(!runner.unit("u1").path().exists());
    folders.sort_unstable();
    folders.dedup();
    assert!(folders.len() <= 3, "{folders:?}");
    // A run that has written to one stream keeps its folder, with that file.
    let (unit, _) = runner.run(&job("loud", "echo text >&2"));
    runner.hears("idle");
    for n in 7..=9 {
        runner.run(&job(&format!("u{n}"), "true"));
        runner.hears("idle");
    }
    assert_eq!(text(&unit, Stream::Stderr), "text\n");
    assert!(!unit.stream(Stream::Stdout).exists());
    runner.leaves();
}

#[test]
fn what_outlives_a_command_does_not_fill_the_disk() {
    let mut runner = Runner::start();
    let command = r#"
        (until [ -e "$OUT/go" ]; do sleep 0.02; done
         head -c 4000000 /dev/zero; echo late >&2; touch "$OUT/written") & echo begun"#;
    let mut job = job("u1", command);
    job.max_output = 100_000;
    let (unit, _) = runner.run(&job);
    runner.hears("leaving");
    assert_eq!(text(&unit, Stream::Stdout), "begun\n");
    assert!(!unit.stream(Stream::Stderr).exists());
    fs::write(runner.path("go"), "").expect("go");
    let written = runner.path("written");
    wait_until("all is written", || written.exists());
    let _state = runner.leaves();
    let kept = File::open(unit.stream(Stream::Stdout)).expect("stdout");
    assert_eq!(kept.metadata().expect("meta").len(), 6 + 100_000);
    assert_eq!(text(&unit, Stream::Stderr), "late\n");
    assert_eq!(outcome(&unit).state(), State::Succeeded);
}

#[test]
fn a_runner_that_cannot_poll_still_reads_the_output_and_hears_the_end() {
    let mut runner = Runner::start();
    let command = r#"
        echo begun
        until [ -e "$OUT/go" ]; do sleep 0.02; done
        head -c 300000 /dev/zero; exit 5"#;
    let unit = runner.prepare(&job("u1", command), b"");
    runner.write(&[BEGIN]);
    runner.hears("started");
    wait_until("it runs", || text(&unit, Stream::Stdout) == "begun\n");
    // poll(2) fails with more descriptors than that.
    runner.limit(Resource::Nofile, Some(0));
    fs::write(runner.path("go"), "").expect("go");
    assert_eq!(runner.outcome()["end"], json!({"exited": 5}));
    runner.limit(Resource::Nofile, None);
    runner.hears("idle");
    let size = fs::metadata(unit.stream(Stream::Stdout))
        .expect("stdout")
        .len();
    assert_eq!(size, 6 + 300_000);
    runner.leaves();
}

#[test]
fn what_outlives_a_command_is_read_while_its_outcome_finds_no_space() {
    let mut runner = Runner::start();
    let command = r#"
        (until [ -e "$OUT/go" ]; do sleep 0.02; done
         head -c 300000 /dev/zero; touch "$OUT/written") & echo begun
        until [ -e "$OUT/end" ]; do sleep 0.02; done"#;
    let unit = runner.prepare(&job("u1", command), b"");
    runner.write(&[BEGIN]);
    runner.hears("started");
    wait_until("it runs", || text(&unit, Stream::Stdout) == "begun\n");
    runner.limit(Resource::Fsize, Some(0));
    fs::write(runner.path("end"), "").expect("end");
    runner.hears("ended");
    fs::write(runner.path("go"), "").expect("go");
    let written = runner.path("written");
    wait_until("it can write", || written.exists());
    assert_eq!(unit.trace(), Ok(Trace::Alive), "its outcome waits");
    runner.limit(Resource::Fsize, None);
    runner.hears("leaving");
    assert_eq!(outcome(&unit).state(), State::Succeeded);
    runner.leaves();
}

#[test]
fn a_flood_is_bounded_while_it_lasts_and_ends_at_its_time() {
    let mut runner = Runner::start();
    // It writes its last lines while it is being ended.
    let command = "trap 'head -c 300000 /dev/zero; echo END; exit 1' TERM; yes & wait";
    let mut job = job("u1", command);
    (job.timeout, job.max_output) = (Some(500), 100_000);
    let unit = runner.prepare(&job, b"");
    runner.write(&[BEGIN]);
    runner.hears("started");
    let mut most = 0;
    while unit.trace() == Ok(Trace::Alive) {
        // Its first byte makes the file.
        let blocks = fs::metadata(unit.stream(Stream::Stdout)).map_or(0, |meta| meta.blocks());
        most = most.max(blocks * 512);
        std::thread::yield_now();
    }
    assert!(most > 0 && most < 2_000_000, "{most} bytes on disk");
    let ended = outcome(&unit);
    assert_eq!(ended.stopped, Some(Stopped::TimedOut));
    let mut reader = output(&unit, Stream::Stdout, 0);
    let (mut text, mut gaps) = (Vec::new(), 0);
    loop {
        match reader
            .next(Ended::with(Some(&ended), Stream::Stdout))
            .expect("read")
        {
            Chunk::Bytes(bytes) => text.extend_from_slice(&bytes),
            Chunk::Gap(Some(bytes)) => gaps += bytes,
            Chunk::End => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(text.len(), 100_000);
    assert_eq!([gaps, 0], ended.dropped);
    assert!(text.starts_with(b"y\ny\n") && text.ends_with(b"END\n"));
    runner.hears("ended");
    runner.hears("idle");
    runner.leaves();
}

#[test]
fn a_command_that_writes_often_wakes_its_supervisor_seldom() {
    const LINES: usize = 20_000;
    let mut runner = Runner::start();
    let command = format!("n=0; while [ $n -lt {LINES} ]; do echo line; n=$((n + 1)); done");
    let status = format!("/proc/{}/status", runner.child.id());
    let switches = || -> u64 {
        let status = fs::read_to_string(&status).expect("status");
        let count = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.expect("line").trim().parse().expect("number")
    };
    let unit = runner.prepare(&job("u1", &command), b"");
    let before = switches();
    let told = runner.ended();
    runner.hears("idle");
    let woken = switches() - before;
    assert_eq!(text(&unit, Stream::Stdout), "line\n".repeat(LINES));
    // It wakes every 5 ms, and around start and end.
    let most = told["elapsed_us"].as_u64().expect("number") / 5000 + 50;
    assert!(woken <= most, "{woken} times, not {most}: {told}");
    runner.leaves();
}

#[test]
fn a_program_that_is_being_written_is_waited_for() {
    let mut runner = Runner::start();
    let program = runner.path("program");
    fs::copy("/bin/true", &program).expect("copy");
    let direct = |unit| Job {
        argv: vec![program.to_str().expect("path").to_owned()],
        ..job(unit, "exit 9")
    };
    let open = || {
        let mut options = File::options();
        options.append(true).open(&program).expect("open")
    };
    let writer = open();
    let unit = runner.prepare(&direct("u1"), b"");
    runner.write(&[BEGIN]);
    wait_until("it is about to begin", || unit.notes().is_begun());
    drop(writer);
    runner.hears("started");
    assert_eq!(runner.outcome()["end"], json!({"exited": 0}));
    runner.hears("idle");
    // A file that stays open for writing counts as one that cannot be executed.
    let _writer = open();
    runner.prepare(&direct("u2"), b"");
    runner.write(&[BEGIN]);
    assert_eq!(runner.outcome()["end"], json!({"exited": 126}));
    runner.hears("idle");
    runner.leaves();
}

#[test]
fn a_script_whose_interpreter_is_missing_says_so() {
    let mut runner = Runner::start();
    let script = runner.path("windows");
    fs::write(&script, "#!/bin/sh\r\necho\r\n").expect("script");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(&script, mode).expect("mode");
    let job = Job {
        argv: vec![script.to_str().expect("path").to_owned()],
        ..job("u1", "exit 9")
    };
    let unit = runner.prepare(&job, b"");
    runner.write(&[BEGIN]);
    assert_eq!(runner.outcome()["end"], json!({"exited": 127}));
    runner.hears("idle");
    let stderr = text(&unit, Stream::Stderr);
    let says = stderr.contains("'/bin/sh\\r' is missing") && stderr.contains("Windows");
    assert!(says, "{stderr}");
    runner.leaves();
}

#[test]
fn a_run_ends_with_all_that_has_left_its_group() {
    let mut runner = Runner::start();
    for (n, way) in WAYS_OUT.into_iter().enumerate() {
        let (mark, live) = live(n % 2 == 1);
        let command = way.replace("$LIVE", &live);
        let argv = ["/bin/bash", "-c", &command].map(str::to_owned).to_vec();
        // It reaches its time limit, or is canceled.
        let timeout = (n % 3 == 0).then_some(1000);
        let job = Job {
            argv,
            timeout,
            grace: 300,
            ..job(&format!("u{n}"), "exit 9")
        };
        let unit = runner.prepare(&job, b"");
        runner.write(&[BEGIN]);
        runner.hears("started");
        wait_until("it lives", || !alive(&mark).is_empty());
        if timeout.is_none() {
            unit.cancel().expect("cancel");
        }
        let stopped = runner.outcome()["stopped"].clone();
        assert_eq!(
            stopped,
            timeout.map_or("canceled", |_| "timed-out"),
            "{way}"
        );
        assert_eq!(alive(&mark), Vec::<i32>::new(), "{way}");
        runner.hears("idle");
    }
    runner.leaves();
}

#[test]
fn orphans_of_a_run_are_reaped_while_it_goes_on() {
    let mut runner = Runner::start();
    let command = r#"
        for n in $(seq 50); do (sleep 0.01 &); done
        touch "$OUT/orphans"
        until [ -e "$OUT/go" ]; do sleep 0.02; done"#;
    runner.prepare(&job("u1", command), b"");
    runner.write(&[BEGIN]);
    runner.hears("started");
    let orphans = runner.path("orphans");
    wait_until("it has orphans", || orphans.exists());
    let pid = runner.child.id();
    wait_until("only the command is left", || children_of(pid).len() == 1);
    fs::write(runner.path("go"), "").expect("go");
    assert_eq!(runner.outcome()["end"], json!({"exited": 0}));
    runner.hears("idle");
    runner.leaves();
}

/// A pipe of reports without room, so that the runner stands still while it says something.
struct FullPipe {
    reader: PipeReader,
    _writer: PipeWriter,
}

impl FullPipe {
    /// Starts a runner that reports to it.
    fn start() -> (Runner, Self) {
        let mut runner = Runner::start();
        let _ = runner.child.kill();
        let _ = runner.child.wait();
        let (reader, writer) = pipe().expect("pipe");
        let mut child = Command::new(binary("tael"))
            .arg(ARGUMENT)
            .arg(runner.path(RUNNERS))
            .stdin(Stdio::piped())
            .stdout(writer.try_clone().expect("writer"))
            .spawn()
            .expect("runner");
        runner.requests = child.stdin.take();
        runner.child = child;
        let size = fcntl(&writer, FcntlArg::F_GETPIPE_SZ).expect("size");
        let mut writer = writer;
        let lines = vec![b'\n'; usize::try_from(size).expect("size")];
        writer.write_all(&lines).expect("fill");
        let full = Self {
            reader,
            _writer: writer,
        };
        (runner, full)
    }

    /// Empties it, and returns the first line of the runner.
    fn first_line(self) -> String {
        drop(self._writer);
        let lines = BufReader::new(self.reader).lines();
        let mut lines = lines.map(|line| line.expect("line"));
        lines.find(|line| !line.is_empty()).expect("a line")
    }
}

/// A client that hears of a refusal gives the unit to another runner. Its folder must be free then: the
/// other one would wait for a lock that goes on to another unit.
#[test]
fn a_folder_is_free_before_its_unit_is_refused() {
    let (mut runner, full) = FullPipe::start();
    let unit = runner.prepare(&job("u1", "true"), b"");
    let mut waiting = None;
    wait_until("a process waits", || {
        waiting = children_of(runner.child.id()).first().copied();
        waiting.is_some()
    });
    let waiting = nix::unistd::Pid::from_raw(waiting.expect("process"));
    nix::sys::signal::kill(waiting, nix::sys::signal::Signal::SIGKILL).expect("kill");
    runner.write(&[BEGIN]);
    wait_until("the folder is free", || !unit.path().exists());
    let line = full.first_line();
    assert!(line.starts_with("refused start a process"), "{line}");
    runner.leaves();

    let (mut runner, full) = FullPipe::start();
    runner.limit(Resource::Fsize, Some(0));
    let unit = runner.prepare(&job("u1", "true"), b"");
    runner.write(&[BEGIN]);
    wait_until("the folder is free", || unit.trace() == Ok(Trace::Fresh));
    let line = full.first_line();
    assert!(
        line.starts_with("refused write the unit's record"),
        "{line}"
    );
    runner.leaves();
}

/// A command can put anything into the folder of its unit. A pipe there has no other end, for which the
/// runner would wait.
#[test]
fn a_pipe_among_the_files_of_a_unit_holds_nothing_up() {
    let mut runner = Runner::start();
    let path = runner.unit("u1").stream(Stream::Stdout);
    let command = format!(r#"mkfifo "{}"; echo text; echo more >&2"#, path.display());
    let unit = runner.prepare(&job("u1", &command), b"");
    runner.write(&[BEGIN]);
    wait_until("it ends", || matches!(unit.trace(), Ok(Trace::Ended(_))));
    let ended = outcome(&unit);
    assert_eq!((ended.end.clone(), ended.dropped), (End::Exited(0), [5, 0]));
    let mut reader = output(&unit, Stream::Stdout, 0);
    let ended = Ended::with(Some(&ended), Stream::Stdout);
    assert_eq!(reader.next(ended).ok(), Some(Chunk::Gap(Some(5))));
    assert_eq!(reader.next(ended).ok(), Some(Chunk::End));
    assert_eq!(text(&unit, Stream::Stderr), "more\n");
    runner.hears("started");
    runner.outcome();
    runner.hears("idle");
    runner.leaves();
}
