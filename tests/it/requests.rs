//! Requests to a client: where their answers go, and what happens to requests that come late, or
//! over a bridge that drops their properties. Also statuses over such a bridge.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::common::raw::{
    Heard, Raw, Scripted, publish, publish_with, request_properties, user_properties,
};
use crate::common::scene::{CONTROL, RUN, SEQ, Scene, event};
use crate::common::{Process, World, bare_command, wait_until};
use serde_json::{Value, json};

/// Address of answers.
const REPLY: &str = "lab/infrastructure/reply/me";

/// Returns the command of a client that writes the attribute `n` and the hops of each event.
fn client(scene: &Scene, arguments: &[&str]) -> Command {
    let run = r#"echo "$ATTR_N$TAEL_HOPS" >>"$OUT/runs""#;
    let mut command = scene.command(&["-t", SEQ, "-c", run]);
    command.args(arguments);
    command
}

fn start(scene: &Scene, arguments: &[&str]) -> (Process, Raw) {
    let client = scene.spawn(&mut client(scene, arguments));
    (client, scene.online())
}

fn answer(heard: &Heard) -> Value {
    serde_json::from_slice(&heard.payload).expect("an answer")
}

/// Returns the topics of all answers up to the one on `last`.
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
        REPLY,
    ];
    let own = ["--reply-to", "other/#", "--reply-to", "lab/+/status"];
    let cases: [(&[&str], &[&str]); 2] = [(&[], &asked[4..]), (&own, &asked[..2])];
    for (arguments, wanted) in cases {
        let scene = Scene::new();
        let (client, mut raw) = start(&scene, arguments);
        let status = br#"{"action":"status"}"#;
        let last = wanted.last().expect("one");
        let (mut topics, mut id) = (Vec::new(), 0);
        // The last request shows that all others were read.
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
    let client = scene.spawn(&mut client(&scene, &[]));
    let (mut raw, _) = scene.broker.greet(true, &[]);
    // A broker that has kept the session sends what it has at once.
    let properties = request_properties(REPLY, b"");
    let status = br#"{"action":"status"}"#;
    let request = publish_with(CONTROL.as_bytes(), status, Some(1), &properties, false);
    raw.send(&request);
    let (kind, subscribe) = raw.receive();
    assert_eq!(kind, 0x82, "SUBSCRIBE");
    // It is performed before the client is online.
    raw.serve_until_acknowledged(1);
    raw.serve(kind, &subscribe);
    let heard = raw.serve_until(|m| m.topic == REPLY);
    assert_eq!(answer(&heard)["ok"], true, "{}", client.log_text());
}

/// Returns the first PUBLISH on the control topic, and acknowledges it.
fn first_publish(raw: &mut Raw) -> Heard {
    raw.serve_until(|m| m.topic == CONTROL)
}

