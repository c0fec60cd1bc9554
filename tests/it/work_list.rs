//! `tael work list`, and how people name a run.

use std::fs;
use std::process::Stdio;
use std::time::Instant;

use crate::common::pty::{Terminal, golden};
use crate::common::{Process, World, peak_memory, ran, refuses, spawn, wait_until};
use rusqlite::{Connection, params};
use serde_json::{Value, json};

const SEQ: &str = "lab/seq/status";

/// 2024-03-01 12:00:00 UTC, in milliseconds.
const START: i64 = 1_709_294_400_000;

/// A unit as the ledger holds it.
struct Unit<'a> {
    id: &'a str,
    lane: &'a str,
    command: &'a str,
    variables: Value,
    /// Seconds after [`START`].
    at: i64,
    state: &'a str,
    code: Option<i32>,
}

impl Default for Unit<'_> {
    fn default() -> Self {
        Self {
            id: "01HQWWA4000000000000000001",
            lane: "1",
            command: "/opt/lab/align.sh --threads 8",
            variables: json!([["SAMPLE", "S12"]]),
            at: 0,
            state: "succeeded",
            code: Some(0),
        }
    }
}

/// Makes a client create the ledger of pipeline `who`, and opens it.
fn ledger(world: &World, who: &str) -> Connection {
    world.client(who, &["-t", SEQ, "-c", "true"]).stop();
    Connection::open(world.state().join(who).join("ledger.db")).expect("ledger")
}

const COLUMNS: &str = "INSERT INTO unit (id, spec, event, topic, reason, hops, attempt, due, state,
    accepted, started, ended, outcome, variables, passthrough)";

fn spec(ledger: &Connection, lane: &str, command: &str) -> i64 {
    let content = json!({"lane": lane, "required": ["SAMPLE"],
        "command": {"shell": {"shell": "/bin/sh", "line": command}}});
    let sql = "INSERT OR IGNORE INTO spec (content) VALUES (?1)";
    ledger
        .execute(sql, params![content.to_string()])
        .expect("spec");
    let sql = "SELECT id FROM spec WHERE content = ?1";
    let id = ledger.query_row(sql, params![content.to_string()], |row| row.get(0));
    id.expect("spec")
}

fn add(ledger: &Connection, unit: &Unit<'_>) {
    let at = START + unit.at * 1000;
    let outcome = unit.code.map(|code| {
        let stopped = (unit.state == "canceled").then_some("canceled");
        json!({"end": {"exited": code}, "stopped": stopped, "started_ms": at, "elapsed_us": 83_456_789,
            "max_rss_kib": 1, "cpu_us": 1, "dropped_stdout": 0, "dropped_stderr": 0})
    });
    let ended = outcome.as_ref().map(|_| at + 83_456);
    let sql = format!(
        "{COLUMNS} VALUES (?1, ?2, 'event', 'lab/seq/status', 'lab/seq/status finished', 0, 1, 0, ?3,
         ?4, ?5, ?6, ?7, ?8, '{{}}')"
    );
    let started = (unit.state != "pending").then_some(at);
    let row = params![
        unit.id,
        spec(ledger, unit.lane, unit.command),
        unit.state,
        at,
        started,
        ended,
        outcome.map(|outcome| outcome.to_string()),
        unit.variables.to_string(),
    ];
    ledger.execute(&sql, row).expect("unit");
}

/// Fills the ledgers of two pipelines with units whose acceptance alternates. One has two triggers;
/// some texts are wide, long or hostile.
fn two_pipelines(world: &World) {
    let align = ledger(world, "align");
    let core = ledger(world, "core-facility");
    add(&align, &Unit::default());
    add(
        &core,
        &Unit {
            id: "01HQWWA4000000000000000002",
            lane: "tell the operator",
            command: "/opt/lab/tell.sh \u{1b}[2J\u{202e}evil\n; rm -rf /",
            variables: json!([["SAMPLE", "S 13\u{1b}]0;owned\u{7}"]]),
            at: 60,
            state: "failed",
            code: Some(137),
        },
    );
    add(
        &align,
        &Unit {
            id: "01HQWWA4000000000000000003",
            command: "/opt/lab/日本語/整列.sh --参照 ゲノム --出力 /data/結果/試料/十三",
            variables: json!([["SAMPLE", "試料十三"]]),
            at: 120,
            state: "canceled",
            code: Some(143),
            ..Unit::default()
        },
    );
    add(
        &core,
        &Unit {
            id: "01HQWWA4000000000000000004",
            lane: "align",
            variables: json!([["SAMPLE", "x".repeat(300)]]),
            at: 180,
            state: "failed",
            code: Some(1),
            ..Unit::default()
        },
    );
    add(
        &align,
        &Unit {
            id: "01HQWWA4000000000000000005",
            at: 240,
            state: "pending",
            code: None,
            ..Unit::default()
        },
    );
}

