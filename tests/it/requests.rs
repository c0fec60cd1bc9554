//! Requests to a client: where their answers go, and what becomes of those that come over a bridge
//! without their properties, or too late. And statuses that come over such a bridge.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::common::raw::{Heard, Raw, Scripted, publish, publish_with, request_properties};
use crate::common::{Process, World, bare_command, spawn, wait_until};
use serde_json::{Value, json};

const CONTROL: &str = "lab/infrastructure/pipelines/p/control";

struct Scene {
    dir: tempfile::TempDir,
    broker: Scripted,
}

impl Scene {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("tempdir"),
            broker: Scripted::listen(),
        }
    }

    fn start(&self, arguments: &[&str]) -> (Process, Raw) {
        self.start_with(arguments, Scripted::accept)
    }

    /// The same; `accept` takes the client in.
    fn start_with(
        &self,
        arguments: &[&str],
        accept: impl FnOnce(&Scripted) -> Raw,
    ) -> (Process, Raw) {
        let mut command = bare_command(&self.dir, "tael-client");
        command
            .args(["--who", "p", "--root", "lab", "-t", "lab/seq/status", "-c"])
            .arg(r#"echo "$ATTR_N$TAEL_HOPS" >>"$OUT/runs""#)
            .args(["-H", "127.0.0.1", "-p", &self.broker.port().to_string()])
            .args(arguments);
        let client = spawn(&self.dir, &mut command);
        let mut raw = accept(&self.broker);
        raw.serve_until(|m| m.topic.ends_with("/presence"));
        (client, raw)
    }

    fn runs(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("runs")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn have_run(&self, wanted: &[&str]) {
        wait_until("as many have run", || self.runs().len() >= wanted.len());
        assert_eq!(self.runs(), wanted);
    }
}

fn answer(heard: &Heard) -> Value {
    serde_json::from_slice(&heard.payload).expect("an answer")
}

/// Topics of all answers until the one on `last`.
fn answered(raw: &mut Raw, last: &str) -> Vec<String> {
    let mut topics = Vec::new();
    loop {
        let heard = raw.serve_until(|m| m.text().contains(r#""ok":"#));
        topics.push(heard.topic.clone());
        if heard.topic == last {
            return topics;
        }
    }
}

#[test]
fn answers_go_only_where_they_may() {
    let asked = [
        "lab/seq/status",
        "other/infrastructure/x",
        "lab/infrastructure/pipelines/q/control",
        "lab/infrastructure/pipelines/q/status",
        "lab/infrastructure/reply/me",
    ];
    let own = ["--reply-to", "other/#", "--reply-to", "lab/+/status"];
    let cases: [(&[&str], &[&str]); 2] = [(&[], &asked[4..]), (&own, &asked[..2])];
    for (arguments, wanted) in cases {
        let scene = Scene::new();
        let (client, mut raw) = scene.start(arguments);
        let status = br#"{"action":"status"}"#;
        let last = wanted.last().expect("one");
        let (mut topics, mut id) = (Vec::new(), 0);
        // That one at last, as a sign that all others were read.
        for topic in asked.iter().filter(|topic| *topic != last).chain([last]) {
            id += 1;
            let properties = request_properties(topic, b"");
            let request = publish_with(CONTROL.as_bytes(), status, Some(id), &properties, false);
            raw.send(&request);
        }
        topics.extend(answered(&mut raw, last));
        assert_eq!(topics, wanted);
        let log = client.log_text();
        let refused = log.matches("no answer to a request goes to").count();
        assert_eq!(refused, asked.len() - wanted.len(), "{log}");
        client.kill();
    }
}

#[test]
fn a_request_that_comes_before_the_subscription_is_in_force_is_answered() {
    let scene = Scene::new();
    let (client, mut raw) = scene.start_with(&[], |broker| {
        let (mut raw, _) = broker.greet(true, &[]);
        // A broker that has kept the session sends what it has at once.
        let properties = request_properties("lab/infrastructure/reply/me", b"");
        let status = br#"{"action":"status"}"#;
        raw.send(&publish_with(
            CONTROL.as_bytes(),
            status,
            Some(1),
            &properties,
            false,
        ));
        let (kind, subscribe) = raw.receive();
        assert_eq!(kind, 0x82, "SUBSCRIBE");
        // It is done before the client is online.
        raw.serve_until_acknowledged(1);
        raw.serve(kind, &subscribe);
        raw
    });
    let heard = raw.serve_until(|m| m.topic == "lab/infrastructure/reply/me");
    assert_eq!(answer(&heard)["ok"], true, "{}", client.log_text());
}

/// The first PUBLISH that the peer sends, whose PUBACK goes back at once.
fn first_publish(raw: &mut Raw) -> Heard {
    raw.serve_until(|m| m.topic == CONTROL)
}

/// Takes `tael control` in, as far as its request.
fn requester(
    scene: &Scene,
    broker: &Scripted,
    arguments: &[&str],
) -> (std::process::Child, Raw, Heard) {
    let mut command: Command = bare_command(&scene.dir, "tael");
    command
        .args(["control", "p", "--root", "lab", "-H", "127.0.0.1"])
        .args(["-p", &broker.port().to_string()])
        .args(arguments)
        .env("TAEL_HOPS", "7")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().expect("tael control");
    let mut raw = broker.accept();
    let request = first_publish(&mut raw);
    (child, raw, request)
}

#[test]
fn a_request_that_has_lost_its_properties_is_answered_and_done_once() {
    let scene = Scene::new();
    let (client, mut here) = scene.start(&[]);
    let there = Scripted::listen();
    let raise = ["raise", "--attr", "n", "1", "--json"];
    let (child, mut asking, request) = requester(&scene, &there, &raise);
    assert!(request.property("tael-id").is_some());
    // The bridge speaks MQTT 3.1.1, and sends it twice.
    let mut answers = Vec::new();
    for id in [1, 2] {
        here.send(&publish(
            CONTROL.as_bytes(),
            &request.payload,
            Some(id),
            &[],
            false,
        ));
        answers.push(here.serve_until(|m| m.text().contains(r#""ok":"#)));
    }
    assert_eq!(answers[0].payload, answers[1].payload);
    let first = answer(&answers[0]);
    assert_eq!(first["ok"], true);
    // It says which request it answers.
    let asked: Value = serde_json::from_slice(&request.payload).expect("request");
    assert_eq!(first["tael-request"]["id"], asked["tael-request"]["id"]);
    assert_eq!(answers[0].topic, asked["tael-request"]["reply_to"]);
    let reply = publish(
        answers[0].topic.as_bytes(),
        &answers[0].payload,
        Some(9),
        &[],
        false,
    );
    asking.send(&reply);
    let output = child.wait_with_output().expect("output");
    assert!(output.status.success(), "{output:?}");
    let shown: Value = serde_json::from_slice(&output.stdout).expect("answer");
    assert_eq!(shown["unit"], first["unit"]);
    // What the request says about itself is no attribute; and it comes from a chain.
    scene.have_run(&["18"]);
    let log = client.log_text();
    assert_eq!(
        log.matches("bridge_protocol_version mqttv50").count(),
        1,
        "{log}"
    );
    client.kill();
}

#[test]
fn a_request_that_has_expired_is_not_carried_out() {
    let scene = Scene::new();
    let (client, mut raw) = scene.start(&[]);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("time")
        .as_secs();
    let request = |n: &str, expires: u64| {
        json!({"action": "raise", "n": n, "tael-request": {
            "id": format!("R{n}"), "reply_to": "lab/infrastructure/reply/me", "expires": expires,
        }})
        .to_string()
    };
    let mut id = 0;
    let mut ask = |raw: &mut Raw, payload: &str, properties: &[u8]| {
        id += 1;
        let topic = CONTROL.as_bytes();
        raw.send(&publish_with(
            topic,
            payload.as_bytes(),
            Some(id),
            properties,
            false,
        ));
        answer(&raw.serve_until(|m| m.topic == "lab/infrastructure/reply/me"))
    };
    let refused = ask(&mut raw, &request("1", now - 3600), &[]);
    assert_eq!(
        (&refused["ok"], &refused["code"]),
        (&json!(false), &json!(75))
    );
    let cause = refused["error"].as_str().expect("cause");
    assert!(cause.contains("the request expired 36"), "{cause}");
    let never = request("m", 0).replace(r#""expires":0"#, r#""expires":-9223372036854775808"#);
    assert_eq!(ask(&mut raw, &never, &[])["code"], 75);
    let pause = request("p", now - 3600).replace("raise", "pause");
    assert_eq!(ask(&mut raw, &pause, &[])["code"], 75);
    // One that the broker knows the age of is not judged by a clock: 60 s are left of it.
    assert_eq!(
        ask(&mut raw, &request("2", now - 3600), &[0x02, 0, 0, 0, 60])["ok"],
        true
    );
    assert_eq!(ask(&mut raw, &request("3", now + 3600), &[])["ok"], true);
    scene.have_run(&["20", "30"]);
    client.kill();
}

#[test]
fn a_request_that_nobody_answered_in_time_is_not_done_later() {
    let world = World::new();
    let arguments = [
        "-t",
        "lab/seq/status",
        "-c",
        r#"echo "$ATTR_N" >>"$OUT/runs""#,
    ];
    world.client("late", &arguments).kill();
    let raise = ["late", "raise", "--timeout", "1s", "--attr", "n", "1"];
    let (code, _, stderr) = world.control(&raise);
    assert_eq!(code, 75, "{stderr}");
    let begun = std::time::Instant::now();
    // The shortest expiry that a broker counts.
    wait_until("the request has expired", || begun.elapsed().as_secs() >= 2);
    let client = world.client("late", &arguments);
    assert_eq!(world.control(&["late", "raise", "--attr", "n", "2"]).0, 0);
    world.wait_report("late", "/units/succeeded", 1);
    assert_eq!(world.lines("runs"), ["2"]);
    client.stop();
}

/// A status of another pipeline, as a bridge that speaks MQTT 3.1.1 brings it.
fn status(raw: &mut Raw, n: u16, properties: &[(&str, &str)]) {
    let topic = b"far/infrastructure/pipelines/q/status";
    let payload = format!(r#"{{"status":"finished","return_code":0,"announce":false,"n":"{n}"}}"#);
    raw.send(&publish(
        topic,
        payload.as_bytes(),
        Some(n),
        properties,
        false,
    ));
    raw.serve_until_acknowledged(n);
}

/// A message of a program that knows nothing of Tael.
fn plain(raw: &mut Raw, n: u16) {
    let payload = format!(r#"{{"status":"finished","n":"{n}"}}"#);
    raw.send(&publish(
        b"lab/seq/status",
        payload.as_bytes(),
        Some(n),
        &[],
        false,
    ));
    raw.serve_until_acknowledged(n);
}

#[test]
fn a_loop_that_nobody_counts_starts_a_limited_number_of_runs_a_minute() {
    let scene = Scene::new();
    let filter = [
        "-t",
        "far/infrastructure/pipelines/+/status",
        "--loop-rate",
        "3",
    ];
    let (client, mut raw) = scene.start(&filter);
    [1, 2].into_iter().for_each(|n| plain(&mut raw, n));
    [3, 4, 5].into_iter().for_each(|n| status(&mut raw, n, &[]));
    plain(&mut raw, 6);
    // Those that are counted are not held up.
    status(&mut raw, 7, &[("tael-hops", "1"), ("tael-who", "q")]);
    scene.have_run(&["10", "20", "30", "71"]);
    let ledger = scene.dir.path().join("state/p/ledger.db");
    let ledger = rusqlite::Connection::open(ledger).expect("ledger");
    let waiting = "SELECT count(*) FROM unit WHERE state = 'pending' AND due > 0";
    let waiting = ledger.query_row(waiting, [], |row| row.get(0));
    assert_eq!(waiting, Ok(3));
    let log = client.log_text();
    assert_eq!(log.matches("--loop-rate").count(), 1, "{log}");
    assert_eq!(
        log.matches("bridge_protocol_version mqttv50").count(),
        1,
        "{log}"
    );
    client.kill();
}

#[test]
fn a_bound_on_loops_is_for_statuses_unless_wanted_otherwise_and_loses_nothing() {
    let scene = Scene::new();
    let filter = ["-t", "far/infrastructure/pipelines/+/status"];
    let (client, mut raw) = scene.start(&filter);
    // A burst of plain messages is one.
    (101..=170).for_each(|n| plain(&mut raw, n));
    let mut wanted: Vec<String> = (101..=170).map(|n| format!("{n}0")).collect();
    scene.have_run(&wanted.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(!client.log_text().contains("--loop-rate"));
    // The last two wait for a second each.
    (1..=62).for_each(|n| status(&mut raw, n, &[]));
    wanted.extend((1..=62).map(|n| format!("{n}0")));
    scene.have_run(&wanted.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(client.log_text().contains("--loop-rate"));
    client.kill();
}

#[test]
fn what_waits_in_case_of_a_loop_waits_on_after_a_restart() {
    let scene = Scene::new();
    let start = || {
        let mut command = bare_command(&scene.dir, "tael-client");
        command
            .args(["--who", "p", "--root", "lab", "-t", "lab/seq/status", "-c"])
            .arg(r#"sleep "${ATTR_S:-0}"; echo "$ATTR_N" >>"$OUT/runs""#)
            .args(["--loop-rate", "1", "--jobs", "2", "-H", "127.0.0.1"])
            .args(["-p", &scene.broker.port().to_string()]);
        let client = spawn(&scene.dir, &mut command);
        let mut raw = scene.broker.accept();
        raw.serve_until(|m| m.topic.ends_with("/presence"));
        (client, raw)
    };
    let say = |raw: &mut Raw, payload: &str, packet, hops: &[(&str, &str)]| {
        let payload = payload.as_bytes();
        raw.send(&publish(
            b"lab/seq/status",
            payload,
            Some(packet),
            hops,
            false,
        ));
        raw.serve_until_acknowledged(packet);
    };
    let (client, mut raw) = start();
    say(&mut raw, r#"{"status":"finished","n":1}"#, 1, &[]);
    say(&mut raw, r#"{"status":"finished","n":2}"#, 2, &[]);
    scene.have_run(&["1"]);
    client.kill();
    drop(raw);
    let (client, mut raw) = start();
    // The second one has most of a minute left.
    let sentinel = r#"{"status":"finished","n":3,"s":2}"#;
    say(&mut raw, sentinel, 3, &[("tael-hops", "1")]);
    scene.have_run(&["1", "3"]);
    client.kill();
}
