//! Log lines that cannot be written: the client goes on, stops when told to, and logs how many were
//! lost.

use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::raw::Raw;
use crate::common::{Process, World, wait_until};
use nix::libc;
use nix::sys::signal::Signal;

const SEQ: &str = "lab/seq/status";
const RECORD: &str = r#"echo "$ATTR_N" >>"$OUT/runs""#;

/// Number of messages that no trigger waits for. Each makes a debug line, and all lines together exceed
/// a small pipe or a stopped terminal.
const IGNORED: usize = 1000;

/// Starts client `p` with `stderr`, and returns when it is online.
fn client(world: &World, stderr: Stdio) -> Process {
    let ears = world.ears(&["lab/infrastructure/pipelines/p/presence"]);
    let mut command = world.command("tael-client");
    command.args(["--who", "p", "--root", "lab", "-t", SEQ, "-c", RECORD]);
    let child = command.stderr(stderr).spawn().expect("client");
    let log = world.path("none");
    let process = Process { child, log };
    ears.wait("p is online", |m| m.payload["state"] == "online");
    process
}

fn send(raw: &mut Raw, status: &str, n: usize) {
    let payload = format!(r#"{{"status":"{status}","n":{n}}}"#);
    raw.publish(SEQ, payload.as_bytes(), &[("tael-id", &format!("e{n}"))]);
}

/// Makes the client log more lines than are read, and checks that its events run.
#[track_caller]
fn events_run_meanwhile(world: &World) {
    let mut raw = Raw::connect(world.broker.port());
    send(&mut raw, "finished", 0);
    for n in 1..=IGNORED {
        send(&mut raw, "started", n);
    }
    send(&mut raw, "finished", IGNORED + 1);
    wait_until("both have run", || world.lines("runs").len() == 2);
}

#[track_caller]
fn ends_soon(mut process: Process) {
    let told = Instant::now();
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait(), 0);
    assert!(told.elapsed() < Duration::from_secs(20));
}

fn small_pipe() -> (PipeReader, Stdio) {
    let (reader, writer) = std::io::pipe().expect("pipe");
    // SAFETY: the descriptor is open, and the call takes an integer.
    let size = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    assert_eq!(size, 4096);
    (reader, Stdio::from(writer))
}

#[test]
fn a_pipe_that_nobody_reads_does_not_stop_the_client() {
    let world = World::new();
    let (mut reader, stderr) = small_pipe();
    let process = client(&world, stderr);
    events_run_meanwhile(&world);
    ends_soon(process);
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("what was written");
    assert!(text.contains("connected to"), "{text}");
}

#[test]
fn a_reader_that_comes_back_gets_every_line() {
    let world = World::new();
    let (mut reader, stderr) = small_pipe();
    let process = client(&world, stderr);
    events_run_meanwhile(&world);
    let rest = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("what was written");
        text
    });
    ends_soon(process);
    let text = rest.join().expect("reader");
    // The queue holds all of them.
    assert_eq!(text.matches("ignored: ").count(), IGNORED, "{text}");
    assert!(text.ends_with('\n') && text.contains("stopping"), "{text}");
}

#[test]
fn a_watch_whose_lines_nobody_reads_ends_when_it_is_told_to() {
    let world = World::new();
    let (reader, stdout) = small_pipe();
    let mut command = world.tael(["watch", "-t", "lab/#", "--qos", "1"]);
    command.stdout(stdout);
    let mut watch = world.spawn(command);
    wait_until("it listens", || watch.log_text().contains("connected to"));
    let mut raw = Raw::connect(world.broker.port());
    let held = || {
        let mut held: libc::c_int = 0;
        // SAFETY: the descriptor is open, and FIONREAD writes one `int` to a live local.
        let asked = unsafe { libc::ioctl(reader.as_raw_fd(), libc::FIONREAD, &raw mut held) };
        assert_eq!(asked, 0);
        held
    };
    wait_until("another line does not fit", || {
        send(&mut raw, "finished", 0);
        held() > 4096 - 60
    });
    // It blocks at the next one.
    (1..20).for_each(|n| send(&mut raw, "finished", n));
    let told = Instant::now();
    watch.signal(Signal::SIGTERM);
    // 0 if it has noticed that before the next line.
    assert!([0, 128 + 15].contains(&watch.wait()));
    assert!(told.elapsed() < Duration::from_secs(20));
}

#[test]
fn junk_without_end_makes_a_short_log() {
    const JUNK: usize = 500;
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", RECORD]);
    let mut raw = Raw::connect(world.broker.port());
    for _ in 0..JUNK {
        raw.publish(SEQ, b"junk", &[]);
    }
    send(&mut raw, "finished", 0);
    wait_until("the event has run", || world.lines("runs").len() == 1);
    let mut client = client;
    client.signal(Signal::SIGTERM);
    assert_eq!(client.wait(), 0);
    let log = client.log_text();
    let refused = log.lines().filter(|l| l.contains("event refused")).count();
    assert!((2..50).contains(&refused), "{log}");
    let summary = format!("and {} more like it", JUNK + 1 - refused);
    assert!(log.contains(&summary), "{summary}: {log}");
}

/// Returns both ends of a new terminal.
fn terminal() -> (File, OwnedFd) {
    let (mut ours, mut theirs) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: both integers live through the call; the name and the settings may be null.
    let made = unsafe {
        libc::openpty(
            &raw mut ours,
            &raw mut theirs,
            none,
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    assert_eq!(made, 0);
    // SAFETY: `openpty` has just returned these descriptors, and nothing else owns them.
    unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) }
}

#[test]
fn a_terminal_stopped_by_ctrl_s_does_not_stop_the_client() {
    const CTRL_S: u8 = 0x13;
    let world = World::new();
    let (mut ours, theirs) = terminal();
    ours.write_all(&[CTRL_S]).expect("Ctrl-S");
    let process = client(&world, Stdio::from(theirs));
    events_run_meanwhile(&world);
    ends_soon(process);
}
