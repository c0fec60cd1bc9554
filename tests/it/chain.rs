//! The main task: a message starts a command, and its end starts the next one.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::common::{self, Setup, World, ran, refuses, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;

const SEQ: &str = "lab/seq/status";
const FINISHED: &[(&str, &str)] = &[("status", "finished"), ("sample", "S1")];

fn chain(world: &World) {
    let ears = world.ears(&["lab/#"]);
    let align = r#"echo "$SAMPLE" >>"$OUT/align""#;
    let report = r#"echo "$SAMPLE $TAEL_WHO $TAEL_REASON" >>"$OUT/report""#;
    let common = ["--envreq", "SAMPLE", "--payload-passthrough", "SAMPLE"];
    let first = world.client("align", &[&["-t", SEQ, "-c", align][..], &common].concat());
    let after = "lab/infrastructure/pipelines/align/status";
    let second = world.client(
        "report",
        &[&["-t", after, "-c", report][..], &common].concat(),
    );

    world.message(SEQ, FINISHED);
    let started = ears.status("align", "started");
    assert_eq!(started.payload["reason"], "lab/seq/status finished");
    assert_eq!(started.payload["SAMPLE"], "S1");
    let finished = ears.status("report", "finished");
    assert_eq!(finished.payload["return_code"], 0);
    assert_eq!(finished.payload["announce"], false);
    assert_eq!(finished.properties["tael-who"], "report");
    assert_eq!(finished.properties["tael-hops"], "2");
    let cause = ears.status("align", "finished").properties["tael-id"].clone();
    assert_eq!(finished.properties["tael-cause"], cause);
    assert_eq!(world.lines("align"), ["S1"]);
    let reason = "S1 report lab/infrastructure/pipelines/align/status finished";
    assert_eq!(world.lines("report"), [reason]);
    first.stop();
    second.stop();
}

#[test]
fn a_message_runs_a_chain_of_two_pipelines() {
    chain(&World::new());
}

#[test]
fn the_same_over_tls_with_client_certificates() {
    let world = World::with(Setup {
        tls: true,
        ..Setup::default()
    });
    chain(&world);
    let certificates = world.broker.certificates.as_ref().expect("certificates");
    let message = || {
        let mut command = world.command("tael-message");
        command.args(["-t", SEQ, "--attr", "status", "finished", "--timeout", "5s"]);
        command
    };
    // The broker does not know the authority of our certificate.
    let stranger = ["stranger.pem", "stranger.key"].map(|name| certificates.path(name));
    refuses(
        message()
            .env("TAEL_CERT", &stranger[0])
            .env("TAEL_KEY", &stranger[1]),
        77,
        "certificate",
    );
    // We do not know the authority of its certificate.
    refuses(
        message().env("TAEL_CAFILE", certificates.path("other-ca.pem")),
        69,
        "--cafile",
    );
    // The name is not in the certificate.
    refuses(
        message().env("TAEL_HOST", "127.0.0.1"),
        69,
        "is for 'localhost', not for '127.0.0.1'",
    );
    refuses(message().env("TAEL_CAFILE", "/nowhere"), 78, "/nowhere");
}

#[test]
fn a_wrong_password_is_told_once_and_ends_with_77() {
    let world = World::with(Setup {
        password: Some("right".into()),
        ..Setup::default()
    });
    world.message(SEQ, FINISHED);
    let wrong = |mut command: Command| {
        command.env("TAEL_PASSWORD", "wrong");
        command
    };
    let mut message = wrong(world.command("tael-message"));
    refuses(
        message.args(["-t", SEQ, "--attr", "a", "b"]),
        77,
        "connect to",
    );
    let mut client = wrong(world.command("tael-client"));
    client.args(["-t", SEQ, "-c", "true", "--who", "x", "--log", "none"]);
    refuses(&mut client, 77, "connect to");
    let mut watch = wrong(world.tael(["watch", "--log", "none"]));
    refuses(&mut watch, 77, "connect to");
    // The same from a file. Its line break is not part of the password.
    let file = world.path("password");
    std::fs::write(&file, "right\n").expect("write");
    let mut message = world.command("tael-message");
    message
        .env_remove("TAEL_PASSWORD")
        .args(["-t", SEQ, "--attr", "a", "b"]);
    let output = message
        .arg("--password-file")
        .arg(&file)
        .output()
        .expect("run");
    assert!(output.status.success(), "{output:?}");
    // The same as systemd passes it: for its owner only, or for root and a group.
    let credential = world.path("tael-password");
    std::fs::write(&credential, "right").expect("write");
    for mode in [0o400, 0o440] {
        std::fs::set_permissions(&credential, std::fs::Permissions::from_mode(mode)).expect("mode");
        let mut message = world.command("tael-message");
        message.env_remove("TAEL_PASSWORD");
        message.env("CREDENTIALS_DIRECTORY", world.dir.path());
        message.env("TAEL_LOG", "warn");
        let (code, _, stderr) = ran(message.args(["-t", SEQ, "--attr", "a", "b"]));
        assert_eq!((code, stderr.as_str()), (0, ""), "{mode:o}");
    }
}

