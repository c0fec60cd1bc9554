//! `tael gateway`: what it has accepted runs once.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::common::gateway::{Gateway, insist, post};
use crate::common::raw::{Heard, Scripted, packet};
use crate::common::{Setup, World, bare_command, ran, spawn, wait_until};

/// A command that notes the id of its event.
const NOTE: &[&str] = &[
    "-t",
    "lab/hook",
    "--when",
    "",
    "-c",
    "echo $TAEL_EVENT >>$OUT/ran",
    "--jobs",
    "8",
];

/// Waits until a last request has run, and returns the ids of all runs. An event that ran twice has
/// done so before it.
#[track_caller]
fn all_runs(world: &World, gateway: &Gateway, count: usize) -> Vec<String> {
    let mut seen = 0;
    let mut at = Instant::now();
    // As long as there is progress.
    while seen < count {
        let now = world.lines("ran").len();
        if now > seen {
            (seen, at) = (now, Instant::now());
        }
        assert!(
            at.elapsed() < Duration::from_secs(60),
            "{seen} of {count} have run"
        );
        thread::sleep(Duration::from_millis(20));
    }
    let last = gateway.post("/t/lab/hook", &[], "").id();
    wait_until("the last has run", || world.lines("ran").contains(&last));
    let mut runs = world.lines("ran");
    runs.retain(|id| *id != last);
    runs
}

#[track_caller]
fn once_each(mut runs: Vec<String>, ids: impl IntoIterator<Item = String>) {
    runs.sort();
    let ids: BTreeSet<String> = ids.into_iter().collect();
    assert_eq!(runs, ids.into_iter().collect::<Vec<_>>());
}

