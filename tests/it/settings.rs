//! Sources of options, and options without effect.

use std::fs;

use crate::common::{self, Setup, World, ran, refuses};

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

#[test]
fn a_check_names_the_line_of_every_mistake_and_what_was_meant() {
    let world = World::new();
    let file = world.path("tael.toml");
    let check = |text: &str| {
        fs::write(&file, text).expect("file");
        let mut command = world.command("tael-client");
        command
            .args(["--check", "--who", "p", "--config"])
            .arg(&file);
        let (code, stdout, stderr) = ran(&mut command);
        assert_eq!(stdout, "");
        let place = format!("tael: use {}, ", file.display());
        let lines = stderr.lines().map(|line| line.replace(&place, ""));
        (code, lines.collect::<Vec<String>>())
    };
    let text = r#"rot = "lab"
brokr = "mqtt://h"
who = "p"

[cleint]
[client]
max-paylod = 100
keep = "soon"

[[trigger]]
topc = "lab/seq/status"
command = "/no/such/align.sh $SAMPLE"
jobs = "many"
cwd = "/no/such/folder"

[[trigger]]
name = "two"
topic = "lab/#/status"
command = "if true; then"
env-file = "/no/such/file"
envreq = ["SAMPLE"]
payload-passthrough = ["SAMPEL"]
when = ["status==failed"]
"#;
    let (code, found) = check(text);
    assert_eq!(code, 78, "{found:#?}");
    for want in [
        "line 1: unknown key 'rot'; did you mean 'root'?",
        "line 2: unknown key 'brokr'; did you mean 'broker'?",
        "line 3: unknown key 'who'; did you mean 'who' below [client]?",
        "line 5: unknown key 'cleint'; did you mean [client]?",
        "line 7: unknown key 'max-paylod': 'tael client' has no such option; did you mean 'max-payload'?",
        "line 11: trigger 1: unknown key 'topc'; did you mean 'topic'?",
        "line 18: trigger 2: topic filter 'lab/#/status' is wrong: # stands alone in the last level",
        "line 23: trigger 2: condition 'status==failed' compares with '=failed': write status=failed",
    ] {
        assert!(found.iter().any(|line| line == want), "{want}: {found:#?}");
    }
    for (line, part) in [("line 8: ", "'soon'"), ("line 13: trigger 1: ", "'many'")] {
        let has = |found: &String| found.starts_with(line) && found.contains(part);
        assert!(found.iter().any(has), "{line}: {found:#?}");
    }
    assert_eq!(found.len(), 10, "no more than there are: {found:#?}");

    // Then what this host lacks.
    let text = text.replace("rot = \"lab\"\nbrokr = \"mqtt://h\"\nwho = \"p\"", "\n\n");
    let text = text
        .replace("[cleint]\n", "\n")
        .replace("max-paylod = 100\nkeep = \"soon\"", "\n");
    let text = text.replace("topc", "topic").replace("jobs = \"many\"", "");
    let text = text.replace("lab/#/status", "lab/#").replace("==", "=");
    let (code, found) = check(&text);
    assert_eq!(code, 78, "{found:#?}");
    for (line, part) in [
        ("line 12: trigger 1: ", "there is no /no/such/align.sh"),
        ("line 14: trigger 1: ", "cannot use folder /no/such/folder"),
        ("line 19: trigger 2: its shell refuses it: ", ""),
        ("line 20: trigger 2: ", "/no/such/file"),
        (
            "line 22: trigger 2: ",
            "'SAMPEL' is not a required attribute; did you mean 'SAMPLE'?",
        ),
    ] {
        let has = |found: &String| found.contains(line) && found.contains(part);
        assert!(found.iter().any(has), "{line}{part}: {found:#?}");
    }
    assert!(!world.state().exists(), "nothing was touched");
}

#[test]
fn a_check_asks_the_broker_and_leaves_the_session_alone() {
    let world = World::new();
    let ears = world.ears(&["lab/#"]);
    let arguments = ["--who", "p", "-t", SEQ, "-c", "true"];
    let client = world.client("p", &["-t", SEQ, "-c", "true"]);
    let check = |extra: &[&str]| {
        let mut command = world.command("tael-client");
        ran(command
            .args(arguments)
            .args(["--check", "--connect"])
            .args(extra))
    };
    let (code, _, stderr) = check(&[]);
    assert_eq!(code, 0, "{stderr}");
    world.message(SEQ, &[("status", "finished")]);
    ears.status("p", "finished");
    let log = client.log_text();
    assert_eq!(log.matches("connected to").count(), 1, "{log}");
    client.stop();
    let (code, _, stderr) = check(&["-p", "1", "-H", "127.0.0.1"]);
    assert_eq!(code, 69, "{stderr}");
    assert!(stderr.contains("127.0.0.1:1"), "{stderr}");
    let mut alone = world.command("tael-client");
    refuses(alone.args(arguments).arg("--connect"), 64, "--check");
}

