//! What a stranger, or a broker, can make our processes hold.

use std::fs;
use std::process::{Command, Stdio};

use crate::common::raw::{Heard, Raw, Scripted, packet, publish, publish_with, request_properties};
use crate::common::{Process, bare_command, peak_memory, spawn, wait_until};

/// The most memory that a process may ever have held, bytes: a few packets full of the shortest
/// properties, decoded at a time, and what a debug build needs itself.
const MAX_MEMORY: usize = 250 * 1024 * 1024;

/// One of our commands, pointed at a scripted broker.
fn of(dir: &tempfile::TempDir, broker: &Scripted, name: &str, arguments: &[&str]) -> Command {
    let mut command = bare_command(dir, name);
    command
        .args(arguments)
        .args(["--root", "lab", "-H", "127.0.0.1"])
        .args(["-p", &broker.port().to_string()])
        .stdout(Stdio::null());
    command
}

/// A PUBLISH at QoS 1 that fills `size` bytes with the shortest user properties.
fn poison(topic: &str, id: u16, size: usize) -> Vec<u8> {
    let pair = [0x26, 0, 1, b'a', 0, 1, b'b'];
    let properties = pair.repeat((size - 100) / pair.len());
    publish_with(topic.as_bytes(), b"{}", Some(id), &properties, false)
}

/// Sends a dozen of poisoned messages and a plain one, all of which must be acknowledged.
#[track_caller]
fn survives(process: Process, mut raw: Raw, topic: &str, limit: usize) {
    raw.serve_subscription();
    for id in 1..=12 {
        raw.send(&poison(topic, id, limit));
    }
    raw.send(&publish(topic.as_bytes(), b"{}", Some(100), &[], false));
    raw.serve_until_acknowledged(100);
    let peak = peak_memory(&process);
    assert!(peak < MAX_MEMORY, "{} MB", peak >> 20);
    drop(process);
}

#[test]
fn properties_do_not_fill_the_memory_of_a_client() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let arguments = ["--who", "p", "-t", "lab/seq/status", "-c", "true"];
    let client = spawn(&dir, &mut of(&dir, &broker, "tael-client", &arguments));
    let (raw, limit) = broker.accept_limit();
    survives(client, raw, "lab/seq/status", limit);
}

#[test]
fn properties_do_not_fill_the_memory_of_a_watcher() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let arguments = ["watch", "--qos", "1", "--json"];
    let watch = spawn(&dir, &mut of(&dir, &broker, "tael", &arguments));
    let (raw, limit) = broker.accept_limit();
    survives(watch, raw, "lab/seq/status", limit);
}

#[test]
fn properties_do_not_fill_the_memory_of_a_node() {
    let dir = tempfile::tempdir().expect("tempdir");
    let functions = dir.path().join("functions");
    fs::write(&functions, "startFunction() { :; }\n").expect("functions");
    let functions = functions.to_str().expect("path");
    let broker = Scripted::listen();
    let arguments = ["node", "n", "--functions", functions];
    let node = spawn(&dir, &mut of(&dir, &broker, "tael", &arguments));
    let (raw, limit) = broker.accept_limit();
    survives(node, raw, "lab/n/COMMAND", limit);
}

#[test]
fn a_broker_that_uses_topic_aliases_is_left() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let arguments = ["--who", "p", "-t", "lab/seq/status", "-c", "true"];
    let client = spawn(&dir, &mut of(&dir, &broker, "tael-client", &arguments));
    let mut raw = broker.accept();
    raw.serve_until(|m| m.topic.ends_with("/presence"));
    // Topic Alias 1, though the client offers none (MQTT 5.0, section 3.3.2.3.4).
    let alias = [0x23, 0, 1];
    raw.send(&publish_with(b"lab/a", b"{}", Some(1), &alias, false));
    let mut next = broker.accept();
    next.serve_until(|m| m.topic.ends_with("/presence"));
    assert!(client.log_text().contains("topic aliases"));
}

#[test]
fn replies_that_nobody_takes_do_not_fill_the_memory() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let arguments = ["--who", "p", "-t", "lab/seq/status", "-c", "true"];
    let client = spawn(&dir, &mut of(&dir, &broker, "tael-client", &arguments));
    let mut raw = broker.accept();
    raw.serve_until(|m| m.topic.ends_with("/presence"));
    // Each reply carries this back, and is never acknowledged.
    let correlation = vec![b'x'; 60_000];
    let topic = "lab/infrastructure/pipelines/p/reply/x";
    let wants = request_properties(topic, &correlation);
    let control = b"lab/infrastructure/pipelines/p/control";
    let request = publish_with(control, b"{}", None, &wants, false);
    // As many as may be under way.
    for _ in 0..64 {
        raw.send(&request);
    }
    let unanswered: Vec<[u8; 2]> = (0..64)
        .map(|_| {
            let (kind, body) = raw.receive();
            Heard::parse(kind, &body).1.expect("QoS 1")
        })
        .collect();
    wait_until("the client says that it drops replies", || {
        for _ in 0..64 {
            raw.send(&request);
        }
        client.log_text().contains("replies are dropped")
    });
    for _ in 0..2000 {
        raw.send(&request);
    }
    // Once the broker answers, the client goes on.
    for id in unanswered {
        raw.send(&packet(0x40, &id));
    }
    raw.send(&publish(b"lab/seq/status", b"{}", Some(9), &[], false));
    raw.serve_until_acknowledged(9);
    let peak = peak_memory(&client);
    assert!(peak < 128 << 20, "{} MB", peak >> 20);
}
