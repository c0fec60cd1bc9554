//! `tael message` as the one who asks: answers, batches, promises about retained messages.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::common::raw::{
    Heard, Raw, Scripted, packet, publish, publish_with, string, user_properties,
};
use crate::common::{
    Process, World, bare_command, binary, ended, has_program, ran, refuses, spawn, succeeds,
    wait_until,
};

const TOPIC: &str = "lab/ask";

/// Starts `tael-message` to the topic with `arguments`, and `input` on its standard input.
#[track_caller]
pub fn start(mut command: Command, arguments: &[&str], input: &str) -> Child {
    let mut child = command
        .args(["-t", TOPIC])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("tael-message");
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(input.as_bytes()).expect("stdin");
    child
}

#[track_caller]
fn ask(world: &World, arguments: &[&str], input: &str) -> Child {
    start(world.command("tael-message"), arguments, input)
}

/// Returns one who hears what is asked.
fn answerer(world: &World) -> Raw {
    let mut raw = Raw::connect(world.broker.port());
    raw.subscribe("lab/ask/#");
    raw
}

#[track_caller]
fn question(raw: &mut Raw) -> Heard {
    raw.hear("a question", |heard| heard.topic == TOPIC)
}

/// Returns the answer to `request`.
fn answer(request: &Heard, payload: &[u8], user: &[(&str, &str)]) -> Vec<u8> {
    answer_as(request, &request.correlation, payload, user)
}

/// Returns an answer with other Correlation Data.
fn answer_as(request: &Heard, data: &[u8], payload: &[u8], user: &[(&str, &str)]) -> Vec<u8> {
    let mut properties = vec![0x09];
    properties.extend(string(data));
    properties.extend(user_properties(user));
    publish_with(request.reply.as_bytes(), payload, None, &properties, false)
}

