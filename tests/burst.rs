//! Many messages at once: taking them in comes before starting anything, so that a broker that
//! keeps only some for a slow client drops none. `cargo bench` measures that with mosquitto.

mod common;

use common::raw::{Raw, Scripted, publish};
use common::{bare_command, spawn};

const SEQ: &str = "lab/seq/status";

/// Messages that mosquitto, as it is shipped, sends before it waits for an acknowledgement.
const WINDOW: u16 = 20;

/// Messages of a burst.
const EVENTS: u16 = 400;

/// Sends `count` events as such a broker does; returns how many starts it was told of meanwhile.
fn burst(raw: &mut Raw, first: u16, count: u16) -> usize {
    let mut started = 0;
    for window in (first..first + count).step_by(usize::from(WINDOW)) {
        for id in window..window + WINDOW {
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
        let said = raw.serve_until_acknowledged(window + WINDOW - 1);
        let starts = said
            .iter()
            .filter(|m| m.text().contains(r#""status":"started""#));
        started += starts.count();
    }
    started
}

#[test]
fn a_burst_is_taken_in_before_anything_that_waits_is_started() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let mut command = bare_command(&dir, "tael-client");
    command
        .args(["--who", "p", "--root", "lab", "-t", SEQ, "--log", "none"])
        .args(["-c", r#"echo x >>"$OUT/runs""#, "--jobs", "8"])
        .args(["-H", "127.0.0.1", "-p", &broker.port().to_string()]);
    let client = spawn(&dir, &mut command);
    let mut raw = broker.accept();
    raw.serve_until(|m| m.topic.ends_with("/presence"));
    let started = burst(&mut raw, 1, EVENTS);
    // The first ones find a free job and wait for nobody; those that follow wait for the burst. A
    // machine that is busy with other things may make it look as if it were over for
    // a moment.
    let limit = usize::from(EVENTS) / 4;
    assert!(
        started <= limit,
        "{started} of {EVENTS} were started meanwhile"
    );
    let runs = || std::fs::read_to_string(dir.path().join("runs")).unwrap_or_default();
    raw.serve_until(|m| m.text().contains(r#""status":"finished""#) && runs().lines().count() > 20);
    client.kill();
}
