//! The node `node7` that runs work, the submitter `desk` that gives it work, and control sockets.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tael::model::signature::hex;

use super::{PATIENCE, Process, World, ran, wait_until};

/// Prefix of the topics of the node.
pub const NODE: &str = "lab/infrastructure/pipelines/node7";

/// Work types of the node. Units of each run side by side.
pub const TYPES: &str = r#"
[[work]]
type = "cat"
command = "sh -c 'echo run >>$OUT/runs; cat'"
max-output = 0
jobs = 8

[[work]]
type = "loud"
command = "sh -c 'cat; until [ -e $OUT/go ]; do sleep 0.02; done'"
max-output = 1000000
max-stdin = 100000000
jobs = 8

[[work]]
type = "both"
command = "sh -c 'echo out; echo err >&2; exit 3'"
jobs = 8

[[work]]
type = "wait"
command = "sh -c 'echo run >>$OUT/runs; echo begun; until [ -e $OUT/go ]; do sleep 0.02; done; echo done'"
jobs = 8
"#;

// --- Processes ---

/// Returns the command of the client `who` with `text` as its configuration file `WHO.toml`.
pub fn client_command(world: &World, who: &str, text: &str) -> Command {
    let config = world.file(&format!("{who}.toml"), text);
    let mut command = world.command("tael-client");
    command.args(["--who", who, "--root", "lab", "--config", &config]);
    command
}

/// Returns the command of the node.
pub fn node_command(world: &World, types: &str) -> Command {
    client_command(world, "node7", types)
}

/// Starts the node with [`TYPES`], and returns when it is online.
#[track_caller]
pub fn node(world: &World) -> Process {
    node_with(world, TYPES)
}

/// Starts the node with these work types, and returns when it is online.
#[track_caller]
pub fn node_with(world: &World, types: &str) -> Process {
    world.online("node7", node_command(world, types))
}

/// Returns the command of the submitter.
pub fn submitter_command(world: &World) -> Command {
    let mut command = world.command("tael-client");
    command.args(["--who", "desk", "--root", "lab", "--submit-only"]);
    command
}

/// Starts the submitter, and returns when it is online.
#[track_caller]
pub fn submitter(world: &World) -> Process {
    world.online("desk", submitter_command(world))
}

/// Runs `tael work submit`, which must succeed without a warning, and returns the unit.
#[track_caller]
pub fn accepted(command: &mut Command) -> String {
    let (code, out, stderr) = ran(command);
    assert_eq!((code, stderr.as_str()), (0, ""));
    out.trim().to_owned()
}

// --- Control sockets ---

/// A connection to a control socket that has been greeted.
pub struct Session(pub BufReader<UnixStream>);

impl Session {
    /// Connects to the control socket of client `who` at this path.
    #[track_caller]
    pub fn open(socket: &Path, who: &str) -> Self {
        let stream = UnixStream::connect(socket).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let mut session = Self(BufReader::new(stream));
        assert_eq!(session.line(), format!("Receptor Control, node {who}"));
        session
    }

    pub fn stream(&mut self) -> &mut UnixStream {
        self.0.get_mut()
    }

    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("read");
        line.strip_suffix('\n').expect(&line).to_owned()
    }

    #[track_caller]
    pub fn send(&mut self, request: &str) {
        let request = format!("{request}\n");
        self.stream().write_all(request.as_bytes()).expect("write");
    }

    /// Sends `request`, and returns the line that answers it.
    #[track_caller]
    pub fn ask(&mut self, request: &str) -> String {
        self.send(request);
        self.line()
    }

    /// Sends `request`, and returns the answer as JSON.
    #[track_caller]
    pub fn ask_json(&mut self, request: &str) -> Value {
        let line = self.ask(request);
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{request}: {e}: {line}"))
    }

    /// Sends the payload of a submission, and closes our half of the connection.
    #[track_caller]
    pub fn pay(&mut self, payload: &[u8]) {
        self.stream().write_all(payload).expect("payload");
        self.close_half();
    }

    /// Closes our half of the connection.
    #[track_caller]
    pub fn close_half(&mut self) {
        self.stream().shutdown(Shutdown::Write).expect("half");
    }

    /// Asks for the output of a unit from an offset on, which comes next.
    #[track_caller]
    pub fn follow(&mut self, unit: &str, from: u64) {
        let line = self.ask(&format!("work results {unit} {from}"));
        assert_eq!(line, format!("Streaming results for work unit {unit}"));
    }

    /// Reads until the connection is closed.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).expect("read");
        rest
    }
}

