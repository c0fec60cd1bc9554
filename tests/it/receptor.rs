//! The control socket, as a client of Receptor sees it: every verb, every error, and attacks.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::common::nodes::{Session, submission};
use crate::common::{PATIENCE, Process, World, ran, refuses, wait_until};

const TYPES: &str = r#"
[client]
receptor-version = "1.6.9"

[[work]]
type = "upper"
command = "tr a-z A-Z"

[[work]]
type = "sh"
command = "sh -c"
params = true
jobs = 8
grace = "30s"
"#;

/// A client called `node`, and its socket at a path that fits into an address.
struct Node {
    world: World,
    client: Process,
    socket: PathBuf,
}

impl Node {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(arguments: &[&str]) -> Self {
        let world = World::new();
        world.file("node.toml", TYPES);
        let client = Self::start(&world, arguments);
        let socket = world.path("c");
        Self {
            world,
            client,
            socket,
        }
    }

    fn start(world: &World, arguments: &[&str]) -> Process {
        let [config, socket] = ["node.toml", "c"].map(|name| world.path(name));
        let mut all = vec!["--config", config.to_str().expect("path")];
        all.extend(["--control-socket", socket.to_str().expect("path")]);
        all.extend(arguments);
        world.client("node", &all)
    }

    /// Kills the client, and starts it again.
    fn restart(&mut self) {
        self.client.signal(Signal::SIGKILL);
        self.client.wait();
        self.client = Self::start(&self.world, &[]);
    }

    fn connect(&self) -> Session {
        Session::open(&self.socket, "node")
    }

    /// Sends one request on a connection of its own, and returns the line that answers it.
    #[track_caller]
    fn ask(&self, request: &str) -> String {
        self.connect().ask(request)
    }

    #[track_caller]
    fn ask_json(&self, request: &str) -> Value {
        self.connect().ask_json(request)
    }

    /// Submits a line for the shell, and returns its unit.
    #[track_caller]
    fn run(&self, line: &str) -> String {
        let params = shell_words::quote(line).into_owned();
        self.submit(&json!({"worktype": "sh", "params": params}), b"")
    }

    /// Submits work as `receptorctl` does, and returns its unit.
    #[track_caller]
    fn submit(&self, keys: &Value, payload: &[u8]) -> String {
        let mut session = self.connect();
        let line = session.ask(&submission("localhost", keys));
        let unit = line
            .strip_prefix("Work unit created with ID ")
            .and_then(|rest| rest.strip_suffix(". Send stdin data and EOF."))
            .unwrap_or_else(|| panic!("{line}"))
            .to_owned();
        session.pay(payload);
        let answer: Value = serde_json::from_str(&session.line()).expect("json");
        assert_eq!(answer, json!({"result": "Job Started", "unitid": unit}));
        assert_eq!(session.rest(), b"", "the connection is closed");
        unit
    }

    fn status(&self, unit: &str) -> Value {
        self.ask_json(&format!("work status {unit}"))
    }

    #[track_caller]
    fn wait(&self, unit: &str, state: &str) {
        wait_until(&format!("{unit} is {state}"), || {
            self.status(unit)["StateName"] == state
        });
    }

    /// Follows the output of a unit to its end, with half of the connection closed.
    #[track_caller]
    fn results(&self, unit: &str, from: u64) -> Vec<u8> {
        let mut session = self.connect();
        session.follow(unit, from);
        session.close_half();
        session.rest()
    }
}