fn of(host: &str) -> [(&'static str, &str); 2] {
    [("tael-who", "df"), ("tael-host", host)]
}

/// Returns the JSON lines of an output.
#[track_caller]
fn objects(stdout: &str) -> Vec<Value> {
    let object = |line: &str| serde_json::from_str(line).expect("JSON");
    stdout.lines().map(object).collect()
}

#[test]
fn an_answer_is_printed_as_it_is_and_its_code_is_passed_on() {
    let world = World::new();
    let mut raw = answerer(&world);
    let asking = [
        "--reply",
        "-i",
        "me",
        "--timeout",
        "20s",
        "--retries",
        "2",
        "disk=data",
    ];
    let child = ask(&world, &asking, "");
    let request = question(&mut raw);
    let attributes: Value = serde_json::from_slice(&request.payload).expect("JSON");
    assert_eq!(attributes["disk"], "data");
    assert_eq!(
        request.property("tael-id").map(str::as_bytes),
        Some(&*request.correlation)
    );
    let place = "lab/infrastructure/replies/me/";
    assert!(request.reply.starts_with(place), "{}", request.reply);
    assert_eq!((request.expiry, request.retained), (Some(60), false));
    // None of these is the answer.
    let without = publish(request.reply.as_bytes(), b"stray", None, &[], false);
    raw.send(&without);
    raw.send(&answer_as(&request, b"another", b"stray", &[]));
    let user = [
        ("tael-who", "df"),
        ("tael-host", "n1"),
        ("tael-code", "3"),
        ("tael-error", "no such disk\u{202e}"),
        ("tael-truncated", "400"),
    ];
    raw.send(&answer(&request, b"a\0b\xff", &user));
    raw.send(&answer(&request, b"late", &[]));
    let output = child.wait_with_output().expect("output");
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert_eq!(output.stdout, b"a\0b\xff");
    let said =
        "tael: df@n1: no such disk\\u{202e}\ntael: df@n1: the answer is cut to 4 of 400 bytes\n";
    assert_eq!(stderr, said);
}

#[test]
fn an_answer_of_a_program_that_knows_nothing_of_tael_is_enough() {
    let world = World::new();
    let mut raw = answerer(&world);
    let child = ask(&world, &["--reply", "--json"], "{\"a\":1}");
    let request = question(&mut raw);
    raw.send(&answer(&request, b"World", &[]));
    let (code, stdout, stderr) = ended(child);
    assert_eq!((code, &*stderr), (0, ""));
    let object = &objects(&stdout)[0];
    assert_eq!(
        (&object["reply"], &object["who"]),
        (&json!("World"), &Value::Null)
    );
    // The code of this one cannot be read.
    let child = ask(&world, &["--reply"], "{}");
    let request = question(&mut raw);
    raw.send(&answer(&request, b"x", &[("tael-code", "700")]));
    let (code, stdout, stderr) = ended(child);
    assert_eq!((code, &*stdout), (65, "x"), "{stderr}");
    assert!(stderr.contains("'700'"), "{stderr}");
}

#[test]
fn without_an_answer_in_time_it_says_to_try_again() {
    let world = World::new();
    let mut raw = answerer(&world);
    let child = ask(
        &world,
        &["--reply", "--timeout", "300ms", "--retries", "1"],
        "",
    );
    let ids: Vec<_> = (0..2).map(|_| question(&mut raw).correlation).collect();
    assert_eq!(ids[0], ids[1], "it is the same question");
    let (code, stdout, stderr) = ended(child);
    assert_eq!((code, &*stdout), (75, ""), "{stderr}");
    assert!(
        stderr.contains("no answer within 300ms for each of 2 tries"),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn a_question_that_is_asked_again_can_still_be_answered() {
    let world = World::new();
    let mut raw = answerer(&world);
    let child = ask(
        &world,
        &["--reply", "--timeout", "2s", "--retries", "5"],
        "",
    );
    let first = question(&mut raw);
    let second = question(&mut raw);
    assert_eq!(
        (&first.correlation, &first.reply),
        (&second.correlation, &second.reply)
    );
    assert_eq!(first.expiry, Some(12));
    assert!(second.expiry <= Some(10), "{second:?}");
    raw.send(&answer(&second, b"yes", &[]));
    assert_eq!(ended(child), (0, "yes".into(), String::new()));
}

#[test]
fn each_of_several_answers_begins_a_line() {
    let world = World::new();
    let mut raw = answerer(&world);
    let child = ask(&world, &["--reply", "--count", "4"], "");
    let request = question(&mut raw);
    for (host, payload) in [("n1", "one"), ("n2", "two\n"), ("n3", ""), ("n4", "four")] {
        raw.send(&answer(&request, payload.as_bytes(), &of(host)));
    }
    assert_eq!(
        ended(child),
        (0, "one\ntwo\nfour\n".to_owned(), String::new())
    );
    // A single one is printed as it is.
    let child = ask(&world, &["--reply"], "");
    let request = question(&mut raw);
    raw.send(&answer(&request, b"one", &of("n1")));
    assert_eq!(ended(child), (0, "one".to_owned(), String::new()));
}

#[test]
fn several_answers_to_one_question_are_counted() {
    let world = World::new();
    let mut raw = answerer(&world);
    let child = ask(&world, &["--reply", "--count", "3", "--json"], "");
    let request = question(&mut raw);
    for (host, code) in [("n1", "0"), ("n2", "4"), ("n3", "1")] {
        let user = [&of(host)[..], &[("tael-code", code)]].concat();
        raw.send(&answer(&request, host.as_bytes(), &user));
    }
    let (code, stdout, _) = ended(child);
    assert_eq!(code, 4);
    let hosts: Vec<Value> = objects(&stdout)
        .iter()
        .map(|o| o["reply"].clone())
        .collect();
    assert_eq!(hosts, ["n1", "n2", "n3"]);

    let few = [
        "--reply",
        "--count",
        "2",
        "--timeout",
        "1s",
        "--retries",
        "1",
    ];
    let child = ask(&world, &few, "");
    for _ in 0..2 {
        // One client answers again when it is asked again.
        let request = question(&mut raw);
        raw.send(&answer(&request, b"one;", &of("n1")));
    }
    let (code, stdout, stderr) = ended(child);
    assert_eq!((code, &*stdout), (75, "one;\n"), "{stderr}");
    assert!(stderr.contains("1 of 2 answers within 1s"), "{stderr}");
}

/// Returns `tael-message` for a broker of our own.
fn message_to(dir: &tempfile::TempDir, broker: &Scripted) -> Command {
    let mut command = bare_command(dir, "tael-message");
    command.env("TAEL_HOST", "127.0.0.1");
    command.env("TAEL_PORT", broker.port().to_string());
    command.env("TAEL_LOG", "warn");
    command
}

/// Answers the next PUBLISH with `code`, and returns it.
#[track_caller]
fn published(raw: &mut Raw, code: u8) -> Heard {
    loop {
        let (kind, body) = raw.receive();
        if kind >> 4 == 3 {
            let (heard, id) = Heard::parse(kind, &body);
            let id = id.expect("QoS 1");
            assert_eq!(kind & 0x07, 0x02, "QoS 1, not retained");
            raw.send(&packet(0x40, &[id[0], id[1], code, 0]));
            return heard;
        }
        raw.serve(kind, &body);
    }
}

#[test]
fn a_question_without_subscribers_fails_at_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    for arguments in [&["--reply"][..], &["--reply", "-l"]] {
        let command = message_to(&dir, &broker);
        // Less than the test has patience for.
        let arguments = [arguments, &["--timeout", "1h"]].concat();
        let child = start(command, &arguments, "{\"n\":1}\n");
        let mut raw = broker.accept();
        published(&mut raw, 0x10);
        let (code, stdout, stderr) = ended(child);
        assert_eq!((code, &*stdout), (69, ""), "{stderr}");
        assert!(stderr.contains("no client subscribes to it"), "{stderr}");
        drop(raw);
    }
    // With retries there may be one later.
    let command = message_to(&dir, &broker);
    let child = start(
        command,
        &["--reply", "--timeout", "300ms", "--retries", "9"],
        "",
    );
    let mut raw = broker.accept();
    let first = published(&mut raw, 0x10);
    let second = published(&mut raw, 0);
    assert_eq!(first.correlation, second.correlation);
    raw.send(&answer(&second, b"here", &[]));
    let (code, stdout, stderr) = ended(child);
    assert_eq!((code, &*stdout), (0, "here"), "{stderr}");
    assert!(stderr.contains("trying again"), "{stderr}");
}

#[test]
fn a_refusal_that_passes_ends_a_try_and_no_other_one() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let options = ["--reply", "--timeout", "300ms", "--retries", "4"];
    // Unspecified error, implementation specific error, quota exceeded.
    for arguments in [&options[..], &[&options[..], &["-l"]].concat()] {
        let child = start(message_to(&dir, &broker), arguments, "{\"n\":1}\n");
        let mut raw = broker.accept();
        let first = published(&mut raw, 0x80);
        for code in [0x83, 0x97] {
            assert_eq!(published(&mut raw, code).correlation, first.correlation);
        }
        let last = published(&mut raw, 0);
        raw.send(&answer(&last, b"here", &[]));
        let (code, stdout, stderr) = ended(child);
        assert!(code == 0 && stdout.contains("here"), "{stderr}");
        assert_eq!(stderr.matches("trying again").count(), 1, "{stderr}");
    }
    // The last try, and one that is refused for good.
    for (codes, exit) in [(&[0x97, 0x97][..], 75), (&[0x87], 77)] {
        let options = ["--reply", "--timeout", "1s", "--retries", "1"];
        let child = start(message_to(&dir, &broker), &options, "");
        let mut raw = broker.accept();
        for code in codes {
            published(&mut raw, *code);
        }
        let (code, stdout, stderr) = ended(child);
        assert_eq!((code, &*stdout), (exit, ""), "{stderr}");
        assert!(stderr.contains("the broker refused it"), "{stderr}");
    }
}

#[test]
fn after_a_broken_connection_it_asks_again_with_the_same_id() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let child = start(
        message_to(&dir, &broker),
        &["--reply", "--timeout", "30s"],
        "",
    );
    let mut raw = broker.accept();
    let first = published(&mut raw, 0);
    drop(raw);
    let mut raw = broker.accept();
    // It subscribes before it asks.
    raw.serve_subscription();
    let second = published(&mut raw, 0);
    assert_eq!(
        (&first.correlation, &first.reply),
        (&second.correlation, &second.reply)
    );
    assert!(second.expiry <= first.expiry, "{second:?}");
    raw.send(&answer(&second, b"yes", &[]));
    let (code, stdout, stderr) = ended(child);
    assert_eq!((code, &*stdout), (0, "yes"), "{stderr}");
}