fn list(world: &World, arguments: &[&str]) -> String {
    let mut command = world.tael(["work", "list"]);
    let (code, out, stderr) = ran(command.args(arguments).env("TZ", "UTC"));
    assert_eq!((code, stderr.as_str()), (0, ""), "{arguments:?}");
    out
}

/// The ids of the listed units.
fn listed(world: &World, arguments: &[&str]) -> Vec<String> {
    let out = list(world, &[arguments, &["--json"]].concat());
    let units: Vec<Value> = serde_json::from_str(&out).expect("json");
    let last = |unit: &Value| unit["unit"].as_str().expect("id")[25..].to_owned();
    units.iter().map(last).collect()
}

#[test]
fn a_list_fits_the_terminal() {
    let world = World::new();
    two_pipelines(&world);
    for columns in [80, 120] {
        let terminal = Terminal::start(world.tael(["work", "list"]), columns);
        let (code, screen) = terminal.end();
        assert_eq!(code, 0, "{screen}");
        golden(&format!("work-list-{columns}"), &screen);
    }
    let mut plain = world.tael(["work", "list"]);
    plain.env("NO_COLOR", "1");
    let (_, screen) = Terminal::start(plain, 80).end();
    golden("work-list-80-plain", &screen);
}

#[test]
fn a_list_in_a_pipe_has_whole_words_in_fixed_columns() {
    let world = World::new();
    two_pipelines(&world);
    let out = list(&world, &[]);
    let rows: Vec<Vec<&str>> = out
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows.len(), 6);
    assert_eq!(
        rows[0][..7],
        [
            "UNIT", "STARTED", "PIPELINE", "STATE", "ELAPSED", "EXIT", "ABOUT"
        ]
    );
    let first = [
        "01HQWWA4000000000000000001",
        "2024-03-01T12:00:00",
        "align",
        "succeeded",
        "1m23s",
        "0",
    ];
    assert_eq!(rows[1][..6], first);
    assert_eq!(
        rows[1][6..],
        ["SAMPLE=S12", "/opt/lab/align.sh", "--threads", "8"]
    );
    assert_eq!(rows[2][2], "core-facility/tell\\u{20}the\\u{20}operator");
    assert_eq!(rows[2][6], "SAMPLE=S\\u{20}13\\u{1b}]0;owned\\u{7}");
    assert_eq!(rows[5][1..6], ["-", "align", "pending", "-", "-"]);
    assert!(out.contains(&format!("SAMPLE={}…", "x".repeat(200))));
    assert!(!out.contains(['\u{1b}', '\u{202e}']));
}

#[test]
fn filters_narrow_the_list() {
    let world = World::new();
    two_pipelines(&world);
    assert_eq!(listed(&world, &[]), ["1", "2", "3", "4", "5"]);
    assert_eq!(listed(&world, &["--failed"]), ["2", "4"]);
    assert_eq!(
        listed(&world, &["--state", "canceled", "--state", "pending"]),
        ["3", "5"]
    );
    assert_eq!(listed(&world, &["-n", "3"]), ["3", "4", "5"]);
    assert_eq!(listed(&world, &["-n", "1", "--failed"]), ["4"]);
    assert_eq!(listed(&world, &["-n", "0"]), [""; 0]);
    assert_eq!(listed(&world, &["--who", "align"]), ["1", "3", "5"]);
    // What waits has not ended.
    assert_eq!(listed(&world, &["--since", "2d"]), ["5"]);
    assert_eq!(listed(&world, &["--since", "36500d"]).len(), 5);
    assert_eq!(listed(&world, &["--grep", "s12"]), ["1", "5"]);
    assert_eq!(listed(&world, &["--grep", "試料"]), ["3"]);
    assert_eq!(listed(&world, &["--grep", "Operator"]), [""; 0]);
    assert_eq!(listed(&world, &["--grep", "operator"]), ["2"]);
    refuses(
        &mut world.tael(["work", "list", "--state", "done"]),
        64,
        "no state of runs",
    );
    refuses(
        &mut world.tael(["work", "list", "--failed", "--state", "succeeded"]),
        64,
        "write --state failed instead",
    );
    refuses(
        &mut world.tael(["work", "status", "--state", "failed"]),
        64,
        "goes with list only",
    );
}

