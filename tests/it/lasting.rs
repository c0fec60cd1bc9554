//! A daemon that has been online outlives every answer of the broker, and files that are being
//! replaced.

use std::fs;
use std::io::Write;
use std::thread;

use crate::common::raw::{Raw, Scripted, packet};
use crate::common::{Process, Setup, World, bare_command, spawn, wait_until};
use nix::sys::signal::Signal;

/// The arguments of each daemon.
const DAEMONS: [&[&str]; 4] = [
    &["client", "--who", "p", "-t", "lab/seq/status", "-c", "true"],
    &["beacon", "--interval", "200ms"],
    &["watch", "-t", "lab/#"],
    &["node", "n", "--functions"],
];

fn daemon(dir: &tempfile::TempDir, port: u16, arguments: &[&str]) -> Process {
    let mut command = bare_command(dir, "tael");
    command.args(arguments).env("TAEL_LOG", "info");
    if arguments.contains(&"--functions") {
        let functions = dir.path().join("functions");
        fs::write(&functions, "hello() { true; }\n").expect("functions");
        command.arg(functions);
    }
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    spawn(dir, &mut command)
}

/// Waits until the daemon has subscribed and published what it begins with.
#[track_caller]
fn came_online(raw: &mut Raw, arguments: &[&str]) {
    match arguments[0] {
        "watch" => raw.serve_subscription(),
        "client" => drop(raw.serve_until(|m| m.topic.ends_with("/presence"))),
        "beacon" => drop(raw.serve_until(|m| m.topic.ends_with("/beacon/status"))),
        _ => drop(raw.serve_until(|m| m.topic.ends_with("/STATUS"))),
    }
}

#[test]
fn a_broker_that_refuses_for_a_while_ends_no_daemon() {
    // Each waits for a while after a refusal, so all run at once.
    thread::scope(|scope| {
        for (arguments, code) in DAEMONS.into_iter().zip([0x87, 0x86, 0x8a, 0x80]) {
            scope.spawn(move || outlives_a_refusal(arguments, code));
        }
    });
}

fn outlives_a_refusal(arguments: &[&str], code: u8) {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let process = daemon(&dir, broker.port(), arguments);
    came_online(&mut broker.accept(), arguments);
    drop(broker.answer_with(code, &[]));
    came_online(&mut broker.accept(), arguments);
    let log = process.log_text();
    assert_eq!(log.matches("trying again").count(), 1, "{log}");
    // SIGTERM still ends it in good order.
    process.signal(Signal::SIGTERM);
    let mut process = process;
    assert_eq!(process.wait(), 0, "{}", process.log_text());
}

#[test]
fn before_the_first_success_a_refusal_ends_it() {
    for arguments in DAEMONS {
        let dir = tempfile::tempdir().expect("tempdir");
        let broker = Scripted::listen();
        let mut process = daemon(&dir, broker.port(), arguments);
        broker.answer_with(0x87, &[]);
        assert_eq!(process.wait(), 77, "{arguments:?}: {}", process.log_text());
    }
}

#[test]
fn a_goodbye_that_is_not_authorised_and_plain_text_end_no_daemon() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let process = daemon(&dir, broker.port(), DAEMONS[0]);
    let mut raw = broker.accept();
    came_online(&mut raw, DAEMONS[0]);
    raw.send(&packet(0xe0, &[0x87, 0]));
    wait_until("it is said", || {
        process.log_text().contains("not authorised")
    });
    drop(raw);
    // A balancer without a broker behind it.
    let (mut raw, _) = broker.hear_connect();
    raw.send(b"HTTP/1.1 503 Service Unavailable\r\n\r\n");
    wait_until("it is said", || process.log_text().contains("speaks HTTP"));
    drop(raw);
    came_online(&mut broker.accept(), DAEMONS[0]);
}

#[test]
fn a_filter_that_is_refused_later_is_asked_for_again() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let process = daemon(&dir, broker.port(), DAEMONS[0]);
    came_online(&mut broker.accept(), DAEMONS[0]);
    let mut raw = broker.accept();
    let (kind, body) = raw.receive();
    assert_eq!(kind >> 4, 8, "SUBSCRIBE");
    // The filter of the trigger is refused, and the control topic granted.
    raw.send(&packet(0x90, &[body[0], body[1], 0, 0x87, 0x87]));
    // The client is online, and asks again on this connection.
    raw.serve_until(|m| m.topic.ends_with("/presence"));
    raw.serve_subscription();
    let log = process.log_text();
    assert_eq!(log.matches("asking again").count(), 1, "{log}");
}

#[test]
fn files_that_are_being_replaced_end_no_daemon() {
    let mut world = World::with(Setup {
        tls: true,
        password: Some("secret".into()),
        ..Setup::default()
    });
    let password = world.path("password");
    fs::write(&password, "secret").expect("password");
    let mut command = world.command("tael-client");
    command.args(["--who", "p", "--root", "lab", "-t", "lab/seq/status"]);
    command
        .args(["-c", "true", "--password-file"])
        .arg(&password);
    command.env("TAEL_LOG", "info").env_remove("TAEL_PASSWORD");
    let client = world.online("p", command);
    let certificates = world.broker.certificates.as_ref().expect("certificates");
    let key = certificates.path("client.key");
    let text = fs::read(&key).expect("key");
    for (path, half, whole, word) in [
        (key.as_str(), &text[..40], &text[..], "client.key"),
        (
            password.to_str().expect("path"),
            &b""[..],
            b"secret",
            "password",
        ),
    ] {
        fs::write(path, half).expect("half");
        world.broker.kill();
        world.broker.restart();
        wait_until("it is said", || client.log_text().contains(word));
        fs::write(path, whole).expect("whole");
        let online = |log: &str| log.matches("connected to").count();
        let before = online(&client.log_text());
        wait_until("it is back", || online(&client.log_text()) > before);
    }
    client.stop();
}

#[test]
fn a_port_that_is_taken_by_a_stranger_for_a_while() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let port = broker.port();
    let process = daemon(&dir, port, DAEMONS[1]);
    came_online(&mut broker.accept(), DAEMONS[1]);
    // Its port stays ours meanwhile: another process may get a port that nothing holds.
    let mut stream = broker.accept_as_stranger();
    stream.write_all(b"SSH-2.0-x\r\n").expect("write");
    wait_until("it is said", || process.log_text().contains("SSH"));
    drop(stream);
    came_online(&mut broker.accept(), DAEMONS[1]);
}
