//! Several brokers of a cluster, tried in turn.

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use crate::common::raw::Scripted;
use crate::common::{Setup, World, bare_command, ran, refuses, spawn, wait_until};
use tempfile::{TempDir, tempdir};

const SEQ: &str = "lab/seq/status";

/// A port on which no process listens.
fn closed() -> u16 {
    Scripted::listen().port()
}

fn list(ports: &[u16]) -> String {
    let hosts: Vec<String> = ports
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    hosts.join(",")
}

fn tool(dir: &TempDir, name: &str, brokers: &str, arguments: &[&str]) -> Command {
    let mut command = bare_command(dir, name);
    command.env("TAEL_LOG", "warn");
    command.env("TAEL_BROKER", brokers).args(arguments);
    command
}

#[test]
fn commands_go_to_the_first_broker_that_answers() {
    let world = World::new();
    let brokers = list(&[closed(), closed(), world.broker.port()]);
    let client = world.client("p", &["-t", SEQ, "-c", "true"]);
    let silent = (0, String::new(), String::new());
    let mut message = tool(
        &world.dir,
        "tael-message",
        &brokers,
        &["-t", SEQ, "status=finished"],
    );
    assert_eq!(ran(&mut message), silent);
    world.wait_report("p", "/units/succeeded", 1);
    for arguments in [
        &["control", "p", "status"][..],
        &["status"],
        &["check", "--who", "p"],
    ] {
        let (code, out, error) = ran(&mut tool(&world.dir, "tael", &brokers, arguments));
        assert_eq!((code, &*error), (0, ""), "{arguments:?}: {out}");
    }
    // None answers: all are named.
    let none = list(&[closed(), closed()]);
    let mut message = tool(
        &world.dir,
        "tael-message",
        &none,
        &["-t", SEQ, "--timeout", "1s"],
    );
    refuses(
        &mut message,
        69,
        &format!("connect to {none}: connection refused"),
    );
    client.stop();
}

#[test]
fn a_broker_that_says_nothing_does_not_keep_the_others_from_their_turn() {
    let world = World::new();
    let mute = TcpListener::bind(("127.0.0.1", 0)).expect("listen");
    let brokers = list(&[
        mute.local_addr().expect("address").port(),
        world.broker.port(),
    ]);
    let mut message = tool(
        &world.dir,
        "tael-message",
        &brokers,
        &["-t", SEQ, "-r", "a=b"],
    );
    assert_eq!(ran(&mut message), (0, String::new(), String::new()));
}

#[test]
fn a_client_needs_to_know_that_the_brokers_share_its_session() {
    let dir = tempdir().expect("tempdir");
    let brokers = list(&[closed(), closed()]);
    let client = ["--who", "p", "-t", SEQ, "-c", "true"];
    let split = "would split the session";
    refuses(&mut tool(&dir, "tael-client", &brokers, &client), 64, split);
    let file = dir.path().join("tael.toml");
    fs::write(&file, format!("broker = '{brokers}'\n")).expect("file");
    let mut command = bare_command(&dir, "tael-client");
    command.args(client).arg("--config").arg(&file);
    refuses(&mut command, 78, split);
    let functions = dir.path().join("functions");
    fs::write(&functions, "startFunction() { :; }\n").expect("functions");
    let mut node = tool(&dir, "tael", &brokers, &["node", "n", "--functions"]);
    refuses(node.arg(functions), 64, split);
    // A cluster, or one broker after all.
    for (brokers, more) in [
        (&*brokers, &["--cluster"][..]),
        (&*brokers, &["-H", "h"]),
        ("h", &[]),
    ] {
        let mut check = tool(&dir, "tael-client", brokers, &client);
        assert_eq!(ran(check.args(more).arg("--check")).0, 0, "{more:?}");
    }
}

#[test]
fn a_client_takes_the_next_broker_and_says_when_its_session_is_not_there() {
    let dir = tempdir().expect("tempdir");
    let (one, two) = (Scripted::listen(), Scripted::listen());
    let brokers = list(&[one.port(), two.port()]);
    let arguments = [
        "--who",
        "p",
        "--root",
        "lab",
        "-t",
        SEQ,
        "-c",
        "true",
        "--cluster",
    ];
    let mut client = spawn(&dir, &mut tool(&dir, "tael-client", &brokers, &arguments));
    let (mut first, connect) = one.greet(false, &[]);
    first.serve_until(|heard| heard.topic.ends_with("/presence"));
    drop(first);
    let (mut second, again) = two.greet(false, &[]);
    assert_eq!(connect.client_id, again.client_id);
    second.serve_until(|heard| heard.topic.ends_with("/presence"));
    wait_until("the lost session is said", || {
        let log = client.log_text();
        log.contains(&format!("127.0.0.1:{} has lost the session", two.port()))
            && log.contains("do not share sessions")
    });
    // Round again, to one that has it.
    drop(second);
    let (mut first, _) = one.greet(true, &[]);
    first.serve_until(|heard| heard.topic.ends_with("/presence"));
    client.child.kill().expect("kill");
    client.wait();
    assert_eq!(client.log_text().matches("has lost the session").count(), 1);
}

#[test]
fn the_certificate_of_each_broker_is_for_its_own_name() {
    let world = World::with(Setup {
        tls: true,
        ..Setup::default()
    });
    let (port, closed) = (world.broker.port(), closed());
    let message = |brokers: &str| {
        let mut message = world.command("tael-message");
        message.env_remove("TAEL_HOST").env_remove("TAEL_PORT");
        message.args(["-t", SEQ, "-r", "a=b", "--broker", brokers]);
        ran(&mut message)
    };
    // It is for localhost.
    let (code, _, error) = message(&format!("mqtts://127.0.0.1:{closed},localhost:{port}"));
    assert_eq!(code, 0, "{error}");
    let (code, _, error) = message(&format!("mqtts://localhost:{closed},127.0.0.1:{port}"));
    assert_eq!(code, 69, "{error}");
    assert!(error.contains("'127.0.0.1'"), "{error}");
}
