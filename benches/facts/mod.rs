//! Facts: what a round of a node costs, a list of 1,000 nodes against `mosquitto_sub`, and a view over
//! them against the shell of SQLite.

use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use jiff::Timestamp;
use rumqttc::v5::mqttbytes::QoS;
use serde_json::{Value, json};
use tael::model::facts::bounds::Rules;
use tael::model::facts::kind::{Kind, NodeTopics};
use tael::model::facts::nodes::Nodes;
use tael::model::facts::round;
use tael::model::facts::tree::{Facts, digest, leaves, sorted};
use tael::model::network::Network;
use tael::os::facts::Host;
use tael::store::view::View;
use tael::tools::facts::gather::{Logged, Sources};

use crate::{Mosquitto, Publisher, median, mosquitto};

const NODES: usize = 1000;

const KINDS: [Kind; 4] = [Kind::Common, Kind::Static, Kind::Dynamic, Kind::State];

/// Retained messages of a node: its kinds, and its presence.
const MESSAGES: usize = KINDS.len() + 1;

/// Size of a message, bytes, about.
const SIZE: usize = 1024;

/// Rounds of each contestant, in turn with the other.
const ROUNDS: usize = 20;

/// All facts of this host, read once more.
pub fn gather() {
    let sources = Sources {
        folders: Vec::new(),
        share: KINDS.to_vec(),
        rules: Rules::default(),
    };
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let gathered = sources.gather(&KINDS, &mut Logged::default(), &AtomicBool::new(false));
        times.push(start.elapsed().as_secs_f64() * 1000.0);
        assert_eq!(gathered.kinds.len(), KINDS.len());
    }
    let all = median(&mut times);
    println!("all facts of this host: {all:.2} ms (target 5 or less)");
    for kind in KINDS {
        let start = Instant::now();
        let facts = Host::default().facts(kind);
        let ms = start.elapsed().as_secs_f64() * 1000.0;
        println!(
            "  {}: {} facts, {ms:.2} ms",
            kind.name(),
            leaves(&facts).len()
        );
    }
}

/// Returns facts of about a message's size.
fn facts(n: usize, kind: Kind) -> Facts {
    let disks: Vec<(String, Value)> = (0..SIZE / 64)
        .map(|d| {
            (
                format!("disk{d}"),
                json!({"size_gb": 480 + d, "free_percent": (n + d) % 100}),
            )
        })
        .collect();
    let disks: serde_json::Map<String, Value> = disks.into_iter().collect();
    let facts = json!({"cpus": n % 64 + 1, "name": format!("{}{n}", kind.name()), "disk": disks});
    match facts {
        Value::Object(facts) => sorted(facts),
        _ => Facts::default(),
    }
}

/// Returns the retained messages of 1,000 nodes.
fn messages() -> Vec<(String, String)> {
    let ts = Timestamp::now().as_second();
    let mut all = Vec::new();
    for n in 0..NODES {
        let node = format!("node{n:04}");
        let topics = NodeTopics::new("bench", &node);
        let mut kinds = serde_json::Map::new();
        for kind in KINDS {
            let facts = facts(n, kind);
            kinds.insert(kind.name().to_owned(), digest(&facts).into());
            let payload = round::payload(&node, kind, ts, &facts);
            all.push((topics.kind(kind), payload.to_string()));
        }
        let presence = json!({
            "state": "online", "node": node, "host": node, "version": "1", "ts": ts,
            "interval": 300, "kinds": kinds, "failed": [], "machine": format!("{n:032x}"),
        });
        all.push((topics.presence(), presence.to_string()));
    }
    all
}

fn retain(broker: &Mosquitto, messages: &[(String, String)]) {
    let publisher = Publisher::new(broker.port);
    for (topic, payload) in messages {
        let client = &publisher.client;
        let sent = client.publish(topic, QoS::AtLeastOnce, true, payload.clone());
        publisher.runtime.block_on(sent).expect("publish");
    }
    // Until the broker has all of them.
    while collected(broker).1 < messages.len() {}
}

/// Returns how long `mosquitto_sub` takes to print all messages, milliseconds, and how many it has.
fn collected(broker: &Mosquitto) -> (f64, usize) {
    let count = (NODES * MESSAGES).to_string();
    let mut sub = Command::new("mosquitto_sub");
    sub.args(["-h", "127.0.0.1", "-p", &broker.port.to_string(), "-V", "5"])
        .args([
            "-t",
            "bench/infrastructure/nodes/#",
            "-C",
            &count,
            "-W",
            "5",
        ]);
    let start = Instant::now();
    let output = sub.stdin(Stdio::null()).output().expect("mosquitto_sub");
    let lines = output.stdout.iter().filter(|byte| **byte == b'\n').count();
    (start.elapsed().as_secs_f64() * 1000.0, lines)
}