#[test]
fn a_list_of_nothing_says_where_it_has_looked() {
    let world = World::new();
    let (code, out, stderr) = ran(&mut world.tael(["work", "list"]));
    assert_eq!((code, out.as_str()), (0, ""));
    assert!(
        stderr.contains(world.state().to_str().expect("path")),
        "{stderr}"
    );
    assert_eq!(ran(&mut world.tael(["work", "list", "--json"])).1, "[]\n");
    // The state of the user lies elsewhere.
    two_pipelines(&world);
    let own = world.path("tael");
    fs::rename(world.state(), &own).expect("rename");
    for verb in ["list", "status", "results", "cancel"] {
        let (_, _, stderr) = ran(&mut world.tael(["work", verb]));
        let elsewhere = format!("--state {}", own.display());
        assert!(stderr.contains(&elsewhere), "{verb}: {stderr}");
    }
    let own = own.to_str().expect("path");
    assert_eq!(listed(&world, &["--state", own]).len(), 5);
    let status = ["work", "status", "latest", "--state", own];
    assert_eq!(ran(&mut world.tael(status)).0, 0);
}

#[test]
fn a_part_of_an_id_names_a_run() {
    let world = World::new();
    two_pipelines(&world);
    let other = Connection::open(world.state().join("align/ledger.db")).expect("ledger");
    let id = "01HZZZZZ0000000000000ABCDE";
    add(
        &other,
        &Unit {
            id,
            at: 300,
            ..Unit::default()
        },
    );
    let status = |arguments: &[&str]| -> String {
        let mut command = world.tael(["work", "status", "--json"]);
        let (code, out, stderr) = ran(command.args(arguments));
        assert_eq!(code, 0, "{arguments:?}: {stderr}");
        let report: Value = serde_json::from_str(&out).expect("json");
        report["unit"].as_str().expect("unit").to_owned()
    };
    for part in [id, "01HZ", "01hz", "BCDE", "bcde"] {
        assert_eq!(status(&[part]), id);
    }
    assert_eq!(status(&[]), id);
    assert_eq!(status(&["latest"]), id);
    assert_eq!(
        status(&["--who", "core-facility"]),
        "01HQWWA4000000000000000004"
    );
    assert_eq!(status(&["--failed"]), "01HQWWA4000000000000000004");
    // The candidates are named, with their pipelines.
    let (code, out, stderr) = ran(&mut world.tael(["work", "status", "01HQ"]));
    assert_eq!(
        (code, out.as_str(), stderr.lines().count()),
        (65, "", 1),
        "{stderr}"
    );
    for text in [
        "01HQWWA4000000000000000001 (align, ",
        "01HQWWA4000000000000000002 (core-facility, ",
        "…",
    ] {
        assert!(stderr.contains(text), "{stderr}");
    }
    refuses(&mut world.tael(["work", "status", ""]), 65, "there is none");
    refuses(
        &mut world.tael(["work", "status", "01HQ_"]),
        65,
        "there is none",
    );
    refuses(
        &mut world.tael(["work", "status", "%"]),
        65,
        "there is none",
    );
    refuses(
        &mut world.tael(["work", "status", "--failed", "--who", "align"]),
        65,
        "none has failed",
    );
    refuses(
        &mut world.tael(["work", "status", "01HZ", "--failed"]),
        64,
        "takes no unit",
    );
}

#[test]
fn cancel_without_a_unit_ends_the_only_one() {
    let world = World::new();
    let waits = r#"echo "$TAEL_UNIT" >>"$OUT/runs"; until [ -e "$OUT/go" ]; do sleep 0.02; done"#;
    let client = world.client("p", &["-t", SEQ, "-c", waits, "--jobs", "2"]);
    refuses(&mut world.tael(["work", "cancel"]), 65, "no run is running");
    world.message(SEQ, &[("status", "finished")]);
    world.message(SEQ, &[("status", "finished")]);
    wait_until("both run", || world.lines("runs").len() == 2);
    let units = world.lines("runs");
    let (code, _, stderr) = ran(&mut world.tael(["work", "cancel"]));
    assert_eq!(code, 65, "{stderr}");
    for unit in &units {
        assert!(
            stderr.contains(&format!("'tael work cancel {unit}' (p, ")),
            "{stderr}"
        );
    }
    let last = units[0].get(10..).expect("an end");
    let said = |done: &str, unit: &str| (0, format!("{done} unit {unit} of p\n"), String::new());
    assert_eq!(
        ran(&mut world.tael(["work", "cancel", last])),
        said("canceled", &units[0])
    );
    assert_eq!(
        ran(&mut world.tael(["work", "cancel"])),
        said("canceled", &units[1])
    );
    client.stop();
}

