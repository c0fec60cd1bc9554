//! `tael control`: requests to a running pipeline.

use std::fs;

use crate::common::raw::{Raw, publish};
use crate::common::{self, World, ran, refuses, wait_until};
use serde_json::{Value, json};

const SEQ: &str = "lab/seq/status";
const RECORD: &str = r#"echo "$ATTR_N $TAEL_ATTEMPT" >>"$OUT/runs""#;

fn event(world: &World, n: &str) {
    world.message(SEQ, &[("status", "finished"), ("n", n)]);
}

fn first_running(world: &World, who: &str) -> String {
    let mut unit = None;
    wait_until("a unit runs", || {
        unit = world.report(who)["running"][0].as_str().map(str::to_owned);
        unit.is_some()
    });
    unit.expect("unit")
}

#[test]
fn raise_is_gated_by_what_is_required() {
    let world = World::new();
    let client = world.client(
        "gate",
        &[
            "-t",
            SEQ,
            "-c",
            r#"echo "$SAMPLE" >>"$OUT/runs""#,
            "--envreq",
            "SAMPLE",
        ],
    );
    let ears = world.ears(&["lab/#"]);
    let (code, stdout, stderr) = world.control(&["gate", "raise", "--attr", "lane", "1"]);
    assert_eq!((code, &*stdout), (65, ""), "{stderr}");
    assert!(
        stderr.starts_with("tael: raise gate: ") && stderr.contains("SAMPLE"),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1);
    assert_eq!(ears.status("gate", "falsestart").payload["announce"], true);
    let (code, stdout, _) = world.control(&["gate", "raise", "--attr", "sample", "S1"]);
    assert_eq!(code, 0);
    let unit = stdout
        .trim()
        .strip_prefix("gate: raised as unit ")
        .expect(&stdout)
        .to_owned();
    let started = ears.status("gate", "started");
    assert_eq!(
        started.payload["reason"],
        "manually raised by control message"
    );
    ears.status("gate", "finished");
    assert_eq!(world.lines("runs"), ["S1"]);
    assert!(world.state().join("gate/units").join(unit).is_dir());
    // The answer went to the topic in the request, below the topics of the pipeline.
    let reply = ears.wait("the reply", |m| {
        m.topic
            .starts_with("lab/infrastructure/pipelines/gate/reply/")
    });
    assert_eq!(reply.payload["code"], 65);
    client.stop();
}

