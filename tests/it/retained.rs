//! Retained messages: `tael status` and `tael check` see all of them, without a long wait.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::raw::{Raw, Scripted, publish};
use crate::common::{World, bare_command, ended, ran};

const PRESENCE: &str = "lab/infrastructure/pipelines/align/presence";
const ONLINE: &str = r#"{"state":"online","who":"align","host":"h"}"#;

/// A delay that is longer than a silence that could be taken for the end of the retained messages.
const LATE: Duration = Duration::from_millis(900);

fn of(dir: &tempfile::TempDir, broker: &Scripted, arguments: &[&str]) -> Command {
    let mut command = bare_command(dir, "tael");
    command
        .args(arguments)
        .args(["--root", "lab", "-H", "127.0.0.1", "--log", "none"])
        .args(["-p", &broker.port().to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Returns a retained message, as a broker delivers it.
fn retained(topic: &str, payload: &str) -> Vec<u8> {
    let mut packet = publish(topic.as_bytes(), payload.as_bytes(), None, &[], false);
    packet[0] |= 1;
    packet
}

/// Waits for the marker of the peer, and returns it for delivery.
fn marker(raw: &mut Raw) -> Vec<u8> {
    let marker = raw.serve_until(|m| m.topic.starts_with("lab/infrastructure/replies/"));
    publish(marker.topic.as_bytes(), &marker.payload, None, &[], false)
}

#[test]
fn retained_messages_that_come_late_are_found() {
    let dir = tempfile::tempdir().expect("tempdir");
    for with_marker in [true, false] {
        let broker = Scripted::listen();
        let mut command = of(&dir, &broker, &["check", "--who", "align"]);
        let check = command.spawn().expect("tael check");
        let mut raw = broker.accept();
        let marker = marker(&mut raw);
        thread::sleep(LATE);
        raw.send(&retained(PRESENCE, ONLINE));
        if with_marker {
            raw.send(&marker);
        }
        let (code, stdout, stderr) = ended(check);
        assert_eq!(code, 0, "{stdout}{stderr}");
        assert!(stdout.starts_with("PIPELINE OK - align is online on h"));
    }
}

#[test]
fn retained_messages_that_come_before_the_subscription_is_answered_are_found() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let mut command = of(&dir, &broker, &["check", "--who", "align"]);
    let check = command.spawn().expect("tael check");
    let mut raw = broker.accept();
    raw.send(&retained(PRESENCE, ONLINE));
    let marker = marker(&mut raw);
    raw.send(&marker);
    let (code, stdout, stderr) = ended(check);
    assert_eq!(code, 0, "{stdout}{stderr}");
}

#[test]
fn the_marker_ends_the_wait_though_messages_go_on() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let arguments = ["status", "--json", "--timeout", "300s"];
    let status = of(&dir, &broker, &arguments).spawn().expect("tael status");
    let mut raw = broker.accept();
    let marker = marker(&mut raw);
    raw.send(&retained(PRESENCE, ONLINE));
    raw.send(&marker);
    // It leaves; a retained message every now and then would keep it for as long as it may wait.
    let mut later = raw.clone_stream();
    let feeder = thread::spawn(move || {
        let other = retained("lab/infrastructure/pipelines/other/presence", ONLINE);
        while later.try_send(&other) {
            thread::sleep(Duration::from_millis(100));
        }
    });
    let (code, stdout, stderr) = ended(status);
    drop(raw);
    feeder.join().expect("feeder");
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stdout.contains("align") && !stdout.contains("other"),
        "{stdout}"
    );
}

#[test]
fn a_look_at_a_real_broker_takes_no_pause() {
    let world = World::new();
    let client = world.client("align", &["-t", "lab/seq/status", "-c", "true"]);
    let look = || {
        let begun = Instant::now();
        let (code, stdout, stderr) =
            ran(&mut world.tael(["check", "--who", "align", "--root", "lab"]));
        assert_eq!(code, 0, "{stdout}{stderr}");
        begun.elapsed()
    };
    // The fastest of several: a machine under load may be slow at any of them.
    let fastest = (0..8).map(|_| look()).min().expect("looks");
    assert!(fastest < Duration::from_millis(350), "{fastest:?}");
    client.stop();
}