#[test]
fn a_command_says_which_unit_it_has_ended_unless_its_whole_id_was_given() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", "sleep 600"]);
    for _ in 0..4 {
        world.message(SEQ, &[("status", "finished")]);
    }
    let ids = || -> Vec<String> {
        let (_, out, _) = ran(&mut world.tael(["work", "list", "--json"]));
        let list: Vec<Value> = serde_json::from_str(&out).expect("json");
        let id = |unit: &Value| unit["unit"].as_str().expect("unit").to_owned();
        list.iter().map(id).collect()
    };
    wait_until("all are accepted", || ids().len() == 4);
    client.stop();
    let work = |verb: &str, unit: &str| {
        let (code, out, stderr) = ran(&mut world.tael(["work", verb, unit]));
        assert_eq!(code, 0, "{stderr}");
        out
    };
    let ids = ids();
    let said = |done: &str, n: usize| format!("{done} unit {} of p\n", ids[n]);
    assert_eq!(work("cancel", "latest"), said("canceled", 3));
    assert_eq!(work("release", "latest"), said("released", 3));
    assert_eq!(work("force-release", &ids[2][10..]), said("released", 2));
    assert_eq!(work("cancel", &ids[1]), "");
    assert_eq!(work("release", &ids[1]), "");
    assert_eq!(work("force-release", &ids[0]), "");
}

#[test]
fn a_status_says_who_sent_what() {
    let world = World::new();
    let command = r#"echo run >>"$OUT/runs"; [ "$TAEL_ATTEMPT" = 2 ]"#;
    let arguments = [
        "-t",
        SEQ,
        "-c",
        command,
        "--retries",
        "1",
        "--retry-delay",
        "1ms",
        "--envreq",
        "SAMPLE",
    ];
    let client = world.client("p", &arguments);
    let ears = world.ears(&["lab/#"]);
    let payload = br#"{"status":"finished","sample":"S12","user":"ann","x":"\u0000"} "#;
    world.publish(SEQ, payload, &[("tael-id", "E1")]);
    ears.status("p", "finished");
    wait_until("it is booked", || {
        listed_states(&world) == ["failed", "succeeded"]
    });
    let (code, out, stderr) = ran(&mut world.tael(["work", "status", "--json"]));
    assert_eq!(code, 0, "{stderr}");
    let report: Value = serde_json::from_str(&out).expect("json");
    assert_eq!(report["sender"], "ann");
    assert_eq!(report["topic"], SEQ);
    assert_eq!(report["event"], "E1");
    assert_eq!(report["attributes"], json!({"SAMPLE": "S12"}));
    assert_eq!(report["attempts"][0]["state"], "failed");
    assert_eq!(report["attempts"][1]["unit"], report["unit"]);
    let (_, text, _) = ran(&mut world.tael(["work", "status"]));
    for line in [
        "attributes     SAMPLE=S12\n",
        "sender         ann\n",
        "attempts       1 failed (1) ",
    ] {
        assert!(text.contains(line), "{text}");
    }
    let output = world
        .tael(["work", "status", "--payload"])
        .output()
        .expect("status");
    assert_eq!(output.stdout, payload);
    // A pipeline is known by its topic.
    let status = "lab/infrastructure/pipelines/p/status";
    let next = world.client("next", &["-t", status, "-c", "true"]);
    world.publish(SEQ, payload, &[("tael-id", "E2")]);
    let run = || ran(&mut world.tael(["work", "status", "--json", "--who", "next"])).1;
    wait_until("the next one ran", || run().contains("succeeded"));
    let report: Value = serde_json::from_str(&run()).expect("json");
    assert_eq!(report["sender"], "p");
    next.stop();
    client.stop();
}

fn listed_states(world: &World) -> Vec<String> {
    let out = list(world, &["--json"]);
    let units: Vec<Value> = serde_json::from_str(&out).expect("json");
    units
        .iter()
        .map(|unit| unit["state"].as_str().expect("state").to_owned())
        .collect()
}