#[test]
fn a_retained_message_answers_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let child = start(message_to(&dir, &broker), &["--reply"], "");
    let mut raw = broker.accept();
    let request = published(&mut raw, 0);
    let mut retained = answer(&request, b"old", &[]);
    retained[0] |= 0x01;
    raw.send(&retained);
    raw.send(&answer(&request, b"new", &[]));
    assert_eq!(ended(child), (0, "new".into(), String::new()));
}

#[test]
fn a_broker_that_is_away_is_said() {
    let dir = tempfile::tempdir().expect("tempdir");
    let port = Scripted::listen().port().to_string();
    for task in [
        &["--reply"][..],
        &["--reply", "-l"],
        &["--if-changed", "a=b"],
    ] {
        let mut command = bare_command(&dir, "tael-message");
        command.args(["-p", &port, "-t", TOPIC, "--timeout", "300ms"]);
        refuses(
            command.args(task).stdin(Stdio::null()),
            69,
            "connection refused",
        );
    }
}

#[test]
fn a_batch_is_answered_in_any_order_with_a_bounded_number_in_flight() {
    let world = World::new();
    let mut raw = answerer(&world);
    let lines: String = (1..=100).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    let child = ask(&world, &["--reply", "-l", "batch=B1"], &lines);
    let number = |heard: &Heard| {
        let payload: Value = serde_json::from_slice(&heard.payload).expect("JSON");
        assert_eq!(payload["batch"], "B1");
        payload["n"].as_u64().expect("number")
    };
    let mut open: Vec<Heard> = (0..64).map(|_| question(&mut raw)).collect();
    raw.send(&publish(b"lab/ask/sentinel", b"", None, &[], false));
    let next = raw.hear("the sentinel", |_| true);
    assert_eq!(next.topic, "lab/ask/sentinel", "64 are in flight at most");
    let mut answered = 0;
    while let Some(request) = open.pop() {
        let n = number(&request);
        let code = match n {
            17 => "4",
            30 => "7",
            _ => "0",
        };
        let user = [&of("n1")[..], &[("tael-code", code)]].concat();
        raw.send(&answer(&request, n.to_string().as_bytes(), &user));
        answered += 1;
        if answered + 64 <= 100 {
            open.push(question(&mut raw));
        }
    }
    let (code, stdout, stderr) = ended(child);
    assert_eq!(code, 7, "{stderr}");
    assert!(
        stderr.starts_with("100 sent, 100 answered, 2 failed, "),
        "{stderr}"
    );
    assert!(
        stderr.ends_with(" s\n") && stderr.lines().count() == 1,
        "{stderr}"
    );
    let answers: BTreeMap<u64, Value> = objects(&stdout)
        .into_iter()
        .map(|object| (object["n"].as_u64().expect("n"), object))
        .collect();
    assert_eq!(answers.len(), 100);
    for (n, object) in &answers {
        // Lines are numbered as they come.
        assert_eq!(object["reply"], n.to_string());
        assert_eq!(
            (&object["who"], &object["host"]),
            (&json!("df"), &json!("n1"))
        );
        assert!(object["ms"].is_u64(), "{object}");
    }
    assert_eq!(
        (&answers[&17]["code"], &answers[&1]["code"]),
        (&json!(4), &json!(0))
    );
}

