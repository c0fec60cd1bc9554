//! `tael gateway`: the page, and what it is told.

use std::fs;
use std::io::{Read, Write};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::gateway_units::Events;
use crate::common::gateway::{Gateway, post};
use crate::common::proxy::Proxy;
use crate::common::{World, wait_until};

const BEARER: (&str, &str) = ("Authorization", "Bearer a-token-of-the-tests");

/// Reads events until one is wanted, and returns its data.
#[track_caller]
fn wait(events: &mut Events, mut wanted: impl FnMut(&str, &Value) -> bool) -> Value {
    while let Some((name, data)) = events.next() {
        if wanted(&name, &data) {
            return data;
        }
    }
    panic!("the stream has ended");
}

#[test]
fn a_run_begins_and_ends_in_the_stream() {
    let world = World::new();
    let wait_for = "until test -e $OUT/go; do sleep 0.05; done";
    let seq = world.client("seq", &["-t", "lab/in", "--when", "", "-c", wait_for]);
    let done = "lab/infrastructure/pipelines/seq/status";
    let zip = world.client("zip", &["-t", done, "-c", "true"]);
    let end = "lab/infrastructure/pipelines/zip/status";
    let third = world.client("send", &["-t", end, "-c", "true"]);
    let gateway = Gateway::online(&world, &[]);
    let mut events = Events::open(&gateway, "/api/stream", &[]);
    let (name, all) = events.next().expect("event");
    assert_eq!(name, "network");
    assert_eq!(all["broker"]["state"], "connected");
    assert_eq!(
        (&all["root"], &all["control"]),
        (&json!("lab"), &json!(false))
    );
    let event = gateway
        .post("/t/lab/in", &[], r#"{"x":"<script>\u001b[2J\u202e"}"#)
        .id();
    // The ledger is on this host, so that the unit is known.
    let running = wait(&mut events, |name, data| {
        name == "pipeline"
            && data["who"] == "seq"
            && data["running"][0]["unit"].is_string()
            && data["running"][0]["unit"] != ""
    });
    assert_eq!(running["state"], "online");
    assert_eq!(running["local"], true);
    let unit = running["running"][0]["unit"]
        .as_str()
        .expect("unit")
        .to_owned();
    assert_eq!(gateway.get(&format!("/units/{unit}")).status, 200);
    fs::write(world.path("go"), "").expect("go");
    wait(&mut events, |name, data| {
        name == "pipeline"
            && data["who"] == "seq"
            && data["last"]["status"] == "finished"
            && data["running"] == json!([])
    });
    wait(&mut events, |name, data| {
        name == "pipeline" && data["who"] == "send" && data["last"]["status"] == "finished"
    });
    let runs = gateway.get("/api/pipelines/seq/runs").json();
    assert_eq!(runs["source"], "ledger");
    assert_eq!(runs["runs"][0]["state"], "succeeded");
    assert_eq!(runs["runs"][0]["unit"], unit.as_str());
    assert_eq!(runs["runs"][0]["event"], event.as_str());
    let statuses = gateway.get("/api/pipelines/seq/statuses").json();
    assert_eq!(statuses["statuses"][0]["status"], "finished");
    let of_seq = |all: &Value| -> Value {
        let pipelines = all["pipelines"].as_array().expect("pipelines").iter();
        let mut seq = pipelines.filter(|pipeline| pipeline["who"] == "seq");
        seq.next().expect("seq").clone()
    };
    // A gateway that starts now knows as much.
    let later = Gateway::online(&world, &[]);
    let mut last = Value::Null;
    wait_until("the retained end has come", || {
        last = of_seq(&later.get("/api/network").json())["last"].clone();
        last.is_object()
    });
    assert_eq!(last["reason"], "lab/in finished");
    assert_eq!(last, of_seq(&gateway.get("/api/network").json())["last"]);
    let again = later.get("/api/pipelines/seq/statuses").json();
    assert_eq!(again, statuses);
    let known: Vec<(&Value, &Value)> = again["statuses"]
        .as_array()
        .expect("statuses")
        .iter()
        .map(|status| (&status["status"], &status["reason"]))
        .collect();
    let (end, start) = (json!("finished"), json!("started"));
    let why = json!("lab/in finished");
    assert_eq!(known, [(&end, &Value::Null), (&start, &why)]);
    later.process.stop();
    let drawing = gateway.get("/api/graph.svg");
    assert!(
        drawing.body.contains(r#"data-from="seq" data-to="zip""#),
        "{drawing:?}"
    );
    assert!(drawing.head.contains("image/svg+xml"), "{drawing:?}");
    let network = gateway.get("/api/network").json();
    let edge = json!({"from": "seq", "to": "zip", "topic": done});
    assert!(
        network["edges"].as_array().expect("edges").contains(&edge),
        "{network}"
    );
    assert_eq!(gateway.get("/api/pipelines/none/runs").status, 404);
    for process in [seq, zip, third, gateway.process] {
        process.stop();
    }
}

#[test]
fn hostile_messages_are_text_and_refusals_are_shown() {
    let world = World::new();
    let gateway = Gateway::online(&world, &[]);
    let mut events = Events::open(&gateway, "/api/stream", &[]);
    assert_eq!(events.next().expect("event").0, "network");
    let hostile = "</script><svg onload=x>\u{1b}]0;x\u{7}\u{202e}\r\ndata: {}\n\nevent: gone";
    gateway
        .post("/t/lab/x", &[], &json!({ "x": hostile }).to_string())
        .id();
    let message = wait(&mut events, |name, data| {
        name == "message" && data["topic"] == "lab/x"
    });
    let payload = message["payload"].as_str().expect("text");
    assert!(payload.contains("<svg onload=x>") && !payload.contains(char::is_control));
    assert!(!payload.contains('\u{202e}'), "{payload}");
    assert_eq!(gateway.post("/t/other", &[], "{}").status, 403);
    let refused = wait(&mut events, |name, _| name == "refused");
    assert_eq!(
        (&refused["path"], &refused["status"]),
        (&json!("/t/other"), &json!(403))
    );
    assert_eq!(
        gateway.get("/api/network").json()["refused"][0]["path"],
        "/t/other"
    );
    gateway.process.stop();
}

#[test]
fn a_broker_that_goes_and_comes_is_an_event() {
    let mut world = World::new();
    let gateway = Gateway::online(&world, &[]);
    let mut events = Events::open(&gateway, "/api/stream?messages=0", &[]);
    assert_eq!(events.next().expect("event").0, "network");
    world.broker.stop();
    wait(&mut events, |name, data| {
        name == "broker" && data["state"] == "away"
    });
    assert_eq!(
        gateway.get("/api/network").json()["broker"]["state"],
        "away"
    );
    world.broker.restart();
    let back = wait(&mut events, |name, data| {
        name == "broker" && data["state"] == "connected"
    });
    assert!(back["since"].as_i64().expect("since") > 1_000_000_000);
    gateway.process.stop();
}

#[test]
fn a_client_that_is_killed_keeps_its_edge() {
    let mut world = World::new();
    let seq = world.client("seq", &["-t", "lab/in", "-c", "true"]);
    let done = "lab/infrastructure/pipelines/seq/status";
    let zip = world.client("zip", &["-t", done, "-c", "true", "--envreq", "sample"]);
    let gateway = Gateway::online(&world, &[]);
    let edges = || gateway.get("/api/network").json()["edges"].clone();
    let all = json!([
        {"from": "", "to": "seq", "topic": "lab/in"},
        {"from": "seq", "to": "zip", "topic": done},
    ]);
    wait_until("both are known", || edges() == all);
    let mut events = Events::open(&gateway, "/api/stream?messages=0", &[]);
    zip.kill();
    let lost = wait(&mut events, |name, data| {
        name == "pipeline" && data["who"] == "zip" && data["state"] == "lost"
    });
    assert_eq!(lost["triggers"][0]["topics"], json!([done]));
    assert_eq!(lost["triggers"][0]["requires"], json!(["sample"]));
    assert_eq!(edges(), all);
    // A broker that stops may say of every client that it is lost.
    world.broker.stop();
    wait(&mut events, |name, data| {
        name == "broker" && data["state"] == "away"
    });
    assert_eq!(edges(), all);
    let drawing = gateway.get("/api/graph.svg");
    assert!(
        drawing.body.contains(r#"data-from="seq" data-to="zip""#),
        "{drawing:?}"
    );
    gateway.process.stop();
    seq.kill();
}

#[test]
fn a_short_run_is_told_while_it_runs() {
    let world = World::new();
    let client = world.client("p", &["-t", "lab/in", "--when", "", "-c", "true"]);
    let gateway = Gateway::online(&world, &[]);
    let mut events = Events::open(&gateway, "/api/stream?messages=0", &[]);
    wait_until("its ledger is read", || {
        let network = gateway.get("/api/network").json();
        network["pipelines"][0]["local"] == true
    });
    for n in 0..5 {
        let body = format!(r#"{{"n":{n}}}"#);
        gateway.post("/t/lab/in", &[], &body).id();
        wait(&mut events, |name, data| {
            name == "pipeline" && data["running"][0]["reason"] == "lab/in finished"
        });
        wait(&mut events, |name, data| {
            name == "pipeline"
                && data["running"] == json!([])
                && data["last"]["reason"] == "lab/in finished"
        });
    }
    gateway.process.stop();
    client.stop();
}

#[test]
fn an_event_that_waits_is_shown() {
    let world = World::new();
    let client = world.client("p", &["-t", "lab/in", "--when", "", "-c", "true"]);
    let gateway = Gateway::online(&world, &[]);
    let mut events = Events::open(&gateway, "/api/stream?messages=0", &[]);
    assert_eq!(world.control(&["p", "pause"]).0, 0);
    wait(&mut events, |name, data| {
        name == "pipeline" && data["state"] == "paused" && data["waiting"] == 0
    });
    gateway.post("/t/lab/in", &[], "{}").id();
    wait(&mut events, |name, data| {
        name == "pipeline" && data["waiting"] == 1
    });
    gateway.process.stop();
    client.stop();
}

#[test]
fn a_pipeline_that_was_forgotten_while_the_gateway_was_away_is_gone() {
    let world = World::new();
    for who in ["stays", "goes"] {
        world.client(who, &["-t", "lab/in", "-c", "true"]).stop();
    }
    let link = Proxy::new(world.broker.port());
    let gateway = Gateway::online(&world, &["--port", &link.port().to_string()]);
    let names = |gateway: &Gateway| -> Vec<String> {
        let network = gateway.get("/api/network").json();
        let pipelines = network["pipelines"].as_array().expect("pipelines").iter();
        pipelines
            .map(|p| p["who"].as_str().expect("name").to_owned())
            .collect()
    };
    wait_until("both are known", || names(&gateway) == ["goes", "stays"]);
    let mut events = Events::open(&gateway, "/api/stream?messages=0", &[]);
    link.close();
    gateway.wait_health(503);
    let mut forget = world.tael(["forget", "goes", "--root", "lab"]);
    assert!(forget.status().expect("run").success());
    link.open();
    gateway.wait_health(200);
    assert_eq!(wait(&mut events, |name, _| name == "gone")["who"], "goes");
    assert_eq!(names(&gateway), ["stays"]);
    gateway.process.stop();
}

#[test]
fn control_needs_its_option_and_a_token() {
    let world = World::new();
    let client = world.client("p", &["-t", "lab/in", "-c", "true"]);
    let tokens = world.file("tokens", "a-token-of-the-tests\n");
    let path = "/api/pipelines/p/control";
    let reads = Gateway::online(&world, &["--token-file", &tokens]);
    let pause = r#"{"action":"pause"}"#;
    assert_eq!(reads.post(path, &[], pause).status, 401);
    assert_eq!(reads.post(path, &[BEARER], pause).status, 403);
    assert_eq!(reads.get("/").status, 200, "the files need no token");
    // It asks so to learn that it needs a token; a wrong one is refused for all to see.
    assert_eq!(reads.get("/api/network").status, 401);
    let wrong = ("Authorization", "Bearer a-wrong-token-of-them");
    assert_eq!(reads.ask("GET /api/stream", &[wrong]).status, 401);
    // So it does not know either which runs are here, and which pipelines have left.
    assert_eq!(reads.get("/units/01JBV7Y3ZK8Q5W2N4T6R9M1XCD").status, 401);
    for path in [
        "/api/pipelines/nope/runs",
        "/api/pipelines/nope/statuses",
        "/units/01JBV7Y3ZK8Q5W2N4T6R9M1XCD",
        "/units/01JBV7Y3ZK8Q5W2N4T6R9M1XCD/stdout",
    ] {
        assert_eq!(reads.ask(&format!("GET {path}"), &[BEARER]).status, 404);
    }
    assert_eq!(reads.ask("GET /api/nothing", &[BEARER]).status, 404);
    let metrics = reads.ask("GET /metrics", &[BEARER]).body;
    let counted = "\ntael_gateway_answers_total{code=\"404\"} 5\n";
    assert!(metrics.contains(counted), "all are counted: {metrics}");
    let network = reads.ask("GET /api/network", &[BEARER]).json();
    let refused = network["refused"].as_array().expect("refused").iter();
    let refused: Vec<_> = refused.map(|r| (&r["path"], &r["status"])).collect();
    let (control, stream) = (json!(path), json!("/api/stream"));
    let (unknown, forbidden) = (json!(401), json!(403));
    let (nothing, not_found) = (json!("/api/nothing"), json!(404));
    let want = [
        (&control, &unknown),
        (&control, &forbidden),
        (&stream, &unknown),
        (&nothing, &not_found),
    ];
    assert_eq!(refused, want, "{network}");
    reads.process.stop();
    let gateway = Gateway::online(
        &world,
        &["--token-file", &tokens, "--control", "--timeout", "2s"],
    );
    let answer = gateway.post(path, &[BEARER], pause);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["reply"]["ok"], true);
    assert_eq!(
        gateway.post(path, &[BEARER], r#"{"action":"stop"}"#).status,
        400
    );
    let foreign = [BEARER, ("Origin", "http://evil.example")];
    assert_eq!(gateway.post(path, &foreign, pause).status, 403);
    let none = gateway.post("/api/pipelines/none/control", &[BEARER], pause);
    assert_eq!(none.status, 404, "{none:?}");
    gateway.process.stop();
    client.stop();
}

#[test]
fn the_files_allow_nothing_from_elsewhere() {
    let world = World::new();
    let gateway = Gateway::start(&world, &[]);
    for (path, media) in [
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/icon.svg", "image/svg+xml"),
    ] {
        let answer = gateway.get(path);
        assert_eq!(answer.status, 200, "{answer:?}");
        for want in [media, "default-src 'none'", "nosniff", "no-referrer"] {
            assert!(
                answer.head.contains(want),
                "{path}: {want}: {}",
                answer.head
            );
        }
        let tag = answer.head.split_once("etag: ").expect("etag").1;
        let tag = tag.split_once("\r\n").expect("line").0;
        let again = gateway.ask(&format!("GET {path}"), &[("If-None-Match", tag)]);
        assert_eq!((again.status, again.body.as_str()), (304, ""));
        assert_eq!(gateway.ask(&format!("PUT {path}"), &[]).status, 405);
    }
    gateway.process.stop();
    let none = Gateway::start(&world, &["--no-page"]);
    assert_eq!(none.get("/").status, 404);
    assert_eq!(none.get("/api/network").status, 404);
    none.process.stop();
}

#[test]
fn a_thousand_pipelines_are_told_soon() {
    let world = World::new();
    let gateway = Gateway::online(
        &world,
        &[
            "--allow",
            "lab/infrastructure/pipelines/+/presence",
            "--allow",
            "lab/#",
        ],
    );
    let mut events = Events::open(&gateway, "/api/stream?messages=0", &[]);
    assert_eq!(events.next().expect("event").0, "network");
    for n in 0..1_000 {
        let presence = json!({"state": "online", "host": "h",
            "triggers": [{"name": "t", "topics": [format!("lab/infrastructure/pipelines/p{}/status", n / 2)]}]});
        let path = format!("/t/lab/infrastructure/pipelines/p{n}/presence");
        let answer = gateway.exchange(post(&path, &[], &presence.to_string()));
        assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    }
    wait(&mut events, |name, data| {
        name == "pipeline" && data["who"] == "p999"
    });
    let begun = Instant::now();
    let network = gateway.get("/api/network").json();
    assert_eq!(network["pipelines"].as_array().map(Vec::len), Some(1_000));
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(
        gateway
            .get("/api/graph.svg")
            .body
            .matches("data-who=")
            .count(),
        1_000
    );
    gateway.process.stop();
}

#[test]
fn two_hundred_readers_come_at_once_and_all_are_served() {
    let world = World::new();
    let gateway = Gateway::online(&world, &[]);
    // Twice: the second time as browsers that load the page again.
    for _ in 0..2 {
        let barrier = Barrier::new(200);
        thread::scope(|scope| {
            let readers: Vec<_> = (0..200)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        // A browser keeps the connection of the files open.
                        let mut files = gateway.connect();
                        let get = "GET /page.css HTTP/1.1\r\nHost: localhost\r\n\r\n";
                        files.write_all(get.as_bytes()).expect("request");
                        let mut start = [0; 15];
                        files.read_exact(&mut start).expect("answer");
                        assert_eq!(&start, b"HTTP/1.1 200 OK");
                        let mut events = Events::open(&gateway, "/api/stream", &[]);
                        assert_eq!(events.next().expect("event").0, "network");
                        (files, events)
                    })
                })
                .collect();
            let mut readers: Vec<_> = readers
                .into_iter()
                .map(|reader| reader.join().expect("reader"))
                .collect();
            gateway.post("/t/lab/x", &[], r#"{"x":1}"#).id();
            for (_, events) in &mut readers {
                wait(events, |name, data| {
                    name == "message" && data["topic"] == "lab/x"
                });
            }
        });
    }
    let metrics = gateway.get("/metrics").body;
    assert!(
        metrics.contains("\ntael_gateway_connections_refused_total 0\n"),
        "{metrics}"
    );
    gateway.process.stop();
}
