//! `tael gateway`: callers submit work, once, and may wait for its end.

use std::io::Write;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::common::gateway::{Gateway, insist, post};
use crate::common::nodes::{fixture_key, node_with, private_key};
use crate::common::{Process, World, wait_until};

const TYPES: &str = r#"
[[work]]
type = "upper"
command = "tr a-z A-Z"
params = true

[[work]]
type = "note"
command = "sh -c 'cat >>$OUT/runs; until test -e $OUT/go; do sleep 0.05; done; echo $WORK_N >&2; exit 4'"
params = true
"#;

fn node(world: &World) -> Process {
    let config = world.file("node.toml", TYPES);
    world.client("node", &["--config", &config])
}

const ALLOWED: &[&str] = &[
    "--allow-work",
    "localhost/upper",
    "--allow-work",
    "localhost/note",
    "--allow-work",
    "localhost/none",
    "--allow-work",
    "elsewhere/note",
];

#[test]
fn work_is_submitted_and_its_end_is_the_answer() {
    let world = World::new();
    let gateway = Gateway::online(&world, ALLOWED);
    let upper = |body: &str| gateway.post("/w/localhost/upper?wait=1m", &[], body);
    let away = upper("a");
    assert_eq!(away.status, 503, "{away:?}");
    assert!(away.head.contains("retry-after"), "{away:?}");
    let client = node(&world);
    let answer = upper("some text\n");
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = answer.json();
    assert_eq!(
        body,
        json!({"unit": body["unit"], "id": body["unit"], "state": "succeeded", "code": 0,
            "output": "SOME TEXT\n", "stderr": "", "truncated": false})
    );
    let accepted = gateway.post("/w/localhost/note?n=7", &[], "x\n");
    assert_eq!(accepted.json()["pipeline"], "node", "{accepted:?}");
    let unit = accepted.id();
    wait_until("it runs", || world.lines("runs") == ["x"]);
    let waits = gateway.ask(&format!("GET /units/{unit}?wait=100ms"), &[]);
    assert_eq!(
        (waits.status, &waits.json()["pending"]),
        (202, &json!(true))
    );
    std::fs::write(world.path("go"), "").expect("go");
    let end = gateway
        .ask(&format!("GET /units/{unit}?wait=1m"), &[])
        .json();
    assert_eq!((&end["code"], &end["state"]), (&json!(4), &json!("failed")));
    for (path, status, cause) in [
        ("/w/localhost/none", 503, "no client has type"),
        ("/w/localhost/other", 403, "--allow-work"),
        ("/w/localhost/upper?command=x", 400, "cannot be the name"),
        ("/w/localhost/upper?wait=x", 400, "wait"),
    ] {
        let answer = gateway.post(path, &[], "");
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(answer.body.contains(cause), "{path}: {answer:?}");
    }
    // A node that nothing is known of is told later: a client keeps the unit.
    let kept = gateway.post("/w/elsewhere/note", &[], "x");
    assert!(kept.status == 202 || kept.status == 400, "{kept:?}");
    gateway.process.stop();
    client.stop();
}

#[test]
fn work_with_a_key_runs_once_through_kills() {
    let world = World::new();
    std::fs::write(world.path("go"), "").expect("go");
    let client = node(&world);
    let mut gateway = Gateway::online(&world, ALLOWED);
    let key = [("Idempotency-Key", "job-7")];
    let send = |gateway: &Gateway, body: &str| gateway.post("/w/localhost/note", &key, body);
    let unit = send(&gateway, "x\n").id();
    assert_eq!(send(&gateway, "x\n").id(), unit);
    let other = send(&gateway, "y\n");
    assert_eq!(other.status, 409, "{other:?}");
    // It has ended: what follows would hold it up.
    let end = gateway.ask(&format!("GET /units/{unit}?wait=1m"), &[]);
    assert_eq!(end.json()["code"], 4, "{end:?}");
    // A gateway that is killed while a caller waits.
    std::fs::remove_file(world.path("go")).expect("go");
    let key = [("Idempotency-Key", "job-8")];
    let request = post("/w/localhost/note?wait=1h", &key, "z\n");
    let mut stream = gateway.connect();
    stream.write_all(request.as_bytes()).expect("request");
    wait_until("it runs", || world.lines("runs").contains(&"z".into()));
    gateway.process.signal(Signal::SIGKILL);
    gateway.process.wait();
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut stream, &mut rest);
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    let gateway = Gateway::online(&world, ALLOWED);
    let short = post("/w/localhost/note?wait=100ms", &key, "z\n");
    let pending = insist(&gateway.address, &short);
    assert_eq!(pending.status, 202, "{pending:?}");
    std::fs::write(world.path("go"), "").expect("go");
    let end = gateway.ask(
        &format!(
            "GET /units/{}?wait=1m",
            pending.json()["unit"].as_str().expect("unit")
        ),
        &[],
    );
    assert_eq!(end.json()["code"], 4, "{end:?}");
    // A caller that waits when the gateway stops is told that it has not ended.
    std::fs::remove_file(world.path("go")).expect("go");
    let request = post("/w/localhost/note?wait=1h", &[], "last\n");
    let mut stream = gateway.connect();
    stream.write_all(request.as_bytes()).expect("request");
    wait_until("the last runs", || {
        world.lines("runs").contains(&"last".into())
    });
    gateway.process.stop();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).expect("answer");
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    std::fs::write(world.path("go"), "").expect("go");
    client.stop();
    assert_eq!(world.lines("runs"), ["x", "z", "last"]);
}

