//! The commands `watch`, `beacon`, `broker` and `demo`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::common::{
    self, Certificates, Process, World, bare_command, children_of, json_of, ran, refuses, spawn,
    wait_until,
};
use crate::facts::retain;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Starts `tael watch`, and returns it with its output when it is connected.
fn watch(world: &World, arguments: &[&str]) -> (Process, BufReader<std::process::ChildStdout>) {
    let mut command = world.tael(["watch", "-t", "lab/#", "-q", "1"]);
    command.args(arguments).stdout(Stdio::piped());
    let mut process = world.spawn(command);
    wait_until("it listens", || process.log_text().contains("connected to"));
    let stdout = process.child.stdout.take().expect("stdout");
    (process, BufReader::new(stdout))
}

fn line(lines: &mut impl BufRead) -> String {
    let mut line = String::new();
    lines.read_line(&mut line).expect("line");
    assert_eq!(line.pop(), Some('\n'));
    line
}

#[test]
fn retained_messages_follow_the_line_about_the_connection() {
    let world = World::new();
    let mut retain = world.tael(["message", "-t", "lab/ready", "--retain", "k=v"]);
    assert_eq!(ran(&mut retain).0, 0);
    // Both streams share a pipe, as they share a terminal.
    let (reader, writer) = std::io::pipe().expect("pipe");
    let mut command = world.tael(["watch", "-t", "lab/#"]);
    command.stdout(writer.try_clone().expect("clone"));
    let child = command.stderr(writer).spawn().expect("watch");
    // Otherwise the pipe stays open here.
    drop(command);
    let log = world.path("none");
    let _process = Process { child, log };
    let mut before = Vec::new();
    for line in BufReader::new(reader).lines().map_while(Result::ok) {
        if line.contains("lab/ready") && line.contains("k=v") {
            break;
        }
        before.push(line);
    }
    let connected = before.iter().filter(|line| line.contains("connected to"));
    assert_eq!(connected.count(), 1, "{before:?}");
}

#[test]
fn daemons_log_once_what_they_serve() {
    let world = World::new();
    let beacon = world.tael(["beacon", "--root", "lab", "--interval", "100ms"]);
    let beacon = world.spawn(beacon);
    let beats = || {
        beacon
            .log_text()
            .lines()
            .filter(|line| line.ends_with(" beat"))
            .count()
    };
    wait_until("it has beaten twice", || beats() >= 2);
    let log = beacon.log_text();
    let topic = "a beat on 'lab/test/beacon/status' every 100ms";
    assert_eq!(log.matches(topic).count(), 1, "{log}");
    beacon.stop();
}

#[test]
#[cfg_attr(not(feature = "embedded-broker"), ignore = "there is no `tael broker`")]
fn a_broker_logs_where_it_listens_and_prints_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut command = bare_command(&dir, "tael");
    command.args(["broker", "--listen", "127.0.0.1:0", "--log", "stderr"]);
    command.env_remove("TAEL_LOG").stdout(Stdio::piped());
    let mut broker = common::spawn(&dir, &mut command);
    wait_until("it listens", || broker.log_text().contains('\n'));
    let log = broker.log_text();
    assert!(log.contains("listening on mqtt://127.0.0.1:"), "{log}");
    assert_eq!(log.lines().count(), 1, "{log}");
    let stdout = broker.child.stdout.take().expect("stdout");
    broker.stop();
    assert_eq!(std::io::read_to_string(stdout).expect("stdout"), "");
}

