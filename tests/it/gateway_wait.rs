//! `tael gateway`: callers of `/t` and of routes wait for the answer of a client.

use std::io::{Read, Write};
use std::thread;

use serde_json::{Value, json};

use crate::common::gateway::{Answer, Gateway, post};
use crate::common::raw::{Heard, Scripted, packet, publish_with, string};
use crate::common::{Process, Setup, World, bare_command, spawn, wait_until};
use crate::gateway_routes::config;

/// A client that answers: with its output, a line of standard error and the code that is asked for. It
/// notes each run, and waits for the file `go` if the message has a `hold`.
fn client(world: &World) -> Process {
    let command = "echo $ATTR_N >>$OUT/ran
        test -z \"$ATTR_HOLD\" || until test -e $OUT/go; do sleep 0.05; done
        printf \"got $ATTR_N ${ATTR_WAIT-none}\"; echo wrong >&2; exit ${ATTR_CODE-0}";
    let arguments = [
        "-t", "lab/ask", "--when", "", "--reply", "--jobs", "8", "-c", command,
    ];
    world.client("p", &arguments)
}

const KEY: [(&str, &str); 1] = [("Idempotency-Key", "k-1")];

#[track_caller]
fn holds(answer: &Answer, code: u8, output: &str) {
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = answer.json();
    assert_eq!(
        (&body["code"], &body["output"]),
        (&json!(code), &json!(output)),
        "{body}"
    );
}