#[test]
fn work_for_another_node_is_signed_by_the_client_that_keeps_it() {
    let world = World::new();
    let types = format!(
        "[verify]\nkeys = [{:?}]\n[[work]]\ntype = 'cat'\ncommand = 'cat'\nsigned = 'required'\n",
        fixture_key("ed25519.pub"),
    );
    let node = node_with(&world, &types);
    let key = private_key(&world, "ed25519");
    let signing = world.file("desk.toml", format!("[signing]\nkey = {key:?}\n"));
    let desk = world.client("desk", &["--submit-only", "--config", &signing]);
    let route = "[[route]]\nname = \"cat\"\npath = \"/hooks/cat\"\nwork = \"node7/cat\"\n\
        answer.wait = \"1m\"\n";
    let config = world.file("gateway.toml", route);
    let options = ["--allow-work", "node7/cat", "--config", &config];
    let unsigned = Gateway::online(&world, &options);
    let refused = unsigned.post("/w/node7/cat?wait=1m", &[], "a");
    assert_eq!(refused.status, 400, "{refused:?}");
    assert!(
        refused.body.contains("a signature is required"),
        "{refused:?}"
    );
    let signed = Gateway::online(&world, &[&options[..], &["--sign"]].concat());
    for (path, body) in [
        ("/w/node7/cat?wait=1m", "some text"),
        ("/hooks/cat", r#"{"a":1}"#),
    ] {
        let answer = signed.post(path, &[], body);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert_eq!(answer.json()["output"], body, "{path}");
    }
    unsigned.process.stop();
    signed.process.stop();
    desk.stop();
    node.stop();
}

/// Type of a client that always goes on.
const OTHER: &str = "[[work]]\ntype = \"other\"\ncommand = \"true\"\n";

#[test]
fn a_client_that_is_stopped_holds_up_no_callers_and_is_taken_again() {
    let world = World::new();
    let client = node(&world);
    let config = world.file("other.toml", OTHER);
    let other = world.client("other", &["--config", &config]);
    let gateway = Gateway::online(
        &world,
        &[ALLOWED, &["--allow-work", "localhost/other"]].concat(),
    );
    let send = |kind: &str| {
        let begun = Instant::now();
        let answer = gateway.post(&format!("/w/localhost/{kind}"), &[], "x");
        (answer, begun.elapsed())
    };
    assert_eq!(send("upper").0.status, 202);
    client.signal(Signal::SIGSTOP);
    let begun = Instant::now();
    let mut slow = 0;
    for _ in 0..20 {
        let (answer, spent) = send("upper");
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.head.contains("retry-after: "), "{answer:?}");
        assert!(answer.body.contains("did not answer in time"), "{answer:?}");
        slow += u64::from(spent > Duration::from_secs(2));
        let (answer, spent) = send("other");
        assert_eq!(answer.status, 202, "{answer:?}");
        slow += u64::from(spent > Duration::from_secs(2));
    }
    // One has to learn it, and another after each 3 seconds and the 5 that it waits.
    let turns = begun.elapsed().as_secs() / 8 + 1;
    assert!(slow <= turns, "{slow} in {:?}", begun.elapsed());
    client.signal(Signal::SIGCONT);
    let begun = Instant::now();
    wait_until("it is taken again", || send("upper").0.status == 202);
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    gateway.process.stop();
    other.stop();
    client.stop();
}
