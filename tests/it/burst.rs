//! Many messages at once. `cargo bench` counts what a real broker with small limits drops.

use crate::common::raw::{Raw, publish};
use crate::common::scene::{RUN, SEQ, Scene, event};

/// The client that takes the burst.
const CLIENT: &[&str] = &["-t", SEQ, "-c", RUN, "--jobs", "8", "--log", "none"];

/// Number of messages that mosquitto, as it is shipped, sends before it waits for an acknowledgement.
const WINDOW: u16 = 20;

/// Number of messages of a burst.
const EVENTS: u16 = 400;

/// Sends `count` events from number `first` on, as such a broker does.
fn burst(raw: &mut Raw, first: u16, count: u16) {
    for window in (first..first + count).step_by(usize::from(WINDOW)) {
        let end = (window + WINDOW).min(first + count);
        for id in window..end {
            let payload = event(id.into());
            let message = publish(SEQ.as_bytes(), payload.as_bytes(), Some(id), &[], false);
            raw.send(&message);
        }
        // Acknowledgements come in the order of the messages.
        raw.serve_until_acknowledged(end - 1);
    }
}

#[test]
fn each_event_of_a_burst_runs_once() {
    let scene = Scene::new();
    let client = scene.start(CLIENT);
    let mut raw = scene.online();
    burst(&mut raw, 1, EVENTS);
    let all = usize::from(EVENTS);
    raw.serve_until(|m| m.text().contains(r#""status":"finished""#) && scene.runs().len() >= all);
    // An event that ran twice has done so before the last one.
    burst(&mut raw, EVENTS + 1, 1);
    let last = (EVENTS + 1).to_string();
    raw.serve_until(|m| {
        m.text().contains(r#""status":"finished""#) && scene.runs().contains(&last)
    });
    let mut numbers: Vec<u16> = scene
        .runs()
        .iter()
        .map(|n| n.parse().expect("number"))
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=EVENTS + 1).collect::<Vec<_>>());
    client.kill();
}

#[test]
fn a_burst_is_in_flight_before_a_broker_could_drop_it() {
    let scene = Scene::new();
    let client = scene.start(CLIENT);
    let (mut raw, connect) = scene.broker.greet(false, &[]);
    // mosquitto, as it is shipped, keeps half of such a burst besides.
    const BURST: u16 = 2000;
    assert!(connect.receive_maximum >= BURST, "{connect:?}");
    raw.serve_until(|m| m.topic.ends_with("/presence"));
    for id in 1..=BURST {
        let payload = event(id.into());
        let message = publish(SEQ.as_bytes(), payload.as_bytes(), Some(id), &[], false);
        raw.send(&message);
    }
    // Only messages on disk are acknowledged, and most are on disk before their runs start.
    raw.serve_until_acknowledged(BURST);
    assert!(
        scene.runs().len() < usize::from(BURST) / 2,
        "starts came first"
    );
    client.kill();
}