#[test]
fn each_of_two_thousand_posts_runs_once() {
    const CONNECTIONS: usize = 50;
    const POSTS: usize = 2000;
    let world = World::new();
    let client = world.client("p", NOTE);
    let gateway = Gateway::online(&world, &[]);
    let posting: Vec<_> = (0..CONNECTIONS)
        .map(|c| {
            let address = gateway.address.clone();
            thread::spawn(move || {
                let numbers = (c..POSTS).step_by(CONNECTIONS);
                let body = |n: usize| json!({ "n": n }).to_string();
                numbers
                    .map(|n| insist(&address, &post("/t/lab/hook", &[], &body(n))).id())
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let ids: Vec<String> = posting
        .into_iter()
        .flat_map(|posting| posting.join().expect("posts"))
        .collect();
    assert_eq!(ids.len(), POSTS);
    once_each(all_runs(&world, &gateway, POSTS), ids);
    gateway.process.stop();
    client.stop();
}

#[test]
fn a_request_is_a_message_with_its_attributes() {
    let world = World::new();
    let gateway = Gateway::online(&world, &[]);
    let ears = world.ears(&["lab/#"]);
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let id = gateway
        .post(
            "/t/lab/a%20b/c?x=1&y=z",
            &[("traceparent", trace)],
            r#"{"y":2.50,"n":[null]}"#,
        )
        .id();
    let message = ears.wait("the message", |m| m.topic == "lab/a b/c");
    assert_eq!(
        message.payload.to_string(),
        r#"{"x":"1","y":2.50,"n":[null]}"#
    );
    assert!(!message.retained);
    let property = |name: &str| message.properties[name].clone();
    assert_eq!(property("tael-id"), Value::from(id));
    assert_eq!(property("traceparent"), Value::from(trace));
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    gateway.post("/t/lab/form", &form, "a=b+c").id();
    let message = ears.wait("the form", |m| m.topic == "lab/form");
    assert_eq!(message.payload, json!({ "a": "b c" }));
    let since = gateway.get("/healthz").json()["since"].to_string();
    for (path, fields, body, status, cause) in [
        ("/t/lab/a", &[][..], "[]", 400, "not an object"),
        (
            "/t/lab/a",
            &[("Content-Type", "text/plain")],
            "{}",
            415,
            "media type",
        ),
        (
            "/t/lab/a",
            &[("Idempotency-Key", "a b")],
            "{}",
            400,
            "Idempotency-Key",
        ),
        (
            "/t/lab/infrastructure/pipelines/p/control",
            &[],
            "{}",
            403,
            "allows",
        ),
        ("/t/other", &[], "{}", 403, "allows"),
        ("/t/$SYS/x", &[], "{}", 403, "allows"),
        ("/t/lab/%23", &[], "{}", 400, "wildcard"),
        ("/t/$share/p/lab/x", &[], "{}", 400, "publish to lab/x"),
        // mosquitto would end the connection for each of these.
        ("/t/lab/%ef%bf%bf", &[], "{}", 400, "no character"),
        ("/t/lab/%f0%9f%bf%be", &[], "{}", 400, "no character"),
        ("/t/lab/%ef%b7%90", &[], "{}", 400, "no character"),
        ("/t/lab/%c2%85", &[], "{}", 400, "control character"),
        (
            &format!("/t/lab{}", "/x".repeat(200)),
            &[],
            "{}",
            400,
            "200 levels",
        ),
        ("/x", &[], "{}", 404, "nothing"),
        ("/metrics", &[], "", 405, "GET"),
        (
            "/t/lab/a",
            &[("Origin", "http://evil.example")],
            "{}",
            403,
            "other sites",
        ),
    ] {
        let answer = gateway.post(path, fields, body);
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        let error: Value = serde_json::from_str(&answer.body).expect("JSON");
        let error = error["error"].as_str().expect("error");
        assert!(error.contains(cause), "{path}: {error}");
    }
    // None of them was published, or has ended the connection.
    assert!(gateway.get("/healthz").body.contains(&since), "{since}");
    gateway.post("/t/lab/last", &[], "").id();
    ears.wait("the last", |m| m.topic == "lab/last");
    assert_eq!(ears.all().len(), 3);
    gateway.process.stop();
}

#[test]
fn a_request_with_the_id_of_another_runs_once() {
    let world = World::new();
    let _client = world.client("p", NOTE);
    let gateway = Gateway::online(&world, &[]);
    let key = [("Idempotency-Key", "delivery-1")];
    for _ in 0..3 {
        assert_eq!(gateway.post("/t/lab/hook", &key, "{}").id(), "delivery-1");
    }
    assert_eq!(
        gateway
            .post("/t/lab/hook", &[("X-Request-Id", "r.2")], "{}")
            .id(),
        "r.2"
    );
    let runs = all_runs(&world, &gateway, 2);
    once_each(runs, ["delivery-1".to_owned(), "r.2".to_owned()]);
}

#[test]
fn a_broker_that_is_away_is_said_and_comes_back() {
    let mut world = World::new();
    let gateway = Gateway::online(&world, &[]);
    world.broker.stop();
    gateway.wait_health(503);
    let health: Value = serde_json::from_str(&gateway.get("/healthz").body).expect("JSON");
    assert_eq!(health["broker"], "away");
    assert!(health["since"].as_u64().expect("since") > 1_000_000_000);
    let answer = gateway.post("/t/lab/hook", &[], "{}");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.head.contains("\r\nretry-after: "), "{answer:?}");
    assert!(
        gateway
            .get("/metrics")
            .body
            .contains("\ntael_gateway_broker_connected 0\n")
    );
    world.broker.restart();
    gateway.wait_health(200);
    let ears = world.ears(&["lab/hook"]);
    let id = gateway.post("/t/lab/hook", &[], "{}").id();
    ears.wait("the message", |m| m.properties["tael-id"] == id.as_str());
    let metrics = gateway.get("/metrics").body;
    for line in [
        "tael_gateway_broker_connected 1",
        "tael_gateway_confirmed_total 1",
        "tael_gateway_unconfirmed_total 1",
        r#"tael_gateway_answers_total{code="202"} 1"#,
    ] {
        assert!(metrics.lines().any(|own| own == line), "{line}: {metrics}");
    }
    gateway.process.stop();
}

#[test]
fn what_was_accepted_runs_once_through_kills() {
    const POSTS: usize = 30;
    let mut world = World::with(Setup {
        persistent: true,
        ..Setup::default()
    });
    let request = |n: usize| {
        let key = format!("k-{n}");
        post(
            "/t/lab/hook",
            &[("Idempotency-Key", &key)],
            &json!({ "n": n }).to_string(),
        )
    };
    let mut client = world.client("p", NOTE);
    let mut gateway = Gateway::online(&world, &[]);
    let address = gateway.address.clone();
    for round in 0..3 {
        // They are posted while it is killed, and a careful sender posts again.
        let posting = thread::scope(|scope| {
            let posting = scope.spawn(|| {
                let posts = round * POSTS..(round + 1) * POSTS;
                posts
                    .map(|n| insist(&address, &request(n)).id())
                    .collect::<Vec<_>>()
            });
            let accepted = round * POSTS + 3;
            wait_until("some have run", || world.lines("ran").len() > accepted);
            match round {
                0 => {
                    gateway.process.signal(Signal::SIGKILL);
                    gateway.process.wait();
                    gateway = Gateway::on(&world, &address, &[]);
                }
                1 => {
                    client.signal(Signal::SIGKILL);
                    client.wait();
                    client = world.client("p", NOTE);
                }
                _ => {
                    world.broker.kill();
                    world.broker.restart();
                }
            }
            posting.join().expect("posts")
        });
        assert_eq!(posting.len(), POSTS);
    }
    // A broker that is killed may forget what it has acknowledged.
    for n in 2 * POSTS..3 * POSTS {
        insist(&address, &request(n));
    }
    let runs = all_runs(&world, &gateway, 3 * POSTS);
    once_each(runs, (0..3 * POSTS).map(|n| format!("k-{n}")));
}

#[test]
fn tokens_are_needed_and_read_again() {
    let world = World::new();
    let (old, new) = ("old-old-old-old-1", "new-new-new-new-1");
    let file = world.file("tokens", format!("{old}\n"));
    let gateway = Gateway::start(&world, &["--token-file", &file]);
    gateway.wait_health(200);
    let with = |token: &str| {
        let bearer = format!("Bearer {token}");
        gateway
            .post("/t/lab/a", &[("Authorization", &bearer)], "{}")
            .status
    };
    assert_eq!((with(old), with(new)), (202, 401));
    let answer = gateway.post("/t/lab/a", &[], "{}");
    assert_eq!(answer.status, 401);
    assert!(
        answer.head.contains("www-authenticate: bearer"),
        "{answer:?}"
    );
    // A file that is wrong changes nothing.
    world.file("tokens", "short\n");
    gateway.process.signal(Signal::SIGHUP);
    wait_until("it says so", || {
        gateway.process.log_text().contains("keeping the tokens")
    });
    assert_eq!(with(old), 202);
    world.file("tokens", format!("{new}\n"));
    gateway.process.signal(Signal::SIGHUP);
    wait_until("the new one counts", || with(new) == 202);
    assert_eq!(with(old), 401);
    let log = gateway.process.log_text();
    assert!(!log.contains(old) && !log.contains(new), "{log}");
    gateway.process.stop();
}

#[test]
fn more_than_the_rate_is_refused() {
    let world = World::new();
    let gateway = Gateway::start(&world, &["--rate", "5"]);
    let codes: Vec<u16> = (0..8)
        .map(|_| gateway.post("/t/x", &[], "").status)
        .collect();
    assert_eq!(codes[..5], [403; 5]);
    assert_eq!(codes[5..], [429; 3]);
    let answer = gateway.get("/healthz");
    assert_eq!(answer.status, 429);
    assert!(answer.head.contains("\r\nretry-after: "), "{answer:?}");
}

#[test]
fn what_the_broker_does_not_take_is_not_accepted() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let mut command = bare_command(&dir, "tael");
    command
        .args(["gateway", "--root", "lab", "--listen", "127.0.0.1:0"])
        .args(["--need-listener", "--timeout", "500ms", "--no-page"])
        .env("TAEL_HOST", "127.0.0.1")
        .env("TAEL_PORT", broker.port().to_string());
    let gateway = Gateway::listening(spawn(&dir, &mut command));
    // The broker is not there yet.
    assert_eq!(gateway.post("/t/lab/a", &[], "{}").status, 503);
    let mut raw = broker.accept();
    raw.serve_subscription();
    gateway.wait_health(200);
    // Reason codes: no subscribers, quota exceeded, not authorized, success; and no answer.
    for (code, status) in [
        (Some(0x10), 503),
        (Some(0x97), 503),
        (Some(0x87), 403),
        (Some(0), 202),
        (None, 503),
        (Some(0), 202),
    ] {
        let answer = thread::scope(|scope| {
            let posting = scope.spawn(|| gateway.post("/t/lab/a", &[], "{}"));
            loop {
                let (kind, body) = raw.receive();
                if kind >> 4 != 3 {
                    raw.serve(kind, &body);
                    continue;
                }
                let (_, id) = Heard::parse(kind, &body);
                let id = id.expect("QoS 1");
                if let Some(code) = code {
                    raw.send(&packet(0x40, &[id[0], id[1], code, 0]));
                }
                break;
            }
            posting.join().expect("answer")
        });
        assert_eq!(answer.status, status, "{code:?}: {answer:?}");
        assert!(
            status != 503 || answer.head.contains("retry-after"),
            "{answer:?}"
        );
    }
    // The broker goes before it answers.
    let answer = thread::scope(|scope| {
        let posting = scope.spawn(|| gateway.post("/t/lab/a", &[], "{}"));
        while raw.receive().0 >> 4 != 3 {}
        drop(raw);
        posting.join().expect("answer")
    });
    assert_eq!(answer.status, 503, "{answer:?}");
    gateway.wait_health(503);
    gateway.process.stop();
}

#[test]
fn options_that_open_it_to_others_are_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let refuses = |arguments: &[&str], code: i32, cause: &str| {
        let mut command = bare_command(&dir, "tael");
        let (found, out, said) = ran(command.arg("gateway").args(arguments).arg("--check"));
        let said = out + &said;
        assert_eq!(found, code, "{arguments:?}: {said}");
        assert!(said.contains(cause), "{arguments:?}: {said}");
    };
    let short = dir.path().join("short");
    std::fs::write(&short, "short\n").expect("file");
    let short = short.to_str().expect("path");
    refuses(&[], 0, "");
    refuses(
        &["--listen", "0.0.0.0:8787"],
        64,
        "open to others; give --token-file or --tls-cert",
    );
    refuses(&["--control"], 64, "--control needs --token-file");
    refuses(&["--need-listener"], 64, "add --no-page");
    refuses(&["--allow-work", "a"], 64, "is not NODE/TYPE");
    refuses(&["--tls-cert", short], 64, "--tls-key");
    refuses(
        &["--tls-cert", short, "--tls-key", short],
        78,
        "it holds no certificate in PEM",
    );
    refuses(&["--listen", "[::]:8787"], 64, "open to others");
    refuses(&["--listen", "8787"], 64, "not an address");
    refuses(
        &["--token-file", "/nowhere"],
        78,
        "read tokens from /nowhere",
    );
    refuses(&["--token-file", short], 78, "shorter than 16");
    refuses(&["--allow", "$SYS/#"], 64, "use --allow");
    refuses(&["--allow", "a/#/b"], 64, "use --allow");
    refuses(&["--timeout", "1ms"], 64, "--timeout is 100ms to 5m");
}
