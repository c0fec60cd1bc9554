//! Messages that reach no client, and the ways to write attributes.

use std::process::Command;

use crate::common::pty::Terminal;
use crate::common::raw::{Heard, Scripted, packet};
use crate::common::{World, bare_command, ended, ran, refuses};
use std::process::Stdio;
use tempfile::TempDir;

const SEQ: &str = "lab/seq/status";

fn tool(dir: &TempDir, broker: &Scripted, name: &str, arguments: &[&str]) -> Command {
    let mut command = bare_command(dir, name);
    command.env("TAEL_HOST", "127.0.0.1");
    command.env("TAEL_PORT", broker.port().to_string());
    command.env("TAEL_LOG", "warn").args(arguments);
    command
}

/// Runs `command` while the broker answers its publish with "no matching subscribers" (0x10).
fn unheard(command: &mut Command, broker: &Scripted) -> (i32, String, String) {
    answered(command, broker, 0x10)
}

/// As [`unheard`], with this answer to a publish of QoS 2.
fn answered(command: &mut Command, broker: &Scripted, received: u8) -> (i32, String, String) {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut raw = broker.accept();
    loop {
        let (kind, body) = raw.receive();
        if kind >> 4 != 3 {
            raw.serve(kind, &body);
            continue;
        }
        let (_, id) = Heard::parse(kind, &body);
        let id = id.expect("QoS above 0");
        match kind & 0x06 {
            0x02 => raw.send(&packet(0x40, &[id[0], id[1], 0x10, 0])),
            _ => {
                raw.send(&packet(0x50, &[id[0], id[1], received, 0]));
                assert_eq!(raw.receive(), (0x62, id.to_vec()), "PUBREL");
                raw.send(&packet(0x70, &id));
            }
        }
        break;
    }
    // It says goodbye, and must not wait for us.
    let out = ended(child.expect("spawn"));
    drop(raw);
    out
}

#[test]
fn a_message_without_subscribers_is_said_and_can_be_an_error() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let message = |arguments: &[&str]| {
        let mut command = tool(&dir, &broker, "tael-message", &["-t", SEQ]);
        command.args(arguments);
        unheard(&mut command, &broker)
    };
    for qos in ["1", "2"] {
        let (code, stdout, stderr) = message(&["-q", qos]);
        assert_eq!((code, &*stdout), (0, ""), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(
            stderr.contains("no client subscribes to it") && stderr.contains(SEQ),
            "{stderr}"
        );
    }
    for qos in [&[][..], &["-q", "1"]] {
        let mut command = tool(&dir, &broker, "tael-message", &["-t", SEQ]);
        command.arg("--need-listener").args(qos);
        // As mosquitto, which says so at QoS 1 only.
        let (code, _, stderr) = answered(&mut command, &broker, 0);
        assert_eq!((code, stderr.lines().count()), (69, 1), "{stderr}");
    }
    // A retained message waits for its readers, and scripts can ask for silence.
    let silent = (0, String::new(), String::new());
    assert_eq!(message(&["--retain"]), silent);
    assert_eq!(message(&["--log", "none"]), silent);
}

#[test]
fn a_request_without_a_client_fails_at_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = Scripted::listen();
    let arguments = ["control", "align", "pause", "--root", "lab"];
    let mut command = tool(&dir, &broker, "tael", &arguments);
    // Less than the test has patience for.
    command.args(["--timeout", "1h"]);
    let (code, stdout, stderr) = unheard(&mut command, &broker);
    assert_eq!((code, &*stdout), (75, ""), "{stderr}");
    assert!(
        stderr.contains("no client listens on lab/infrastructure/pipelines/align/control"),
        "{stderr}"
    );
}

#[test]
fn a_message_with_a_subscriber_is_silent() {
    let world = World::new();
    let ears = world.ears(&[SEQ]);
    let mut command = world.command("tael-message");
    command.args(["-t", SEQ, "--need-listener", "n=1"]);
    assert_eq!(ran(&mut command), (0, String::new(), String::new()));
    ears.wait("it", |m| m.payload["n"] == "1");
}

