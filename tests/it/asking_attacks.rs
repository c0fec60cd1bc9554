//! Those who ask and those who answer, and mean harm, or do it by mistake.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::common::raw::{
    Heard, Raw, Scripted, packet, publish_with, request_properties, string, user_properties,
};
use crate::common::{Process, World, bare_command, ended, ran, ran_with, refuses, wait_until};

const ASK: &str = "lab/ask";
const REPLY: &str = "lab/infrastructure/replies/me/1";

fn answerer(mut command: Command, options: &[&str]) -> Command {
    command
        .args(["--who", "w", "--root", "lab", "-t", ASK, "--when", ""])
        .arg("--reply")
        .args(options)
        .env("TAEL_LOG", "info");
    command
}

fn client(world: &World, options: &[&str]) -> Process {
    world.online("w", answerer(world.command("tael-client"), options))
}

/// Returns a question with this id, Response Topic and Correlation Data.
fn question(number: u16, id: &str, topic: &str, data: &[u8]) -> Vec<u8> {
    let mut properties = request_properties(topic, data);
    properties.extend(user_properties(&[("tael-id", id)]));
    publish_with(ASK.as_bytes(), b"{}", Some(number), &properties, false)
}

/// Returns the next publish of the client on a topic for answers, which is acknowledged with `code`.
#[track_caller]
fn answered(raw: &mut Raw, code: u8) -> Heard {
    loop {
        let (kind, body) = raw.receive();
        if kind >> 4 == 3 {
            let (heard, id) = Heard::parse(kind, &body);
            if heard.topic.contains("/replies/") {
                let id = id.expect("QoS 1");
                raw.send(&packet(0x40, &[id[0], id[1], code, 0]));
                return heard;
            }
        }
        raw.serve(kind, &body);
    }
}

/// Starts a client at a broker of our own, whose CONNACK has these properties, and subscribes it.
fn at_a_script(
    dir: &tempfile::TempDir,
    options: &[&str],
    properties: &[u8],
) -> (Process, Raw, Scripted) {
    let broker = Scripted::listen();
    let mut command = bare_command(dir, "tael-client");
    command.args(["-H", "127.0.0.1", "-p", &broker.port().to_string()]);
    let client = crate::common::spawn(dir, &mut answerer(command, options));
    let mut raw = broker.accept_with(properties);
    raw.serve_subscription();
    (client, raw, broker)
}

#[test]
fn topics_that_no_answer_can_have_get_none() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (client, mut raw, _broker) = at_a_script(&dir, &["-c", "echo said"], &[]);
    let root = "lab/infrastructure/replies";
    let deep = format!("{root}{}", "/x".repeat(150));
    let wrong = [
        "",
        "#",
        "lab/infrastructure/replies/#",
        "lab/infrastructure/replies/+/1",
        "lab/infrastructure/pipelines/w/status",
        "$SYS/replies",
        "$share/pool/lab/infrastructure/replies/1",
        "other/infrastructure/replies/1",
        &deep,
    ];
    let mut number = 0;
    for topic in wrong {
        number += 1;
        raw.send(&question(number, &format!("wrong-{number}"), topic, b"x"));
    }
    let long = format!("{root}/{}", "x".repeat(60_000));
    let data: Vec<u8> = (0..=u16::MAX)
        .map(|n| (n % 251) as u8)
        .take(65_535)
        .collect();
    raw.send(&question(number + 1, "long", &long, &data));
    let answer = answered(&mut raw, 0);
    assert!(answer.topic == long && answer.correlation == data);
    raw.send(&question(number + 2, "last", REPLY, b"last"));
    let answer = answered(&mut raw, 0);
    assert_eq!(
        (&*answer.topic, answer.text()),
        (REPLY, "said\n".to_owned())
    );
    let log = client.log_text();
    assert!(log.contains("no answer goes to '$SYS/replies': "), "{log}");
    client.kill();
}

