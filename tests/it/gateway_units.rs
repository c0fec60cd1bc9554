//! `tael gateway`: the units of this host, their output as it comes, and their end.

use std::fs;
use std::io::{BufRead, BufReader, Write};

use serde_json::{Value, json};

use crate::common::gateway::{Chunked, Gateway, request};
use crate::common::{Process, World, wait_until};

const TOKEN: &str = "a-token-of-the-tests";
const BEARER: (&str, &str) = ("Authorization", "Bearer a-token-of-the-tests");

/// Starts a client whose command writes a line, waits for the file `go`, and writes another.
fn client(world: &World) -> Process {
    let command = "printf 'one \\303\\244 <b>\\n'; echo wrong >&2; echo $TAEL_UNIT >>$OUT/units
        until test -e $OUT/go; do sleep 0.05; done; echo two; exit 3";
    world.client("p", &["-t", "lab/a", "--when", "", "-c", command])
}

/// Starts a run, and returns its unit when it runs.
#[track_caller]
fn started(world: &World, gateway: &Gateway, fields: &[(&str, &str)]) -> String {
    let before = world.lines("units").len();
    gateway.post("/t/lab/a", fields, r#"{"sample":"S1"}"#).id();
    wait_until("it runs", || world.lines("units").len() > before);
    world.lines("units").pop().expect("unit")
}

/// A stream of events.
pub(super) struct Events(BufReader<Chunked>);

impl Events {
    #[track_caller]
    pub fn open(gateway: &Gateway, path: &str, fields: &[(&str, &str)]) -> Self {
        let mut stream = gateway.connect();
        let mut all = vec![("Accept", "text/event-stream")];
        all.extend(fields);
        let text = request(&format!("GET {path}"), &all);
        stream.write_all(text.as_bytes()).expect("request");
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while stream.read_line(&mut head).expect("head") > 2 {}
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains("text/event-stream"), "{head}");
        Self(BufReader::new(Chunked::new(stream)))
    }

    /// Returns name and data of the next event; `None` at the end.
    #[track_caller]
    pub fn next(&mut self) -> Option<(String, Value)> {
        let mut name = String::new();
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).expect("line") == 0 {
                return None;
            }
            if let Some(text) = line.strip_prefix("event: ") {
                text.trim_end().clone_into(&mut name);
            } else if let Some(text) = line.strip_prefix("data: ") {
                return Some((name, serde_json::from_str(text).expect("JSON")));
            }
        }
    }
}

#[test]
fn a_unit_is_shown_with_its_output_while_it_runs_and_after() {
    let world = World::new();
    let client = client(&world);
    let gateway = Gateway::online(&world, &[]);
    let unit = started(&world, &gateway, &[]);
    let path = format!("/units/{unit}");
    let report = gateway.get(&path).json();
    for (key, want) in [
        ("unit", json!(unit)),
        ("state", json!("running")),
        ("pipeline", json!("p")),
        ("topic", json!("lab/a")),
        ("return_code", json!(null)),
    ] {
        assert_eq!(report[key], want, "{key}");
    }
    assert_eq!(report["attributes"]["ATTR_SAMPLE"], "S1", "{report}");
    let first = "one ä <b>\n";
    let stdout = format!("{path}/stdout");
    let mut live = Events::open(&gateway, &stdout, &[]);
    let (name, data) = live.next().expect("event");
    assert_eq!(
        (name.as_str(), data),
        ("output", json!({"from": 0, "text": first}))
    );
    let answer = gateway.get(&stdout);
    assert!(answer.head.contains("text/plain"), "{answer:?}");
    assert!(answer.head.contains("nosniff"), "{answer:?}");
    assert!(answer.head.contains("sandbox"), "{answer:?}");
    assert_eq!((answer.status, answer.body.as_str()), (200, first));
    // What waits is answered at the end, and what does not wait long enough is told so.
    let waiting = gateway.get(&format!("{path}?wait=100ms"));
    assert_eq!(waiting.status, 202, "{waiting:?}");
    assert_eq!(waiting.json()["pending"], true);
    fs::write(world.path("go"), "").expect("go");
    let end = gateway.get(&format!("{path}?wait=1m"));
    assert_eq!(end.status, 200, "{end:?}");
    assert_eq!(
        end.json(),
        json!({"unit": unit, "id": unit, "state": "failed", "code": 3,
            "output": format!("{first}two\n"), "stderr": "wrong\n", "truncated": false})
    );
    let (_, data) = live.next().expect("the rest");
    assert_eq!(data, json!({"from": first.len(), "text": "two\n"}));
    let last = ("end".to_owned(), json!({"state": "failed", "code": 3}));
    assert_eq!(live.next(), Some(last.clone()));
    assert_eq!(live.next(), None);
    // From a place on, also as a browser says it that connects again.
    let from = first.len();
    assert_eq!(gateway.get(&format!("{stdout}?from={from}")).body, "two\n");
    let place = from.to_string();
    let mut again = Events::open(&gateway, &stdout, &[("Last-Event-ID", &place)]);
    let (_, data) = again.next().expect("event");
    assert_eq!(data, json!({"from": from, "text": "two\n"}));
    assert_eq!(again.next(), Some(last));
    assert_eq!(gateway.get(&format!("{path}/stderr")).body, "wrong\n");
    for (path, status) in [
        ("/units/01JBV7Y3ZK8Q5W2N4T6R9M1XCD", 404),
        ("/units/latest", 404),
        ("/units/", 404),
        ("/units/../p", 404),
        (&format!("{path}?wait=2h"), 400),
        (&format!("{stdout}?from=-1"), 400),
    ] {
        assert_eq!(gateway.get(path).status, status, "{path}");
    }
    // The id of an event looks as that of a unit.
    let event = gateway.post("/t/lab/b", &[], "{}").id();
    let none = gateway.get(&format!("/units/{event}"));
    assert_eq!(none.status, 404, "{none:?}");
    assert!(none.body.contains("ids of events"), "{none:?}");
    gateway.process.stop();
    client.stop();
}

