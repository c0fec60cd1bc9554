//! `tael gateway`: the page of a large network, whose senders and readers are hostile.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::gateway_units::Events;
use crate::common::gateway::Gateway;
use crate::common::raw::{Raw, publish};
use crate::common::{PATIENCE, World, peak_memory, wait_until};

const COUNT: usize = 10_000;

/// Maximum memory of the gateway, as docs/gateway.md says it, bytes.
const MAX_MEMORY: usize = 256 * 1024 * 1024;

const PLACE: &str = "lab/infrastructure/pipelines";

/// Returns the presence of a pipeline, as large as it is kept, and larger.
fn presence(n: usize) -> String {
    let topic = |i: usize| format!("lab/{n}/{i}/{}", "x".repeat(480));
    let topics: Vec<String> = (0..18).map(topic).collect();
    let host = "\u{202e}".repeat(300);
    let triggers = json!([{ "name": "t", "topics": topics, "when": [] }]);
    json!({ "state": "online", "host": host, "version": host, "triggers": triggers }).to_string()
}

/// Tells the gateway of pipelines until it knows all of them.
fn fill(world: &World, gateway: &Gateway) {
    let mut events = Events::open(gateway, "/api/stream?messages=0", &[]);
    assert_eq!(events.next().expect("event").0, "network");
    let mut sender = Raw::connect(world.broker.port());
    // The broker drops what a slow subscriber does not take.
    for first in (0..COUNT).step_by(20) {
        for n in first..first + 20 {
            let topic = format!("{PLACE}/p{n}/presence");
            sender.send(&publish(
                topic.as_bytes(),
                presence(n).as_bytes(),
                None,
                &[],
                false,
            ));
        }
        let last = format!("p{}", first + 19);
        let deadline = Instant::now() + PATIENCE;
        while events.next().expect("event").1["who"] != last.as_str() {
            assert!(Instant::now() < deadline, "{last} never came");
        }
    }
}

fn pipelines(gateway: &Gateway) -> usize {
    let network = gateway.get("/api/network").json();
    network["pipelines"].as_array().map_or(0, Vec::len)
}

/// Opens a stream, and returns it when the gateway has begun to answer.
fn begin(gateway: &Gateway) -> TcpStream {
    let mut stream = gateway.connect();
    let get = "GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(get.as_bytes()).expect("request");
    let mut start = [0; 15];
    stream.read_exact(&mut start).expect("answer");
    assert_eq!(&start, b"HTTP/1.1 200 OK");
    stream
}

#[test]
fn readers_that_do_not_read_do_not_fill_the_memory_and_callers_do_not_stop_others() {
    let world = World::new();
    let gateway = Gateway::online(&world, &[]);
    fill(&world, &gateway);
    assert_eq!(pipelines(&gateway), COUNT);
    let mut sender = Raw::connect(world.broker.port());
    let mut idle = Vec::new();
    for n in 0..10 {
        // Each ten hold another snapshot.
        let state = json!({ "state": "offline", "host": n.to_string() }).to_string();
        sender.publish(&format!("{PLACE}/p0/presence"), state.as_bytes(), &[]);
        wait_until("the change is there", || {
            let network = gateway.get("/api/network");
            network.body.contains(&format!(r#""host":"{n}""#))
        });
        for _ in 0..10 {
            idle.push(begin(&gateway));
        }
    }
    // Others still get everything, and what changes.
    let mut events = Events::open(&gateway, "/api/stream?messages=0", &[]);
    let (name, all) = events.next().expect("event");
    assert_eq!(name, "network");
    assert_eq!(all["truncated"], true);
    sender.publish(&format!("{PLACE}/p1/presence"), b"", &[]);
    while events.next().expect("event").1 != json!({ "who": "p1" }) {}
    let memory = peak_memory(&gateway.process);
    assert!(memory < MAX_MEMORY, "{} MiB", memory >> 20);

    let answers = AtomicUsize::new(0);
    let has_ended = || answers.load(Ordering::Relaxed) >= 6;
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !has_ended() {
                    assert_eq!(gateway.get("/api/network").status, 200);
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut times = Vec::new();
        while !has_ended() {
            // Each answer of the callers is another one.
            let state = json!({ "state": "online", "since": times.len() }).to_string();
            sender.publish(&format!("{PLACE}/p2/presence"), state.as_bytes(), &[]);
            let begun = Instant::now();
            assert_eq!(gateway.get("/healthz").status, 200);
            times.push(begun.elapsed());
        }
        times.sort();
        let most = times[times.len() * 9 / 10];
        assert!(most < Duration::from_millis(100), "{times:?}");
    });
    drop(idle);
    gateway.process.stop();
}

#[test]
fn odd_names_are_escaped_and_open_their_pipelines() {
    let world = World::new();
    let gateway = Gateway::online(&world, &[]);
    let who = "a\u{202e}\u{200b}\"<b";
    let mut sender = Raw::connect(world.broker.port());
    let topics = [format!("{PLACE}/{who}/status"), "lab/\u{2028}x".to_owned()];
    let presence = json!({ "triggers": [{ "name": "t", "topics": topics }] }).to_string();
    for name in [who, "b\u{2066}"] {
        sender.publish(
            &format!("{PLACE}/{name}/presence"),
            presence.as_bytes(),
            &[],
        );
    }
    let mut all = Value::Null;
    wait_until("both are shown", || {
        let answer = gateway.get("/api/network");
        let is_hidden = |c: char| "\u{202e}\u{200b}\u{2066}\u{2028}".contains(c);
        assert!(!answer.body.contains(is_hidden), "{answer:?}");
        all = answer.json();
        all["pipelines"].as_array().map(Vec::len) == Some(2)
    });
    assert_eq!(all["pipelines"][0]["who"], who);
    let edge = json!({ "from": who, "to": "b\u{2066}", "topic": topics[0] });
    assert!(
        all["edges"].as_array().expect("edges").contains(&edge),
        "{all}"
    );
    let path = "/api/pipelines/a%E2%80%AE%E2%80%8B%22%3Cb/runs";
    let runs = gateway.get(path);
    assert!(
        runs.body.contains(r#""who":"a\u202e\u200b\"<b""#),
        "{runs:?}"
    );
    assert_eq!(runs.json()["who"], who);
    gateway.process.stop();
}