/// Returns the request that submits work to `node`, as `receptorctl` writes it.
pub fn submission(node: &str, keys: &Value) -> String {
    let mut request = json!({"command": "work", "subcommand": "submit", "node": node});
    let keys = keys.as_object().expect("keys").clone();
    request.as_object_mut().expect("object").extend(keys);
    request.to_string()
}

/// Connects to the control socket of the submitter.
#[track_caller]
pub fn connect(world: &World) -> Session {
    connect_to(world, "desk")
}

/// Connects to the control socket of client `who`.
#[track_caller]
pub fn connect_to(world: &World, who: &str) -> Session {
    Session::open(&world.home(who).join("control"), who)
}

/// Sends one request to the submitter on a connection of its own, and returns the answer.
#[track_caller]
pub fn ask(world: &World, request: &str) -> String {
    connect(world).ask(request)
}

/// Submits work for the node to the submitter, and returns the answer.
#[track_caller]
pub fn submit(world: &World, keys: &Value, payload: &[u8]) -> Result<Value, String> {
    let mut session = connect(world);
    let asked = session.ask(&submission("node7", keys));
    if asked.starts_with("ERROR") {
        return Err(asked);
    }
    session.pay(payload);
    let answer = session.line();
    serde_json::from_str(&answer).map_err(|_| answer)
}

/// Submits work for a node that is online, and returns its unit.
#[track_caller]
pub fn started(world: &World, kind: &str, payload: &[u8]) -> String {
    let answer = submit(world, &json!({"worktype": kind}), payload).expect("submitted");
    // On a busy machine the node needs more than two seconds.
    let results = ["Job Started", "Job Submitted"].map(Value::from);
    assert!(results.contains(&answer["result"]), "{answer}");
    answer["unitid"].as_str().expect("unit").to_owned()
}

/// Returns the status of a unit at the submitter.
#[track_caller]
pub fn status(world: &World, unit: &str) -> Value {
    connect(world).ask_json(&format!("work status {unit}"))
}

/// Waits until a unit has this state at the submitter.
#[track_caller]
pub fn wait(world: &World, unit: &str, state: &str) {
    wait_until(&format!("{unit} is {state}"), || {
        status(world, unit)["StateName"] == state
    });
}

/// Returns the whole output of a unit from the submitter, when it has ended.
#[track_caller]
pub fn results(world: &World, unit: &str) -> Vec<u8> {
    let mut session = connect(world);
    session.follow(unit, 0);
    session.rest()
}

// --- Content ---

pub fn new_id() -> String {
    ulid::Ulid::generate().to_string()
}

pub fn sha256_of(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

/// Returns bytes that compress badly, the same for the same `size`.
pub fn noise(size: usize) -> Vec<u8> {
    let mut number = 7_u64;
    let mut next = || {
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        number.to_le_bytes()[0]
    };
    (0..size).map(|_| next()).collect()
}

/// Returns a pseudo-random number below `below` (a linear congruential generator: Knuth's MMIX).
pub fn random(seed: &mut u64, below: usize) -> usize {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    usize::try_from(*seed >> 33).expect("usize") % below
}

/// Returns the path of the key `name` among the fixtures. `NAME.pub` is a public one.
pub fn fixture_key(name: &str) -> String {
    let package = env!("CARGO_MANIFEST_DIR");
    format!("{package}/tests/fixtures/keys/{name}.pem")
}

/// Returns the path of a copy of the private key `name` that only its owner may read.
pub fn private_key(world: &World, name: &str) -> String {
    let path = world.path(&format!("{name}.pem"));
    fs::copy(fixture_key(name), &path).expect("key");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("mode");
    path.to_str().expect("path").to_owned()
}