#[test]
fn a_marker_starts_nothing_and_is_not_shown() {
    let world = World::new();
    let record = r#"echo "$TAEL_TOPIC" >>"$OUT/runs""#;
    let arguments = ["-t", "lab/#", "--when", "", "-c", record];
    let client = world.client("all", &arguments);
    let ears = world.ears(&["lab/#"]);
    let (code, _, stderr) = ran(&mut world.tael(["status", "--root", "lab"]));
    assert_eq!(code, 0, "{stderr}");
    // A sentinel, which comes after the marker.
    world.message("lab/seq/status", &[("status", "finished")]);
    ears.status("all", "finished");
    assert_eq!(world.lines("runs"), ["lab/seq/status"]);
    assert_eq!(world.report("all")["events"]["refused"], 0);
    assert!(!ears.any(|m| m.topic.contains("/replies/")));
    client.stop();
}

#[test]
fn more_retained_messages_than_are_taken_are_said() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let status = of(&dir, &broker, &["status", "--timeout", "300s"]);
    let status = { status }.spawn().expect("tael status");
    let mut raw = broker.accept();
    raw.serve_subscription();
    // Without end: it leaves by itself.
    let mut n = 0;
    let mut feed = raw.clone_stream();
    let topic = |n| format!("lab/infrastructure/pipelines/p{n}/last");
    while feed.try_send(&retained(&topic(n), "{}")) {
        n += 1;
        assert!(n < 10_000_000, "it takes all");
    }
    let (code, stdout, stderr) = ended(status);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("the rest is left out"), "{stderr}");
    assert_eq!(stdout.lines().count(), 20_001, "head and pipelines");
}

/// Returns exit code and line of `tael check` for a pipeline with these retained messages.
fn checked(last: &str, arguments: &[&str]) -> (i32, String) {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let arguments = [&["check", "--who", "align"], arguments].concat();
    let check = of(&dir, &broker, &arguments).spawn().expect("tael check");
    let mut raw = broker.accept();
    let marker = marker(&mut raw);
    raw.send(&retained(PRESENCE, ONLINE));
    raw.send(&retained("lab/infrastructure/pipelines/align/last", last));
    raw.send(&marker);
    let (code, stdout, _) = ended(check);
    (code, stdout)
}

#[test]
fn an_end_is_judged_strictly() {
    let now = jiff::Timestamp::now().as_second();
    let last = |status: &str, ts: i64| format!(r#"{{"last":{{"status":"{status}","ts":{ts}}}}}"#);
    let (code, line) = checked(&last("finished", now - 5), &[]);
    assert_eq!(code, 0, "{line}");
    let (code, line) = checked(&last("finished", now + 365 * 86_400), &[]);
    assert_eq!(code, 1, "{line}");
    assert!(line.contains("ahead of ours"), "{line}");
    let (code, line) = checked(&last("finished", now + 600), &["--max-skew", "1h"]);
    assert_eq!(code, 0, "{line}");
    let (code, line) = checked(&last("failed", now), &[]);
    assert_eq!(code, 1, "{line}");
    let (code, line) = checked(r#"{"last":{"status":"finished"}}"#, &[]);
    assert_eq!(code, 3, "{line}");
    let (code, line) = checked("nonsense", &[]);
    assert_eq!(code, 3, "{line}");
}

#[test]
fn a_refusal_that_says_zero_does_not_end_with_zero() {
    let dir = tempfile::tempdir().expect("tempdir");
    for (code, want) in [("0", 65), ("75", 75), ("300", 65)] {
        let broker = Scripted::listen();
        let mut command = of(&dir, &broker, &["control", "align", "pause"]);
        let control = command.spawn().expect("tael control");
        let mut raw = broker.accept();
        let request = raw.serve_until(|m| m.topic.ends_with("/control"));
        let answer = format!(r#"{{"ok":false,"code":{code}}}"#);
        let topic = request.reply.as_bytes();
        raw.send(&publish(topic, answer.as_bytes(), None, &[], false));
        let (got, _, stderr) = ended(control);
        assert_eq!(got, want, "{stderr}");
    }
}
