//! Commands whose standard output nothing reads.

use std::fs;
use std::io::{ErrorKind, PipeReader, PipeWriter, Read as _, Write as _, pipe};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;

use crate::common::ports::free_port;
use crate::common::{Process, World, bare_command, spawn, wait_until};
use crate::tools::processes_of;

/// Size of a page: a pipe has one at least.
const PAGE: usize = 4096;

/// Returns a pipe of a page.
fn small_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = pipe().expect("pipe");
    let size = i32::try_from(PAGE).expect("size");
    fcntl(writer.as_fd(), FcntlArg::F_SETPIPE_SZ(size)).expect("size");
    (reader, writer)
}

/// Returns a pipe without room.
pub fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = small_pipe();
    let set = |flags| fcntl(writer.as_fd(), FcntlArg::F_SETFL(flags)).map(drop);
    set(OFlag::O_NONBLOCK).expect("flags");
    let is_full =
        |written: std::io::Result<()>| written.is_err_and(|e| e.kind() == ErrorKind::WouldBlock);
    while !is_full(writer.write_all(b"x")) {}
    fcntl(writer.as_fd(), FcntlArg::F_SETFL(OFlag::empty())).expect("flags");
    (reader, writer)
}

#[test]
fn a_daemon_tells_facts_though_nothing_reads_its_output() {
    let world = World::new();
    let presence = "lab/infrastructure/nodes/seq1/presence";
    let ears = world.ears(&[presence]);
    let (reader, writer) = full_pipe();
    let mut command = world.tael(["facts", "publish", "--root", "lab", "--node", "seq1"]);
    command
        .args(["--json", "--interval", "1s"])
        .env("TAEL_LOG", "warn")
        .stdout(writer);
    let process = world.spawn(command);
    ears.wait_all("three rounds", |all| {
        let online = all.iter().filter(|m| m.payload["state"] == "online");
        (online.count() > 2).then_some(())
    });
    process.stop();
    drop(reader);
    ears.wait("goodbye", |m| m.payload["state"] == "offline");
}

#[test]
fn a_signal_ends_events_that_nothing_reads() {
    let world = World::new();
    let client = world.client("p", &["-t", "lab/in", "-c", "true"]);
    for _ in 0..60 {
        world.message("lab/in", &[("status", "ignored")]);
    }
    world.wait_report("p", "/events/ignored", 60);
    let (mut reader, writer) = small_pipe();
    let mut command = world.tael(["events", "--json", "--follow", "-n", "60"]);
    command.stdout(writer);
    let mut process = world.spawn(command);
    reader.read_exact(&mut [0]).expect("it prints");
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait(), 143);
    client.stop();
}

#[test]
fn a_broker_serves_and_stops_though_nothing_reads_its_address() {
    let dir = tempfile::tempdir().expect("tempdir");
    let address = format!("127.0.0.1:{}", free_port());
    let (reader, writer) = full_pipe();
    let mut command = bare_command(&dir, "tael");
    command.args(["broker", "--print-url", "--listen", &address]);
    let process = spawn(&dir, command.stdout(writer));
    wait_until("it listens", || TcpStream::connect(&address).is_ok());
    process.stop();
    drop(reader);
}

/// Starts a demo that prints to `stdout`.
fn demo(dir: &tempfile::TempDir, stdout: PipeWriter) -> Process {
    let mut command = bare_command(dir, "tael");
    spawn(dir, command.arg("demo").stdout(stdout))
}

/// Returns the pipelines of the demo that have begun.
fn pipelines_of_demo(dir: &tempfile::TempDir) -> usize {
    let folders = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let demos = folders(&dir.path().join("state"));
    let pipelines = demos.flat_map(|demo| folders(&demo.path()));
    pipelines
        .filter(|pipeline| pipeline.path().is_dir())
        .count()
}

/// Waits until neither a process nor a file of the demo is left.
#[track_caller]
fn wait_nothing_left(dir: &tempfile::TempDir) {
    let path = dir.path().to_str().expect("path");
    wait_until("nothing of it runs", || processes_of(path).is_empty());
    let left = fs::read_dir(dir.path().join("state")).expect("state");
    let left: Vec<_> = left.flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
#[cfg_attr(not(feature = "embedded-broker"), ignore = "there is no `tael demo`")]
fn a_signal_ends_a_demo_that_nothing_reads() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (reader, writer) = full_pipe();
    let mut process = demo(&dir, writer);
    wait_until("both pipelines run", || pipelines_of_demo(&dir) == 2);
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait(), 130);
    drop(reader);
    wait_nothing_left(&dir);
}

#[test]
#[cfg_attr(not(feature = "embedded-broker"), ignore = "there is no `tael demo`")]
fn a_demo_leaves_nothing_behind_when_its_reader_goes() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (mut reader, writer) = small_pipe();
    let mut process = demo(&dir, writer);
    reader.read_exact(&mut [0]).expect("it prints");
    wait_until("a pipeline runs", || pipelines_of_demo(&dir) > 0);
    drop(reader);
    assert_eq!(process.wait(), 141, "{}", process.log_text());
    wait_nothing_left(&dir);
}