#[test]
fn the_node_is_described_as_receptor_does_it() {
    let node = Node::new();
    let mut session = node.connect();
    // Every call of receptorctl begins so.
    let version = session.ask(r#"{"command":"status","requested_fields":["Version"]}"#);
    assert_eq!(version, r#"{"Version":"1.6.9"}"#);
    let status = session.ask_json("status");
    let mut keys: Vec<&String> = status.as_object().expect("object").keys().collect();
    keys.sort();
    let expected = [
        "Advertisements",
        "Connections",
        "KnownConnectionCosts",
        "NodeID",
        "RoutingTable",
        "SystemCPUCount",
        "SystemMemoryMiB",
        "Version",
    ];
    assert_eq!(keys, expected);
    assert_eq!(status["NodeID"], "node");
    assert!(
        status["SystemMemoryMiB"].as_u64() > Some(0) && status["SystemCPUCount"].as_u64() > Some(0)
    );
    let commands = &status["Advertisements"][0]["WorkCommands"];
    assert_eq!(commands[0], json!({"WorkType": "upper", "Secure": false}));
    for name in ["node", "localhost"] {
        let pong: Value =
            serde_json::from_str(&session.ask(&format!("ping {name}"))).expect("json");
        assert_eq!(
            (&pong["Success"], &pong["From"]),
            (&json!(true), &json!("node"))
        );
        let time = pong["TimeStr"].as_str().expect("time");
        assert!(
            time.ends_with("µs") || time.ends_with("ms") || time.ends_with('s'),
            "{time}"
        );
    }
    let lost = session.ask_json("ping other");
    assert_eq!(lost, json!({"Success": false, "Error": "no route to node"}));
    let hops = session.ask_json("traceroute node");
    assert!(hops["0"]["From"] == "node" && hops["0"]["Error"].is_null());
    let hops = session.ask_json("traceroute other");
    assert_eq!(hops["0"]["Error"], "no route to node");
    // A bridge to the own node is the same service.
    assert_eq!(session.ask("connect node control "), "Connecting");
    assert_eq!(session.line(), "Receptor Control, node node");
    assert_eq!(
        session.ask("connect other control "),
        "ERROR: no route to node 'other'"
    );
    assert_eq!(
        session.ask("connect node web "),
        "ERROR: there is no service 'web' on this node"
    );
    assert_eq!(session.ask("work list"), "{}");
}

#[test]
fn a_session_goes_on_after_errors_and_takes_odd_lines() {
    let node = Node::new();
    let mut session = node.connect();
    let errors = [
        ("frobnicate", "Unknown command"),
        ("work frobnicate", "bad command"),
        (
            r#"{"command":"work","subcommand":"frobnicate"}"#,
            "bad command",
        ),
        ("{", "the line is not a JSON object"),
        ("work status nope", "unknown work unit nope"),
        ("work results nope 0", "unknown work unit nope"),
        ("work cancel nope", "unknown work unit nope"),
        ("work release nope", "unknown work unit nope"),
        ("work force-release nope", "unknown work unit nope"),
        ("work list nope", "unknown work unit nope"),
        ("work cancel", "missing work unit ID"),
        ("work submit node nope", "unknown work type nope"),
        (
            "work submit node upper a",
            "extra params provided but not allowed",
        ),
        ("work submit node sh 'a", "params have an open quote"),
        (
            r#"{"command":"work","subcommand":"submit","node":"node","worktype":"upper","ttl":"1h"}"#,
            "ttl option is intended for remote work only",
        ),
        (
            r#"{"command":"work","subcommand":"submit","node":"node","worktype":"upper","a":1}"#,
            "value of 'a' is not a string",
        ),
        (
            r#"{"command":"work","subcommand":"submit","node":"node","worktype":"upper","signature":"x"}"#,
            "work type 'upper' did not expect a signature",
        ),
    ];
    for (request, error) in errors {
        assert_eq!(session.ask(request), format!("ERROR: {error}"), "{request}");
    }
    // Empty lines have no answer, and CR does not count.
    assert_eq!(session.ask("\n\r\nwork list\r"), "{}");
}

#[test]
fn a_unit_goes_through_its_states() {
    let node = Node::new();
    let unit = node.submit(&json!({"worktype": "upper"}), b"hello\n");
    assert_eq!(node.results(&unit, 0), b"HELLO\n");
    let status = node.status(&unit);
    let expected = [
        ("State", json!(2)),
        ("StateName", json!("Succeeded")),
        ("Detail", json!("exit status 0")),
        ("ExtraData", Value::Null),
        ("StdoutSize", json!(6)),
        ("WorkType", json!("upper")),
        ("ExitCode", json!(0)),
    ];
    for (key, value) in expected {
        assert_eq!(status[key], value, "{key}");
    }
    assert_eq!(node.results(&unit, 2), b"LLO\n", "from an offset");
    let failed = node.run("echo out; echo err >&2; exit 3");
    let output = String::from_utf8(node.results(&failed, 0)).expect("text");
    assert_eq!(
        output, "out\nerr\n",
        "both streams, in the order of writing"
    );
    let status = node.status(&failed);
    assert_eq!(status["State"], 3);
    assert_eq!(status["Detail"], "exit status 3");
    let killed = node.run("kill -KILL $$");
    node.wait(&killed, "Failed");
    assert_eq!(node.status(&killed)["Detail"], "signal: killed");
    let list = node.ask_json("work list");
    assert_eq!(list.as_object().expect("object").len(), 3);
    assert_eq!(list[&unit]["StateName"], "Succeeded");
    let one = node.ask_json(&format!("work list {failed}"));
    assert_eq!(one[&failed]["State"], 3);
    // One stream alone, for `tael work submit --follow`.
    for (stream, text) in [("stdout", "out\n"), ("stderr", "err\n")] {
        let mut session = node.connect();
        let request = json!({"command": "work", "subcommand": "results", "unitid": failed,
            "stream": stream, "startpos": 0});
        session.ask(&request.to_string());
        assert_eq!(session.rest(), text.as_bytes());
    }
    let released = node.ask_json(&format!("work release {unit}"));
    assert_eq!(released, json!({"released": unit}));
    assert_eq!(
        node.ask(&format!("work status {unit}")),
        format!("ERROR: unknown work unit {unit}: it was released")
    );
    let again = node.ask_json(&format!("work release {unit}"));
    assert_eq!(again, json!({"released": unit}), "gone is gone");
    wait_until("its folder is gone", || {
        !node.world.home("node").join("units").join(&unit).exists()
    });
    let finished = node.ask_json(&format!("work cancel {failed}"));
    assert_eq!(finished, json!({"already finished": failed}));
}

#[test]
fn a_listing_of_many_units_is_one_line() {
    let node = Node::new();
    let mut units: Vec<String> = (0..150)
        .map(|_| node.submit(&json!({"worktype": "upper"}), b""))
        .collect();
    units.sort();
    let list = node.ask_json("work list");
    let mut listed: Vec<&String> = list.as_object().expect("object").keys().collect();
    listed.sort();
    assert_eq!(listed, units.iter().collect::<Vec<_>>());
}

#[test]
fn a_submitter_chooses_the_id_of_its_unit() {
    let node = Node::new();
    let id = "01JBV7Y3ZK8Q5W2N4T6R9M1XCD";
    let keys = json!({"worktype": "upper", "workUnitID": id});
    assert_eq!(node.submit(&keys, b"x"), id);
    assert_eq!(
        node.submit(&keys, b"x"),
        id,
        "the same work is answered again"
    );
    let mut session = node.connect();
    session.ask(&submission("localhost", &keys));
    session.pay(b"y");
    assert_eq!(
        session.line(),
        format!("ERROR: work unit ID {id} belongs to other work")
    );
    let refused = node.ask(&submission(
        "localhost",
        &json!({"worktype": "upper", "workUnitID": "../../x"}),
    ));
    assert!(
        refused.starts_with("ERROR: work unit ID '../../x' is not a ULID"),
        "{refused}"
    );
    assert_eq!(
        node.ask_json("work list")
            .as_object()
            .expect("object")
            .len(),
        1
    );
}

#[test]
fn results_come_as_they_are_written_and_end_with_a_canceled_unit() {
    let node = Node::new();
    let unit = node.run("echo one; until [ -e $OUT/go ]; do sleep 0.02; done; echo two; sleep 600");
    let mut session = node.connect();
    session.follow(&unit, 0);
    session.close_half();
    assert_eq!(session.line(), "one");
    fs::write(node.world.path("go"), "").expect("go");
    assert_eq!(session.line(), "two", "while it runs");
    let canceled = node.ask_json(&format!("work cancel {unit}"));
    assert_eq!(canceled, json!({"cancelled": unit}));
    assert_eq!(session.rest(), b"", "the end");
    let status = node.status(&unit);
    assert_eq!(
        (&status["State"], &status["Detail"]),
        (&json!(4), &json!("Canceled"))
    );
    assert_eq!(node.results(&unit, 0), b"one\ntwo\n");
    // One that waits is canceled too, and its readers hear of it.
    let busy: Vec<String> = (0..8).map(|_| node.run("sleep 600")).collect();
    let waits = node.run("echo never");
    assert_eq!(node.status(&waits)["State"], 0);
    let mut session = node.connect();
    session.follow(&waits, 0);
    assert_eq!(
        node.ask_json(&format!("work cancel {waits}")),
        json!({"cancelled": waits})
    );
    assert_eq!(session.rest(), b"");
    for unit in busy {
        node.ask(&format!("work force-release {unit}"));
    }
}

#[test]
fn the_first_line_of_a_run_does_not_wait_for_the_next() {
    let node = Node::new();
    for _ in 0..40 {
        let unit = node.run("echo up; exec sleep 600");
        let mut session = node.connect();
        session.follow(&unit, 0);
        assert_eq!(session.line(), "up");
        node.ask(&format!("work force-release {unit}"));
        assert_eq!(session.rest(), b"");
    }
}

#[test]
fn a_release_outlives_the_client_until_the_unit_has_ended() {
    let mut node = Node::new();
    let unit = node.run("trap '' TERM; echo up; until [ -e $OUT/go ]; do sleep 0.02; done");
    let mut session = node.connect();
    session.follow(&unit, 0);
    assert_eq!(session.line(), "up");
    let cancel = node.ask_json(&format!("work cancel {unit}"));
    assert_eq!(cancel, json!({"cancel pending": unit}));
    let release = node.ask_json(&format!("work release {unit}"));
    assert_eq!(release, json!({"release pending": unit}));
    node.restart();
    assert_eq!(node.status(&unit)["State"], 1);
    fs::write(node.world.path("go"), "").expect("go");
    let gone = format!("ERROR: unknown work unit {unit}: it was released");
    wait_until("it is released", || {
        node.ask(&format!("work status {unit}")) == gone
    });
    // A unit of an earlier client is followed as well, and force-release does not wait.
    let unit = node.run("trap '' TERM; until [ -e $OUT/stop ]; do sleep 0.02; done");
    node.wait(&unit, "Running");
    let released = node.ask_json(&format!("work force-release {unit}"));
    assert_eq!(released, json!({"released": unit}));
    fs::write(node.world.path("stop"), "").expect("stop");
}

#[test]
fn output_of_a_run_of_an_earlier_client_is_followed() {
    let mut node = Node::new();
    let unit = node.run("echo one; until [ -e $OUT/go ]; do sleep 0.02; done; echo two");
    node.wait(&unit, "Running");
    node.restart();
    let mut session = node.connect();
    session.follow(&unit, 0);
    assert_eq!(session.line(), "one");
    fs::write(node.world.path("go"), "").expect("go");
    assert_eq!(session.rest(), b"two\n");
}

#[test]
fn reload_says_what_is_wrong() {
    let node = Node::new();
    assert_eq!(node.ask_json("reload"), json!({"Success": true}));
    fs::write(node.world.path("node.toml"), "[[work]]\ntype = 1").expect("config");
    let failed = node.ask_json("reload");
    let error = failed["Error"].as_str().expect("error");
    assert!(
        failed["Success"] == false && error.ends_with("ERRORCODE 3"),
        "{failed}"
    );
    assert_eq!(node.ask("work list"), "{}", "it goes on");
}

#[test]
fn sockets_have_any_path_and_their_mode() {
    let node = Node::with(&["--control-mode", "0660"]);
    let mode = |path: &Path| fs::metadata(path).expect("socket").permissions().mode() & 0o777;
    assert_eq!(mode(&node.socket), 0o660);
    assert_eq!(mode(&node.world.home("node").join("control")), 0o600);
    // A path that an address has no room for.
    let deep = node.world.path(&"d".repeat(120));
    fs::create_dir(&deep).expect("folder");
    let socket = deep.join("s");
    let config = node.world.path("node.toml");
    let second = node.world.client(
        "second",
        &[
            "--config",
            config.to_str().expect("path"),
            "--control-socket",
            socket.to_str().expect("path"),
        ],
    );
    let link = node.world.path("l");
    std::os::unix::fs::symlink(&deep, &link).expect("link");
    let stream = UnixStream::connect(link.join("s")).expect("connect");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("read");
    assert_eq!(line, "Receptor Control, node second\n");
    second.stop();
    assert!(!socket.exists(), "it is removed");
    // One that another client serves, or a file, is not replaced.
    let taken = |path: &Path, cause: &str| {
        let mut command = node
            .world
            .tael(["client", "--who", "third", "--log", "none"]);
        command.args(["--config", config.to_str().expect("path")]);
        command.arg("--control-socket").arg(path);
        refuses(&mut command, 73, cause);
    };
    taken(&node.socket, "another process listens there");
    fs::write(&socket, "").expect("file");
    taken(&socket, "there is a file that is not a socket");
}

// --- Attacks ---

#[test]
fn a_line_without_an_end_is_bounded() {
    let node = Node::new();
    let mut session = node.connect();
    let long = vec![b'x'; 64 * 1024 + 1];
    session.stream().write_all(&long).expect("write");
    assert_eq!(session.line(), "ERROR: the line is longer than 65536 bytes");
    assert!(
        session
            .0
            .read(&mut [0; 1])
            .map_or_else(|e| e.kind() == ErrorKind::ConnectionReset, |n| n == 0)
    );
    // One that is as long as it may be is read.
    let mut session = node.connect();
    let line = session.ask(&format!("ping {}", "x".repeat(64 * 1024 - 5)));
    assert!(line.contains("no route to node"), "{line}");
}

#[test]
fn a_reader_that_never_reads_holds_up_nobody() {
    let node = Node::new();
    let unit = node.run("head -c 4000000 /dev/zero");
    let mut stuck: Vec<Session> = Vec::new();
    for _ in 0..20 {
        let mut session = node.connect();
        session.follow(&unit, 0);
        stuck.push(session);
    }
    assert_eq!(node.results(&unit, 0).len(), 4_000_000);
    let other = node.submit(&json!({"worktype": "upper"}), b"x");
    assert_eq!(node.results(&other, 0), b"X");
    // They may begin to read.
    assert_eq!(stuck[0].rest().len(), 4_000_000);
}

#[test]
fn ten_thousand_connections_are_bounded_and_the_client_goes_on() {
    let node = Node::new();
    let (mut kept, mut refused) = (Vec::new(), 0);
    for _ in 0..10_000 {
        let stream = UnixStream::connect(&node.socket).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let mut line = String::new();
        let mut reader = BufReader::new(stream);
        reader.read_line(&mut line).expect("read");
        if line.starts_with("Receptor Control") {
            kept.push(reader);
        } else {
            assert!(
                line.starts_with("ERROR: try again: 128 connections"),
                "{line}"
            );
            refused += 1;
        }
    }
    assert_eq!((kept.len(), refused), (128, 9872));
    // Events go on, and so do requests once there is room.
    node.world.wait_report("node", "/running", json!([]));
    drop(kept);
    wait_until("there is room again", || {
        let stream = UnixStream::connect(&node.socket).expect("connect");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("read");
        line.starts_with("Receptor Control")
    });
    let unit = node.submit(&json!({"worktype": "upper"}), b"x");
    assert_eq!(node.results(&unit, 0), b"X");
}

#[test]
fn a_follower_that_has_gone_gives_its_place_back() {
    let node = Node::new();
    let unit = node.run("sleep 600");
    node.wait(&unit, "Running");
    for _ in 0..200 {
        let mut session = node.connect();
        session.follow(&unit, 0);
        session.close_half();
    }
    wait_until("there is room again", || {
        let stream = UnixStream::connect(&node.socket).expect("connect");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("timeout");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("read");
        line.starts_with("Receptor Control")
    });
    node.ask(&format!("work force-release {unit}"));
}

#[test]
fn work_of_receptorctl_is_seen_by_tael_work() {
    let node = Node::new();
    let unit = node.submit(
        &json!({"worktype": "sh", "params": "'echo $0 $WORK_KEY' b", "key": "v"}),
        b"",
    );
    assert_eq!(node.results(&unit, 0), b"b v\n");
    let (code, out, stderr) = ran(&mut node.world.tael(["work", "results", &unit]));
    assert_eq!((code, out.as_str()), (0, "b v\n"), "{stderr}");
    let (code, out, _) = ran(&mut node.world.tael(["work", "status", "--json", &unit]));
    let status: Value = serde_json::from_str(&out).expect("json");
    assert_eq!(
        (code, &status["params"]),
        (0, &json!(["echo $0 $WORK_KEY", "b"]))
    );
}