#[test]
fn attributes_are_written_in_three_ways() {
    let world = World::new();
    let ears = world.ears(&["lab/#"]);
    let ways: [&[&str]; 4] = [
        &["--attr", "status", "finished", "--attr", "note", "a = b"],
        &["--attr", "status=finished", "-a", "note=a = b"],
        &["status=finished", "note=a = b"],
        &["--attr=status=finished", "-anote=a = b"],
    ];
    for (way, n) in ways.into_iter().zip(1..) {
        let mut command = world.command("tael-message");
        let topic = format!("lab/{n}");
        command.args(["-t", &topic]).args(way);
        assert_eq!(ran(&mut command), (0, String::new(), String::new()));
        let heard = ears.wait("it", |m| m.topic == topic);
        assert_eq!(heard.payload["status"], "finished", "{way:?}");
        assert_eq!(heard.payload["note"], "a = b", "{way:?}");
    }
    let client = world.client("p", &["-t", SEQ, "-c", r#"echo "$ATTR_S" >>"$OUT/s""#]);
    for raise in [&["s=1"][..], &["--attr", "s=1"], &["--attr", "s", "1"]] {
        let (code, _, error) = world.control(&[&["p", "raise"], raise].concat());
        assert_eq!(code, 0, "{error}");
    }
    world.wait_report("p", "/units/succeeded", 3);
    assert_eq!(world.lines("s"), ["1", "1", "1"]);
    client.stop();
}

#[test]
fn all_commands_name_the_same_cause() {
    let dir = tempfile::tempdir().expect("tempdir");
    // It is taken, and listens to none.
    let port = Scripted::listen().port().to_string();
    let here = |name: &str, arguments: &[&str]| {
        let mut command = bare_command(&dir, name);
        command.env("TAEL_LOG_TARGET", "none");
        command
            .args(arguments)
            .args(["-H", "127.0.0.1", "-p", &port]);
        command
    };
    let cause = format!("connect to 127.0.0.1:{port}: connection refused; is the broker running?");
    let limit = ["--timeout", "1s"];
    let tools: [(&str, &[&str]); 5] = [
        ("tael-message", &["-t", SEQ]),
        ("tael-beacon", &["--once"]),
        ("tael", &["control", "p", "status", "--root", "lab"]),
        ("tael", &["status", "--root", "lab"]),
        ("tael", &["control", "p", "status"]),
    ];
    for (name, arguments) in tools {
        refuses(here(name, arguments).args(limit), 69, &cause);
    }
    let (code, line, _) = ran(here("tael", &["check", "--who", "p", "--root", "lab"]).args(limit));
    assert_eq!(code, 3);
    assert!(line.contains(&cause), "{line}");
    let play = dir.path().join("playbook");
    std::fs::write(&play, "SEND n START\n").expect("playbook");
    let mut play = here("tael", &["play", play.to_str().expect("path")]);
    let (code, _, error) = ran(play.args(["--root", "lab"]));
    assert_eq!(code, 69, "{error}");
    assert!(error.contains(&cause), "{error}");
}

#[test]
fn a_person_at_a_terminal_learns_after_a_second_that_it_waits() {
    let dir = tempfile::tempdir().expect("tempdir");
    let port = Scripted::listen().port().to_string();
    let line = format!("tael: waiting for broker 127.0.0.1:{port}: connection refused");
    let tools: [(&str, &[&str]); 3] = [
        ("tael-message", &["-t", SEQ]),
        ("tael", &["status", "--root", "lab"]),
        ("tael", &["control", "p", "status", "--root", "lab"]),
    ];
    for (name, arguments) in tools {
        let mut command = bare_command(&dir, name);
        command
            .args(arguments)
            .args(["-H", "127.0.0.1", "-p", &port]);
        command.args(["--timeout", "2s"]);
        let (code, screen) = Terminal::start(command, 120).end();
        assert_eq!(code, 69, "{screen}");
        assert_eq!(screen.matches(&line).count(), 1, "{name}: {screen}");
    }
    // One that is fast is silent.
    let world = World::new();
    let mut command = world.command("tael-message");
    command.args(["-t", "lab/a", "--retain", "a=b"]);
    let (code, screen) = Terminal::start(command, 80).end();
    assert_eq!((code, screen.trim()), (0, ""));
}