#[test]
fn status_says_how_the_pipeline_is() {
    let world = World::new();
    let client = world.client("well", &["-t", SEQ, "-c", r#"exit "$ATTR_N""#]);
    event(&world, "0");
    event(&world, "3");
    world.publish(SEQ, "nonsense", &[]);
    world.message(SEQ, &[("status", "started")]);
    world.wait_report("well", "/events/ignored", 1);
    world.wait_report("well", "/units/failed", 1);
    world.wait_report("well", "/outbox", 0);
    let report = world.report("well");
    assert_eq!(report["ok"], true);
    assert_eq!(report["who"], "well");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["paused"], false);
    assert_eq!(
        (&report["running"], &report["waiting"]),
        (&json!([]), &json!(0))
    );
    assert_eq!(
        report["units"],
        json!({"pending": 0, "running": 0, "succeeded": 1, "failed": 1, "canceled": 0})
    );
    assert_eq!(
        report["events"],
        json!({"accepted": 2, "duplicate": 0, "refused": 1, "ignored": 1})
    );
    let (code, stdout, _) = world.control(&["well", "status"]);
    assert_eq!((code, stdout.lines().count()), (0, 1));
    for part in [
        "well: on ",
        "1 succeeded, 1 failed",
        "2 accepted",
        "1 refused",
    ] {
        assert!(stdout.contains(part), "{stdout}");
    }
    client.stop();
}

#[test]
fn a_pause_holds_events_until_resume_even_over_a_restart() {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", RECORD];
    let client = world.client("lazy", &arguments);
    assert_eq!(
        world.control(&["lazy", "pause"]),
        (0, "lazy: paused\n".into(), String::new())
    );
    event(&world, "1");
    world.wait_report("lazy", "/waiting", 1);
    client.stop();
    let client = world.client("lazy", &arguments);
    event(&world, "2");
    world.wait_report("lazy", "/waiting", 2);
    assert_eq!(world.report("lazy")["paused"], true);
    assert!(world.lines("runs").is_empty());
    // Subscribers see it, too.
    let (code, line, _) = ran(&mut world.tael(["check", "--who", "lazy", "--root", "lab"]));
    assert_eq!(code, 1, "{line}");
    assert!(
        line.starts_with("PIPELINE WARNING - lazy is paused"),
        "{line}"
    );
    let (_, table, _) = ran(&mut world.tael(["status", "--root", "lab"]));
    assert!(
        table.lines().any(|l| l.starts_with("lazy      paused ")),
        "{table}"
    );
    assert_eq!(
        world.control(&["lazy", "resume"]),
        (0, "lazy: resumed\n".into(), String::new())
    );
    world.wait_report("lazy", "/units/succeeded", 2);
    assert_eq!(world.lines("runs"), ["1 1", "2 1"]);
    assert_eq!(world.report("lazy")["paused"], false);
    client.stop();
    let (code, _, stderr) = world.control(&["lazy", "status", "--timeout", "1h"]);
    assert_eq!(code, 75, "{stderr}");
    assert!(
        stderr.contains("status lazy: that client is stopped"),
        "{stderr}"
    );
}

#[test]
fn cancel_ends_what_runs_and_drops_what_waits() {
    let world = World::new();
    let hold = r#"echo "$ATTR_N" >>"$OUT/runs"; [ "$ATTR_N" != 1 ] || sleep 1000"#;
    let client = world.client("stop", &["-t", SEQ, "-c", hold]);
    let ears = world.ears(&["lab/infrastructure/#"]);
    event(&world, "1");
    let running = first_running(&world, "stop");
    event(&world, "2");
    world.wait_report("stop", "/waiting", 1);
    let units = fs::read_dir(world.state().join("stop/units"))
        .expect("units")
        .count();
    assert_eq!(units, 1, "what waits has no folder yet");
    let (code, stdout, _) = world.control(&["stop", "cancel", &running]);
    assert_eq!(
        (code, stdout),
        (0, format!("stop: canceling unit {running}\n"))
    );
    assert_eq!(ears.status("stop", "failed").payload["return_code"], 143);
    world.wait_report("stop", "/units/canceled", 1);
    world.wait_report("stop", "/units/succeeded", 1);
    // The first has ended, and the others never existed.
    for (unit, cause) in [
        (running.as_str(), "has ended"),
        ("nobody", "there is no unit"),
    ] {
        let (code, _, stderr) = world.control(&["stop", "cancel", unit]);
        assert_eq!(code, 65);
        assert!(stderr.contains(cause), "{stderr}");
    }
    // A unit that waits is canceled by the id in the answer to its request.
    event(&world, "1");
    let running = first_running(&world, "stop");
    let (_, stdout, _) = world.control(&["stop", "raise", "--attr", "n", "never", "--json"]);
    let waiting: Value = serde_json::from_str(&stdout).expect("answer");
    for unit in [waiting["unit"].as_str().expect("unit"), &running] {
        assert_eq!(world.control(&["stop", "cancel", unit]).0, 0);
    }
    event(&world, "3");
    world.wait_report("stop", "/units/succeeded", 2);
    world.wait_report("stop", "/units/canceled", 3);
    assert_eq!(world.lines("runs"), ["1", "2", "1", "3"]);
    client.stop();
}

#[test]
fn a_request_takes_a_part_of_an_id_and_cancel_the_only_run() {
    let world = World::new();
    let hold = r#"echo "$ATTR_N" >>"$OUT/runs"; [ -e "$OUT/free" ] || sleep 1000"#;
    let client = world.client("part", &["-t", SEQ, "-c", hold, "--jobs", "2"]);
    let cancel = |unit: &[&str]| world.control(&[&["part", "cancel"], unit].concat());
    let (code, _, stderr) = cancel(&[]);
    assert_eq!(code, 65);
    assert!(
        stderr.contains("'tael control part cancel UNIT --root lab' drops one that waits"),
        "{stderr}"
    );
    event(&world, "1");
    world.wait_lines("runs", 1);
    let first = first_running(&world, "part");
    event(&world, "2");
    world.wait_lines("runs", 2);
    // Nothing is canceled while it is not clear what is meant.
    let (code, _, stderr) = cancel(&[]);
    assert_eq!(code, 65);
    let command = format!("'tael control part cancel {first} --root lab'");
    assert!(stderr.contains(&command), "{stderr}");
    assert_eq!(stderr.matches("'tael control").count(), 2, "{stderr}");
    let (code, _, stderr) = cancel(&["0"]);
    assert_eq!(code, 65);
    assert!(stderr.contains("is a part of several ids"), "{stderr}");
    let (code, stdout, stderr) = cancel(&[&first[20..].to_lowercase()]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(stdout, format!("part: canceling unit {first}\n"));
    world.wait_report("part", "/units/canceled", 1);
    // Now only one runs.
    let (code, stdout, stderr) = cancel(&[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(!stdout.contains(&first), "{stdout}");
    world.wait_report("part", "/units/canceled", 2);
    fs::write(world.path("free"), "").expect("free");
    assert_eq!(world.control(&["part", "retry", &first[20..]]).0, 0);
    world.wait_report("part", "/units/succeeded", 1);
    assert_eq!(world.lines("runs"), ["1", "2", "1"]);
    client.stop();
}

#[test]
fn retry_runs_the_event_of_a_failed_unit_again() {
    let world = World::new();
    let command = format!(r#"{RECORD}; cat >>"$OUT/stdin"; [ -e "$OUT/fixed" ]"#);
    let client = world.client("again", &["-t", SEQ, "-c", &command, "--when", ""]);
    let (code, _, stderr) = world.control(&["again", "retry"]);
    assert_eq!(code, 65);
    assert!(stderr.contains("no run has failed"), "{stderr}");
    let ears = world.ears(&["lab/infrastructure/#"]);
    world.publish(SEQ, "{\"n\":7}\n", &[("tael-id", "E7")]);
    world.wait_report("again", "/units/failed", 1);
    fs::write(world.path("fixed"), "").expect("fixed");
    let (code, stdout, _) = world.control(&["again", "retry"]);
    assert_eq!(code, 0, "{stdout}");
    let finished = ears.status("again", "finished");
    assert_eq!(finished.properties["tael-cause"], "E7");
    assert_eq!(world.lines("runs"), ["7 1", "7 2"]);
    assert_eq!(world.lines("stdin"), ["{\"n\":7}", "{\"n\":7}"]);
    client.stop();
}

#[test]
fn nobody_answers_for_a_pipeline_that_does_not_run() {
    let world = World::new();
    let control = |arguments: &[&str]| {
        let mut command = world.tael(["control", "--root", "lab", "--log", "none"]);
        command.args(arguments);
        command
    };
    refuses(
        &mut control(&["nobody", "status", "--timeout", "2s"]),
        75,
        "on lab/infrastructure/pipelines/nobody/control; does that client run? the broker knows no \
         pipeline at all: are --broker and --root right?",
    );
    for (arguments, text) in [
        (&["x", "dance"][..], "'dance'"),
        (&["x", "cancel", "U", "V"], "one unit"),
        (&["x", "pause", "U"], "takes no unit"),
        (&["x", "status", "--attr", "a", "b"], "raise only"),
        (&["x", "raise", "--attr", "action", "b"], "'action'"),
        (&["a/b", "status"], "cannot name a pipeline"),
    ] {
        refuses(&mut control(arguments), 64, text);
    }
}

#[test]
fn raising_round_and_round_ends_at_the_hop_limit() {
    let world = World::new();
    // Each raises the other, as two careless scripts may.
    let raise = |who: &str| {
        format!(
            r#"echo "$TAEL_HOPS" >>"$OUT/hops"; {} control {who} raise --root lab"#,
            common::binary("tael").display()
        )
    };
    let (to_b, to_a) = (raise("b"), raise("a"));
    let a = world.client("a", &["-t", "lab/seq/status", "-c", &to_b]);
    let b = world.client("b", &["-t", "lab/other/status", "-c", &to_a]);
    let ears = world.ears(&["lab/infrastructure/#"]);
    world.message("lab/seq/status", &[("status", "finished")]);
    // The run whose request is refused fails, and nothing runs after it.
    ears.wait("the end of the loop", |m| m.status() == "failed");
    let hops: Vec<usize> = world
        .lines("hops")
        .iter()
        .map(|n| n.parse().expect("n"))
        .collect();
    assert_eq!(hops, (0..=32).collect::<Vec<_>>());
    a.stop();
    b.stop();
}

#[test]
fn a_late_answer_arrives_though_the_broker_was_asked_about_the_client() {
    let world = World::new();
    let port = world.broker.port();
    let mut client = Raw::connect(port);
    client.subscribe("#");
    let answers = std::thread::spawn(move || {
        let request = client.hear("the request", |heard| heard.topic.ends_with("/control"));
        // Without a sign of the client, the caller looks whether there is one.
        client.hear("the look", |heard| {
            heard.topic.contains("/infrastructure/replies/")
        });
        let answer = br#"{"ok":true,"units":[]}"#;
        client.send(&publish(
            request.reply.as_bytes(),
            answer,
            Some(7),
            &[],
            false,
        ));
        client.hear("the answer", |heard| heard.topic == request.reply);
    });
    let (code, stdout, stderr) = world.control(&["late", "pause", "--timeout", "20s", "--json"]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    answers.join().expect("client");
}
