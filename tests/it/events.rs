//! `tael events`: what became of messages, and why.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;

use serde_json::Value;

use crate::common::raw::{Raw, publish};
use crate::common::{Process, World, ran, ran_with, wait_until};

const SEQ: &str = "lab/seq/status";

/// Two triggers on one topic, and one elsewhere.
const TRIGGERS: &str = r#"
[[trigger]]
name = "align"
topic = "lab/seq/status"
envreq = ["SAMPLE"]
command = "true"
[[trigger]]
name = "tell"
topic = "lab/seq/status"
when = ["status=failed"]
command = "true"
"#;

/// The notes that `tael events` with `arguments` prints, and what it says besides.
fn events(world: &World, arguments: &[&str]) -> (Vec<Value>, String) {
    let mut command = world.tael(["events", "--json"]);
    let (code, stdout, stderr) = ran(command.args(arguments));
    assert_eq!(code, 0, "{stderr}");
    let notes = stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect(line));
    (notes.collect(), stderr)
}

fn with_triggers(world: &World) -> Process {
    let file = world.path("tael.toml");
    fs::write(&file, TRIGGERS).expect("file");
    world.client("p", &["--config", file.to_str().expect("path")])
}

/// Result, trigger and reason of each note.
fn told(notes: &[Value]) -> Vec<String> {
    let text = |note: &Value, key| note[key].as_str().unwrap_or("-").to_owned();
    let told = notes.iter().map(|note| {
        let parts = ["result", "trigger", "why"].map(|key| text(note, key));
        parts.join("|")
    });
    told.collect()
}