#[test]
fn an_answer_that_the_broker_refuses_goes_without_its_output_or_not() {
    let dir = tempfile::tempdir().expect("tempdir");
    // Its output looks like a status.
    let command = r#"printf '{"status":"finished","secret":"%04000d"}' 1"#;
    // Maximum Packet Size.
    let limit = [&[0x27][..], &2000_u32.to_be_bytes()].concat();
    let (client, mut raw, _broker) = at_a_script(&dir, &["-c", command], &limit);
    raw.send(&question(1, "large", REPLY, b"large"));
    let short = answered(&mut raw, 0);
    assert_eq!(
        (&*short.payload, &*short.correlation),
        (&b""[..], &b"large"[..])
    );
    assert_eq!(short.property("tael-truncated"), Some("4033"));
    // Not authorised: who asks has chosen the topic, and asks again.
    raw.send(&question(2, "forbidden", REPLY, b"forbidden"));
    assert_eq!(answered(&mut raw, 0x87).correlation, b"forbidden");
    raw.send(&question(3, "last", REPLY, b"last"));
    assert_eq!(answered(&mut raw, 0).correlation, b"last");
    let log = client.log_text();
    assert!(log.contains("is sent without the output"), "{log}");
    wait_until("it is said", || client.log_text().contains("is given up: "));
    client.kill();
}

#[test]
fn short_questions_that_come_again_do_not_fill_the_outbox() {
    const AGAIN: u16 = 1000;
    let world = World::new();
    let large = ["-c", "head -c 200000 /dev/zero"];
    let client = client(&world, &large);
    let mut raw = Raw::connect(world.broker.port());
    raw.subscribe(REPLY);
    raw.send(&question(1, "same", REPLY, b"x"));
    raw.hear("an answer", |heard| heard.payload.len() == 200_000);
    // One who does not read the answers.
    let mut flood = Raw::connect(world.broker.port());
    for number in 1..=AGAIN {
        flood.send(&question(number, "same", REPLY, b"x"));
    }
    drop(raw);
    wait_until("all have come", || {
        world.report("w")["events"]["duplicate"].as_u64() >= Some(u64::from(AGAIN))
    });
    let ledger = world.home("w").join("ledger.db");
    let size = |name: &str| {
        let path = ledger.with_file_name(name);
        std::fs::metadata(path).map_or(0, |file| file.len())
    };
    let bytes = size("ledger.db") + size("ledger.db-wal");
    assert!(bytes < 120 << 20, "{bytes} bytes of {AGAIN} answers");
    let peak = crate::common::peak_memory(&client);
    assert!(peak < 120 << 20, "{peak} bytes");
    client.stop();
}

#[test]
fn an_answer_of_a_megabyte_arrives_and_a_larger_one_cannot_be_wished_for() {
    let world = World::new();
    let command = "head -c 1048576 /dev/zero | tr '\\0' x; printf end >&2";
    let answering = client(&world, &["--max-reply", "1M", "-c", command]);
    let mut ask = world.command("tael-message");
    ask.args(["-t", ASK, "--reply", "--timeout", "30s"]);
    let (code, stdout, stderr) = ran(&mut ask);
    assert_eq!((code, &*stderr), (0, ""));
    assert!(stdout.len() == 1 << 20 && stdout.bytes().all(|b| b == b'x'));
    answering.stop();
    let larger = ["--max-reply", "1048577", "-c", "true"];
    let mut client = answerer(world.command("tael-client"), &larger);
    refuses(&mut client, 64, "an answer has 1M at most");
}

fn batch(world: &World, arguments: &[&str]) -> Command {
    let mut command = world.command("tael-message");
    command.args(["-t", ASK, "-l", "--reply"]).args(arguments);
    command
}