/// Returns `tael facts` with `arguments`: its time, milliseconds, and its output.
fn tael(broker: &Mosquitto, arguments: &[&str]) -> (f64, Vec<u8>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tael"));
    command
        .env_clear()
        .arg("facts")
        .args(arguments)
        .args(["--root", "bench", "-H", "127.0.0.1"])
        .args(["-p", &broker.port.to_string()]);
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output().expect("tael facts");
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    // Nothing is asked for again.
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    (ms, output.stdout)
}

/// A list of 1,000 nodes.
pub fn list() {
    let broker = mosquitto();
    retain(&broker, &messages());
    let (mut theirs, mut ours, mut table) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        theirs.push(collected(&broker).0);
        let (ms, lines) = tael(&broker, &["show"]);
        assert_eq!(
            lines.iter().filter(|byte| **byte == b'\n').count(),
            NODES + 1
        );
        table.push(ms);
        let (ms, json) = tael(&broker, &["show", "--json"]);
        let nodes: Value = serde_json::from_slice(&json).expect("JSON");
        assert_eq!(nodes.as_array().map(Vec::len), Some(NODES));
        ours.push(ms);
    }
    let (theirs, ours) = (median(&mut theirs), median(&mut ours));
    let table = median(&mut table);
    println!("{NODES} nodes listed: {table:.1} ms; mosquitto_sub -C of all facts: {theirs:.1} ms");
    println!("  ratio: {:.2} (target 2 or less)", table / theirs);
    println!(
        "  with all facts (--json): {ours:.1} ms, ratio {:.2}",
        ours / theirs
    );
}

/// Returns the tables of a view as statements.
fn dump(nodes: &Nodes, now: i64) -> String {
    let quoted = |text: &str| text.replace('\'', "''");
    let mut sql = "PRAGMA journal_mode=OFF; BEGIN;\
        CREATE TABLE node(name, state, fresh, age, host, facts);\
        CREATE TABLE fact(node, kind, name, value, age);\n"
        .to_owned();
    for (name, seen) in &nodes.seen {
        let facts = quoted(&Value::Object(seen.merged()).to_string());
        let _ = writeln!(
            sql,
            "INSERT INTO node VALUES('{name}','{}',1,{},'{name}','{facts}');",
            seen.verdict(now).name(),
            seen.age(now).unwrap_or_default(),
        );
        for (kind, held) in &seen.kinds {
            for (dotted, value) in leaves(&held.facts()) {
                let value = match value {
                    Value::String(text) => format!("'{}'", quoted(text)),
                    value => value.to_string(),
                };
                let kind = kind.name();
                let _ = writeln!(
                    sql,
                    "INSERT INTO fact VALUES('{name}','{kind}','{dotted}',{value},0);"
                );
            }
        }
    }
    sql.push_str("COMMIT;\n");
    sql
}

/// A view over 1,000 nodes: the tables are filled, and queried.
pub fn view() {
    const SQL: &str = "SELECT count(*), max(facts->>'$.disk.disk3.free_percent') FROM node JOIN fact \
        ON fact.node = node.name WHERE fact.name LIKE 'disk.%.free_percent' AND fact.value < 10";
    let messages = messages();
    let now = Timestamp::now().as_second();
    let mut nodes = Nodes::default();
    for (topic, payload) in &messages {
        nodes.add("bench", topic, payload.as_bytes());
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("rows.sql");
    fs::write(&file, dump(&nodes, now)).expect("rows");
    let read = format!(".read {}", file.display());
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let output = Command::new("sqlite3")
            .args([":memory:", "-cmd", &read, SQL])
            .output()
            .expect("sqlite3");
        theirs.push(start.elapsed().as_secs_f64() * 1000.0);
        let printed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let start = Instant::now();
        let view = View::new(&nodes, &Network::default(), now).expect("view");
        let rows = view.query_once(SQL.to_owned(), Vec::new()).expect("rows");
        ours.push(start.elapsed().as_secs_f64() * 1000.0);
        let cells = rows.rows.first().expect("a row").iter();
        let cells: Vec<String> = cells.map(Value::to_string).collect();
        assert!(printed.ends_with(&cells.join("|")), "{printed} {cells:?}");
    }
    let (theirs, ours) = (median(&mut theirs), median(&mut ours));
    println!("a view over {NODES} nodes: {ours:.1} ms; sqlite3 with the same rows: {theirs:.1} ms");
    println!("  ratio: {:.2} (target 1.5 or less)", ours / theirs);
    let broker = mosquitto();
    retain(&broker, &messages);
    let mut whole: Vec<f64> = (0..ROUNDS)
        .map(|_| tael(&broker, &["view", SQL, "--json"]).0)
        .collect();
    println!(
        "  the command, with what the broker holds: {:.1} ms",
        median(&mut whole)
    );
}