#[test]
fn missing_answers_of_a_batch_are_named() {
    let world = World::new();
    let mut raw = answerer(&world);
    let lines: String = (1..=6).map(|n| format!("{{\"n\":{n}}}\n\n")).collect();
    let child = ask(&world, &["--reply", "-l", "--timeout", "2s"], &lines);
    for n in 1..=6 {
        let request = question(&mut raw);
        if ![2, 4, 5].contains(&n) {
            raw.send(&answer(&request, b"", &[("tael-code", "9")]));
        }
    }
    let (code, stdout, stderr) = ended(child);
    assert_eq!((code, objects(&stdout).len()), (75, 3), "{stderr}");
    let said = "6 sent, 3 answered, 3 failed, 3 missing (2, 4-5), ";
    assert!(stderr.starts_with(said), "{stderr}");
    let why = "3 of 6 tasks have not been answered within 2s; do workers listen there";
    assert!(stderr.contains(why), "{stderr}");
}

#[test]
fn a_line_that_is_no_message_ends_a_batch_after_the_answers() {
    let world = World::new();
    let mut raw = answerer(&world);
    let child = ask(
        &world,
        &["--reply", "-l"],
        "{\"n\":1}\n{\"n\":2}\nthree\n{\"n\":4}\n",
    );
    for _ in 0..2 {
        let request = question(&mut raw);
        raw.send(&answer(&request, b"x", &[]));
    }
    let (code, stdout, stderr) = ended(child);
    assert_eq!((code, objects(&stdout).len()), (65, 2), "{stderr}");
    assert!(stderr.contains("2 sent, 2 answered, 0 failed"), "{stderr}");
    assert!(stderr.contains("tael: send message 3: "), "{stderr}");
    // An empty batch is done.
    let (code, stdout, stderr) = ended(ask(&world, &["--reply", "-l"], ""));
    assert_eq!((code, &*stdout), (0, ""), "{stderr}");
    assert!(stderr.starts_with("0 sent, 0 answered"), "{stderr}");
}

