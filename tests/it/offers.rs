//! Brokers that offer less than Tael needs, and host names that no server resolves.

use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::raw::{Scripted, packet};
use crate::common::{Process, bare_command, binary, has_program, has_root, ran, spawn, wait_until};
use nix::sys::signal::Signal;

fn daemon(dir: &tempfile::TempDir, broker: &Scripted, arguments: &[&str]) -> Process {
    let mut command = bare_command(dir, "tael");
    command.args(arguments).env("TAEL_LOG", "info");
    command.args(["-H", "127.0.0.1", "-p", &broker.port().to_string()]);
    spawn(dir, &mut command)
}

const CLIENT: &[&str] = &["client", "--who", "p", "-t", "lab/seq/status", "-c", "true"];

#[test]
fn a_broker_that_offers_less_is_told_of_once_and_used() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let client = daemon(&dir, &broker, CLIENT);
    for _ in 0..2 {
        // Session expiry 60 s, Retain Available 0.
        let mut raw = broker.accept_with(&[0x11, 0, 0, 0, 60, 0x25, 0]);
        let presence = raw.serve_until(|m| m.topic.ends_with("/presence"));
        assert!(!presence.retained, "it would cost the connection");
    }
    let log = client.log_text();
    assert_eq!(log.matches("offers less than needed").count(), 1, "{log}");
    assert!(log.contains("for 1m, not for 7d"), "{log}");
    assert!(log.contains("no retained messages"), "{log}");
}

#[test]
fn a_will_that_is_refused_is_sent_without_what_the_broker_does_not_take() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let client = daemon(&dir, &broker, CLIENT);
    let (mut raw, connect) = broker.hear_connect();
    // The flags follow the name and version of the protocol: will, its QoS, retained.
    assert_eq!(connect[7] & 0x3c, 0x2c, "retained, at QoS 1");
    // Retain not supported.
    raw.send(&packet(0x20, &[0, 0x9a, 0]));
    drop(raw);
    let (mut raw, connect) = broker.hear_connect();
    assert_eq!(connect[7] & 0x3c, 0x04, "neither");
    raw.send(&packet(0x20, &[0, 0, 2, 0x25, 0]));
    raw.serve_until(|m| m.topic.ends_with("/presence"));
    let log = client.log_text();
    assert!(log.contains("refuses the will"), "{log}");
}

#[test]
fn a_beacon_keeps_its_link_where_nothing_is_retained() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let _beacon = daemon(&dir, &broker, &["beacon", "--interval", "200ms"]);
    let mut raw = broker.accept_with(&[0x25, 0]);
    for _ in 0..3 {
        let beat = raw.serve_until(|m| m.topic.ends_with("/beacon/status"));
        assert!(!beat.retained);
    }
}

#[test]
fn a_lower_qos_than_asked_is_told() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let client = daemon(&dir, &broker, CLIENT);
    // Maximum QoS 0.
    let mut raw = broker.accept_with(&[0x24, 0]);
    let (kind, body) = raw.receive();
    assert_eq!(kind >> 4, 8, "SUBSCRIBE");
    raw.send(&packet(0x90, &[body[0], body[1], 0, 0, 0]));
    let presence = raw.serve_until(|m| m.topic.ends_with("/presence"));
    assert!(presence.text().contains("online"));
    let log = client.log_text();
    assert!(log.contains("QoS 0 only: messages may be lost"), "{log}");
    assert!(log.contains("grants a lower QoS than asked"), "{log}");
}

/// Returns one of our commands in a namespace whose name server never answers.
fn unresolved(dir: &tempfile::TempDir, name: &str) -> Command {
    let resolver = dir.path().join("resolv.conf");
    let text = "nameserver 127.0.83.53\noptions timeout:20 attempts:1\n";
    fs::write(&resolver, text).expect("resolv.conf");
    let mut command = Command::new("unshare");
    let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    command.args(["-m", "sh", "-c", script]).arg(resolver);
    command.arg(binary(name));
    for (name, value) in bare_command(dir, name).get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command
}

#[test]
fn a_resolver_that_hangs_holds_up_neither_a_time_limit_nor_a_stop() {
    if !has_root("a resolver hangs") || !has_program("unshare", "a resolver hangs") {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let _silent = UdpSocket::bind("127.0.83.53:53").expect("bind");
    let begin = Instant::now();
    let mut message = unresolved(&dir, "tael-message");
    message.args(["-t", "a", "-H", "nowhere.example", "--timeout", "2s"]);
    let (code, _, stderr) = ran(&mut message);
    assert_eq!(code, 69, "{stderr}");
    assert!(
        begin.elapsed() < Duration::from_secs(15),
        "{:?}",
        begin.elapsed()
    );
    let mut beacon = unresolved(&dir, "tael-beacon");
    beacon.args(["-H", "nowhere.example"]);
    let mut beacon = spawn(&dir, &mut beacon);
    let pid = beacon.child.id();
    wait_until("it looks the name up", || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten();
        tasks.flatten().any(|task| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "lookup\n")
        })
    });
    let begin = Instant::now();
    beacon.signal(Signal::SIGTERM);
    assert_eq!(beacon.wait(), 0, "{}", beacon.log_text());
    assert!(
        begin.elapsed() < Duration::from_secs(15),
        "{:?}",
        begin.elapsed()
    );
}
