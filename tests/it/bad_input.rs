//! Malformed and malicious messages: they are refused or handled safely, and the next event runs.

use crate::common::raw::{Raw, Scripted, publish, publish_with, request_properties};
use crate::common::{Process, World, bare_command, spawn, wait_until};
use serde_json::{Value, json};

const SEQ: &str = "lab/seq/status";
const RECORD: &str = r#"echo "$ATTR_N" >>"$OUT/runs""#;

/// Sends a good event, and waits for its run.
#[track_caller]
fn good_event_runs(world: &World, n: &str) {
    world.message(SEQ, &[("status", "finished"), ("n", n)]);
    wait_until(&format!("{n} has run"), || {
        world.lines("runs").contains(&n.to_owned())
    });
}

fn client(world: &World) -> Process {
    world.client("bad", &["-t", SEQ, "-c", RECORD])
}

fn nested(depth: usize) -> Vec<u8> {
    format!(
        r#"{{"status":"finished","a":{}{}}}"#,
        "[".repeat(depth),
        "]".repeat(depth)
    )
    .into()
}

#[test]
fn what_is_no_event_is_refused_counted_logged_once_and_never_comes_again() {
    let world = World::new();
    let two_megabytes = format!(r#"{{"status":"finished","a":"{}"}}"#, "x".repeat(2_000_000));
    let bad: [(&[u8], &str); 7] = [
        (b"finished", "not JSON: a value is expected"),
        (
            br#"{"status":"finished"} {}"#,
            "not JSON: there is more after its end",
        ),
        (br#"[{"status":"finished"}]"#, "JSON but not an object"),
        (
            b"{\"status\":\"finished\",\"a\":\"\xff\"}",
            "not JSON: it is not UTF-8 from byte",
        ),
        (
            br#"{"status":"finished","a":"\ud80"}"#,
            "not JSON: a hexadecimal digit is expected",
        ),
        (&nested(100_000), "not JSON: it is nested too deep"),
        (
            two_megabytes.as_bytes(),
            "has 2000028 bytes, the limit is 1048576",
        ),
    ];
    let first = client(&world);
    for (payload, _) in bad {
        world.publish(SEQ, payload, &[]);
    }
    good_event_runs(&world, "first");
    let report = world.report("bad");
    assert_eq!(report["events"]["refused"], bad.len());
    assert_eq!(report["events"]["accepted"], 1);
    let log = first.log_text();
    for (_, cause) in bad {
        let lines = log
            .lines()
            .filter(|line| line.contains("event refused") && line.contains(cause));
        assert_eq!(lines.count(), 1, "{cause}:\n{log}");
    }
    assert_eq!(log.matches("event refused").count(), bad.len(), "{log}");
    first.stop();
    // A message without an acknowledgement would come before the next good event.
    let second = client(&world);
    good_event_runs(&world, "second");
    let events = world.report("bad")["events"].clone();
    assert_eq!(
        events,
        json!({"accepted": 1, "duplicate": 0, "refused": 0, "ignored": 0})
    );
    assert_eq!(world.lines("runs"), ["first", "second"]);
    second.stop();
}

#[test]
fn what_is_odd_but_an_event_is_carried_safely() {
    let world = World::new();
    let client = client(&world);
    let odd = [
        // The last of two keys counts (RFC 8259, section 4).
        r#"{"status":"started","status":"finished","n":"0","n":"twice"}"#,
        r#"{"status":"finished","n":"nul","a":"x\u0000y"}"#,
        r#"{"status":"finished","n":"collide","a-b":"1","a_b":"2"}"#,
        r#"{"status":"finished","n":"loader","LD_PRELOAD":"/nowhere.so","PATH":"/nowhere"}"#,
        "\u{20}{\"status\":\"finished\",\"n\":\"deep\",\"a\":[[[[[[[[[[[[]]]]]]]]]]]]}\n",
    ];
    for payload in odd {
        world.publish(SEQ, payload, &[]);
    }
    good_event_runs(&world, "good");
    world.wait_report("bad", "/units/succeeded", odd.len() + 1);
    assert_eq!(world.report("bad")["events"]["refused"], 0);
    assert_eq!(
        world.lines("runs"),
        ["twice", "nul", "collide", "loader", "deep", "good"]
    );
    client.stop();
}

#[test]
fn a_message_too_large_even_to_be_refused_stops_nothing() {
    let world = World::new();
    let client = client(&world);
    // It exceeds the Maximum Packet Size of the client, so the broker never delivers it.
    let huge = format!(r#"{{"status":"finished","a":"{}"}}"#, "x".repeat(6_000_000));
    world.publish(SEQ, huge, &[]);
    good_event_runs(&world, "good");
    assert_eq!(world.report("bad")["events"]["accepted"], 1);
    assert_eq!(client.log_text().matches("connected to").count(), 1);
    client.stop();
}

#[test]
fn bad_control_requests_stop_nothing() {
    let world = World::new();
    let client = client(&world);
    let control = "lab/infrastructure/pipelines/bad/control";
    let deep = nested(100_000);
    let requests: [&[u8]; 5] = [b"raise", b"[]", br#"{"action":{}}"#, b"\xff", &deep];
    for request in requests {
        world.publish(control, request, &[]);
    }
    // A request whose answer may not be sent does no harm either.
    let properties = request_properties("lab/#", b"");
    let mut raw = Raw::connect(world.broker.port());
    let request = br#"{"action":"status"}"#;
    raw.send(&publish_with(
        control.as_bytes(),
        request,
        Some(1),
        &properties,
        false,
    ));
    good_event_runs(&world, "good");
    assert_eq!(world.lines("runs"), ["good"]);
    assert_eq!(
        client.log_text().matches("control request refused").count(),
        requests.len()
    );
    client.stop();
}

/// No broker accepts such a topic, but the other side may be no broker.
#[test]
fn a_topic_that_is_not_utf8_is_refused_counted_and_acknowledged() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let mut command = bare_command(&dir, "tael-client");
    command
        .args(["--who", "bad", "--root", "lab", "-t", "lab/#", "-c", RECORD])
        .args(["-H", "127.0.0.1", "-p", &broker.port().to_string()]);
    let client = spawn(&dir, &mut command);
    let mut raw = broker.accept();
    raw.serve_until(|m| m.topic.ends_with("/presence"));
    let payload = br#"{"status":"finished","n":"1"}"#;
    raw.send(&publish(
        b"lab/\xff\xfe/status",
        payload,
        Some(1),
        &[],
        false,
    ));
    assert!(
        raw.serve_until_acknowledged(1).is_empty(),
        "nothing is said of it"
    );
    raw.send(&publish(SEQ.as_bytes(), payload, Some(2), &[], false));
    let finished = r#""status":"finished""#;
    raw.serve_until(|m| m.topic.ends_with("/status") && m.text().contains(finished));
    let control = b"lab/infrastructure/pipelines/bad/control";
    let properties = request_properties("lab/infrastructure/reply/here", b"");
    raw.send(&publish_with(
        control,
        br#"{"action":"status"}"#,
        Some(3),
        &properties,
        false,
    ));
    let reply = raw.serve_until(|m| m.topic == "lab/infrastructure/reply/here");
    let reply: Value = serde_json::from_slice(&reply.payload).expect("reply");
    assert_eq!(reply["events"]["refused"], 1);
    assert_eq!(reply["events"]["accepted"], 1);
    let log = client.log_text();
    assert_eq!(log.matches("its topic is not UTF-8").count(), 1, "{log}");
    client.kill();
}
