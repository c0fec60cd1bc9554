//! Where options come from, and options that would go nowhere.

use std::fs;

use crate::common::{self, World, refuses};

const SEQ: &str = "lab/seq/status";

#[test]
fn retained_messages_are_events_where_the_operator_says_so() {
    let world = World::new();
    let mut message = world.command("tael-message");
    message.args(["-t", SEQ, "--attr", "status", "finished", "--retain"]);
    assert!(message.status().expect("run").success());

    let ears = world.ears(&["lab/#"]);
    let arguments = ["-t", SEQ, "-c", "true", "--retained", "accept"];
    let flag = world.client("flag", &arguments);
    ears.status("flag", "finished");
    flag.stop();

    let mut command = world.command("tael-client");
    command
        .env("TAEL_CLIENT_RETAINED", "accept")
        .args(["--who", "env", "--root", "lab", "-t", SEQ, "-c", "true"]);
    let env = world.online("env", command);
    ears.status("env", "finished");
    env.stop();

    let file = world.path("tael.toml");
    let table = format!("[[trigger]]\ntopic = '{SEQ}'\ncommand = 'true'\nretained = 'accept'\n");
    fs::write(&file, table).expect("file");
    let mut command = world.command("tael-client");
    command.args(["--who", "file", "--root", "lab", "--config"]);
    let client = world.online("file", {
        command.arg(&file);
        command
    });
    ears.status("file", "finished");
    client.stop();
}

#[test]
fn an_option_that_no_trigger_would_have_is_refused() {
    let world = World::new();
    let file = world.path("tael.toml");
    let client = || {
        let mut command = world.command("tael-client");
        command.args(["--who", "x", "--log", "none", "--config"]);
        command.arg(&file);
        command
    };
    let table = format!("[[trigger]]\ntopic = '{SEQ}'\ncommand = 'true'\n");
    fs::write(&file, &table).expect("file");
    refuses(client().args(["--jobs", "3"]), 64, "--jobs");
    refuses(client().env("TAEL_CLIENT_JOBS", "3"), 64, "--jobs");
    fs::write(&file, format!("[client]\njobs = 3\n{table}")).expect("file");
    refuses(&mut client(), 78, "'jobs' below [client]");
}

#[test]
fn a_message_from_a_command_does_not_take_the_clients_session_over() {
    let world = World::new();
    let ears = world.ears(&["lab/#"]);
    let message = common::binary("tael-message");
    let line = format!("'{}' -t lab/said --attr a b", message.display());
    let mut command = world.command("tael-client");
    command.env("TAEL_ID", "one-and-only");
    command.args(["--who", "id", "-t", SEQ, "-c", &line]);
    let client = world.online("id", command);
    world.message(SEQ, &[("status", "finished")]);
    ears.wait("the command's message", |m| m.topic == "lab/said");
    ears.status("id", "finished");
    let log = client.log_text();
    assert_eq!(log.matches("connected to").count(), 1, "{log}");
    client.stop();
}

#[test]
fn what_will_not_work_is_told_at_the_start() {
    let world = World::new();
    let file = world.path("variables");
    fs::write(&file, "GOOD=1\nno variable\n").expect("file");
    let path = file.to_str().expect("path");
    let ears = world.ears(&["lab/#"]);
    let mut command = world.command("tael-client");
    command.args(["--who", "p", "--root", "lab", "-t", SEQ]);
    command.args([
        "-c",
        "true",
        "--env-file",
        path,
        "--shell",
        "/no/such/shell",
    ]);
    command.env("TAEL_CLIENT_JOBZ", "3");
    let client = world.online("p", command);
    let log = client.log_text();
    assert!(log.contains("there is no /no/such/shell yet"), "{log}");
    assert!(log.contains("tael client has no such option"), "{log}");
    client.stop();
    let client = world.client("p", &["-t", SEQ, "-c", "true", "--env-file", path]);
    assert!(
        log.contains("line 2") && log.contains("its runs cannot start"),
        "{log}"
    );
    world.message(SEQ, &[("status", "finished")]);
    ears.status("p", "falsestart");
    fs::write(&file, "GOOD=1\n").expect("file");
    world.message(SEQ, &[("status", "finished")]);
    ears.status("p", "finished");
    client.stop();
}
