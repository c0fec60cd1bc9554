//! Brokers: settings and access rules of mosquitto, leaving a broker, and a playbook over it.

use std::fs;
use std::process::Command;

use crate::common::broker::is_mosquitto;
use crate::common::ports::free_port;
use crate::common::{Certificates, Process, World, bare_command, ran, wait_until};
use crate::page::{BROKER, here, one, sh};

/// Starts mosquitto by the page, with its users, on `port`.
fn mosquitto(world: &World, port: u16) -> Process {
    let users = world.path("passwd");
    fs::write(&users, "").expect("users");
    for user in ["align", "desk", "seq", "monitor", "ann"] {
        let (code, _, error) = ran(Command::new("mosquitto_passwd")
            .arg("-b")
            .arg(&users)
            .args([user, "secret"]));
        assert_eq!(code, 0, "{error}");
    }
    let rules = world.path("acl");
    fs::write(&rules, one("acl mosquitto").text).expect("rules");
    let store = world.path("store");
    fs::create_dir(&store).expect("store");
    let mut text = one("conf mosquitto").text;
    for (from, to) in [
        ("listener 1883", format!("listener {port} 127.0.0.1")),
        ("/var/lib/mosquitto/", format!("{}/", store.display())),
        ("/etc/mosquitto/passwd", users.display().to_string()),
        ("/etc/mosquitto/acl", rules.display().to_string()),
    ] {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, &to);
    }
    if nix::unistd::Uid::effective().is_root() {
        // Otherwise it drops the right to read its own files.
        text += "user root\n";
    }
    let file = world.path("mosquitto.conf");
    fs::write(&file, text).expect("file");
    let mut mosquitto = Command::new("mosquitto");
    mosquitto.arg("-c").arg(file);
    world.spawn(mosquitto)
}

