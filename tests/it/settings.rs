//! Sources of options, and options without effect.

use std::fs;

use nix::sys::signal::Signal;

use crate::common::pty::Terminal;
use crate::common::raw::{Scripted, packet, subscribe_filters};
use crate::common::{self, Setup, World, ran, refuses, wait_until};

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
    // What is missing is looked for after the presence is published.
    for text in [
        "there is no /no/such/shell;",
        "tael client has no such option",
        "its runs cannot start",
    ] {
        wait_until(text, || client.log_text().contains(text));
    }
    let log = client.log_text();
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

[[trigger]]
name = "two"
topic = "lab/seq/status"
command = "echo 'open"

[[trigger]]
topic = "lab/seq/status"
command = "alignn"
envreq = ["PATH"]
"#;
    fs::write(&file, text).expect("file");
    let mut command = world.command("tael-client");
    command.args(["--check", "--who", "p", "--jbos", "2", "--qos", "0"]);
    // The topic ends with one of these words, too.
    command.args([
        "--reply-to",
        "lab/soon",
        "--grace",
        "soon",
        "--timeout",
        "later",
        "--config",
    ]);
    let (code, stdout, stderr) = ran(command.arg(&file).env("TAEL_LOG", "error"));
    assert_eq!((code, stdout.as_str()), (78, ""), "{stderr}");
    let place = format!("tael: use {}, ", file.display());
    let found = stderr.lines().map(|line| line.replace(&place, ""));
    let found: Vec<String> = found.collect();
    // Mistakes in the file come in the order of their lines, whatever finds them.
    let wants = [
        ("tael: ", "'--jbos'"),
        ("tael: ", "'soon'"),
        ("tael: ", "'later'"),
        ("tael: ", "QoS 0"),
        ("line 1: ", "unknown key 'rot'; did you mean 'root'?"),
        ("line 2: ", "unknown key 'brokr'; did you mean 'broker'?"),
        (
            "line 3: ",
            "unknown key 'who'; did you mean 'who' below [client]?",
        ),
        ("line 5: ", "unknown key 'cleint'; did you mean [client]?"),
        (
            "line 7: ",
            "'tael client' has no such option; did you mean 'max-payload'?",
        ),
        ("line 8: ", "invalid value 'soon' for 'keep'"),
        (
            "line 11: trigger 1: ",
            "unknown key 'topc'; did you mean 'topic'?",
        ),
        ("line 12: trigger 1: ", "there is no /no/such/align.sh"),
        ("line 13: trigger 1: ", "invalid value 'many' for 'jobs'"),
        ("line 14: trigger 1: ", "cannot use folder /no/such/folder"),
        (
            "line 18: trigger 2: ",
            "'lab/#/status' is wrong: # stands alone in the last level",
        ),
        ("line 19: trigger 2: ", "its shell refuses it"),
        ("line 20: trigger 2: ", "/no/such/file"),
        (
            "line 23: trigger 2: ",
            "compares with '=failed': write status=failed",
        ),
        ("line 26: ", "two triggers are called 'two'"),
        ("line 28: trigger 3: ", "its shell refuses it"),
        ("line 32: trigger 4: ", "there is no program 'alignn'"),
        ("line 33: trigger 4: ", "PATH"),
    ];
    assert_eq!(
        found.len(),
        wants.len(),
        "no more than there are: {found:#?}"
    );
    for ((begin, part), line) in wants.iter().zip(&found) {
        assert!(
            line.starts_with(begin) && line.contains(part),
            "{begin}{part}: {found:#?}"
        );
    }
    let of_file = found.iter().filter(|line| line.starts_with("line"));
    assert!(
        of_file.clone().all(|line| !line.contains("--help")),
        "{found:#?}"
    );
    assert!(!world.state().exists(), "nothing was touched");

    // What may be meant is a warning.
    let right = "[[trigger]]\ntopic = 'lab/seq/status'\ncommand = 'true'\n\
                 envreq = ['SAMPLE']\npayload-passthrough = ['SAMPEL']\n";
    fs::write(&file, right).expect("file");
    let mut command = world.command("tael-client");
    command.args(["--check", "--who", "p", "--log", "stderr", "--config"]);
    let (code, stdout, stderr) = ran(command.arg(&file).env("TAEL_LOG", "warn"));
    assert_eq!((code, stdout.as_str()), (0, ""), "{stderr}");
    let hint = "line 5: trigger 1: 'SAMPEL' is not a required attribute; did you mean 'SAMPLE'?";
    assert!(stderr.contains(hint), "{stderr}");
}

