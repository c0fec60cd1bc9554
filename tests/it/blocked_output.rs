//! Commands whose standard output nothing reads.

use std::io::{ErrorKind, PipeReader, PipeWriter, Read as _, Write as _, pipe};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;

use crate::common::{World, bare_command, spawn, wait_until};

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
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
    let address = listener.local_addr().expect("address");
    drop(listener);
    let (reader, writer) = full_pipe();
    let mut command = bare_command(&dir, "tael");
    command.args(["broker", "--print-url", "--listen", &address.to_string()]);
    let process = spawn(&dir, command.stdout(writer));
    wait_until("it listens", || TcpStream::connect(address).is_ok());
    process.stop();
    drop(reader);
}
