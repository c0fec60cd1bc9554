//! Questions and answers between Tael and other programs: paho, and mosquitto's tools; and batches whose
//! workers die.

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::common::{Process, World, can_run, ended, has_program, ran, spawn, wait_until};

/// Returns a script that uses paho.
fn script(world: &World, name: &str) -> Option<Command> {
    let installed = concat!(env!("CARGO_TARGET_TMPDIR"), "/../paho/bin/python");
    let python = match Path::new(installed).exists() {
        true => installed,
        false => "python3",
    };
    let output = Command::new(python)
        .args(["-c", "import paho.mqtt"])
        .output();
    let there = output.is_ok_and(|output| output.status.success());
    if !can_run(there, "paho (.ci/paho)", "a client in Python") {
        return None;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/requests");
    let mut command = Command::new(python);
    command
        .arg("-u")
        .arg(path.join(name))
        .env("TAEL_PORT", world.broker.port().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    Some(command)
}

/// Starts one who answers, and returns when it is subscribed.
#[track_caller]
fn responder(
    world: &World,
    arguments: &[&str],
) -> Option<(Process, Lines<BufReader<ChildStdout>>)> {
    let mut command = script(world, "paho_responder.py")?;
    let mut process = spawn(&world.dir, command.args(arguments));
    let stdout = process.child.stdout.take().expect("stdout");
    let mut lines = BufReader::new(stdout).lines();
    let first = lines.next().and_then(Result::ok);
    assert_eq!(first.as_deref(), Some("ready"), "{}", process.log_text());
    Some((process, lines))
}

/// Returns `tael-message` with `arguments`.
fn message(world: &World, arguments: &[&str]) -> Command {
    let mut command = world.command("tael-message");
    command.args(arguments);
    command
}

#[test]
fn paho_answers() {
    let world = World::new();
    let Some((process, _answers)) = responder(&world, &["lab/ask"]) else {
        return;
    };
    let mut ask = message(&world, &["-t", "lab/ask", "--reply", "disk=data"]);
    let (code, stdout, stderr) = ran(&mut ask);
    assert_eq!((code, &*stderr), (0, ""));
    assert!(stdout.contains(r#""DISK":"DATA""#), "{stdout}");
    process.kill();
}

/// Starts `tael message -l` with 100 tasks.
fn batch(world: &World) -> std::process::Child {
    let tasks: String = (1..=100).map(|n| format!("{{\"n\":\"t{n}\"}}\n")).collect();
    let tasks = world.file("tasks", tasks);
    let mut command = message(world, &["-t", "lab/tasks", "-l", "--reply"]);
    command.args(["--retries", "9", "--timeout", "3s"]);
    command.stdin(std::fs::File::open(tasks).expect("tasks"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("tael message")
}

/// Asserts that each task of the batch is answered.
#[track_caller]
fn all_are_answered(batch: std::process::Child) {
    let (code, stdout, stderr) = ended(batch);
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stderr.contains("100 sent, 100 answered, 0 failed, "),
        "{stderr}"
    );
    let mut numbers: Vec<u64> = stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .map(|object| object["n"].as_u64().expect("n"))
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=100).collect::<Vec<_>>());
}

#[test]
fn a_batch_is_complete_though_a_worker_dies() {
    let world = World::new();
    let worker = ["--pause", "0.02", "$share/pool/lab/tasks"];
    let Some((victim, mut answers)) = responder(&world, &worker) else {
        return;
    };
    let others: Vec<_> = (0..3).map(|_| responder(&world, &worker)).collect();
    let batch = batch(&world);
    for _ in 0..5 {
        assert_eq!(
            answers.next().and_then(Result::ok).as_deref(),
            Some("answered")
        );
    }
    // It holds more of them, and the broker may have given it those too that wait.
    victim.kill();
    all_are_answered(batch);
    drop(others);
}

#[test]
fn a_batch_is_complete_though_a_client_dies() {
    let world = World::new();
    let start = |n: u32| {
        let out = world.path(&format!("runs{n}"));
        let command = format!("echo \"$ATTR_N\" >>{}; echo done", out.display());
        let filter = "$share/pool/lab/tasks";
        let options = ["-t", filter, "--when", "", "--reply", "-c", &command];
        world.client(&format!("worker{n}"), &options)
    };
    let mut workers: Vec<Process> = (1..=4).map(start).collect();
    let batch = batch(&world);
    wait_until("it has run five", || world.lines("runs1").len() >= 5);
    workers.remove(0).kill();
    all_are_answered(batch);
    workers.into_iter().for_each(Process::stop);
}

#[test]
fn other_programs_ask_a_client() {
    let world = World::new();
    let options = [
        "-t",
        "lab/ask",
        "--when",
        "",
        "--reply",
        "-c",
        "echo 812; echo why >&2; exit 3",
    ];
    let client = world.client("df", &options);
    if let Some(mut requester) = script(&world, "paho_requester.py") {
        let topic = "lab/infrastructure/replies/paho/1";
        requester.args(["lab/ask", topic, "Q1", "{}"]);
        let (code, stdout, stderr) = ran(&mut requester);
        assert_eq!(code, 0, "{stderr}");
        let answer: Value = serde_json::from_str(&stdout).expect("JSON");
        assert_eq!(
            (&answer["reply"], &answer["data"]),
            (&json!("812\n"), &json!("Q1"))
        );
        let properties = &answer["properties"];
        assert_eq!(
            (&properties["tael-code"], &properties["tael-who"]),
            (&json!("3"), &json!("df"))
        );
        assert_eq!(properties["tael-error"], "why");
    }
    if has_program("mosquitto_rr", "a question of mosquitto's") {
        let mut requester = Command::new("mosquitto_rr");
        requester.args([
            "-p",
            &world.broker.port().to_string(),
            "-q",
            "1",
            "-W",
            "20",
        ]);
        requester.args([
            "-t",
            "lab/ask",
            "-e",
            "lab/infrastructure/replies/rr/1",
            "-m",
            "{}",
        ]);
        let (code, stdout, stderr) = ran(&mut requester);
        assert_eq!((code, stdout.trim_end()), (0, "812"), "{stderr}");
    }
    let mut ask = message(&world, &["-t", "lab/ask", "--reply", "a=b"]);
    let (code, stdout, stderr) = ran(&mut ask);
    assert_eq!((code, &*stdout), (3, "812\n"), "{stderr}");
    assert!(
        stderr.contains(": why\n") && stderr.starts_with("tael: df@"),
        "{stderr}"
    );
    client.stop();
}

#[test]
fn the_page_about_answers_is_true() {
    let world = World::new();
    let page = include_str!("../../docs/requests.md");
    let block = page.split("```sh answer\n").nth(1);
    let block = block
        .and_then(|rest| rest.split("```").next())
        .expect("block");
    let words = shell_words::split(block).expect("words");
    assert_eq!(words[..2], ["tael", "client"]);
    let client = world.online("df", world.tael(&words[1..]));
    let (code, stdout, stderr) = ran(&mut message(
        &world,
        &["-t", "lab/ask/df", "--reply", "a=b"],
    ));
    assert_eq!((code, &*stderr), (0, ""));
    // The one who asks writes the unit.
    assert!(stdout.parse::<u64>().is_ok(), "{stdout}");
    client.stop();
}