#[test]
fn an_interrupted_question_ends_with_130() {
    let world = World::new();
    let mut raw = answerer(&world);
    for (task, input, said) in [
        (&["--reply"][..], "{}", ""),
        (
            &["--reply", "-l"],
            "{}\n{}\n",
            "2 sent, 0 answered, 0 failed, 2 missing (1-2), ",
        ),
    ] {
        let child = ask(&world, task, input);
        for _ in 0..input.lines().count() {
            question(&mut raw);
        }
        let pid = Pid::from_raw(child.id().cast_signed());
        kill(pid, Signal::SIGINT).expect("SIGINT");
        let (code, stdout, stderr) = ended(child);
        assert_eq!((code, &*stdout), (130, ""), "{stderr}");
        assert!(stderr.starts_with(said), "{stderr}");
    }
}

#[test]
fn an_answer_may_go_elsewhere() {
    let world = World::new();
    let mut raw = answerer(&world);
    let elsewhere = "lab/sink/B1";
    let child = ask(&world, &["--reply-to", elsewhere, "--expiry", "90s"], "{}");
    assert_eq!(ended(child), (0, String::new(), String::new()));
    let request = question(&mut raw);
    assert_eq!((&*request.reply, request.expiry), (elsewhere, Some(90)));
    assert_eq!(
        request.property("tael-id").map(str::as_bytes),
        Some(&*request.correlation)
    );
    let child = ask(
        &world,
        &["--reply-to", elsewhere, "-l"],
        "{\"a\":1}\n{\"a\":2}\n",
    );
    let (code, stdout, stderr) = ended(child);
    assert_eq!((code, &*stdout), (0, ""), "{stderr}");
    assert!(stderr.starts_with("2 sent, 2 accepted, "), "{stderr}");
    let (one, other) = (question(&mut raw), question(&mut raw));
    assert_eq!((&*one.reply, &*other.reply), (elsewhere, elsewhere));
    assert_ne!(one.correlation, other.correlation);
    assert_eq!((one.expiry, other.expiry), (None, None));
}