#[test]
fn the_example_works_as_it_is() {
    let world = World::new();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/tael.toml");
    let mut check = world.command("tael-client");
    let (code, stdout, stderr) =
        ran(check.args(["--check", "--log", "stderr", "--config", example]));
    assert_eq!((code, stdout.as_str()), (0, ""), "{stderr}");
    assert_eq!(stderr, "");
    let ears = world.ears(&["lab/#"]);
    let mut command = world.command("tael-client");
    command.args(["--config", example]);
    let client = world.online("align", command);
    world.message(SEQ, &[("status", "finished"), ("SAMPLE", "S1")]);
    let started = ears.status("align", "finished");
    assert_eq!(started.payload["SAMPLE"], "S1");
    client.stop();
}

#[test]
fn misspelt_variables_are_named_with_those_that_were_meant() {
    let world = World::new();
    let said = |name: &str, variables: &[(&str, &str)]| {
        let mut command = world.command(name);
        command
            .env("TAEL_LOG", "warn")
            .env("TAEL_LOG_TARGET", "stderr");
        command.envs(variables.iter().copied());
        match name {
            "tael-client" => command.args(["--who", "x", "-t", SEQ, "-c", "true", "--check"]),
            _ => command.args(["-t", SEQ, "--retain", "a=b"]),
        };
        let (code, _, error) = ran(&mut command);
        assert_eq!(code, 0, "{error}");
        error
    };
    let brokr = ("TAEL_BROKR", "mqtt://nowhere.example");
    for (name, variable, meant) in [
        ("tael-message", brokr, "TAEL_BROKER"),
        ("tael-client", brokr, "TAEL_BROKER"),
        ("tael-client", ("TAEL_CLIENT_JBOS", "2"), "TAEL_CLIENT_JOBS"),
        ("tael-message", ("TAEL_PASWORD", "x"), "TAEL_PASSWORD"),
    ] {
        let error = said(name, &[variable]);
        let hint = format!("{} is in the environment, but ", variable.0);
        assert!(error.contains(&hint), "{error}");
        assert!(
            error.contains(&format!("; did you mean {meant}?")),
            "{error}"
        );
    }
    // Variables of others, and those of a run.
    for others in [
        &[("TAEL_SOMETHING_ELSE", "1")][..],
        &[("TAEL_CLIENT_JBOS", "2")],
        &[("TAEL_WHO", "x"), ("TAEL_HOPS", "1")],
        &[brokr, ("TAEL_UNIT", "U"), ("TAEL_EVENT", "E")],
    ] {
        assert_eq!(said("tael-message", others), "", "{others:?}");
    }
}

#[test]
fn errors_name_the_variable_that_a_value_comes_from() {
    let world = World::new();
    let client = |arguments: &[&str]| {
        let mut command = world.command("tael-client");
        command.args(["--who", "x", "-t", SEQ, "-c", "true", "--log", "none"]);
        command.args(arguments);
        command
    };
    for (variable, value) in [
        ("TAEL_KEEPALIVE", "soon"),
        ("TAEL_CLIENT_JOBS", "two"),
        ("TAEL_CLIENT_OVERLAP", "maybe"),
        ("TAEL_BROKER", "mqtt://"),
    ] {
        refuses(
            client(&[]).env(variable, value),
            64,
            &format!("tael: {variable}: "),
        );
    }
    let mut flag = client(&["--jobs", "two"]);
    flag.env("TAEL_CLIENT_JOBS", "two");
    let (code, _, error) = ran(&mut flag);
    assert_eq!(code, 64);
    assert!(!error.contains("TAEL_CLIENT_JOBS"), "{error}");
}

#[test]
fn files_that_are_missing_have_one_exit_code() {
    let world = World::new();
    let none = "/nowhere/file";
    let commands: [&[&str]; 6] = [
        &["play", none],
        &["play", none, "--check"],
        &["node", "n", "--functions", none],
        &["status", "--config", none],
        &["status", "--password-file", none],
        &["status", "--cafile", none],
    ];
    for arguments in commands {
        let mut command = world.tael(arguments);
        refuses(command.args(["--log", "none"]), 78, none);
    }
}

#[test]
fn a_password_without_a_user_is_named_when_it_is_refused() {
    let world = World::with(Setup {
        password: Some("secret".into()),
        ..Setup::default()
    });
    let mut message = world.command("tael-message");
    message.env_remove("TAEL_USERNAME").args(["-t", SEQ]);
    let (code, _, error) = ran(&mut message);
    // Some brokers drop it without an answer.
    assert!([69, 77].contains(&code), "{code}: {error}");
    let hint = "there is a password and no user name: give -u USER";
    assert!(error.contains(hint), "{error}");
    // A wrong password is something else.
    let mut message = world.command("tael-message");
    message.env("TAEL_PASSWORD", "wrong").args(["-t", SEQ]);
    let (code, _, error) = ran(&mut message);
    assert_eq!(code, 77);
    assert!(!error.contains("-u USER"), "{error}");
}