#[test]
fn watch_prints_one_readable_line_a_message() {
    let world = World::new();
    let (mut process, mut lines) =
        watch(&world, &["--drop", "test", "--drop", "secret", "-n", "4"]);
    let trace = [("tael-who", "align"), ("tael-host", "node1")];
    world.publish("lab/test/beacon", r#"{"status":"finished"}"#, &[]);
    world.publish("lab/a", r#"{"status":"secret"}"#, &[]);
    world.publish(
        "lab/a/status",
        r#"{"status":"finished","return_code":0,"announce":false,"S":"1 2"}"#,
        &trace,
    );
    world.publish(
        "lab/a/status",
        r#"{"status":"failed","return_code":3,"announce":true}"#,
        &trace,
    );
    world.publish("lab/b", "no \x1b[2J\x07JSON\r\n\u{202e}", &[]);
    world.publish(
        "lab/c",
        r#"{"user":"ann\u001b]0;x\u0007","k\u001b[1m":"v\n\u009b31m"}"#,
        &[],
    );
    let want = [
        "finished  align@node1  lab/a/status  S=1 2",
        "! failed  align@node1  lab/a/status  return_code=3",
        r"-  -  lab/b  no \u{1b}[2J\u{7}JSON\r\n\u{202e}",
        r"-  ann\u{1b}]0;x\u{7}  lab/c  k\u{1b}[1m=v\n\u{9b}31m",
    ];
    for want in want {
        let line = line(&mut lines);
        let (clock, rest) = line.split_once("  ").expect("clock");
        // Columns are as wide as their widest cell so far.
        let cells = rest.split("  ").filter(|cell| !cell.is_empty());
        let cells: Vec<&str> = cells.map(str::trim).collect();
        assert_eq!(cells.join("  "), want);
        let digits = clock
            .split(':')
            .map(|part| part.parse::<u8>().expect("digits"));
        assert_eq!(digits.count(), 3, "{clock}");
    }
    assert_eq!(process.wait(), 0);
}

#[test]
fn watch_prints_json_for_programs() {
    let world = World::new();
    let (process, mut lines) = watch(&world, &["--json"]);
    world.publish("lab/a", r#"{"n":1.50}"#, &[("tael-id", "E1")]);
    world.publish("lab/b", b"\x00\xff", &[]);
    let object: Value = serde_json::from_str(&line(&mut lines)).expect("JSON");
    assert_eq!(object["topic"], "lab/a");
    assert_eq!(object["retained"], false);
    assert_eq!(object["payload"].to_string(), r#"{"n":1.50}"#);
    assert_eq!(object["properties"]["tael-id"], "E1");
    let time = object["time"].as_str().expect("time");
    assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
    let object: Value = serde_json::from_str(&line(&mut lines)).expect("JSON");
    assert_eq!(object["payload"], "\0\u{fffd}");
    process.stop();
}

#[test]
fn watch_ends_quietly_when_nobody_reads() {
    let world = World::new();
    let (mut process, lines) = watch(&world, &[]);
    drop(lines);
    // A process that another test starts may hold the pipe for a moment.
    wait_until("it ends", || {
        world.publish("lab/a", "{}", &[]);
        process.child.try_wait().expect("status").is_some()
    });
    // Shells expect the left side of a pipe to end as by SIGPIPE.
    assert_eq!(process.wait(), 141);
    let log = process.log_text();
    assert!(
        log.lines().all(|line| line.contains("connected to")),
        "{log}"
    );
}

#[test]
fn the_broker_is_careful_about_where_it_listens() {
    let dir = tempfile::tempdir().expect("tempdir");
    let broker = |arguments: &[&str]| {
        let mut command = bare_command(&dir, "tael");
        command.args(["broker", "--log", "none"]).args(arguments);
        command
    };
    for open in ["0.0.0.0:0", "[::]:0"] {
        refuses(&mut broker(&["--listen", open]), 64, "open to others");
    }
    // With TLS it starts, and says who may connect.
    let certificates = Certificates::make(dir.path());
    let [cert, key, ca] =
        ["server.pem", "server.key", "ca.pem"].map(|name| certificates.path(name));
    let users = dir.path().join("right");
    fs::write(&users, "\u{feff}ann:secret\n").expect("users");
    let users = users.to_str().expect("path");
    let closed: [&[&str]; 3] = [&[], &["--cafile", &ca], &["--users", users]];
    for more in closed {
        let mut command = bare_command(&dir, "tael");
        command.args([
            "broker",
            "--listen",
            "0.0.0.0:0",
            "--cert",
            &cert,
            "--key",
            &key,
        ]);
        let process = spawn(&dir, command.args(more));
        wait_until("it listens", || {
            process.log_text().contains("listening on mqtts://")
        });
        let warns = process.log_text().contains("all who reach it may connect");
        assert_eq!(warns, more.is_empty(), "{}", process.log_text());
        process.stop();
    }
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("listen");
    let address = taken.local_addr().expect("address").to_string();
    refuses(
        &mut broker(&["--listen", &address]),
        69,
        &format!("start broker on {address}"),
    );
    refuses(&mut broker(&["--listen", "nowhere"]), 64, "nowhere");
    refuses(&mut broker(&["--users", "/nowhere"]), 78, "/nowhere");
    let users = dir.path().join("users");
    fs::write(&users, "ann:secret\nbob\n").expect("users");
    let (code, _, stderr) = ran(&mut broker(&["--users", users.to_str().expect("path")]));
    assert_eq!(code, 78);
    assert!(
        stderr.contains("line 2") && !stderr.contains("secret"),
        "{stderr}"
    );
    let file = users.to_str().expect("path");
    fs::write(&users, "ann :secret\n").expect("users");
    refuses(
        &mut broker(&["--users", file]),
        78,
        "line 1 has blanks around its user",
    );
    refuses(
        &mut broker(&["--listen", "127.0.0.1:0", "--data", file]),
        73,
        file,
    );
    refuses(&mut broker(&["--cafile", file]), 64, "--cafile needs");
}

#[test]
fn what_a_broker_keeps_is_its_users_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("tempdir");
    let (users, data) = (dir.path().join("users"), dir.path().join("data"));
    fs::write(&users, "ann:secret\n").expect("users");
    fs::set_permissions(&users, fs::Permissions::from_mode(0o644)).expect("mode");
    let mut command = bare_command(&dir, "tael");
    command.args(["broker", "--listen", "127.0.0.1:0", "--print-url"]);
    command.arg("--data").arg(&data).arg("--users").arg(&users);
    let mut broker = common::spawn(&dir, command.stdout(Stdio::piped()));
    let url = line(&mut BufReader::new(
        broker.child.stdout.take().expect("stdout"),
    ));
    assert!(broker.log_text().contains("users: chmod 600 it"));
    let mut message = bare_command(&dir, "tael-message");
    message.args(["--broker", &url, "-u", "ann", "-t", "lab/a", "--retain"]);
    let (code, _, stderr) = ran(message.env("TAEL_PASSWORD", "secret"));
    assert_eq!(code, 0, "{stderr}");
    broker.stop();
    let mut files = 0;
    let mut folders = vec![data];
    while let Some(folder) = folders.pop() {
        let mode = |path: &std::path::Path| fs::metadata(path).expect("mode").permissions().mode();
        assert_eq!(mode(&folder) & 0o777, 0o700, "{folder:?}");
        for entry in fs::read_dir(&folder).expect("folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                assert_eq!(mode(&path) & 0o777, 0o600, "{path:?}");
                files += 1;
            }
        }
    }
    assert!(files > 0, "it has kept something");
}

/// A part of the demo may hang when it is told to end.
#[test]
fn a_demo_ends_although_a_part_of_it_does_not() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().to_str().expect("path").to_owned();
    let mut demo = demo(&dir);
    // The first part is there for a moment only.
    let is_beacon = |pid: &i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains("\0beacon\0")
    };
    let part = loop {
        assert!(demo.try_wait().expect("demo").is_none(), "no part was seen");
        if let Some(part) = children_of(demo.id()).into_iter().find(is_beacon) {
            break part;
        }
    };
    kill(Pid::from_raw(part), Signal::SIGSTOP).expect("the part is there");
    kill(Pid::from_raw(demo.id().cast_signed()), Signal::SIGTERM).expect("signal");
    wait_until("the demo ends", || demo.try_wait().expect("demo").is_some());
    wait_until("nothing of it runs", || processes_of(&path).is_empty());
}