#[test]
fn the_answer_of_a_client_is_that_of_the_request() {
    let world = World::new();
    let client = client(&world);
    for page in [&[][..], &["--no-page"]] {
        let gateway = Gateway::online(&world, page);
        let answer = gateway.post("/t/lab/ask?n=7&wait=1m", &[], r#"{"code":3}"#);
        holds(&answer, 3, "got 7 none");
        let mut body = answer.json();
        let own = body.as_object_mut().expect("object");
        assert_eq!(
            own.remove("host").as_ref().map(Value::is_string),
            Some(true)
        );
        let id = own.remove("id").expect("id");
        assert_eq!(id.as_str().map(str::len), Some(26));
        // Its caller can look at everything about the run.
        let unit = own.remove("unit").expect("unit");
        let unit = unit.as_str().expect("id");
        let shown = gateway.get(&format!("/units/{unit}")).json();
        assert_eq!(
            (&shown["unit"], &shown["return_code"]),
            (&json!(unit), &json!(3))
        );
        let want = json!({"code": 3, "output": "got 7 none", "truncated": false, "who": "p", "error": "wrong"});
        assert_eq!(body, want);
        // In a body it is an attribute.
        let answer = gateway.post("/t/lab/ask?wait=1m", &[], r#"{"n":"8","wait":"5s"}"#);
        holds(&answer, 0, "got 8 5s");
        let answer = gateway.post("/t/lab/ask", &[], r#"{"n":"9","wait":"5s"}"#);
        assert_eq!(answer.status, 202, "{answer:?}");
        for (path, cause) in [
            ("/t/lab/ask?wait=2h", "one hour is the maximum"),
            ("/t/lab/ask?wait=x", "wait"),
            ("/t/lab/ask?wait=", "wait"),
        ] {
            let refused = gateway.post(path, &[], "");
            assert_eq!(refused.status, 400, "{path}: {refused:?}");
            assert!(refused.body.contains(cause), "{path}: {refused:?}");
        }
        // Nothing answers there.
        let silent = gateway.post("/t/lab/silent?wait=100ms", &[], "{}");
        assert!([202, 503].contains(&silent.status), "{silent:?}");
        gateway.process.stop();
    }
    client.stop();
    assert_eq!(world.lines("ran").iter().filter(|n| *n == "7").count(), 2);
}

#[test]
fn a_run_that_takes_longer_goes_on_and_is_asked_for_by_its_key() {
    let mut world = World::with(Setup {
        persistent: true,
        ..Setup::default()
    });
    let client = client(&world);
    let gateway = Gateway::online(&world, &["--id", "gw"]);
    let address = gateway.address.clone();
    let body = r#"{"n":"1","hold":"yes"}"#;
    let short = gateway.post("/t/lab/ask?wait=200ms", &KEY, body);
    assert_eq!(short.status, 202, "{short:?}");
    assert_eq!(short.json(), json!({"id": "k-1", "pending": true}));
    wait_until("it runs", || world.lines("ran") == ["1"]);
    let long = post("/t/lab/ask?wait=10m", &KEY, body);
    // One that waits when the gateway stops is told that it has not ended.
    let mut stream = gateway.connect();
    stream.write_all(long.as_bytes()).expect("request");
    wait_until("it waits", || {
        let metrics = gateway.get("/metrics").body;
        metrics.contains("\ntael_gateway_long_answers 1\n")
    });
    gateway.process.stop();
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answer");
    assert_eq!(Answer::parse(&text).status, 202, "{text}");
    // One whose gateway is killed asks the next one.
    let gateway = Gateway::on(&world, &address, &["--id", "gw"]);
    gateway.wait_health(200);
    let mut stream = gateway.connect();
    stream.write_all(long.as_bytes()).expect("request");
    wait_until("it waits", || {
        let metrics = gateway.get("/metrics").body;
        metrics.contains("\ntael_gateway_confirmed_total 1\n")
    });
    gateway.process.kill();
    let gateway = Gateway::on(&world, &address, &["--id", "gw"]);
    gateway.wait_health(200);
    // Three wait, the broker is killed, and all have the answer of one run.
    let confirmed = |count: u32| {
        let metrics = gateway.get("/metrics").body;
        metrics.contains(&format!("\ntael_gateway_confirmed_total {count}\n"))
    };
    let answers: Vec<Answer> = thread::scope(|scope| {
        let waiting: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| Answer::parse(&gateway.exchange(&long))))
            .collect();
        wait_until("all wait", || confirmed(3));
        world.broker.kill();
        gateway.wait_health(503);
        world.broker.restart();
        gateway.wait_health(200);
        std::fs::write(world.path("go"), "").expect("go");
        waiting
            .into_iter()
            .map(|one| one.join().expect("answer"))
            .collect()
    });
    for answer in &answers {
        holds(answer, 0, "got 1 none");
    }
    // It is over, and is answered again.
    holds(
        &gateway.post("/t/lab/ask?wait=1m", &KEY, body),
        0,
        "got 1 none",
    );
    assert_eq!(world.lines("ran"), ["1"]);
    gateway.process.stop();
    client.stop();
}

#[test]
fn a_route_answers_with_the_end_of_the_run() {
    let mut world = World::new();
    let client = client(&world);
    let routes = "[[route]]\nname = \"ask\"\npath = \"/hooks/ask\"\ntopic = \"lab/ask\"\nanswer.wait = \"1m\"\n";
    let config = config(&world, routes);
    let gateway = Gateway::online(&world, &["--config", &config]);
    for _ in 0..2 {
        holds(
            &gateway.post("/hooks/ask", &KEY, r#"{"n":"1"}"#),
            0,
            "got 1 none",
        );
    }
    assert_eq!(world.lines("ran"), ["1"]);
    world.broker.stop();
    gateway.wait_health(503);
    for path in ["/hooks/ask", "/t/lab/ask?wait=1m"] {
        let away = gateway.post(path, &[], r#"{"n":"2"}"#);
        assert_eq!(away.status, 503, "{path}: {away:?}");
        assert!(away.head.contains("retry-after"), "{path}: {away:?}");
    }
    gateway.process.stop();
    client.stop();
}

#[test]
fn a_question_without_a_listener_is_not_accepted_and_strangers_answer_none() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let mut command = bare_command(&dir, "tael");
    command
        .args([
            "gateway",
            "--root",
            "lab",
            "--listen",
            "127.0.0.1:0",
            "--rate",
            "0",
            "--no-page",
        ])
        .env("TAEL_HOST", "127.0.0.1")
        .env("TAEL_PORT", broker.port().to_string());
    let gateway = Gateway::listening(spawn(&dir, &mut command));
    let mut raw = broker.accept();
    raw.serve_subscription();
    gateway.wait_health(200);
    let ask = || gateway.post("/t/lab/ask?wait=1m", &KEY, "{}");
    // Reason codes: no subscribers, and success.
    for code in [0x10, 0] {
        let answer = thread::scope(|scope| {
            let asking = scope.spawn(ask);
            let question = loop {
                let (kind, body) = raw.receive();
                if kind >> 4 != 3 {
                    raw.serve(kind, &body);
                    continue;
                }
                let (question, id) = Heard::parse(kind, &body);
                let id = id.expect("QoS 1");
                raw.send(&packet(0x40, &[id[0], id[1], code, 0]));
                break question;
            };
            assert!(
                question.reply.starts_with("lab/infrastructure/replies/"),
                "{}",
                question.reply
            );
            assert_eq!(question.correlation, b"k-1");
            assert_eq!(question.expiry, None, "it is accepted for good");
            for (correlation, text) in [("k-2", "no"), ("k-1", "yes")] {
                let properties = [&[0x09], &string(correlation.as_bytes())[..]].concat();
                let topic = question.reply.as_bytes();
                raw.send(&publish_with(
                    topic,
                    text.as_bytes(),
                    None,
                    &properties,
                    false,
                ));
            }
            asking.join().expect("answer")
        });
        match code {
            0 => {
                holds(&answer, 0, "yes");
                assert_eq!(answer.json()["who"], Value::Null);
            }
            _ => assert_eq!(answer.status, 503, "{answer:?}"),
        }
    }
    gateway.process.stop();
}