#[test]
fn mosquitto_lets_its_users_do_what_the_page_says() {
    let conf = one("conf mosquitto").text;
    let has = |line: &str| conf.lines().any(|l| l == line);
    assert!(has("persistence true") && has("allow_anonymous false"));
    assert!(conf.contains("\nmax_queued_messages "));
    assert!(conf.contains("\nmax_inflight_messages "));
    if !is_mosquitto() {
        // Without an installed broker, this is all that can be checked.
        return;
    }
    let world = World::new();
    let port = free_port();
    let mosquitto = mosquitto(&world, port);
    let tael = |user: &str, password: &str, arguments: &[&str]| {
        let mut command = bare_command(&world.dir, "tael");
        let broker = format!("mqtt://{user}@127.0.0.1:{port}");
        command
            .args(arguments)
            .args(["--broker", &broker, "--root", "lab"])
            .env("TAEL_PASSWORD", password);
        command
    };
    let finished = [
        "message",
        "-t",
        "lab/seq/status",
        "--attr",
        "status",
        "finished",
    ];
    wait_until("mosquitto takes a message", || {
        ran(&mut tael("seq", "secret", &finished)).0 == 0
    });
    assert_eq!(ran(&mut tael("seq", "wrong", &finished)).0, 77);
    let ran_as = |user: &str, arguments: &[&str]| ran(&mut tael(user, "secret", arguments));
    let types = world.path("align.toml");
    let upper = "[[work]]\ntype = \"upper\"\ncommand = \"tr a-z A-Z\"\n";
    fs::write(&types, upper).expect("types");
    let run = [
        "client",
        "--config",
        types.to_str().expect("path"),
        "--who",
        "align",
        "-t",
        "lab/seq/status",
        "-c",
        "echo ran >>ran",
    ];
    let mut client = tael("align", "secret", &run);
    client.current_dir(world.dir.path());
    let client = world.spawn(client);
    let state = || {
        let (code, out, error) = ran_as("monitor", &["status", "--json"]);
        assert_eq!(code, 0, "{error}");
        out
    };
    wait_until("the client is seen", || state().contains(r#""online""#));
    assert_eq!(ran_as("seq", &finished).0, 0);
    wait_until("its end is seen", || state().contains(r#""finished""#));
    let desk = tael(
        "desk",
        "secret",
        &["client", "--who", "desk", "--submit-only"],
    );
    let desk = world.spawn(desk);
    let submit = [
        "work", "submit", "--node", "align", "-f", "upper", "-l", "a",
    ];
    wait_until("work comes back from the node", || {
        let (code, out, _) = ran_as("desk", &submit);
        (code, &*out) == (0, "A\n")
    });
    desk.stop();
    let (code, out, error) = ran_as("ann", &["control", "align", "status"]);
    assert_eq!(code, 0, "{out}{error}");
    assert_eq!(ran_as("seq", &["beacon", "--once"]).0, 0);
    assert_eq!(ran_as("monitor", &["check"]).0, 0);
    // Actions that they may not do.
    for user in ["seq", "monitor", "align"] {
        let pause = ["control", "align", "pause", "--timeout", "5s"];
        assert_ne!(ran_as(user, &pause).0, 0, "{user}");
    }
    for user in ["monitor", "ann", "align"] {
        assert_eq!(ran_as(user, &finished).0, 77, "{user}");
    }
    assert_eq!(ran_as("seq", &finished).0, 0);
    wait_until("the next message runs", || world.lines("ran").len() == 2);
    let (_, out, _) = ran_as("ann", &["control", "align", "status", "--json"]);
    assert!(out.contains(r#""paused":false"#), "{out}");
    // Two messages, and the work.
    assert!(out.contains(r#""accepted":3"#), "{out}");
    client.stop();
    mosquitto.stop();
}

#[test]
fn mosquitto_speaks_tls_as_the_page_says() {
    if !is_mosquitto() {
        return;
    }
    let world = World::new();
    let certificates = Certificates::make(world.dir.path());
    let port = free_port();
    let mut text = one("conf tls").text.replace(
        "/etc/mosquitto/",
        &format!("{}/", certificates.dir.display()),
    );
    text = text.replace("listener 8883", &format!("listener {port} 127.0.0.1"));
    text += "allow_anonymous true\n";
    if nix::unistd::Uid::effective().is_root() {
        text += "user root\n";
    }
    let file = world.path("mosquitto.conf");
    fs::write(&file, text).expect("file");
    let mut mosquitto = Command::new("mosquitto");
    mosquitto.arg("-c").arg(file);
    let mosquitto = world.spawn(mosquitto);
    let line = one("sh tls").text;
    let line = line.replace(BROKER, &format!("localhost:{port}"));
    let message = |line: &str| {
        let mut command = sh(&world, line);
        command.env_remove("TAEL_HOST").env_remove("TAEL_PORT");
        ran(command.current_dir(&certificates.dir)).0
    };
    wait_until("mosquitto takes the message", || message(&line) == 0);
    let nobody = line.replace("--cert client.pem --key client.key", "");
    assert_ne!(nobody, line);
    assert_ne!(message(&nobody), 0);
    mosquitto.stop();
}

#[test]
fn a_client_leaves_nothing_at_a_broker_it_has_left() {
    let found = ran(Command::new("sh").args(["-c", "command -v mosquitto_sub mosquitto_pub"]));
    if found.0 != 0 {
        assert!(std::env::var_os("CI").is_none(), "needs mosquitto_sub");
        eprintln!("not run, needs mosquitto_sub: leaving a broker");
        return;
    }
    let world = World::new();
    let line = r#"exec tael client -t lab/seq/status --who align -c 'echo "$ATTR_N" >>ran'"#;
    let send = |n: &str| {
        world.message("lab/seq/status", &[("status", "finished"), ("n", n)]);
    };
    world.online("align", sh(&world, line)).stop();
    let (code, out, error) = ran(&mut sh(&world, &one("sh leave").text));
    assert_eq!(code, 0, "{out}{error}");
    let status = ran(&mut world.tael(["status", "--root", "lab", "--json"])).1;
    assert_eq!(status.trim(), "[]");
    // The broker keeps it for no client.
    send("1");
    let client = world.online("align", sh(&world, line));
    send("2");
    wait_until("the second has run", || !world.lines("ran").is_empty());
    assert_eq!(world.lines("ran"), ["2"]);
    client.stop();
}

#[test]
fn the_playbook_plays_on_its_nodes() {
    let world = World::new();
    // The programs in the functions are not installed everywhere.
    let bin = world.path("bin");
    fs::create_dir(&bin).expect("bin");
    world.script("bin/iperf3", "#!/bin/sh\nexec sleep 600\n");
    let path = format!("{}:/usr/bin:/bin", bin.display());
    fs::write(world.path("router.sh"), one("sh functions").text).expect("functions");
    fs::write(world.path("node.toml"), one("toml node").text).expect("node");
    fs::write(world.path("playbook"), one("text playbook").text).expect("playbook");
    let line = here(&world, &one("sh nodes").text);
    let arguments = line.trim().strip_prefix("tael ").expect("tael");
    let mut router = world.tael(arguments.split(' '));
    router.current_dir(world.dir.path()).env("PATH", &path);
    let _router = world.spawn(router);
    let mut laptop = world.tael(["node", "laptop", "--config", "node.toml"]);
    laptop.current_dir(world.dir.path()).env("PATH", &path);
    let _laptop = world.spawn(laptop);
    let mut play = world.tael(["play", "playbook", "--root", "testlab"]);
    let (code, out, stderr) = ran(play.current_dir(world.dir.path()));
    assert_eq!(code, 0, "{out}{stderr}");
    let result = fs::read_to_string(world.path("result.txt")).expect("result");
    assert_eq!(result, "measured\n");
}