#[test]
fn large_output_comes_whole() {
    let world = World::new();
    let command = "seq 200000; echo $TAEL_UNIT >$OUT/units; seq 200000";
    let client = world.client("p", &["-t", "lab/a", "--when", "", "-c", command]);
    let gateway = Gateway::online(&world, &[]);
    let unit = started(&world, &gateway, &[]);
    let end = gateway.get(&format!("/units/{unit}?wait=1m")).json();
    assert_eq!(end["truncated"], true);
    let numbers: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    let all = numbers.repeat(2);
    let whole = gateway.ask(&format!("GET /units/{unit}/stdout"), &[]);
    assert!(whole.head.contains("chunked"), "{}", whole.head);
    let mut text = String::new();
    let mut events = Events::open(&gateway, &format!("/units/{unit}/stdout"), &[]);
    while let Some((name, data)) = events.next() {
        if name == "output" {
            assert_eq!(data["from"], text.len());
            text.push_str(data["text"].as_str().expect("text"));
        }
    }
    assert!(text == all, "{} of {} bytes", text.len(), all.len());
    // An old client gets the bytes alone.
    let old = gateway.exchange(format!(
        "GET /units/{unit}/stdout HTTP/1.0\r\nHost: localhost\r\n\r\n"
    ));
    let (_, body) = old.split_once("\r\n\r\n").expect("head");
    assert!(body == all, "{} of {} bytes", body.len(), all.len());
    gateway.process.stop();
    client.stop();
}

#[test]
fn a_run_is_canceled_by_those_who_may() {
    let world = World::new();
    let client = client(&world);
    let file = world.file("tokens", format!("{TOKEN}\n"));
    let reading = Gateway::online(&world, &["--token-file", &file]);
    let controlling = Gateway::online(&world, &["--token-file", &file, "--control"]);
    let unit = started(&world, &reading, &[BEARER]);
    let cancel = format!("DELETE /units/{unit}");
    assert_eq!(reading.ask(&cancel, &[BEARER]).status, 403);
    assert_eq!(controlling.ask(&cancel, &[]).status, 401);
    let foreign = [BEARER, ("Origin", "http://evil.example")];
    assert_eq!(controlling.ask(&cancel, &foreign).status, 403);
    let get = format!("GET /units/{unit}");
    assert_eq!(reading.ask(&get, &[]).status, 401);
    assert_eq!(reading.ask(&get, &[BEARER]).json()["state"], "running");
    let mut live = Events::open(&reading, &format!("/units/{unit}/stderr"), &[BEARER]);
    assert_eq!(live.next().expect("output").1["text"], "wrong\n");
    let canceled = controlling.ask(&cancel, &[BEARER]);
    assert_eq!(canceled.status, 200, "{canceled:?}");
    assert_eq!(canceled.json()["state"], "canceled");
    let (name, data) = live.next().expect("end");
    assert_eq!((name.as_str(), &data["state"]), ("end", &json!("canceled")));
    let again = controlling.ask(&cancel, &[BEARER]);
    assert_eq!(again.status, 409, "{again:?}");
    let none = "DELETE /units/01JBV7Y3ZK8Q5W2N4T6R9M1XCD";
    assert_eq!(controlling.ask(none, &[BEARER]).status, 404);
    // One that waits is dropped.
    let first = started(&world, &reading, &[BEARER]);
    reading.post("/t/lab/a", &[BEARER], "{}").id();
    let mut waiting = None;
    wait_until("one waits", || {
        let list = crate::common::json_of(&mut world.tael(["work", "list", "--json"]));
        let list = list.as_array().cloned().unwrap_or_default();
        let found = list.iter().find(|unit| unit["state"] == "pending");
        waiting = found.map(|unit| unit["unit"].as_str().expect("unit").to_owned());
        waiting.is_some()
    });
    let waiting = waiting.expect("unit");
    let dropped = controlling.ask(&format!("DELETE /units/{waiting}"), &[BEARER]);
    assert_eq!(dropped.json()["state"], "canceled", "{dropped:?}");
    let ended = controlling.ask(&format!("DELETE /units/{first}"), &[BEARER]);
    assert_eq!(ended.status, 200, "{ended:?}");
    assert_eq!(
        world.lines("units").len(),
        2,
        "the one that waited never ran"
    );
    reading.process.stop();
    controlling.process.stop();
    client.stop();
}