#[test]
fn what_an_event_needs_to_run_and_the_host_lacks_is_a_mistake() {
    let world = World::new();
    let check = |command: &str, more: &[&str]| {
        let mut client = world.command("tael-client");
        client.args(["--check", "--who", "p", "-t", SEQ, "-c", command]);
        ran(client.args(more))
    };
    for (command, more, cause) in [
        (
            "nosuchprog",
            &[][..],
            "there is no program 'nosuchprog' in ",
        ),
        (
            "nosuchprog \"$SAMPLE\"",
            &[],
            "there is no program 'nosuchprog' in ",
        ),
        (
            "nosuchprog x",
            &["--no-shell"],
            "there is no program 'nosuchprog' in ",
        ),
        ("/no/such/prog", &[], "there is no /no/such/prog"),
        ("true", &["--shell", "/no/shell"], "there is no /no/shell"),
        (
            "true",
            &["--cwd", "/no/folder"],
            "cannot use folder /no/folder",
        ),
        ("true", &["--env-file", "/no/file"], "/no/file"),
        ("true", &["--metrics", "/no/folder/x.prom"], "/no/folder"),
    ] {
        let (code, out, error) = check(command, more);
        assert_eq!((code, out.as_str()), (78, ""), "{command}: {error}");
        assert!(error.contains(cause), "{command}: {error}");
        assert_eq!(error.lines().count(), 1, "{command}: {error}");
    }
    for command in ["cd / && ls", "pushd / && ls", "ls", "f() { ls; }; f"] {
        let (code, _, error) = check(command, &["--shell", "/bin/bash"]);
        assert_eq!((code, error.as_str()), (0, ""), "{command}");
    }
}

#[test]
fn a_check_asks_the_broker_and_leaves_the_session_alone() {
    let world = World::new();
    let ears = world.ears(&["lab/#"]);
    let arguments = ["--who", "p", "-t", SEQ, "-c", "true"];
    let client = world.client("p", &["-t", SEQ, "-c", "true"]);
    let check = |extra: &[&str]| {
        let mut command = world.command("tael-client");
        command.args(arguments).args(["--check", "--connect"]);
        command.args(extra);
        command
    };
    // Piped, a success is silent.
    assert_eq!(ran(&mut check(&[])), (0, String::new(), String::new()));
    world.message(SEQ, &[("status", "finished")]);
    ears.status("p", "finished");
    let log = client.log_text();
    assert_eq!(log.matches("connected to").count(), 1, "{log}");
    client.stop();
    let (code, screen) = Terminal::start(check(&["-t", "lab/#"]), 120).end();
    let address = format!("127.0.0.1:{}", world.broker.port());
    let lines = [
        format!("{address} accepts the client"),
        format!("{address} grants 'lab/seq/status' with QoS 1"),
        format!("{address} grants 'lab/#' with QoS 1"),
        format!("{address} grants 'lab/infrastructure/pipelines/p/control' with QoS 1"),
        "p: 1 trigger, no mistakes".to_owned(),
    ];
    // The topic of the message is new each time.
    let accepts = format!("{address} accepts a message to 'lab/infrastructure/pipelines/p/reply/");
    let (accepted, others): (Vec<&str>, Vec<&str>) = screen
        .trim_end()
        .lines()
        .partition(|line| line.starts_with(&accepts));
    assert_eq!((code, accepted.len()), (0, 1), "{screen}");
    assert_eq!(others, lines);
    let (code, _, stderr) = ran(&mut check(&["-p", "1", "-H", "127.0.0.1", "--jobs", "0"]));
    assert_eq!(code, 64, "{stderr}");
    for cause in ["127.0.0.1:1", "jobs"] {
        assert!(stderr.contains(cause), "{stderr}");
    }
    let mut alone = world.command("tael-client");
    refuses(alone.args(arguments).arg("--connect"), 64, "--check");
}