#[test]
fn a_broker_that_goes_away_for_ten_seconds_costs_nothing() {
    let mut world = World::with(Setup {
        persistent: true,
        ..Setup::default()
    });
    let command = r#"echo run >>"$OUT/runs"; until [ -e "$OUT/go" ]; do sleep 0.05; done"#;
    let client = world.client("slow", &["-t", SEQ, "-c", command, "-k", "5s"]);
    let ears = world.ears(&["lab/#"]);
    world.message(SEQ, FINISHED);
    ears.status("slow", "started");
    drop(ears);
    world.broker.stop();
    let gone = std::time::Instant::now();
    wait_until("ten seconds are over", || gone.elapsed().as_secs() >= 10);
    std::fs::write(world.path("go"), "").expect("go");
    // Otherwise it may be faster than the ears.
    client.signal(Signal::SIGSTOP);
    world.broker.restart();
    let ears = world.ears(&["lab/#"]);
    client.signal(Signal::SIGCONT);
    let finished = ears.status("slow", "finished");
    assert_eq!(finished.payload["return_code"], 0);
    // The next event runs as usual.
    world.message(SEQ, FINISHED);
    ears.wait_all("the second end", |_| {
        (ears.count("slow", "finished") == 2).then_some(())
    });
    assert_eq!(world.lines("runs").len(), 2);
    client.stop();
}

#[test]
fn a_command_longer_than_three_keep_alives_loses_no_event() {
    let world = World::new();
    let command = r#"echo "$ATTR_N" >>"$OUT/runs"; [ "$ATTR_N" = 0 ] && sleep 16; true"#;
    let client = world.client("long", &["-t", SEQ, "-c", command, "-k", "5s"]);
    let ears = world.ears(&["lab/#"]);
    for n in 0..5 {
        world.message(SEQ, &[("status", "finished"), ("n", &n.to_string())]);
    }
    ears.wait_all("all five ends", |_| {
        (ears.count("long", "finished") == 5).then_some(())
    });
    assert_eq!(world.lines("runs"), ["0", "1", "2", "3", "4"]);
    let log = client.log_text();
    assert_eq!(log.matches("connected to").count(), 1, "{log}");
    client.stop();
}

#[test]
fn what_is_sent_while_the_client_is_away_runs_afterwards() {
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", r#"echo "$ATTR_N" >>"$OUT/runs""#];
    world.client("away", &arguments).stop();
    for n in ["1", "2", "3"] {
        world.message(SEQ, &[("status", "finished"), ("n", n)]);
    }
    let client = world.client("away", &arguments);
    wait_until("all have run", || world.lines("runs").len() == 3);
    assert_eq!(world.lines("runs"), ["1", "2", "3"]);
    client.stop();
}

#[test]
fn the_binaries_answer_to_other_names() {
    let world = World::new();
    let ears = world.ears(&["lab/#"]);
    let link = world.path("mqtt-message.py");
    std::os::unix::fs::symlink(common::binary("tael-message"), &link).expect("link");
    let mut command = world.command("tael-message");
    let mut linked = Command::new(&link);
    linked.env_clear();
    for (name, value) in command.args(["-t"]).get_envs() {
        linked.env(name, value.unwrap_or_default());
    }
    linked.args(["-t", SEQ, "--attr", "status", "finished"]);
    assert!(linked.status().expect("run").success());
    let heard = ears.wait("the message", |m| m.topic == SEQ);
    assert_eq!(heard.payload["status"], json!("finished"));
}