#[test]
fn every_message_has_its_reason_with_and_without_a_client() {
    let world = World::new();
    let client = with_triggers(&world);
    let id = [("tael-id", "one")];
    let publish = |payload: &str, properties: &[(&str, &str)]| {
        world.publish(SEQ, payload, properties);
    };
    publish(r#"{"status":"finished","SAMPLE":"S1"}"#, &id);
    world.wait_report("p", "/units/succeeded", 1);
    publish(r#"{"status":"finished","SAMPLE":"S1"}"#, &id);
    publish(r#"{"status":"finished","SAMPEL":"S1"}"#, &[]);
    publish(r#"{"status":"Finished","SAMPLE":"S1"}"#, &[]);
    publish("finished", &[]);
    publish("", &[]);
    publish(r#"{"status":"failed","SAMPLE":"S1"}"#, &[]);
    world.wait_report("p", "/units/succeeded", 2);

    let (notes, said) = events(&world, &["--who", "p"]);
    let unit = notes[0]["unit"].as_str().expect("unit").to_owned();
    let before = format!("duplicate|align|it came before, and made unit {unit}");
    let mut want = [
        "accepted|align|-",
        &before,
        "refused|align|it has SAMPEL, not SAMPLE",
        "ignored|align|'status' is 'Finished', not 'finished': case counts",
        "ignored|tell|'status' is 'Finished', not 'failed'",
        "refused|-|its payload is not JSON: a value is expected at line 1, column 1",
        "ignored|-|its payload is empty",
        "accepted|tell|-",
    ];
    assert_eq!(told(&notes)[0], want[0]);
    let mut found = told(&notes);
    // A duplicate is known a commit later than an ignored message.
    found.sort();
    want.sort_unstable();
    assert_eq!(found, want);
    assert_eq!(said, "");
    assert_eq!(
        (&notes[0]["state"], &notes[0]["event"]),
        (&"succeeded".into(), &"one".into())
    );

    let (of_tell, _) = events(&world, &["--trigger", "tell"]);
    assert!(
        told(&of_tell).contains(&"ignored|tell|'status' is 'finished', not 'failed'".to_owned()),
        "{of_tell:?}"
    );
    let (refused, _) = events(&world, &["--refused", "-n", "1"]);
    assert_eq!(refused.len(), 1);
    assert!(told(&refused)[0].starts_with("refused|-|its payload is not JSON"));

    let socket = world.state().join("p/events");
    let meta = fs::metadata(&socket).expect("socket");
    assert!(meta.file_type().is_socket() && meta.permissions().mode() & 0o777 == 0o600);
    client.stop();
    assert!(!socket.exists(), "it is gone with its client");
    let (notes, said) = events(&world, &[]);
    assert_eq!(notes.len(), 4, "{notes:?}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("no client of 'p' runs"), "{said}");
    let (_, said) = events(&world, &["--accepted"]);
    assert_eq!(said, "", "nothing is missing");
}

#[test]
fn a_table_fits_and_shows_no_text_of_a_sender_as_it_is() {
    let world = World::new();
    let client = world.client("p", &["-t", "lab/#", "-c", "true"]);
    world.publish("lab/\u{202e}x", r#"{"status":"\u001b[31m\n\u202e"}"#, &[]);
    world.publish("lab/seq", "x\u{1b}[0m", &[]);
    let mut table = String::new();
    wait_until("both are known", || {
        let (code, stdout, _) = ran(&mut world.tael(["events"]));
        assert_eq!(code, 0);
        table = stdout;
        table.lines().count() == 3
    });
    assert!(table.starts_with("TIME"), "{table}");
    assert!(!table.contains(['\u{1b}', '\u{202e}']), "{table}");
    assert!(table.contains(r"'status' is '\u{1b}[31m\n\u{202e}', not 'finished'"));
    client.stop();
}

/// The lines that `tael events --follow` prints, as they come.
fn follow(world: &World, which: &[&str]) -> (Process, mpsc::Receiver<Value>) {
    let mut command = world.tael(["events", "--json", "--follow"]);
    command.args(which);
    command.stdout(Stdio::piped());
    let mut process = world.spawn(command);
    let stdout = process.child.stdout.take().expect("stdout");
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(serde_json::from_str(&line).expect("JSON"));
        }
    });
    (process, lines)
}

fn next_line(lines: &mpsc::Receiver<Value>) -> Value {
    lines.recv_timeout(crate::common::PATIENCE).expect("a line")
}

/// The next line about a message.
fn next_message(lines: &mpsc::Receiver<Value>) -> Value {
    loop {
        let line = next_line(lines);
        if line["result"] != "ended" {
            return line;
        }
    }
}

#[test]
fn the_end_of_a_run_follows_its_message() {
    let world = World::new();
    let run = r#"[ "$TAEL_ATTEMPT" = 2 ] || exit 3"#;
    let arguments = ["-t", SEQ, "-c", run, "--retries", "1"];
    let more = ["--retry-delay", "1ms"];
    let client = world.client("p", &[&arguments[..], &more].concat());
    let send = |id: &str| world.publish(SEQ, r#"{"status":"finished"}"#, &[("tael-id", id)]);
    send("before");
    world.wait_report("p", "/units/succeeded", 1);
    // Nothing of what was before is shown.
    let (mut process, lines) = follow(&world, &["-n", "0"]);
    let ignored = r#"{"status":"started"}"#;
    wait_until("it follows", || {
        world.publish(SEQ, ignored, &[]);
        lines
            .try_recv()
            .is_ok_and(|line| line["result"] == "ignored")
    });
    send("after");
    let next = || loop {
        let line = next_line(&lines);
        if line["result"] != "ignored" {
            break line;
        }
    };
    let accepted = next();
    assert_eq!(
        (&accepted["result"], &accepted["event"]),
        (&"accepted".into(), &"after".into())
    );
    let first = next();
    assert_eq!(
        (&first["result"], &first["state"], &first["return_code"]),
        (&"ended".into(), &"failed".into(), &3.into())
    );
    assert_eq!(
        (&first["unit"], &first["event"], &first["why"]),
        (&accepted["unit"], &"after".into(), &"exited with 3".into())
    );
    assert!(
        first["elapsed"]
            .as_f64()
            .is_some_and(|elapsed| elapsed > 0.0)
    );
    let second = next();
    assert_eq!(
        (&second["result"], &second["state"], &second["unit"]),
        (&"ended".into(), &"succeeded".into(), &first["retry"])
    );
    // A sentinel: no end is told twice.
    send("sentinel");
    assert_eq!(next()["event"], "sentinel");
    process.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(process.wait(), 0);
    let (none, said) = events(&world, &["-n", "0"]);
    assert_eq!((none.len(), said.as_str()), (0, ""));
    client.stop();
}

#[test]
fn what_a_person_starts_is_an_event_with_its_reason() {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", "true"];
    let client = world.client("p", &arguments);
    let (mut process, lines) = follow(&world, &[]);
    wait_until("it follows", || {
        world.message(SEQ, &[("status", "started")]);
        lines.try_recv().is_ok()
    });
    let next = || loop {
        let line = next_message(&lines);
        if line["result"] != "ignored" {
            break line;
        }
    };
    assert_eq!(world.control(&["p", "raise"]).0, 0);
    let raised = next();
    assert_eq!(
        (&raised["result"], &raised["why"]),
        (&"accepted".into(), &"raised by hand".into())
    );
    world.wait_report("p", "/units/succeeded", 1);
    assert_eq!(
        world
            .control(&[
                "p",
                "retry",
                "--again",
                raised["unit"].as_str().expect("unit")
            ])
            .0,
        0
    );
    let retried = next();
    assert_eq!(retried["why"], "retried by hand");
    world.wait_report("p", "/units/succeeded", 2);
    let (code, _, stderr) = ran(&mut world.tael(["work", "retry", "--again"]));
    assert_eq!(code, 0, "{stderr}");
    let here = next();
    assert_eq!(
        (&here["why"], &here["event"]),
        (&"retried by hand".into(), &here["unit"])
    );
    world.wait_report("p", "/units/succeeded", 3);
    client.stop();
    // What is in the ledger is not shown again when the client is back.
    let client = world.client("p", &arguments);
    world.publish(SEQ, r#"{"status":"finished"}"#, &[("tael-id", "sentinel")]);
    assert_eq!(next()["event"], "sentinel");
    world.wait_report("p", "/units/succeeded", 4);
    process.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(process.wait(), 0);
    let (notes, _) = events(&world, &["--accepted"]);
    let units: Vec<&Value> = notes.iter().map(|note| &note["unit"]).collect();
    assert_eq!(
        units[..3],
        [&raised["unit"], &retried["unit"], &here["unit"]]
    );
    let retried = "accepted|default|retried by hand";
    let wanted = [
        "accepted|default|raised by hand",
        retried,
        retried,
        "accepted|default|-",
    ];
    assert_eq!(told(&notes), wanted);
    let (_, table, _) = ran(&mut world.tael(["events", "--accepted"]));
    let line = table.lines().nth(1).expect("line");
    let unit = raised["unit"].as_str().expect("unit");
    assert!(
        line.ends_with(&format!("raised by hand: unit {unit} succeeded")),
        "{table}"
    );
    client.stop();
}

#[test]
fn a_run_that_was_released_says_so() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", "true"]);
    world.message(SEQ, &[("status", "finished")]);
    world.wait_report("p", "/units/succeeded", 1);
    assert_eq!(ran(&mut world.tael(["work", "release", "latest"])).0, 0);
    let (notes, _) = events(&world, &[]);
    assert_eq!(notes[0]["state"], "released");
    let (_, table, _) = ran(&mut world.tael(["events"]));
    assert!(table.trim_end().ends_with(" released"), "{table}");
    client.stop();
}

#[test]
fn a_pipe_gets_words_without_blanks_around_them() {
    let world = World::new();
    let client = world.client("p", &["-t", "lab/#", "-c", "true"]);
    let long = format!("lab/{}/status", "long".repeat(20));
    for (n, topic) in ["lab/a", &long, "lab/two words"].iter().enumerate() {
        world.message(topic, &[("status", "finished")]);
        world.wait_report("p", "/units/succeeded", n as u64 + 1);
    }
    let (_, table, _) = ran(&mut world.tael(["events"]));
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows[0], "TIME  RESULT  PIPELINE  TOPIC  WHY");
    for (row, topic) in rows[1..]
        .iter()
        .zip(["lab/a", &long, "lab/two\\u{20}words"])
    {
        assert!(!row.contains("   ") && !row.ends_with(' '), "{row}");
        let words: Vec<&str> = row.split("  ").collect();
        assert_eq!(words[1..4], ["accepted", "p", topic]);
        let unit = words[4].split(' ').nth(1).expect("unit");
        assert_eq!(unit.len(), 26, "the whole id: {row}");
    }
    client.stop();
}

#[test]
fn what_comes_is_shown_once_also_over_a_restart_of_the_client() {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", "true"];
    let client = world.client("p", &arguments);
    let send = |n: usize, status: &str| {
        let payload = format!(r#"{{"status":"{status}"}}"#);
        world.publish(SEQ, payload, &[("tael-id", &format!("e{n}"))]);
    };
    send(0, "finished");
    world.wait_report("p", "/units/succeeded", 1);
    let (mut process, lines) = follow(&world, &["--who", "p"]);
    let next = || next_message(&lines);
    assert_eq!(next()["event"], "e0");
    send(1, "finished");
    assert_eq!(next()["event"], "e1");
    send(2, "started");
    let ignored = next();
    assert_eq!(
        (&ignored["result"], &ignored["why"]),
        (
            &"ignored".into(),
            &"'status' is 'started', not 'finished'".into()
        )
    );
    client.stop();
    wait_until("it waits for the next", || {
        process.log_text().contains("does not run; waiting for it")
    });
    // This one comes before the new client is found.
    send(3, "finished");
    let client = world.client("p", &arguments);
    assert_eq!(next()["event"], "e3");
    wait_until("the new client is found", || {
        send(4, "started");
        lines.try_recv().is_ok()
    });
    send(5, "finished");
    let last = loop {
        let line = next();
        if line["result"] == "accepted" {
            break line;
        }
    };
    assert_eq!(last["event"], "e5", "nothing comes twice");
    process.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(process.wait(), 0);
    client.stop();
}

#[test]
fn a_pipeline_that_is_new_is_followed_too() {
    let world = World::new();
    let first = world.client("p", &["-t", SEQ, "-c", "true"]);
    let (mut process, lines) = follow(&world, &[]);
    let next = || next_line(&lines);
    wait_until("it follows the first", || {
        world.message(SEQ, &[("status", "started")]);
        lines.try_recv().is_ok()
    });
    let second = world.client("q", &["-t", "lab/other", "-c", "true"]);
    world.message("lab/other", &[("status", "finished")]);
    let of_second = loop {
        let line = next();
        if line["pipeline"] == "q" {
            break line;
        }
    };
    assert_eq!(of_second["result"], "accepted", "{of_second}");
    process.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(process.wait(), 0);
    first.stop();
    second.stop();
}

#[test]
fn a_reader_that_reads_nothing_holds_nobody_up_and_is_told() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", "true"]);
    let socket = world.state().join("p/events");
    let mut reader = UnixStream::connect(socket).expect("connect");
    let mut publisher = Raw::connect(world.broker.port());
    let long = "x".repeat(500);
    for _ in 0..5000 {
        publisher.publish(SEQ, format!(r#"{{"status":"{long}"}}"#).as_bytes(), &[]);
    }
    world.message(SEQ, &[("status", "finished")]);
    world.wait_report("p", "/units/succeeded", 1);
    world.wait_report("p", "/events/ignored", 5000);
    let (notes, _) = events(&world, &["-n", "10000"]);
    assert!(notes.len() > 500 && notes.len() <= 1001, "{}", notes.len());
    // It is told as soon as something comes after it has read.
    let mut text = Vec::new();
    reader
        .set_read_timeout(Some(std::time::Duration::from_millis(200)))
        .expect("timeout");
    wait_until("it is told", || {
        let mut part = [0; 65536];
        while let Ok(read @ 1..) = reader.read(&mut part) {
            text.extend_from_slice(&part[..read]);
        }
        world.message(SEQ, &[("status", "started")]);
        String::from_utf8_lossy(&text).contains(r#"{"kind":"lost","count":"#)
    });
    client.stop();
}

#[test]
fn a_pipeline_that_does_not_exist_is_an_error() {
    let world = World::new();
    let (code, stdout, stderr) = ran(&mut world.tael(["events", "--who", "none"]));
    assert_eq!((code, stdout.as_str()), (65, ""));
    assert!(stderr.contains("find pipeline 'none'"), "{stderr}");
    let (code, _, stderr) = ran(&mut world.tael(["events"]));
    assert_eq!(code, 0);
    assert!(stderr.contains("no pipeline has state in"), "{stderr}");
    assert_eq!(ran(&mut world.tael(["events", "-n", "10001"])).0, 64);
}

/// The table of the guide, but for times and ids.
#[test]
fn the_guide_shows_what_is_shown() {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", "true", "--envreq", "SAMPLE"];
    let client = world.client("align", &arguments);
    let send = |payload: &str| world.publish(SEQ, payload, &[("tael-id", payload)]);
    let first = r#"{"status":"finished","sample":"S2"}"#;
    send(first);
    world.wait_report("align", "/units/succeeded", 1);
    // Messages of one millisecond have no order.
    send(r#"{"status":"Finished","sample":"S2"}"#);
    world.wait_report("align", "/events/ignored", 1);
    send(r#"{"status":"finished","sampel":"S4"}"#);
    world.wait_report("align", "/events/refused", 1);
    send(first);
    world.wait_report("align", "/events/duplicate", 1);
    let (code, shown, stderr) = ran(&mut world.tael(["events", "--who", "align"]));
    assert_eq!((code, stderr.as_str()), (0, ""));
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/guide.md");
    let page = fs::read_to_string(page).expect("docs/guide.md");
    let block = page.split("```text events\n").nth(1).expect("the block");
    let block = block.split("\n```").next().expect("its end");
    let (command, table) = block.split_once('\n').expect("lines");
    assert_eq!(command, "$ tael events --who align");
    let lines = |text: &str| -> Vec<String> {
        let words = text.lines().map(|line| {
            let mut words: Vec<&str> = line.split_whitespace().skip(1).collect();
            if let Some(place) = words.iter().position(|word| *word == "unit") {
                words.remove(place + 1);
            }
            words.join(" ")
        });
        words.collect()
    };
    assert_eq!(lines(&shown), lines(table));
    client.stop();
}

/// Four triggers: with a condition and a required attribute, with neither, for retained messages
/// too, and for silence.
const FOUR: &str = r#"
[client]
max-payload = 300
[[trigger]]
name = "align"
topic = "lab/+/status"
envreq = ["SAMPLE"]
command = 'echo "$TAEL_TOPIC align SAMPLE=$SAMPLE" >>"$OUT/ran"'
[[trigger]]
name = "all"
topic = "lab/+/status"
when = []
command = 'echo "$TAEL_TOPIC all ATTR_N=$ATTR_N" >>"$OUT/ran"'
[[trigger]]
name = "keep"
topic = "lab/+/status"
when = ["kind=keep", "n=1"]
retained = "accept"
command = 'echo "$TAEL_TOPIC keep ATTR_KIND=$ATTR_KIND" >>"$OUT/ran"'
[[trigger]]
name = "guard"
topic = "lab/+/beat"
absent = "1h"
command = "true"
"#;

/// A message: the last level of its topic, its payload, its user properties, whether it is
/// retained, and what trigger `align` makes of it; `-` if no client gets it.
type Row = (
    &'static str,
    &'static [u8],
    &'static [(&'static str, &'static str)],
    bool,
    &'static str,
);

const RUNS: &str = "runs";
const NOT_JSON: &str = "refused: its payload is not JSON";

const FIFTY: &[Row] = &[
    (
        "status",
        br#"{"status":"finished","SAMPLE":"S1"}"#,
        &[],
        false,
        RUNS,
    ),
    (
        "status",
        br#"{"status":"finished","sample":"S2"}"#,
        &[],
        false,
        RUNS,
    ),
    (
        "status",
        br#"{"status":"finished","Sample":7}"#,
        &[],
        false,
        RUNS,
    ),
    (
        "status",
        br#"{"status":"finished","SAMPLE":null}"#,
        &[],
        false,
        RUNS,
    ),
    (
        "status",
        br#"{"status":"finished","SAMPLE":true}"#,
        &[],
        false,
        RUNS,
    ),
    (
        "status",
        br#"{"status":"finished","SAMPLE":[1, 2]}"#,
        &[],
        false,
        RUNS,
    ),
    (
        "status",
        br#"{"status":"finished","SAMPLE":"a","SAMPLE":"b"}"#,
        &[],
        false,
        RUNS,
    ),
    (
        "status",
        "{\"status\":\"finished\",\"SAMPLE\":\"日本\"}".as_bytes(),
        &[],
        false,
        RUNS,
    ),
    (
        "status",
        b"\xef\xbb\xbf{\"status\":\"finished\",\"SAMPLE\":\"bom\"}",
        &[],
        false,
        RUNS,
    ),
    (
        "status",
        b" \n{\"status\" : \"finished\",\n\"SAMPLE\":\"blanks\"} ",
        &[],
        false,
        RUNS,
    ),
    (
        "status",
        br#"{"status":"finished","SAMPLE":"$(id)"}"#,
        &[],
        false,
        RUNS,
    ),
    (
        "status",
        br#"{"status":"finished","SAMPLE":""}"#,
        &[],
        false,
        RUNS,
    ),
    (
        "status",
        br#"{"status":"finished","SAMPLE":"x","n":1.50}"#,
        &[],
        false,
        RUNS,
    ),
    (
        "status",
        br#"{"status":"finished","SAMPLE":"x","kind":"keep","n":1}"#,
        &[],
        false,
        RUNS,
    ),
    (
        "status",
        br#"{"status":"finished","SAMPLE":"x","kind":"keep","n":2}"#,
        &[],
        false,
        RUNS,
    ),
    (
        "status",
        br#"{"status":"finished","SAMPLE":"x"}"#,
        &[("tael-hops", "32")],
        false,
        RUNS,
    ),
    (
        "status",
        br#"{"status":"finished","SAMPLE":"x"}"#,
        &[("tael-hops", "many")],
        false,
        RUNS,
    ),
    (
        "status",
        br#"{"status":"finished","SAMPLE":"x"}"#,
        &[("tael-who", "q")],
        false,
        RUNS,
    ),
    (
        "status",
        br#"{"status":"finished","SAMPLE":"x"}"#,
        &[("tael-id", "id-1")],
        false,
        RUNS,
    ),
    (
        "status",
        br#"{"status":"finished","SAMPLE":"x"}"#,
        &[("other", "p")],
        false,
        RUNS,
    ),
    (
        "status",
        br#"{"status":"finished","SAMPLE":"x"}"#,
        &[("tael-who", "p")],
        false,
        "ignored: the pipeline itself has published it",
    ),
    (
        "status",
        br#"{"status":"finished","SAMPLE":"x"}"#,
        &[("tael-hops", "33")],
        false,
        "refused: it has passed through 33 pipelines, the limit is 32: a loop?",
    ),
    (
        "status",
        br#"{"status":"started"}"#,
        &[],
        false,
        "ignored: 'status' is 'started', not 'finished'",
    ),
    (
        "status",
        br#"{"status":"Finished","SAMPLE":"x"}"#,
        &[],
        false,
        "ignored: 'status' is 'Finished', not 'finished': case counts",
    ),
    (
        "status",
        br#"{"status":"finished ","SAMPLE":"x"}"#,
        &[],
        false,
        "ignored: 'status' is 'finished ', not 'finished': blanks count",
    ),
    (
        "status",
        br#"{"status":1,"SAMPLE":"x"}"#,
        &[],
        false,
        "ignored: 'status' is the number 1, not 'finished'",
    ),
    (
        "status",
        br#"{"status":true,"SAMPLE":"x"}"#,
        &[],
        false,
        "ignored: 'status' is true, not 'finished'",
    ),
    (
        "status",
        br#"{"status":null,"SAMPLE":"x"}"#,
        &[],
        false,
        "ignored: 'status' is null, not 'finished'",
    ),
    (
        "status",
        br#"{"status":["finished"],"SAMPLE":"x"}"#,
        &[],
        false,
        "ignored: 'status' is a list, not 'finished'",
    ),
    (
        "status",
        br#"{"status":{"is":"finished"},"SAMPLE":"x"}"#,
        &[],
        false,
        "ignored: 'status' is an object, not 'finished'",
    ),
    (
        "status",
        br#"{"SAMPLE":"x"}"#,
        &[],
        false,
        "ignored: it has no 'status'",
    ),
    ("status", b"{}", &[], false, "ignored: it has no 'status'"),
    (
        "status",
        br#"{"Status":"finished","SAMPLE":"x"}"#,
        &[],
        false,
        "ignored: it has 'Status', not 'status'",
    ),
    (
        "status",
        br#"{"stauts":"finished","SAMPLE":"x"}"#,
        &[],
        false,
        "ignored: it has 'stauts', not 'status'",
    ),
    (
        "status",
        br#"{"status":"finished","SAMPEL":"x"}"#,
        &[],
        false,
        "refused: it has SAMPEL, not SAMPLE",
    ),
    (
        "status",
        br#"{"status":"finished","LANE":"x"}"#,
        &[],
        false,
        "refused: it lacks the required attribute SAMPLE",
    ),
    (
        "status",
        br#"{"status":"finished"}"#,
        &[],
        false,
        "refused: it lacks the required attribute SAMPLE",
    ),
    ("status", b"finished", &[], false, NOT_JSON),
    ("status", b"{\"status\":\"finished\",", &[], false, NOT_JSON),
    ("status", b"{\"status\":\"\xff\"}", &[], false, NOT_JSON),
    ("status", b"{} {}", &[], false, NOT_JSON),
    ("status", b"{'status':'finished'}", &[], false, NOT_JSON),
    (
        "status",
        b"[]",
        &[],
        false,
        "refused: its payload is JSON but not an object",
    ),
    (
        "status",
        b"-1",
        &[],
        false,
        "refused: its payload is JSON but not an object",
    ),
    (
        "status",
        &[b'{'; 301],
        &[],
        false,
        "refused: its payload has 301 bytes, the limit is 300",
    ),
    ("status", b"", &[], false, "ignored: its payload is empty"),
    (
        "status",
        br#"{"status":"finished","SAMPLE":"x","kind":"keep","n":1}"#,
        &[],
        true,
        "ignored: it is retained, and --retained is 'ignore'",
    ),
    (
        "status",
        br#"{"status":"finished","SAMPLE":"x","kind":"kept","n":1}"#,
        &[],
        true,
        "ignored: it is retained, and --retained is 'ignore'",
    ),
    (
        "beat",
        br#"{"status":"finished"}"#,
        &[],
        false,
        "ignored: its topic does not match lab/+/status",
    ),
    (
        "beat",
        br#"{"status":"started"}"#,
        &[],
        false,
        "ignored: its topic does not match lab/+/status",
    ),
    (
        "Status",
        br#"{"status":"finished","SAMPLE":"x"}"#,
        &[],
        false,
        "-",
    ),
    (
        "last",
        br#"{"status":"finished","SAMPLE":"x"}"#,
        &[],
        false,
        "-",
    ),
];

/// What each trigger makes of a message, by its name; an empty one is about all of them.
type Verdicts = BTreeMap<String, String>;

/// The verdicts of the dry run, and the variables of each run.
fn dry_run(world: &World, file: &str, topic: &str, row: &Row) -> (Verdicts, Vec<String>) {
    let (_, payload, properties, retained, _) = row;
    let mut command = world.command("tael-client");
    command.args([
        "--who", "p", "--root", "lab", "--config", file, "--log", "none",
    ]);
    command.args(["--dry-run", "-m", "-", "-t", topic]);
    for (name, value) in *properties {
        command.args(["--message-property", &format!("{name}={value}")]);
    }
    if *retained {
        command.arg("--message-retained");
    }
    let (code, stdout, stderr) = ran_with(&mut command, payload);
    assert_eq!(stderr, "");
    let (mut verdicts, mut variables) = (Verdicts::new(), Vec::new());
    for line in stdout.lines() {
        if let Some(variable) = line.strip_prefix("  ") {
            variables.push(variable.to_owned());
            continue;
        }
        let (who, verdict) = line.split_once(": ").expect(line);
        let name = who
            .strip_prefix("trigger '")
            .and_then(|name| name.strip_suffix('\''));
        assert!(name.is_some() || who == "all triggers", "{line}");
        verdicts.insert(name.unwrap_or_default().to_owned(), verdict.to_owned());
    }
    let runs = verdicts.values().any(|verdict| verdict == RUNS);
    assert_eq!(code, if runs { 0 } else { 65 }, "{stdout}");
    (verdicts, variables)
}

#[test]
fn fifty_messages_mean_the_same_to_the_dry_run_the_client_and_the_list() {
    assert!(FIFTY.len() >= 50);
    let world = World::new();
    let path = world.path("tael.toml");
    fs::write(&path, FOUR).expect("file");
    let file = path.to_str().expect("path");
    let topic = |n: usize| format!("lab/m{n}/{}", FIFTY[n].0);
    let dry: Vec<_> = FIFTY
        .iter()
        .enumerate()
        .map(|(n, row)| dry_run(&world, file, &topic(n), row))
        .collect();
    assert!(!world.state().exists(), "no state was touched");

    let send = |n: usize| {
        let (_, payload, properties, retained, _) = FIFTY[n];
        let mut raw = Raw::connect(world.broker.port());
        let mut packet = publish(topic(n).as_bytes(), payload, Some(1), properties, false);
        packet[0] |= u8::from(retained);
        raw.send(&packet);
        assert_eq!(raw.receive().0, 0x40, "PUBACK");
    };
    let retained = |n: &usize| FIFTY[*n].3;
    (0..FIFTY.len()).filter(retained).for_each(send);
    let client = world.client("p", &["--config", file]);
    (0..FIFTY.len()).filter(|n| !retained(n)).for_each(send);
    // The sentinel comes last, and runs last for each trigger.
    world.publish(
        "lab/end/status",
        r#"{"status":"finished","SAMPLE":"end","kind":"keep","n":1}"#,
        &[],
    );
    wait_until("all have run", || {
        let ran = world.lines("ran");
        let ends = ran
            .iter()
            .filter(|line| line.starts_with("lab/end/status "));
        ends.count() == 3
    });

    let mut listed: BTreeMap<String, Verdicts> = BTreeMap::new();
    for trigger in ["align", "all", "keep", "guard"] {
        for note in events(&world, &["-n", "1000", "--trigger", trigger]).0 {
            let text = |key: &str| note[key].as_str().unwrap_or_default().to_owned();
            let verdict = match &*text("result") {
                "accepted" => RUNS.to_owned(),
                result => format!("{result}: {}", text("why")),
            };
            let verdicts = listed.entry(text("topic")).or_default();
            verdicts.insert(text("trigger"), verdict);
        }
    }
    let ran = world.lines("ran");
    for (n, (row, (verdicts, variables))) in FIFTY.iter().zip(&dry).enumerate() {
        let topic = topic(n);
        let listed = listed.remove(&topic).unwrap_or_default();
        let text = String::from_utf8_lossy(row.1);
        let shown = format!("{topic} {text}\n{verdicts:#?}\n{listed:#?}");
        let of_align = verdicts.get("align").or(verdicts.get("")).expect(&shown);
        match row.4 {
            "-" => assert!(
                listed.is_empty() && !verdicts.values().any(|v| v == RUNS),
                "{shown}"
            ),
            want => assert!(of_align.starts_with(want), "{want}: {shown}"),
        }
        for (trigger, verdict) in &listed {
            assert_eq!(verdicts.get(trigger), Some(verdict), "{trigger}: {shown}");
        }
        for (trigger, verdict) in verdicts {
            let elsewhere = verdict.starts_with("ignored: its topic ");
            assert!(
                elsewhere || listed.contains_key(trigger),
                "{trigger}: {shown}"
            );
        }
        let mut runs: Vec<&String> = verdicts
            .iter()
            .filter(|(_, verdict)| *verdict == RUNS)
            .map(|(trigger, _)| trigger)
            .collect();
        for line in ran
            .iter()
            .filter(|line| line.starts_with(&format!("{topic} ")))
        {
            let mut words = line.splitn(3, ' ').skip(1);
            let trigger = words.next().expect("trigger");
            let place = runs.iter().position(|name| *name == trigger);
            runs.remove(place.unwrap_or_else(|| panic!("{trigger} ran: {shown}")));
            let (name, value) = words
                .next()
                .expect("variable")
                .split_once('=')
                .expect("value");
            let said = variables
                .iter()
                .find_map(|v| v.strip_prefix(&format!("{name}=")));
            assert_eq!(said.unwrap_or_default(), value, "{name}: {shown}");
        }
        assert!(runs.is_empty(), "{runs:?} did not run: {shown}");
    }
    client.stop();
}

#[test]
fn a_run_that_waits_or_was_dropped_says_why() {
    let world = World::new();
    let line = r#"test -e "$OUT/go" || until test -e "$OUT/go"; do sleep 0.01; done"#;
    let client = world.client("p", &["-t", SEQ, "-c", line, "--overlap", "skip"]);
    let send = |id: &str| world.publish(SEQ, r#"{"status":"finished"}"#, &[("tael-id", id)]);
    send("first");
    wait_until("it runs", || {
        world.report("p")["running"]
            .as_array()
            .is_some_and(|r| r.len() == 1)
    });
    send("second");
    world.wait_report("p", "/units/canceled", 1);
    assert_eq!(world.control(&["p", "pause"]).0, 0);
    fs::write(world.path("go"), "").expect("go");
    world.wait_report("p", "/units/succeeded", 1);
    send("third");
    world.wait_report("p", "/units/pending", 1);
    let (_, table, _) = ran(&mut world.tael(["events"]));
    let lines: Vec<&str> = table.lines().skip(1).collect();
    for (line, end) in lines.iter().zip([
        " succeeded",
        " canceled: dropped by the overlap policy",
        " waits: the pipeline is paused",
    ]) {
        assert!(line.ends_with(end), "{end}: {table}");
    }
    assert_eq!(lines.len(), 3, "{table}");
    client.stop();
}

#[test]
fn a_failed_run_says_how_its_last_retry_ended() {
    let world = World::new();
    let run = r#"[ "$TAEL_ATTEMPT" = 3 ]"#;
    let arguments = ["-t", SEQ, "-c", run, "--retries", "2"];
    let client = world.client("p", &[&arguments[..], &["--retry-delay", "1ms"]].concat());
    world.message(SEQ, &[("status", "finished")]);
    let mut last = Vec::new();
    wait_until("the last retry has ended", || {
        last = events(&world, &["--accepted"]).0;
        last.first()
            .is_some_and(|note| note["retry_state"] == "succeeded")
    });
    assert_eq!(last.len(), 1, "{last:?}");
    assert_eq!(
        (&last[0]["result"], &last[0]["state"]),
        (&"accepted".into(), &"failed".into())
    );
    let (_, out, _) = ran(&mut world.tael(["events", "--accepted"]));
    assert!(
        out.contains("; tried again as unit ") && out.contains(": succeeded"),
        "{out}"
    );
    client.stop();
}