#[test]
fn a_hundred_thousand_units_take_little_memory() {
    const UNITS: i64 = 100_000;
    const LIMIT: usize = 50 * 1024 * 1024;
    let world = World::new();
    let mut ledger = ledger(&world, "p");
    let transaction = ledger.transaction().expect("transaction");
    let spec = spec(&transaction, "1", "/opt/lab/align.sh");
    let outcome = json!({"end": {"exited": 0}, "stopped": null, "started_ms": START, "elapsed_us": 1,
        "max_rss_kib": 1, "cpu_us": 1, "dropped_stdout": 0, "dropped_stderr": 0});
    let sql = format!(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {UNITS})
         {COLUMNS} SELECT printf('01HQWWA400000000000%07d', n), ?1, 'event', 'topic', 'reason', 0, 1, 0,
             iif(n % 1000 = 0, 'failed', 'succeeded'), ?2 + n, ?2 + n, ?2 + n, ?3,
             json_array(json_array('SAMPLE', 'S' || n),
                 json_array('FILLER', printf('%.*c', 500, 'x'))), '{{}}' FROM n"
    );
    let rows = transaction.execute(&sql, params![spec, START, outcome.to_string()]);
    assert_eq!(rows.expect("units"), 100_000);
    transaction.commit().expect("commit");
    drop(ledger);
    let peak = |arguments: &[&str]| {
        let mut command = world.tael(["work", "list"]);
        command.args(arguments).stdout(Stdio::piped());
        let begun = Instant::now();
        let mut process = spawn(&world.dir, &mut command);
        let mut out = std::io::BufReader::new(process.child.stdout.take().expect("stdout"));
        let mut line = String::new();
        std::io::BufRead::read_line(&mut out, &mut line).expect("line");
        let first = begun.elapsed();
        // It waits for us to read the rest, so that its peak can be read before its end.
        let (mut lines, mut most) = (1, 0);
        let look = |process: &Process| peak_memory(process);
        while std::io::BufRead::read_line(&mut out, &mut line).expect("line") > 0 {
            lines += 1;
            // After the last ones have come it may have ended.
            if lines % 10_000 == 0 && lines < UNITS {
                most = most.max(look(&process));
            }
            line.clear();
        }
        assert_eq!(process.wait(), 0);
        (lines, most, first, begun.elapsed())
    };
    let (lines, most, first, all) = peak(&[]);
    assert_eq!(lines, 100_001);
    assert!((1..LIMIT).contains(&most), "{most} bytes");
    assert!(
        first * 3 < all,
        "the first row came after {first:?} of {all:?}"
    );
    assert_eq!(listed(&world, &["--failed"]).len(), 100);
    assert_eq!(list(&world, &["-n", "20"]).lines().count(), 21);
}

#[test]
fn both_streams_come_in_the_order_of_writing() {
    let world = World::new();
    // It writes on when the runner has taken what it wrote before.
    let command = r#"
        cd "$OUT/state/p/units/$TAEL_UNIT"
        taken() { until [ "$(cat $1 2>/dev/null | wc -l)" = "$2" ]; do sleep 0.01; done; }
        echo one; taken stdout 1
        echo two >&2; taken stderr 1
        echo three; taken stdout 2
        until [ -e "$OUT/go" ]; do sleep 0.01; done
        echo four >&2; exit 3"#;
    let client = world.client("p", &["-t", SEQ, "-c", command]);
    world.message(SEQ, &[("status", "finished")]);
    let both = || ran(world.tael(["work", "results", "--both"]).env("LC_ALL", "C"));
    wait_until("three lines are there", || both().1 == "one\ntwo\nthree\n");
    assert_eq!(both().0, 125);
    let mut follow = world.tael(["work", "results", "--both", "--follow"]);
    let follower = std::thread::spawn(move || ran(&mut follow));
    fs::write(world.path("go"), "").expect("go");
    let (code, out, stderr) = follower.join().expect("follower");
    assert_eq!(
        (code, out.as_str(), stderr.as_str()),
        (3, "one\ntwo\nthree\nfour\n", "")
    );
    // A run of an earlier version has noted no order.
    let unit = fs::read_dir(world.state().join("p/units"))
        .expect("units")
        .next();
    let order = unit.expect("unit").expect("unit").path().join("order");
    fs::remove_file(order).expect("remove");
    let (code, out, stderr) = both();
    assert_eq!((code, out.as_str()), (3, "one\nthree\ntwo\nfour\n"));
    assert!(stderr.contains("stdout comes first"), "{stderr}");
    refuses(
        &mut world.tael(["work", "results", "--both", "--stderr"]),
        64,
        "--both",
    );
    client.stop();
}
