//! Memory that senders and brokers can make our processes use.

use std::fs;
use std::process::Stdio;

use crate::common::raw::{Heard, Raw, packet, publish, publish_with, request_properties};
use crate::common::scene::{CONTROL, SEQ, Scene};
use crate::common::{Process, peak_memory, wait_until};

/// Maximum memory of a process, bytes: a few decoded packets full of the shortest properties, and
/// what a debug build needs itself.
const MAX_MEMORY: usize = 250 * 1024 * 1024;

const CLIENT: &[&str] = &["-t", SEQ, "-c", "true"];

/// Returns a PUBLISH at QoS 1 that fills `size` bytes with the shortest user properties.
fn poison(topic: &str, id: u16, size: usize) -> Vec<u8> {
    let pair = [0x26, 0, 1, b'a', 0, 1, b'b'];
    let properties = pair.repeat((size - 100) / pair.len());
    publish_with(topic.as_bytes(), b"{}", Some(id), &properties, false)
}

/// Sends twelve such messages and a plain one. All must be acknowledged.
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
    let scene = Scene::new();
    let client = scene.start(CLIENT);
    let (raw, limit) = scene.broker.accept_limit();
    survives(client, raw, SEQ, limit);
}

#[test]
fn properties_do_not_fill_the_memory_of_a_watcher() {
    let scene = Scene::new();
    let mut watch = scene.program("tael", &["watch", "--qos", "1", "--json"]);
    let watch = scene.spawn(watch.stdout(Stdio::null()));
    let (raw, limit) = scene.broker.accept_limit();
    survives(watch, raw, SEQ, limit);
}

#[test]
fn properties_do_not_fill_the_memory_of_a_node() {
    let scene = Scene::new();
    let functions = scene.dir.path().join("functions");
    fs::write(&functions, "startFunction() { :; }\n").expect("functions");
    let functions = functions.to_str().expect("path");
    let mut node = scene.program("tael", &["node", "n", "--functions", functions]);
    let node = scene.spawn(node.stdout(Stdio::null()));
    let (raw, limit) = scene.broker.accept_limit();
    survives(node, raw, "lab/n/COMMAND", limit);
}

#[test]
fn a_broker_that_uses_topic_aliases_is_left() {
    let scene = Scene::new();
    let client = scene.start(CLIENT);
    let mut raw = scene.online();
    // Topic Alias 1, though the client offers none (MQTT 5.0, section 3.3.2.3.4).
    let alias = [0x23, 0, 1];
    raw.send(&publish_with(b"lab/a", b"{}", Some(1), &alias, false));
    let _next = scene.online();
    assert!(client.log_text().contains("topic aliases"));
}

#[test]
fn replies_that_nobody_takes_do_not_fill_the_memory() {
    let scene = Scene::new();
    let client = scene.start(CLIENT);
    let mut raw = scene.online();
    // Each reply repeats this, and is never acknowledged.
    let correlation = vec![b'x'; 60_000];
    let topic = "lab/infrastructure/pipelines/p/reply/x";
    let wants = request_properties(topic, &correlation);
    let request = publish_with(CONTROL.as_bytes(), b"{}", None, &wants, false);
    // As many as may be in flight.
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
    // When the broker answers, the client goes on.
    for id in unanswered {
        raw.send(&packet(0x40, &id));
    }
    raw.send(&publish(SEQ.as_bytes(), b"{}", Some(9), &[], false));
    raw.serve_until_acknowledged(9);
    let peak = peak_memory(&client);
    assert!(peak < 128 << 20, "{} MB", peak >> 20);
}