/// Starts `tael control`, and returns its connection and its request.
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
    let (client, mut here) = start(&scene, &[]);
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
    // The answer names its request.
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
    // Data of the request itself is no attribute. The run is part of a chain.
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
    let (client, mut raw) = start(&scene, &[]);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("time")
        .as_secs();
    let request = |n: &str, expires: u64| {
        json!({"action": "raise", "n": n, "tael-request": {
            "id": format!("R{n}"), "reply_to": REPLY, "expires": expires,
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
        answer(&raw.serve_until(|m| m.topic == REPLY))
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
    // The broker knows that 60 s are left, so clocks do not matter.
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
    let arguments = ["-t", SEQ, "-c", RUN];
    world.client("late", &arguments).kill();
    let raise = ["late", "raise", "--timeout", "1s", "--attr", "n", "1"];
    let (code, _, stderr) = world.control(&raise);
    assert_eq!(code, 75, "{stderr}");
    let begun = std::time::Instant::now();
    // Brokers count the expiry in seconds.
    wait_until("the request has expired", || begun.elapsed().as_secs() >= 2);
    let client = world.client("late", &arguments);
    assert_eq!(world.control(&["late", "raise", "--attr", "n", "2"]).0, 0);
    world.wait_report("late", "/units/succeeded", 1);
    assert_eq!(world.lines("runs"), ["2"]);
    client.stop();
}

/// Sends a status of another pipeline, as a bridge that speaks MQTT 3.1.1 does.
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

/// Sends a message of another program.
fn plain(raw: &mut Raw, n: u16) {
    let payload = format!(r#"{{"status":"finished","n":"{n}"}}"#);
    raw.send(&publish(
        SEQ.as_bytes(),
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
    let (client, mut raw) = start(&scene, &filter);
    [1, 2].into_iter().for_each(|n| plain(&mut raw, n));
    [3, 4, 5].into_iter().for_each(|n| status(&mut raw, n, &[]));
    plain(&mut raw, 6);
    // Messages with a number of hops are not delayed.
    status(&mut raw, 7, &[("tael-hops", "1"), ("tael-who", "q")]);
    scene.have_run(&["10", "20", "30", "71"]);
    let ledger = scene.ledger();
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
    let (client, mut raw) = start(&scene, &filter);
    // Plain messages are not limited.
    (101..=170).for_each(|n| plain(&mut raw, n));
    let mut wanted: Vec<String> = (101..=170).map(|n| format!("{n}0")).collect();
    scene.have_run(&wanted.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(!client.log_text().contains("--loop-rate"));
    // 60 are free, and one more with every second. The last ones wait a second each.
    let mut count = 0;
    while !client.log_text().contains("--loop-rate") {
        count += 1;
        assert!(count < 1000, "nothing waits");
        status(&mut raw, count, &[]);
    }
    assert!(count > 60, "{count} were too many");
    wanted.extend((1..=count).map(|n| format!("{n}0")));
    scene.have_run(&wanted.iter().map(String::as_str).collect::<Vec<_>>());
    client.kill();
}

#[test]
fn what_waits_in_case_of_a_loop_waits_on_after_a_restart() {
    let scene = Scene::new();
    let start = || {
        let run = r#"sleep "${ATTR_S:-0}"; echo "$ATTR_N" >>"$OUT/runs""#;
        let mut command = scene.command(&["-t", SEQ, "-c", run]);
        let client = scene.spawn(command.args(["--loop-rate", "1", "--jobs", "2"]));
        (client, scene.online())
    };
    let say = |raw: &mut Raw, payload: &str, packet, hops: &[(&str, &str)]| {
        let payload = payload.as_bytes();
        raw.send(&publish(SEQ.as_bytes(), payload, Some(packet), hops, false));
        raw.serve_until_acknowledged(packet);
    };
    let (client, mut raw) = start();
    say(&mut raw, r#"{"status":"finished","n":1}"#, 1, &[]);
    say(&mut raw, r#"{"status":"finished","n":2}"#, 2, &[]);
    scene.have_run(&["1"]);
    client.kill();
    drop(raw);
    let (client, mut raw) = start();
    // The second one still has to wait most of a minute.
    let sentinel = r#"{"status":"finished","n":3,"s":2}"#;
    say(&mut raw, sentinel, 3, &[("tael-hops", "1")]);
    scene.have_run(&["1", "3"]);
    client.kill();
}

#[test]
fn a_request_to_cancel_the_only_run_that_comes_again_cancels_no_other() {
    let scene = Scene::new();
    let hold = r#"echo "$ATTR_N" >>"$OUT/runs"; until [ -e "$OUT/free" ]; do sleep 0.05; done"#;
    let client = scene.start(&["-t", SEQ, "-c", hold]);
    let mut raw = scene.online();
    for n in 1..=2 {
        let packet = u16::try_from(n).expect("number");
        raw.send(&publish(
            SEQ.as_bytes(),
            event(n).as_bytes(),
            Some(packet),
            &[],
            false,
        ));
        raw.serve_until_acknowledged(packet);
    }
    scene.have_run(&["1"]);
    let mut ask = |packet: u16, action: &str, id: &str, dup: bool| {
        let properties = [
            request_properties(REPLY, b""),
            user_properties(&[("tael-id", id)]),
        ]
        .concat();
        let payload = format!(r#"{{"action":"{action}"}}"#);
        let (topic, payload) = (CONTROL.as_bytes(), payload.as_bytes());
        raw.send(&publish_with(
            topic,
            payload,
            Some(packet),
            &properties,
            dup,
        ));
        answer(&raw.serve_until(|m| m.topic == REPLY))
    };
    let first = ask(3, "cancel", "one", false);
    assert_eq!(first["ok"], true, "{first}");
    scene.have_run(&["1", "2"]);
    // A requester whose connection broke asks again under its id.
    assert_eq!(ask(4, "cancel", "one", false), first);
    // The client before may have done this one.
    let refused = ask(5, "cancel", "two", true);
    assert_eq!(refused["ok"], false, "{refused}");
    fs::write(scene.dir.path().join("free"), "").expect("free");
    let mut packet = 5;
    wait_until("both have ended", || {
        packet += 1;
        let units = ask(packet, "status", &packet.to_string(), false)["units"].clone();
        let ended = json!({"pending": 0, "running": 0, "succeeded": 1, "failed": 0, "canceled": 1});
        assert_ne!(units["canceled"], 2, "{units}");
        units == ended
    });
    client.kill();
}
