//! `tael gateway` and webhooks that submit work: a delivery is one unit, however often it comes.

use std::io::{Read, Write};
use std::thread;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::common::gateway::{Answer, Gateway, insist, post};
use crate::common::{Process, World, wait_until};
use crate::gateway_routes::{config, hub};

/// Each run notes its payload in one write: others run meanwhile.
const TYPES: &str = r#"
[[work]]
type = "note"
command = "sh -c 'echo \"$(cat)\" >>$OUT/runs; until test -e $OUT/go; do sleep 0.05; done; echo done; exit 4'"
jobs = 8
"#;

const ROUTES: &str = r#"
[[route]]
name = "push"
path = "/hooks/push"
source = "github"
secret-file = "SECRET/hub"
work = "localhost/note"
rule = { json = "ref", value = "main" }
map.commit = { json = "after" }
[[route]]
name = "waits"
path = "/hooks/waits"
source = "github"
secret-file = "SECRET/hub"
work = "localhost/note"
map.commit = { json = "after" }
answer.wait = "1m"
[[route]]
name = "open"
path = "/hooks/open"
work = "localhost/note"
map.commit = { query = "commit" }
answer = { status = 200, message = "thanks" }
"#;

fn node(world: &World) -> Process {
    let config = world.file("node.toml", TYPES);
    world.client("node", &["--config", &config])
}

/// Starts a gateway with the routes.
fn gateway(world: &World, address: &str) -> Gateway {
    let config = config(world, ROUTES);
    let options = ["--config", &config, "--allow-work", "localhost/note"];
    let gateway = Gateway::on(world, address, &options);
    gateway.wait_health(200);
    gateway
}

/// Returns a delivery of GitHub.
fn delivery(path: &str, id: &str, body: &str) -> String {
    let signature = hub(body);
    let fields = [
        ("X-Hub-Signature-256", signature.as_str()),
        ("X-GitHub-Delivery", id),
        ("Content-Type", "application/json"),
    ];
    post(path, &fields, body)
}