#[test]
fn lines_that_are_no_messages_are_refused() {
    let world = World::new();
    for (input, cause) in [
        (&b"{\"a\":\"\xff\"}\n"[..], "not UTF-8"),
        (b"{\"a\":\n", "not JSON"),
        (b"[1]\n", "not an object"),
        (b"{}{}\n", "not JSON"),
        (b"\0\n", "not JSON"),
        (&[b'x'; 17 << 20], "16 MiB at most"),
        (&[b'['; 100_000], "send message 1: "),
    ] {
        let (code, stdout, stderr) = ran_with(&mut batch(&world, &[]), input);
        assert_eq!((code, &*stdout), (65, ""), "{stderr}");
        assert!(stderr.contains(cause), "{cause}: {stderr}");
    }
    let endless = std::fs::File::open("/dev/zero").expect("zeros");
    let (code, _, stderr) = ran(batch(&world, &[]).stdin(endless));
    assert_eq!(code, 65, "{stderr}");
    let folder = std::fs::File::open("/tmp").expect("folder");
    let (code, _, stderr) = ran(batch(&world, &[]).stdin(folder));
    assert_eq!(code, 65, "{stderr}");
    assert!(
        stderr.contains("read standard input: Is a directory"),
        "{stderr}"
    );
}

#[test]
fn a_message_that_the_broker_refuses_ends_a_batch_after_the_answers() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let mut command = bare_command(&dir, "tael-message");
    command
        .args(["-p", &broker.port().to_string(), "-t", ASK, "-l", "--reply"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("tael message");
    let mut stdin = child.stdin.take().expect("stdin");
    let mut raw = broker.accept();
    raw.serve_subscription();
    let mut asked = Vec::new();
    for (line, code) in [("{\"n\":1}\n", 0), ("{\"n\":2}\n", 0x87)] {
        stdin.write_all(line.as_bytes()).expect("write");
        let (heard, id) = loop {
            let (kind, body) = raw.receive();
            if kind >> 4 == 3 {
                break Heard::parse(kind, &body);
            }
            raw.serve(kind, &body);
        };
        let id = id.expect("QoS 1");
        raw.send(&packet(0x40, &[id[0], id[1], code, 0]));
        asked.push(heard);
    }
    let mut properties = vec![0x09];
    properties.extend(string(&asked[0].correlation));
    let topic = asked[0].reply.as_bytes();
    raw.send(&publish_with(topic, b"one", None, &properties, false));
    let (code, stdout, stderr) = ended(child);
    assert_eq!(code, 77, "{stderr}");
    assert!(stdout.starts_with("{\"n\":1,\"code\":0,"), "{stdout}");
    assert!(
        stderr.contains("2 sent, 1 answered, 0 failed, 1 missing (2)"),
        "{stderr}"
    );
    assert!(
        stderr.contains("tael: send message 2: publish to 'lab/ask'"),
        "{stderr}"
    );
}

#[test]
fn nowhere_to_print_an_answer_is_an_error() {
    let world = World::new();
    let client = client(&world, &["-c", "echo said"]);
    for arguments in [&["--reply"][..], &["--reply", "-l"]] {
        let full = std::fs::File::create("/dev/full").expect("full");
        let mut command = world.command("tael-message");
        command.args(["-t", ASK]).args(arguments);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(full)
            .stderr(Stdio::piped())
            .spawn()
            .expect("tael message");
        child
            .stdin
            .take()
            .expect("stdin")
            .write_all(b"{}\n")
            .expect("write");
        let (code, _, stderr) = ended(child);
        assert_eq!(code, 73, "{stderr}");
        assert!(stderr.contains("write to stdout: "), "{stderr}");
        // Its reader has gone.
        let (reader, writer) = std::io::pipe().expect("pipe");
        drop(reader);
        let mut command = world.command("tael-message");
        command.args(["-t", ASK]).args(arguments);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .expect("tael message");
        child
            .stdin
            .take()
            .expect("stdin")
            .write_all(b"{}\n")
            .expect("write");
        let (code, _, stderr) = ended(child);
        assert_eq!((code, &*stderr), (141, ""));
    }
    client.stop();
}
