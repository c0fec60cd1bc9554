//! `tael events`: what became of messages, and why.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;

use serde_json::Value;

use crate::common::{Process, World, ran, wait_until};

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
        "ignored|align|status is 'Finished', not 'finished': case counts",
        "ignored|tell|status is 'Finished', not 'failed'",
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
        told(&of_tell).contains(&"ignored|tell|status is 'finished', not 'failed'".to_owned()),
        "{of_tell:?}"
    );
    let (refused, _) = events(&world, &["--refused", "-n", "1"]);
    assert_eq!(refused.len(), 1);
    assert!(told(&refused)[0].starts_with("refused|-|its payload is not JSON"));

    let socket = world.state().join("p/events");
    let meta = fs::metadata(&socket).expect("socket");
    assert!(meta.file_type().is_socket() && meta.permissions().mode() & 0o777 == 0o600);
    client.stop();
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
    world.publish("lab/\u{1b}[2J", r#"{"status":"\u001b[31m\n\u202e"}"#, &[]);
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
    assert!(table.contains(r"status is '\u{1b}[31m\n\u{202e}', not 'finished'"));
    client.stop();
}

/// The lines that `tael events --follow` prints, as they come.
fn follow(world: &World) -> (Process, mpsc::Receiver<Value>) {
    let mut command = world.tael(["events", "--json", "--follow", "--who", "p"]);
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
    let (mut process, lines) = follow(&world);
    let patience = crate::common::PATIENCE;
    let next = || lines.recv_timeout(patience).expect("a line");
    assert_eq!(next()["event"], "e0");
    send(1, "finished");
    assert_eq!(next()["event"], "e1");
    send(2, "started");
    let ignored = next();
    assert_eq!(
        (&ignored["result"], &ignored["why"]),
        (
            &"ignored".into(),
            &"status is 'started', not 'finished'".into()
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
        let line = lines.recv_timeout(patience).expect("a line");
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
fn a_reader_that_reads_nothing_holds_nobody_up_and_is_told() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", "true"]);
    let socket = world.state().join("p/events");
    let mut reader = UnixStream::connect(socket).expect("connect");
    let mut publisher = crate::common::raw::Raw::connect(world.broker.port());
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
    assert_eq!(ran(&mut world.tael(["events", "-n", "0"])).0, 64);
}

/// The table of the guide, but for times and ids.
#[test]
fn the_guide_shows_what_is_shown() {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", "true", "--envreq", "SAMPLE"];
    let client = world.client("align", &arguments);
    let send = |payload: &str| world.publish(SEQ, payload, &[("tael-id", payload)]);
    let first = r#"{"status":"finished","SAMPLE":"1"}"#;
    send(first);
    world.wait_report("align", "/units/succeeded", 1);
    send(r#"{"status":"Finished","SAMPLE":"1"}"#);
    send(r#"{"status":"finished","SAMPEL":"1"}"#);
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
