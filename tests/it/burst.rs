//! Many messages at once. `cargo bench` counts what a real broker with small limits drops.

use crate::common::raw::{Raw, Scripted, publish};
use crate::common::{bare_command, spawn};

const SEQ: &str = "lab/seq/status";

/// Messages that mosquitto, as it is shipped, sends before it waits for an acknowledgement.
const WINDOW: u16 = 20;

/// Messages of a burst.
const EVENTS: u16 = 400;

/// Sends `count` events from number `first` on, as such a broker does.
fn burst(raw: &mut Raw, first: u16, count: u16) {
    for window in (first..first + count).step_by(usize::from(WINDOW)) {
        let end = (window + WINDOW).min(first + count);
        for id in window..end {
            let payload = format!(r#"{{"status":"finished","n":{id}}}"#);
            raw.send(&publish(
                SEQ.as_bytes(),
                payload.as_bytes(),
                Some(id),
                &[],
                false,
            ));
        }
        // Acknowledgements come in the order of the messages.
        raw.serve_until_acknowledged(end - 1);
    }
}

#[test]
fn each_event_of_a_burst_runs_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let mut command = bare_command(&dir, "tael-client");
    command
        .args(["--who", "p", "--root", "lab", "-t", SEQ, "--log", "none"])
        .args(["-c", r#"echo "$ATTR_N" >>"$OUT/runs""#, "--jobs", "8"])
        .args(["-H", "127.0.0.1", "-p", &broker.port().to_string()]);
    let client = spawn(&dir, &mut command);
    let mut raw = broker.accept();
    raw.serve_until(|m| m.topic.ends_with("/presence"));
    burst(&mut raw, 1, EVENTS);
    let runs = || {
        let text = std::fs::read_to_string(dir.path().join("runs")).unwrap_or_default();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let all = usize::from(EVENTS);
    raw.serve_until(|m| m.text().contains(r#""status":"finished""#) && runs().len() >= all);
    // What ran twice has run before the one that comes last.
    burst(&mut raw, EVENTS + 1, 1);
    let last = (EVENTS + 1).to_string();
    raw.serve_until(|m| m.text().contains(r#""status":"finished""#) && runs().contains(&last));
    let mut numbers: Vec<u16> = runs().iter().map(|n| n.parse().expect("number")).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=EVENTS + 1).collect::<Vec<_>>());
    client.kill();
}

#[test]
fn a_burst_is_in_flight_before_a_broker_could_drop_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let mut command = bare_command(&dir, "tael-client");
    command
        .args(["--who", "p", "--root", "lab", "-t", SEQ, "--log", "none"])
        .args(["-c", r#"echo "$ATTR_N" >>"$OUT/runs""#, "--jobs", "8"])
        .args(["-H", "127.0.0.1", "-p", &broker.port().to_string()]);
    let client = spawn(&dir, &mut command);
    let (mut raw, connect) = broker.greet(false, &[]);
    // What mosquitto, as it is shipped, keeps besides is half of such a burst.
    const BURST: u16 = 2000;
    assert!(connect.receive_maximum >= BURST, "{connect:?}");
    raw.serve_until(|m| m.topic.ends_with("/presence"));
    for id in 1..=BURST {
        let payload = format!(r#"{{"status":"finished","n":{id}}}"#);
        let message = publish(SEQ.as_bytes(), payload.as_bytes(), Some(id), &[], false);
        raw.send(&message);
    }
    // Nothing is acknowledged that is not on disk, and most of it is before anything else starts.
    raw.serve_until_acknowledged(BURST);
    let runs = std::fs::read_to_string(dir.path().join("runs")).unwrap_or_default();
    assert!(
        runs.lines().count() < usize::from(BURST) / 2,
        "starts came first"
    );
    client.kill();
}