#[test]
fn a_delivery_is_one_unit_with_what_its_route_maps() {
    let world = World::new();
    let gateway = gateway(&world, "127.0.0.1:0");
    let push = |path: &str, id: &str, body: &str| {
        Answer::parse(&gateway.exchange(delivery(path, id, body)))
    };
    let main = r#"{"ref":"main","after":"c1"}"#;
    let away = push("/hooks/push", "d1", main);
    assert_eq!(away.status, 503, "{away:?}");
    assert!(away.head.contains("retry-after"), "{away:?}");
    let client = node(&world);
    let first = push("/hooks/push", "d1", main);
    let unit = first.id();
    let want = json!({"unit": unit, "id": unit, "pipeline": "node", "accepted": true});
    assert_eq!(first.json(), want);
    for _ in 0..3 {
        assert_eq!(push("/hooks/push", "d1", main).json(), want);
    }
    // The same on another route, and without a delivery's id, is other work.
    let other = r#"{"ref":"main","after":"c2"}"#;
    let taken = push("/hooks/push", "d1", other);
    assert_eq!(taken.status, 409, "{taken:?}");
    assert!(taken.body.contains("delivery"), "{taken:?}");
    wait_until("the log says so as a text", || {
        let line = "warning: route push: refused a request: other work was sent";
        gateway.process.log_text().contains(line)
    });
    let log = gateway.process.log_text();
    assert!(!log.contains(r#"{"error""#), "{log}");
    let key = [("Idempotency-Key", "push:d1")];
    let own = gateway.post("/w/localhost/note", &key, "mine").id();
    assert_ne!(own, unit, "a caller cannot take the place of a delivery");
    for (id, body, status) in [
        ("d2", r#"{"ref":"side","after":"c2"}"#, 403),
        ("d3", r#"{"ref":"main"}"#, 400),
        ("d4", "{", 400),
    ] {
        assert_eq!(push("/hooks/push", id, body).status, status, "{body}");
    }
    let forged = delivery("/hooks/push", "d5", main).replace("c1", "c9");
    assert_eq!(Answer::parse(&gateway.exchange(forged)).status, 401);
    // An answer of one's own, and a key of the caller.
    for _ in 0..2 {
        let open = gateway.post("/hooks/open?commit=c3", &[("Idempotency-Key", "o1")], "");
        assert_eq!((open.status, open.body.as_str()), (200, "thanks"));
    }
    // The end is the answer, also to a delivery that comes again.
    std::fs::write(world.path("go"), "").expect("go");
    let ends = [(); 2].map(|()| push("/hooks/waits", "d6", r#"{"after":"c4"}"#));
    for end in &ends {
        assert_eq!(end.status, 200, "{end:?}");
        let body = end.json();
        assert_eq!(
            (&body["code"], &body["output"]),
            (&json!(4), &json!("done\n"))
        );
        assert_eq!(body["unit"], ends[0].json()["unit"]);
    }
    wait_until("all have run", || {
        let list = crate::common::json_of(&mut world.tael(["work", "list", "--json"]));
        let list = list.as_array().cloned().unwrap_or_default();
        list.len() == 4 && list.iter().all(|unit| unit["state"] == "failed")
    });
    let mut runs = world.lines("runs");
    runs.sort();
    let commit = |n: u32| json!({"commit": format!("c{n}")}).to_string();
    assert_eq!(runs, ["mine".to_owned(), commit(1), commit(3), commit(4)]);
    gateway.process.stop();
    client.stop();
}

#[test]
fn a_delivery_without_an_answer_is_sent_again_and_runs_once_through_kills() {
    const DELIVERIES: usize = 24;
    let world = World::new();
    std::fs::write(world.path("go"), "").expect("go");
    let mut client = node(&world);
    let mut gateway = gateway(&world, "127.0.0.1:0");
    let address = gateway.address.clone();
    for round in 0..2 {
        let range = round * DELIVERIES..(round + 1) * DELIVERIES;
        let accepted = range.start + 3;
        // A sender sends again until it has an answer.
        let units: Vec<String> = thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let units = range.clone().map(|n| {
                    let body = json!({"ref": "main", "after": n.to_string()}).to_string();
                    insist(&address, &delivery("/hooks/push", &format!("d{n}"), &body)).id()
                });
                units.collect()
            });
            wait_until("some have run", || world.lines("runs").len() > accepted);
            match round {
                0 => {
                    gateway.process.signal(Signal::SIGKILL);
                    gateway.process.wait();
                    gateway = self::gateway(&world, &address);
                }
                _ => {
                    client.signal(Signal::SIGKILL);
                    client.wait();
                    client = node(&world);
                }
            }
            sending.join().expect("deliveries")
        });
        // One that was answered long ago is known, too.
        let body = json!({"ref": "main", "after": range.start.to_string()}).to_string();
        let id = format!("d{}", range.start);
        let again = insist(&address, &delivery("/hooks/push", &id, &body));
        assert_eq!(again.id(), units[0]);
    }
    let all = 2 * DELIVERIES;
    let last = delivery("/hooks/push", "last", r#"{"ref":"main","after":"last"}"#);
    insist(&address, &last);
    wait_until("all have run", || {
        let runs = world.lines("runs");
        runs.len() > all && runs.iter().any(|run| run.contains("last"))
    });
    let mut runs = world.lines("runs");
    runs.retain(|run| !run.contains("last"));
    runs.sort();
    let mut want: Vec<String> = (0..all)
        .map(|n| json!({"commit": n.to_string()}).to_string())
        .collect();
    want.sort();
    assert_eq!(runs, want);
    gateway.process.stop();
    client.stop();
}

#[test]
fn a_gateway_that_is_killed_while_a_sender_waits_runs_its_delivery_once() {
    let world = World::new();
    let client = node(&world);
    let gateway = gateway(&world, "127.0.0.1:0");
    let address = gateway.address.clone();
    let request = delivery("/hooks/waits", "d1", r#"{"after":"c1"}"#);
    let mut stream = gateway.connect();
    stream.write_all(request.as_bytes()).expect("request");
    wait_until("it runs", || !world.lines("runs").is_empty());
    gateway.process.kill();
    let mut rest = String::new();
    let _ = stream.read_to_string(&mut rest);
    assert_eq!(rest, "");
    let gateway = self::gateway(&world, &address);
    std::fs::write(world.path("go"), "").expect("go");
    let end = Answer::parse(&gateway.exchange(&request));
    assert_eq!(end.json()["code"], 4, "{end:?}");
    assert_eq!(world.lines("runs"), [r#"{"commit":"c1"}"#]);
    gateway.process.stop();
    client.stop();
}