#[test]
fn a_retained_message_is_kept_or_repaired() {
    let world = World::new();
    let promise = |attributes: &[&str]| {
        let mut command = world.command("tael-message");
        command
            .args(["-t", "lab/nodes/n1", "--if-changed"])
            .args(attributes);
        let (code, stdout, stderr) = ran(&mut command);
        assert_eq!((code, &*stderr), (0, ""));
        stdout
    };
    let held = || {
        let ears = world.ears(&["lab/nodes/n1"]);
        let message = ears.wait("what is retained", |m| m.retained);
        message.payload
    };
    assert_eq!(promise(&["os=linux"]), "repaired\n");
    let first = held();
    assert_eq!(promise(&["os=linux"]), "kept\n");
    assert_eq!(held(), first, "it is not published again");
    assert_eq!(promise(&["os=bsd"]), "repaired\n");
    assert_eq!(held()["os"], "bsd");
    assert_eq!(promise(&["--json", "os=bsd"]), "{\"outcome\":\"kept\"}\n");
    // Someone else has written there.
    let mut other = world.command("tael-message");
    other
        .args(["-t", "lab/nodes/n1", "--retain", "os=plan9"])
        .env("TAEL_LOG", "error");
    assert_eq!(ran(&mut other).0, 0);
    assert_eq!(
        promise(&["--json", "os=bsd"]),
        "{\"outcome\":\"repaired\"}\n"
    );
    assert_eq!(held()["os"], "bsd");
    // The user who tells it does not matter, unless it is an attribute.
    let mut other = world.command("tael-message");
    other
        .args(["-t", "lab/nodes/n1", "--retain", "user=ann", "os=bsd"])
        .env("TAEL_LOG", "error");
    assert_eq!(ran(&mut other).0, 0);
    assert_eq!(promise(&["os=bsd"]), "kept\n");
    assert_eq!(promise(&["os=bsd", "user=bob"]), "repaired\n");
    assert_eq!(promise(&["os=bsd"]), "kept\n");
    // Nothing is no promise, and replaces nothing.
    let mut nothing = world.command("tael-message");
    nothing.args(["-t", "lab/nodes/n1", "--if-changed"]);
    refuses(&mut nothing, 64, "nothing to promise");
    assert_eq!(held()["user"], "bob");
    // A message that will expire is another one, and so is one that will soon.
    assert_eq!(promise(&["--expiry", "100s", "os=bsd"]), "repaired\n");
    assert_eq!(promise(&["--expiry", "100s", "os=bsd"]), "kept\n");
    assert_eq!(promise(&["--expiry", "1h", "os=bsd"]), "repaired\n");
    assert_eq!(promise(&["--expiry", "100s", "os=bsd"]), "repaired\n");
    assert_eq!(promise(&["os=bsd"]), "repaired\n");
    assert_eq!(promise(&["os=bsd"]), "kept\n");
}

#[test]
fn a_promise_to_a_broker_that_retains_nothing_is_not_kept() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let child = start(message_to(&dir, &broker), &["--if-changed"], "{}");
    // Retain Available: no.
    let mut raw = broker.accept_with(&[0x25, 0]);
    raw.serve_subscription();
    let (code, stdout, stderr) = ended(child);
    assert_eq!((code, &*stdout), (69, ""), "{stderr}");
    assert!(
        stderr.contains("the broker retains no messages"),
        "{stderr}"
    );
}

#[test]
fn a_promise_that_the_broker_does_not_confirm_is_not_kept() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let child = start(
        message_to(&dir, &broker),
        &["--if-changed", "--timeout", "3s"],
        "{}",
    );
    let mut raw = broker.accept();
    raw.serve_subscription();
    let marker = raw.serve_until(|heard| heard.topic != TOPIC);
    raw.send(&publish(marker.topic.as_bytes(), b"", None, &[], false));
    // It is published, and not acknowledged.
    loop {
        let (kind, body) = raw.receive();
        if kind >> 4 == 3 {
            assert_eq!(kind & 0x07, 0x03, "QoS 1, retained");
            let (heard, _) = Heard::parse(kind, &body);
            assert_eq!(heard.topic, TOPIC);
            break;
        }
    }
    let (code, stdout, stderr) = ended(child);
    assert_eq!((code, &*stdout), (75, ""), "{stderr}");
    assert!(stderr.contains("no answer within 3s"), "{stderr}");
}