/// Returns the processes whose environment names `dir`.
pub fn processes_of(dir: &str) -> Vec<String> {
    let all = fs::read_dir("/proc").expect("proc").flatten();
    let ours = all.filter(|entry| {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(dir)
    });
    ours.map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn demo(dir: &tempfile::TempDir) -> Child {
    let mut command = bare_command(dir, "tael");
    // The demo ignores the settings for the real broker.
    command
        .arg("demo")
        .env("TAEL_HOST", "nowhere.invalid")
        .env("TAEL_CLIENT_WHO", "x");
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("demo")
}

#[test]
fn the_demo_shows_the_chain_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().to_str().expect("path").to_owned();
    let output = demo(&dir).wait_with_output().expect("demo");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(
        text.lines()
            .all(|line| line.len() < 200 && !line.contains('\x1b')),
        "{text}"
    );
    assert!((5..=40).contains(&text.lines().count()), "{text}");
    let mut rest = text.as_str();
    for part in [
        "demo/test/beacon/status",
        "sample=S1",
        "started",
        "demo/…/align/status",
        "finished",
        "demo/…/align/status",
        "started",
        "demo/…/report/status",
        "finished",
        "demo/…/report/status",
        "done",
    ] {
        rest = rest
            .split_once(part)
            .unwrap_or_else(|| panic!("{part} after the others in:\n{text}"))
            .1;
    }
    wait_until("nothing of it runs", || processes_of(&path).is_empty());
    let left: Vec<_> = fs::read_dir(dir.path().join("state"))
        .expect("state")
        .collect();
    assert!(left.is_empty(), "{left:?}");
    // No process is left either when it is interrupted.
    let mut half = demo(&dir);
    let stdout = half.stdout.take().expect("stdout");
    let mut lines = BufReader::new(stdout).lines();
    assert!(lines.next().is_some());
    kill(Pid::from_raw(half.id().cast_signed()), Signal::SIGINT).expect("signal");
    assert_eq!(half.wait().expect("demo").code(), Some(130));
    wait_until("nothing of it runs", || processes_of(&path).is_empty());
    let left: Vec<_> = fs::read_dir(dir.path().join("state"))
        .expect("state")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Runs `command` by a shell with the redirection `how`, and returns its exit code and stderr.
fn redirected(command: &Command, how: &str) -> (i32, String) {
    let mut sh = Command::new("sh");
    sh.args(["-c", &format!(r#"exec "$0" "$@" {how}"#)])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => sh.env(name, value),
            None => sh.env_remove(name),
        };
    }
    let (code, stdout, stderr) = ran(&mut sh);
    assert_eq!(stdout, "");
    (code, stderr)
}

#[test]
fn a_tool_says_that_its_output_is_closed() {
    let world = World::new();
    let answer = [
        "-t",
        "lab/ask",
        "--when",
        "",
        "--reply",
        "-c",
        "echo answer",
    ];
    let client = world.client("w", &answer);
    let mut ask = world.command("tael-message");
    ask.args(["-t", "lab/ask", "--reply", "--timeout", "20s"]);
    let mut message = world.command("tael-message");
    message.args(["-t", "lab/else"]);
    let list = world.tael(["work", "list"]);
    let pair = world.tael(["pair", "p", "--root", "lab", "--timeout", "20s"]);
    let commands = world.tael(["completions", "bash"]);
    // There is a run to list.
    assert_eq!(redirected(&ask, ">/dev/null").0, 0);
    for command in [&ask, &list, &pair, &commands] {
        let (code, stderr) = redirected(command, ">&-");
        assert_eq!(code, 73, "{command:?}: {stderr}");
        assert!(
            stderr.contains("write to stdout: Bad file descriptor"),
            "{stderr}"
        );
    }
    // What would only be said afterwards is not done.
    let topic = "lab/infrastructure/nodes/n/presence";
    let presence = r#"{"state":"lost","node":"n","ts":1}"#;
    let lost = r#"{"state":"lost","who":"gone"}"#;
    for (topic, payload) in [
        (topic, presence),
        ("lab/infrastructure/pipelines/gone/presence", lost),
    ] {
        retain(&world, topic, payload);
    }
    for words in [
        &["facts", "forget", "n", "--root", "lab"][..],
        &["forget", "gone", "--root", "lab"],
        &["control", "w", "pause", "--root", "lab"],
        &["message", "-t", "lab/kept", "--if-changed", "a=b"],
    ] {
        let (code, stderr) = redirected(&world.tael(words), ">&-");
        assert_eq!(code, 73, "{words:?}: {stderr}");
    }
    let kept = json_of(&mut world.tael(["facts", "show", "n", "--json", "--root", "lab"]));
    assert_eq!(kept[0]["state"], "lost");
    let status = world.tael(["status", "--json", "--root", "lab"]).output();
    let status = String::from_utf8(status.expect("status").stdout).expect("text");
    assert!(
        status.contains("\"who\":\"gone\"") && !status.contains("paused"),
        "{status}"
    );
    let ears = world.ears(&["lab/kept", "lab/after"]);
    world.message("lab/after", &[]);
    ears.wait("the later one", |m| m.topic == "lab/after");
    assert_eq!(ears.all().len(), 1);
    // One that has nothing to print does its work, and a null device takes everything.
    for (command, how) in [
        (&message, ">&-"),
        (&ask, ">/dev/null"),
        (&ask, "1<>/dev/null"),
        (&list, "1<>/dev/null"),
    ] {
        let (code, stderr) = redirected(command, how);
        assert_eq!(code, 0, "{command:?} {how}: {stderr}");
    }
    client.stop();
}
