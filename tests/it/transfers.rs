//! Files between nodes and playbooks: none is lost, and none goes to another place.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::common::ports::free_port;
use crate::common::{Process, World, ran, wait_until};

const FUNCTIONS: &str = "startFunction() { :; }\nstopFunction() { :; }\n";

/// Starts node `n`, which may send from the folder `in`.
fn node(world: &World) -> Process {
    let (functions, allowed) = (world.path("functions"), world.path("in"));
    fs::write(&functions, FUNCTIONS).expect("functions");
    fs::create_dir(&allowed).expect("folder");
    let mut command = world.command("tael");
    command.args(["node", "n", "--root", "lab", "--functions"]);
    command.arg(functions).arg("--allow-dir").arg(allowed);
    world.spawn(command)
}

fn play_command(world: &World, text: &str, more: &[&str]) -> Command {
    let file = world.path("playbook");
    fs::write(&file, text).expect("playbook");
    let mut command = world.tael(["play", "--root", "lab"]);
    if !more.contains(&"--timeout") {
        command.args(["--timeout", "30s"]);
    }
    command.args(more).arg(file).current_dir(world.dir.path());
    command.env("TAEL_LOG", "warn");
    command
}

fn play(world: &World, text: &str, more: &[&str]) -> (i32, String) {
    let (code, out, stderr) = ran(&mut play_command(world, text, more));
    (code, out + &stderr)
}

/// Receives one file, as a plain program does. Returns the port, and later the content.
fn taker() -> (u16, thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    let taking = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("read");
        text
    });
    (port, taking)
}

#[test]
fn what_is_appended_while_a_file_is_sent_is_sent_or_stays() {
    const ROUNDS: usize = 10;
    let world = World::new();
    let _node = node(&world);
    let path = world.path("in/log");
    let (done, mut sent, mut emptied) = (AtomicBool::new(false), String::new(), 0);
    let written = thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut lines = 0;
            // Like `echo N >>log` in a loop.
            while !done.load(Ordering::Relaxed) {
                let mut log = fs::File::options();
                let mut log = log.append(true).create(true).open(&path).expect("log");
                writeln!(log, "{lines}").expect("line");
                lines += 1;
            }
            lines
        });
        wait_until("there is something", || path.exists());
        for _ in 0..ROUNDS {
            let (port, taking) = taker();
            let file = path.display();
            let text = format!(
                "WAITFOR n ALIVE\nSEND n SENDFILE {file} 127.0.0.1 {port} TRUNCATE\nWAITFOR n SENT FILE\n"
            );
            let (code, out) = play(&world, &text, &[]);
            // A report says when it was not emptied. Then its lines come again.
            assert!([0, 75].contains(&code), "{out}");
            emptied += usize::from(code == 0);
            sent += &taking.join().expect("taker");
        }
        done.store(true, Ordering::Relaxed);
        writing.join().expect("writer")
    });
    let kept = fs::read_to_string(&path).expect("log");
    let found: HashSet<usize> = sent
        .lines()
        .chain(kept.lines())
        .map(|line| line.parse().expect("a whole line"))
        .collect();
    assert!(emptied > 0, "emptied at least once");
    assert_eq!(found.len(), written, "none is lost");
}

#[test]
fn a_file_that_is_open_elsewhere_is_sent_but_not_emptied() {
    let world = World::new();
    let node = node(&world);
    let path = world.path("in/log");
    fs::write(&path, "text").expect("file");
    let open = fs::File::options().append(true).open(&path).expect("open");
    let (port, taking) = taker();
    let file = path.display();
    let text = format!(
        "WAITFOR n ALIVE\nSEND n SENDFILE {file} 127.0.0.1 {port} TRUNCATE\nWAITFOR n SENT FILE\n"
    );
    let (code, out) = play(&world, &text, &[]);
    assert_eq!(code, 75, "{out}");
    assert_eq!(taking.join().expect("taker"), "text");
    assert_eq!(fs::read_to_string(&path).expect("file"), "text");
    assert!(node.log_text().contains("sent, but not emptied"));
    drop(open);
}

/// Plays `RECEIVE PORT taken`, and connects to `address` when it listens.
fn receiving(world: &World, address: &str, more: &[&str]) -> (Child, TcpStream) {
    let port = free_port();
    let mut command = play_command(world, &format!("RECEIVE {port} taken\n"), more);
    let playing = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut stream = None;
    wait_until("it listens", || {
        stream = TcpStream::connect((address, port)).ok();
        stream.is_some()
    });
    (playing.expect("play"), stream.expect("stream"))
}

#[test]
fn files_come_only_from_those_who_may_send_them_and_have_a_limit() {
    let world = World::new();
    let folder = || {
        let names = fs::read_dir(world.dir.path()).expect("folder").flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names
            .filter(|name| name.contains("part"))
            .collect::<Vec<_>>()
    };
    // A file that is too large is refused and removed.
    let (mut playing, mut stream) = receiving(&world, "127.0.0.1", &["--max-file", "10"]);
    stream.write_all(b"12345678901").expect("write");
    assert_eq!(playing.wait().expect("play").code(), Some(65));
    assert_eq!(
        stream.read(&mut [0]).map_err(|e| e.kind()),
        Err(std::io::ErrorKind::ConnectionReset)
    );
    assert!(!world.path("taken").exists() && folder().is_empty());
    // A connection from another address is refused.
    let others = [
        "--from",
        "192.0.2.0/24",
        "--from",
        "127.0.0.2",
        "--timeout",
        "1s",
    ];
    let (mut playing, mut stream) = receiving(&world, "127.0.0.1", &others);
    let _ = stream.write_all(b"text");
    assert_eq!(playing.wait().expect("play").code(), Some(75));
    assert!(!world.path("taken").exists() && folder().is_empty());
    // It listens on one address, and accepts that.
    let one = [
        "--listen",
        "127.0.0.3",
        "--from",
        "127.0.0.0/8",
        "--max-file",
        "4",
    ];
    let (mut playing, mut stream) = receiving(&world, "127.0.0.3", &one);
    let port = stream.peer_addr().expect("address").port();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    stream.write_all(b"text").expect("write");
    stream.shutdown(std::net::Shutdown::Write).expect("end");
    // The file is complete when the connection is closed.
    assert_eq!(stream.read(&mut [0]).expect("closed"), 0);
    assert_eq!(
        fs::read_to_string(world.path("taken")).expect("taken"),
        "text"
    );
    assert_eq!(playing.wait().expect("play").code(), Some(0));
    assert!(folder().is_empty());
}

#[test]
fn a_file_that_was_not_kept_is_not_emptied() {
    let world = World::new();
    let node = node(&world);
    let path = world.path("in/file");
    fs::write(&path, "too large").expect("file");
    let port = free_port();
    let text = format!(
        "WAITFOR n ALIVE\nRECEIVE {port} taken\nSEND n SENDFILE {} 127.0.0.1 {port} TRUNCATE\n\
         WAITFOR n SENT FILE\n",
        path.display()
    );
    let (code, out) = play(&world, &text, &["--max-file", "3"]);
    assert_eq!(code, 69, "{out}");
    assert_eq!(fs::read_to_string(&path).expect("file"), "too large");
    assert!(!world.path("taken").exists());
    let (code, out) = play(&world, &text, &["--max-file", "9"]);
    assert_eq!(code, 0, "{out}");
    assert_eq!(
        fs::read_to_string(world.path("taken")).expect("taken"),
        "too large"
    );
    assert_eq!(fs::read_to_string(&path).expect("file"), "");
    drop(node);
}