#[test]
fn a_promise_to_a_broker_that_confirms_nothing_is_kept_when_it_comes_back() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    for comes_back in [true, false] {
        let options = ["--if-changed", "--timeout", "2s"];
        let child = start(message_to(&dir, &broker), &options, "{}");
        // Maximum QoS: 0.
        let mut raw = broker.accept_with(&[0x24, 0]);
        raw.serve_subscription();
        let marker = raw.serve_until(|heard| heard.topic != TOPIC);
        raw.send(&publish(marker.topic.as_bytes(), b"", None, &[], false));
        let told = raw.serve_until(|heard| heard.topic == TOPIC);
        let back: &[u8] = match comes_back {
            true => &told.payload,
            false => b"{\"other\":1}",
        };
        raw.send(&publish(TOPIC.as_bytes(), back, None, &[], false));
        let (code, stdout, stderr) = ended(child);
        match comes_back {
            true => assert_eq!((code, &*stdout), (0, "repaired\n"), "{stderr}"),
            false => {
                assert_eq!((code, &*stdout), (75, ""), "{stderr}");
                assert!(stderr.contains("confirms nothing"), "{stderr}");
            }
        }
    }
}

#[test]
fn options_that_do_not_go_together_are_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let long = "r".repeat(65_500);
    let deep = vec!["r"; 199].join("/");
    for (options, cause) in [
        (&["--reply", "--retain"][..], "without --retain"),
        (&["--reply", "--timeout", "0"], "'0' leaves no time"),
        (&["--timeout", "0s"], "'0s' leaves no time"),
        (&["--reply", "--root", &long], "the root cannot be used"),
        (&["--reply", "--root", &deep], "the root cannot be used"),
        (&["--if-changed", "--root", &deep, "a=1"], "the root cannot"),
        (&["--reply", "-t", &long], "choose a shorter --root"),
        (&["--reply", "--expiry", "1m"], "without --expiry"),
        (&["--reply", "--reply-to", "lab/x"], "without --reply-to"),
        (&["--reply", "--if-changed"], "without --if-changed"),
        (&["--reply-to", "lab/x", "--retain"], "without --retain"),
        (
            &["--reply-to", "lab/x", "--if-changed"],
            "without --if-changed",
        ),
        (&["--reply-to", "lab/+"], "--reply-to: "),
        (&["--reply-to", "$share/p/lab/x"], "publish to lab/x"),
        (&["--if-changed", "--expiry", "0s"], "without --expiry 0"),
        (&["-l", "--if-changed"], "without -l"),
        (&["-l", "-m", "{}"], "without -m"),
        (&["-l", "--reply", "--count", "2"], "without -l"),
        (&["--count", "2"], "--count needs --reply"),
        (&["--retries", "2"], "--retries needs --reply"),
        (&["--json"], "--json needs --reply"),
        (&["--reply", "--count", "0"], "1 to 10000"),
        (&["--reply", "--count", "10001"], "1 to 10000"),
        (&["--reply", "--retries", "1001"], "1000 at most"),
        (&["--reply", "-q", "0"], "QoS 0"),
        (&["--reply", "-q", "2"], "QoS 2"),
        (&["--reply", "-i", "a+b"], "without + and #"),
        (&["--reply", "--root", "lab/#"], "the root cannot be used"),
    ] {
        let mut command = bare_command(&dir, "tael-message");
        if !options.contains(&"-t") {
            command.args(["-t", TOPIC]);
        }
        command.stdin(Stdio::null());
        refuses(command.args(options), 64, cause);
    }
}

#[test]
fn a_shared_subscription_is_no_topic() {
    let dir = tempfile::tempdir().expect("tempdir");
    let topic = "$share/pool/lab/tasks";
    for arguments in [
        &["message", "-t", topic, "--if-changed", "a=1"][..],
        &["message", "-t", topic, "a=1"],
        &["message", "-t", topic, "--reply", "a=1"],
        &["beacon", "--once", "--topic", topic],
    ] {
        let mut command = bare_command(&dir, "tael");
        command.args(arguments).stdin(Stdio::null());
        refuses(&mut command, 64, "publish to lab/tasks");
    }
    // A monitoring plugin has its own codes.
    let mut check = bare_command(&dir, "tael");
    let (code, out, _) = ran(check.args(["check", "--topic", topic]));
    assert!(
        code == 3 && out.contains("publish to lab/tasks"),
        "{code} {out}"
    );
}