#[test]
fn a_check_reports_each_subscription_that_the_broker_refuses() {
    let world = World::new();
    let listener = Scripted::listen();
    let port = listener.port().to_string();
    let mut command = world.command("tael-client");
    command.args([
        "--who",
        "p",
        "-t",
        "a/1",
        "a/2",
        "a/3",
        "$share/g/a/4",
        "-c",
        "true",
    ]);
    command.args(["--check", "--connect", "-H", "127.0.0.1", "-p", &port]);
    let check = std::thread::spawn(move || ran(&mut command));
    // Shared subscriptions are not available (MQTT 5.0, section 3.2.2.3.13).
    let mut broker = listener.accept_with(&[0x2a, 0]);
    let mut asked = Vec::new();
    // Not authorised; granted with QoS 0; granted; quota exceeded.
    for code in [0x87, 0, 1, 0x97] {
        let (kind, body) = broker.receive();
        assert_eq!(kind, 0x82, "a SUBSCRIBE");
        asked.extend(subscribe_filters(&body));
        broker.send(&packet(0x90, &[body[0], body[1], 0, code]));
    }
    let (kind, body) = broker.receive();
    assert_eq!(kind & 0xf0, 0x30, "a PUBLISH");
    let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
    let number = &body[2 + topic..4 + topic];
    broker.send(&packet(0x40, &[number[0], number[1], 0x87]));
    let (code, out, error) = check.join().expect("check");
    let control = "a/infrastructure/pipelines/p/control";
    assert_eq!(asked, ["a/1", "a/2", "a/3", control]);
    assert_eq!((code, out.as_str()), (64, ""), "{error}");
    let publish = "tael: publish to 'a/infrastructure/pipelines/p/reply/";
    let refused = |line: &str| line.starts_with(publish) && line.contains("not authorised");
    assert!(error.lines().any(refused), "{error}");
    for (filter, cause) in [
        ("a/1", "not authorised"),
        ("a/2", "QoS 0 only"),
        ("$share/g/a/4", "no shared subscriptions"),
        (control, "quota exceeded"),
    ] {
        let about = format!("tael: subscribe to '{filter}' at 127.0.0.1:{port}: ");
        let has = |line: &&str| line.starts_with(&about) && line.contains(cause);
        assert_eq!(error.lines().filter(has).count(), 1, "{filter}: {error}");
    }
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
        // The topic ends with it, too.
        ("TAEL_PORT", "status"),
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
    let hint = "there is a password and no user name: give --username USER";
    assert!(error.contains(hint), "{error}");
    // A wrong password is something else.
    let mut message = world.command("tael-message");
    message.env("TAEL_PASSWORD", "wrong").args(["-t", SEQ]);
    let (code, _, error) = ran(&mut message);
    assert_eq!(code, 77);
    assert!(!error.contains("-u USER"), "{error}");
}

#[test]
fn a_check_that_finds_nothing_is_one_line_on_a_terminal() {
    let dir = tempfile::tempdir().expect("tempdir");
    let write = |name: &str, text: &str| {
        fs::write(dir.path().join(name), text).expect("file");
    };
    write(
        "tael.toml",
        "[client]\nwho = 'p'\n[[trigger]]\ntopic = 'lab/a'\ncommand = 'true'\n\
         [[trigger]]\ntopic = 'lab/b'\ncommand = 'true'\n",
    );
    write("node.toml", "[command.START]\nrun = 'true'\n");
    write("start.sh", "START() { true; }\n");
    write("playbook", "WAIT 1s\nWAIT 2s\n");
    for (arguments, line) in [
        (
            &["client", "--config", "tael.toml"][..],
            "tael.toml: 2 triggers, no mistakes",
        ),
        (
            &["client", "--who", "p", "-t", "lab/a", "-c", "true"],
            "p: 1 trigger, no mistakes",
        ),
        (&["beacon", "--root", "lab"], "no mistakes"),
        (
            &["node", "n", "--config", "node.toml"],
            "n: 1 command, no mistakes",
        ),
        (
            &["node", "n", "--functions", "start.sh"],
            "start.sh, no mistakes",
        ),
        (&["play", "playbook"], "playbook: 2 steps, no mistakes"),
    ] {
        let check = || {
            let mut command = common::bare_command(&dir, "tael");
            command
                .current_dir(dir.path())
                .args(arguments)
                .arg("--check");
            command
        };
        let (code, screen) = Terminal::start(check(), 200).end();
        assert_eq!(code, 0, "{arguments:?}: {screen}");
        assert_eq!(screen.trim_end().lines().count(), 1, "{screen}");
        assert!(screen.trim_end().ends_with(line), "{line}: {screen}");
        // Scripts see the code.
        assert_eq!(ran(&mut check()), (0, String::new(), String::new()));
    }
}

#[test]
fn a_client_warns_at_its_start_of_a_program_that_is_missing() {
    let world = World::new();
    let script = world.script("there.sh", "#!/bin/sh\n");
    for (command, missing) in [
        ("./nope.sh \"$ATTR_SAMPLE\"", Some("./nope.sh")),
        (
            "no-such-program-of-tael -x",
            Some("'no-such-program-of-tael'"),
        ),
        ("echo \"$ATTR_SAMPLE\"; ./nope.sh", None),
        (script.to_str().expect("path"), None),
    ] {
        let client = world.client("p", &["-t", SEQ, "-c", command]);
        match missing {
            // It looks when it is online.
            Some(name) => wait_until("the warning", || {
                let log = client.log_text();
                log.contains(name) && log.contains("its runs fail until that is corrected")
            }),
            None => {
                client.signal(Signal::SIGHUP);
                wait_until("a reload", || client.log_text().contains("reloaded;"));
                let log = client.log_text();
                assert!(!log.contains("until that is corrected"), "{log}");
            }
        }
        client.stop();
    }
}