#[test]
fn mosquitto_s_tools_answer() {
    if !has_program("mosquitto_sub", "an answer by a shell script")
        || !has_program("jq", "an answer by a shell script")
    {
        return;
    }
    let world = World::new();
    let script = world.script(
        "responder",
        r#"mosquitto_sub -p "$TAEL_PORT" -V mqttv5 -q 1 -t lab/ask -t lab/ready -F '%j' | while read -r m; do
    to=$(jq -r '.properties["response-topic"] // "lab/answering"' <<<"$m")
    data=$(jq -r '.properties["correlation-data"] // "none"' <<<"$m")
    mosquitto_pub -p "$TAEL_PORT" -V mqttv5 -q 1 -t "$to" -D publish correlation-data "$data" -m World
done"#,
    );
    let mut responder = Command::new("bash");
    responder
        .arg(script)
        .env("TAEL_PORT", world.broker.port().to_string());
    // Its own group ends with it.
    responder.stdout(Stdio::null()).process_group(0);
    let responder = Group(spawn(&world.dir, &mut responder));
    let ears = world.ears(&["lab/answering"]);
    wait_until("it answers", || {
        let mut ready = world.command("tael-message");
        ready.args(["-t", "lab/ready"]).env("TAEL_LOG", "error");
        ran(&mut ready).0 == 0 && ears.any(|m| m.topic == "lab/answering")
    });
    assert_eq!(
        ended(ask(&world, &["--reply"], "{}")),
        (0, "World".into(), String::new())
    );
    drop(responder);
}

/// A process that ends with its group.
struct Group(Process);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = killpg(self.0.pid(), Signal::SIGKILL);
    }
}

/// Runs a block of docs/requests.md with our binaries in its path.
#[track_caller]
fn run_block(world: &World, name: &str) -> String {
    let page = include_str!("../../docs/requests.md");
    let fence = format!("```sh {name}\n");
    let block = page.split(fence.as_str()).nth(1);
    let block = block
        .and_then(|rest| rest.split("```").next())
        .expect("block");
    let bin = binary("tael");
    let bin = bin.parent().expect("folder").to_str().expect("path");
    let mut sh = world.command("tael");
    let path = format!("{bin}:{}", std::env::var("PATH").expect("PATH"));
    let mut command = Command::new("sh");
    command
        .args(["-e", "-c", block])
        .current_dir(world.dir.path());
    for (name, value) in sh.env("TAEL_LOG", "error").get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    succeeds(command.env("PATH", path))
}

#[test]
fn the_page_about_requests_is_true() {
    let world = World::new();
    assert_eq!(run_block(&world, "promise"), "repaired\nkept\n");
    let mut raw = answerer(&world);
    let mut tasks = Raw::connect(world.broker.port());
    tasks.subscribe("lab/tasks");
    let asking = std::thread::scope(|scope| {
        let asking = scope.spawn(|| run_block(&world, "ask"));
        let request = raw.hear("a question", |heard| heard.topic == "lab/ask/df");
        raw.send(&answer(&request, b"812", &of("seq1")));
        asking.join().expect("block")
    });
    assert_eq!(asking, "812 GB are free\n");
    let batch = std::thread::scope(|scope| {
        let batch = scope.spawn(|| run_block(&world, "batch"));
        for _ in 0..3 {
            let request = tasks.hear("a task", |heard| heard.topic == "lab/tasks");
            tasks.send(&answer(&request, b"done", &of("n1")));
        }
        batch.join().expect("block")
    });
    assert_eq!(objects(&batch).len(), 3);
}

/// `nohup(1)` starts a process that ignores SIGHUP.
#[test]
fn what_nohup_has_started_outlasts_its_terminal() {
    let world = World::new();
    let mut raw = answerer(&world);
    for (line, expected) in [
        ("trap '' HUP; exec \"$@\"", (0, "yes")),
        ("exec \"$@\"", (130, "")),
    ] {
        let tael = world.command("tael-message");
        let mut shell = Command::new("sh");
        shell.args(["-c", line, "sh"]).arg(tael.get_program());
        shell.env_clear();
        for (name, value) in tael.get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        let child = start(shell, &["--reply"], "");
        let request = question(&mut raw);
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGHUP).expect("SIGHUP");
        if expected.0 == 0 {
            raw.send(&answer(&request, b"yes", &[]));
        }
        let (code, stdout, stderr) = ended(child);
        assert_eq!((code, &*stdout), expected, "{stderr}");
    }
}
