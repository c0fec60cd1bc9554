//! Playbooks over nodes: their order, their statuses, and that no text of a sender is evaluated.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use crate::common::ports::free_port;
use crate::common::{Process, World, ran, refuses, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Functions as users of MQTT-Orchestrate write them. A `sleep` replaces their long program.
const FUNCTIONS: &str = r#"
initFunction() { echo "init" >>"$OUT/calls"; }
startFunction() {
    # In one write: other nodes write there too.
    echo "start$(printf ' <%s>' "$@")" >>"$OUT/calls"
    sleep 600 &
    LAST_PID=$!
}
stopFunction() { echo "stop" >>"$OUT/calls"; kill "$LAST_PID"; }
"#;

/// The sample playbook of MQTT-Orchestrate.
const SAMPLE: &str = "\
# WAITFOR node3 ALIVE
WAITFOR node1 ALIVE
WAITFOR node2 ALIVE
SEND node2 START 5201
# SEND node2 START 5202
SEND node1 START 127.0.0.1 5201 2 3
# SEND node3 START 127.0.0.1 5202 5 3
WAIT 4
SEND node2 STOP
WAITFOR node2 STOPPED
RECEIVE 6000 test.txt
SEND node2 SENDFILE /tmp/mqttnode2.tmp 192.168.139.239 6000 NOTRUNCATE
WAIT 2
SEND node1 TERMINATE
SEND node2 TERMINATE
# SEND node3 TERMINATE
WAITFOR node2 TERMINATED
WAITFOR node1 TERMINATED
# WAITFOR node3 TERMINATED
";

fn node_with(world: &World, name: &str, functions: &str, more: &[&str]) -> Process {
    let file = world.path(&format!("{name}.sh"));
    fs::write(&file, functions).expect("functions");
    let mut command = world.command("tael");
    command.args(["node", name, "--root", "lab", "--functions"]);
    command.arg(&file).args(more);
    world.spawn(command)
}

fn node(world: &World, name: &str) -> Process {
    node_with(world, name, FUNCTIONS, &[])
}

fn play_command(world: &World, text: &str) -> Command {
    let file = world.path("playbook");
    fs::write(&file, text).expect("playbook");
    let mut command = world.tael(["play", "--root", "lab", "--timeout", "30s"]);
    command.arg(file).current_dir(world.dir.path());
    command
}

/// Plays `text`, and returns the exit code and everything that was printed.
fn play(world: &World, text: &str) -> (i32, String) {
    let (code, out, stderr) = ran(play_command(world, text).env("TAEL_LOG", "warn"));
    (code, out + &stderr)
}

#[test]
fn the_sample_of_the_original_plays() {
    let world = World::new();
    let dir = world.dir.path().to_str().expect("path").to_owned();
    let first = node(&world, "node1");
    let second = node_with(&world, "node2", FUNCTIONS, &["--allow-dir", &dir]);
    let result = world.path("mqttnode2.tmp");
    fs::write(&result, "measured").expect("result");
    let port = free_port();
    // Only the file, the address and the port differ from the original.
    let sample = SAMPLE
        .replace("/tmp/mqttnode2.tmp", &result.display().to_string())
        .replace("192.168.139.239", "127.0.0.1")
        .replace("6000", &port.to_string());
    let (code, out) = play(&world, &sample);
    assert_eq!(code, 0, "{out}");
    assert_eq!(
        out.lines().count(),
        15,
        "a line each, and the result: {out}"
    );
    let last = out.lines().last().expect("result");
    assert!(last.starts_with("done: 14 steps in "), "{last}");
    for mut node in [first, second] {
        assert_eq!(node.wait(), 0);
    }
    let received = fs::read_to_string(world.path("test.txt")).expect("test.txt");
    assert_eq!(received, "measured");
    assert_eq!(fs::read_to_string(&result).expect("result"), "measured");
    let calls = world.lines("calls");
    for call in [
        "init",
        "start <5201>",
        "start <127.0.0.1> <5201> <2> <3>",
        "stop",
    ] {
        assert!(calls.contains(&call.to_owned()), "{call} in {calls:?}");
    }
}

#[test]
fn what_a_node_said_yesterday_answers_nothing() {
    let world = World::new();
    let stale = [
        "message",
        "-t",
        "lab/n/STATUS",
        "--retain",
        "--attr",
        "x",
        "STOPPED",
    ];
    assert_eq!(ran(&mut world.tael(stale)).0, 0);
    let text = "SEND n STOP\nWAITFOR n STOPPED TIMEOUT 500ms\n";
    let (code, out) = play(&world, text);
    assert_eq!(code, 75, "{out}");
    assert!(
        out.contains("timed out after 500ms: n last said '"),
        "{out}"
    );
}

#[test]
fn commands_sent_at_once_are_done_in_order_and_statuses_have_no_gaps() {
    let world = World::new();
    let functions = r#"
        startFunction() { sleep 0.2; echo "start $1 $COUNT" >>"$OUT/calls"; COUNT=$((COUNT + 1)); }
        stopFunction() { echo "stop $COUNT" >>"$OUT/calls"; }
    "#;
    let ears = world.ears(&["lab/n/STATUS"]);
    let _node = node_with(&world, "n", functions, &[]);
    let text = "WAITFOR n ALIVE\nSEND n START 1\nSEND n START 2\nSEND n STOP\n\
                WAITFOR n STARTED\nWAITFOR n STOPPED\n";
    let (code, out) = play(&world, text);
    assert_eq!(code, 0, "{out}");
    assert_eq!(world.lines("calls"), ["start 1 ", "start 2 1", "stop 2"]);
    ears.wait_all("its last word", |all| {
        all.iter().any(|m| m.payload == "STOPPED").then_some(())
    });
    let said = ears.all().into_iter().map(|m| m.payload);
    let said: Vec<String> = said.filter_map(|p| p.as_str().map(str::to_owned)).collect();
    let said: Vec<&str> = said.iter().map(String::as_str).collect();
    let start = ["Command START received", "STARTED"];
    let all = [
        &["ALIVE"][..],
        &start,
        &start,
        &["Command STOP received", "STOPPED"],
    ]
    .concat();
    assert_eq!(
        said.iter()
            .filter(|s| !s.is_empty())
            .copied()
            .collect::<Vec<_>>(),
        all
    );
}

#[test]
fn a_node_that_is_killed_fails_the_wait_at_once() {
    let world = World::new();
    let mut node = node(&world, "n");
    let text = "WAITFOR n ALIVE\nSEND n START\nWAITFOR n STARTED\nWAITFOR n STOPPED TIMEOUT 10m\n\
                ON FAILURE RUN echo cleaned >>\"$OUT/cleaned\"\n";
    let mut command = play_command(&world, text);
    command.stdout(fs::File::create(world.path("out")).expect("out"));
    let mut playing = command.spawn().expect("play");
    let shown = || fs::read_to_string(world.path("out")).unwrap_or_default();
    wait_until("it waits", || shown().contains("WAITFOR n STARTED: "));
    node.child.kill().expect("kill");
    assert_eq!(playing.wait().expect("play").code(), Some(69));
    assert!(shown().contains("n is lost"), "{}", shown());
    assert_eq!(world.lines("cleaned"), ["cleaned"]);
    // Its commands end with the node.
    let mark = format!("OUT={}", world.dir.path().display());
    wait_until("nothing is left", || {
        !fs::read_dir("/proc").expect("proc").flatten().any(|entry| {
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            let mut entries = environment.split(|b| *b == 0);
            name == "sleep\n" && entries.any(|entry| entry == mark.as_bytes())
        })
    });
}

#[test]
fn a_function_that_fails_says_so_and_one_that_ends_the_shell_costs_only_itself() {
    let world = World::new();
    let functions = r#"
        startFunction() { [ "$1" != exit ] || exit 4; return "$1"; }
        stopFunction() { :; }
    "#;
    let _node = node_with(&world, "n", functions, &[]);
    let (code, out) = play(
        &world,
        "WAITFOR n ALIVE\nSEND n START 3\nWAITFOR n STARTED\n",
    );
    assert_eq!(code, 3, "{out}");
    let cause = "n last said 'FAILED 3': the command ended with 3\n";
    assert!(out.contains(cause), "{out}");
    let last = "\nfailed at line 3, after 2 of 3 steps, with 3\n";
    assert!(out.ends_with(last), "{out}");
    let (code, out) = play(
        &world,
        "SEND n START exit\nWAITFOR n FAILED\nSEND n STOP\nWAITFOR n STOPPED\n",
    );
    assert_eq!(code, 0, "{out}");
}

#[test]
fn nothing_of_a_sender_is_evaluated() {
    let world = World::new();
    let node = node(&world, "n");
    let ears = world.ears(&["lab/n/STATUS"]);
    let (code, out) = play(&world, "WAITFOR n ALIVE\n");
    assert_eq!(code, 0, "{out}");
    let pwned = world.path("pwned");
    let mark = pwned.display();
    let hostile = [
        format!("START ; touch {mark}"),
        format!("START $(touch {mark}) `touch {mark}` ${{X:=$(touch {mark})}}"),
        format!("START a\ntouch {mark}"),
        format!("START \"a\\\"; touch {mark}\""),
        format!("START -n -e \\$(touch {mark}) && touch {mark} || touch {mark} | touch {mark}"),
        format!("touch {mark}"),
        format!("startFunction;touch {mark}"),
        format!("START a[$(touch {mark})] '$(touch {mark})'"),
    ];
    for text in &hostile {
        world.publish("lab/n/COMMAND", text, &[]);
    }
    // These are no commands: too long, not text, an open quote, a NUL that would begin another call.
    let bad: [&[u8]; 4] = [
        &[b'x'; 100_000],
        b"START \xff",
        b"START 'a",
        b"START a\x002\0touch\0pwned",
    ];
    for payload in bad {
        world.publish("lab/n/COMMAND", payload, &[]);
    }
    world.publish("lab/n/COMMAND", "TERMINATE", &[]);
    let mut node = node;
    assert_eq!(node.wait(), 0);
    assert!(!pwned.exists());
    assert!(!Path::new("pwned").exists());
    let calls = world.lines("calls");
    assert!(
        calls.contains(&format!("start <;> <touch> <{mark}>")),
        "{calls:?}"
    );
    ears.wait_all("its last word", |all| {
        all.iter().any(|m| m.payload == "TERMINATED").then_some(())
    });
    let refused = ears
        .all()
        .iter()
        .filter(|m| m.payload == "FAILED 65")
        .count();
    assert_eq!(refused, bad.len());
}

#[test]
fn terminate_overtakes_what_waits_and_what_has_no_end() {
    let world = World::new();
    let functions = r#"
        startFunction() { echo "start $1" >>"$OUT/calls"; [ "$1" != endless ] || sleep 1000; }
        stopFunction() { echo stop >>"$OUT/calls"; }
    "#;
    let at = |ahead: i64| (jiff::Timestamp::now().as_millisecond() + ahead).to_string();
    // The first instant is far away, the second one further than is allowed.
    let mut node = node_with(&world, "n", functions, &[]);
    let ears = world.ears(&["lab/n/STATUS"]);
    assert_eq!(play(&world, "WAITFOR n ALIVE\n").0, 0);
    world.publish(
        "lab/n/COMMAND",
        "START late",
        &[("tael-at", &at(3_600_000))],
    );
    ears.wait("it is refused", |m| m.payload == "FAILED 65");
    world.publish("lab/n/COMMAND", "START soon", &[("tael-at", &at(500_000))]);
    world.publish("lab/n/COMMAND", "STOP", &[]);
    world.publish("lab/n/COMMAND", "TERMINATE", &[]);
    assert_eq!(node.wait(), 0);
    // The command that waited behind it has run.
    assert_eq!(world.lines("calls"), ["stop"]);
    // This function does not end.
    let mut node = node_with(&world, "n", functions, &["--grace", "100ms"]);
    assert_eq!(play(&world, "WAITFOR n ALIVE\n").0, 0);
    world.publish("lab/n/COMMAND", "START endless", &[]);
    wait_until("it has started", || world.lines("calls").len() == 2);
    world.publish("lab/n/COMMAND", "STOP", &[]);
    world.publish("lab/n/COMMAND", "TERMINATE", &[]);
    assert_eq!(node.wait(), 0);
    assert_eq!(world.lines("calls"), ["stop", "start endless"]);
}

/// The end of what a node has started may take longer than the broker waits for a sign of the node.
#[test]
fn a_node_that_ends_slowly_is_heard_meanwhile() {
    let world = World::new();
    let functions = r#"
        startFunction() { (trap '' TERM; echo "$BASHPID" >>"$OUT/pid"; exec sleep 1000) & }
        stopFunction() { :; }
    "#;
    let mut node = node_with(&world, "n", functions, &["--grace", "10m"]);
    let ears = world.ears(&["lab/n/STATUS"]);
    assert_eq!(
        play(&world, "WAITFOR n ALIVE\nSEND n START\nWAITFOR n STARTED\n").0,
        0
    );
    wait_until("it has started", || world.lines("pid").len() == 1);
    world.publish("lab/n/COMMAND", "TERMINATE", &[]);
    ears.wait("it has heard it", |m| {
        m.payload == "Command TERMINATE received"
    });
    assert!(node.child.try_wait().expect("node").is_none(), "it waits");
    let pid = world.lines("pid").remove(0).parse().expect("pid");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill");
    assert_eq!(node.wait(), 0);
    ears.wait("it has ended", |m| m.payload == "TERMINATED");
}

#[test]
fn files_leave_only_the_folders_that_were_named_and_are_emptied_only_when_taken() {
    let world = World::new();
    let (inside, outside) = (world.path("in"), world.path("out"));
    for folder in [&inside, &outside] {
        fs::create_dir(folder).expect("folder");
        fs::write(folder.join("file"), "x".repeat(1 << 20)).expect("file");
    }
    let allow = inside.to_str().expect("path");
    let _node = node_with(&world, "n", FUNCTIONS, &["--allow-dir", allow]);
    let file = |folder: &Path| folder.join("file").display().to_string();
    let (good, bad) = (file(&inside), file(&outside));
    // The file is refused, and not read.
    let text = format!("WAITFOR n ALIVE\nSEND n SENDFILE {bad} 127.0.0.1 1\nWAITFOR n FAILED\n");
    assert_eq!(play(&world, &text).0, 0);
    // No program takes the file, so it stays as it is.
    let port = free_port();
    let text = format!("SEND n SENDFILE {good} 127.0.0.1 {port} TRUNCATE\nWAITFOR n SENT\n");
    let (code, out) = play(&world, &text);
    assert_eq!(code, 69, "{out}");
    assert_eq!(fs::metadata(&good).expect("file").len(), 1 << 20);
    // A program without Tael takes it.
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    let taker = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("read");
        bytes.len()
    });
    let text = format!("SEND n SENDFILE {good} 127.0.0.1 {port} TRUNCATE\nWAITFOR n SENT FILE\n");
    let (code, out) = play(&world, &text);
    assert_eq!(code, 0, "{out}");
    assert_eq!(taker.join().expect("taker"), 1 << 20);
    assert_eq!(
        fs::metadata(&good).expect("file").len(),
        0,
        "taken, and emptied"
    );
    // A program without Tael sends a file to a playbook, which writes into its folders only.
    let (code, out) = play(&world, "RECEIVE 6000 /etc/nothing\n");
    assert_eq!(code, 73, "{out}");
    let port = free_port();
    let mut command = play_command(&world, &format!("RECEIVE {port} taken\n"));
    let mut playing = command.spawn().expect("play");
    let mut sent = None;
    wait_until("it listens", || {
        sent = TcpStream::connect(("127.0.0.1", port)).ok();
        sent.is_some()
    });
    // A connection without data is ignored.
    drop(sent.take());
    wait_until("it listens still", || {
        sent = TcpStream::connect(("127.0.0.1", port)).ok();
        sent.is_some()
    });
    let mut stream = sent.expect("stream");
    stream.write_all(b"plain").expect("write");
    drop(stream);
    assert_eq!(playing.wait().expect("play").code(), Some(0));
    assert_eq!(
        fs::read_to_string(world.path("taken")).expect("taken"),
        "plain"
    );
}

#[test]
fn nodes_may_be_lines_of_a_configuration() {
    let world = World::new();
    let file = world.path("node.toml");
    let text = r#"
        root = "lab"
        [command.START]
        run = 'echo "start $1 $2" >>"$OUT/calls"; exec sleep 600'
        background = true
        [command.MEASURE]
        run = '''
            until grep -q start "$OUT/calls"; do sleep 0.01; done
            echo "measure $*" >>"$OUT/calls"; return "$1"'''
        status = "MEASURED"
    "#;
    fs::write(&file, text).expect("file");
    let mut command = world.tael(["node", "n", "--config"]);
    let mut node = world.spawn({
        command.arg(&file);
        command
    });
    let text = "WAITFOR n ALIVE\nSEND n START 'a b' $(id)\nWAITFOR n STARTED\nSEND n MEASURE 0 x\n\
                WAITFOR n MEASURED\nSEND n STOP\nWAITFOR n STOPPED\nSEND n TERMINATE\n\
                WAITFOR n TERMINATED\n";
    let (code, out) = play(&world, text);
    assert_eq!(code, 0, "{out}");
    assert_eq!(node.wait(), 0);
    assert_eq!(world.lines("calls"), ["start a b $(id)", "measure 0 x"]);
    fs::write(&file, "[command.START]\nruns = 'x'\n").expect("file");
    let mut command = world.tael(["node", "n", "--config"]);
    refuses(command.arg(&file), 78, "unknown key 'runs'");
}

#[test]
fn a_node_that_has_ended_is_not_waited_for() {
    let world = World::new();
    let mut first = node(&world, "n");
    let end = "WAITFOR n ALIVE\nSEND n TERMINATE\nWAITFOR n TERMINATED\n";
    assert_eq!(play(&world, end).0, 0);
    assert_eq!(first.wait(), 0);
    for (text, line) in [
        ("SEND n START\n", "line 1: SEND n START"),
        ("WAITFOR n STARTED\n", "line 1: WAITFOR n STARTED"),
        ("RUN true\nSEND n STOP\n", "line 2: SEND n STOP"),
    ] {
        let (code, out) = play(&world, text);
        assert_eq!(code, 69, "{out}");
        let cause = "failed: n has ended (its STATUS is TERMINATED): start it with 'tael node'";
        assert!(out.contains(&format!("{line}: {cause}")), "{out}");
    }
    // A node that has ended is as these steps want it.
    let again = "SEND n TERMINATE\nWAITFOR n TERMINATED\n";
    let (code, out) = play(&world, again);
    assert_eq!(code, 0, "{out}");
    let _second = node(&world, "n");
    let text = "WAITFOR n ALIVE\nSEND n START 1\nWAITFOR n STARTED\n";
    let (code, out) = play(&world, text);
    assert_eq!(code, 0, "{out}");
}

#[test]
fn a_node_that_is_asked_for_too_much_goes_on() {
    let world = World::new();
    let functions = r#"
        startFunction() {
            case $1 in
                # Leaves something that holds whatever it has inherited.
                leave) ( sleep 600; true ) & exit 3 ;;
                *) echo "start $1" >>"$OUT/calls" ;;
            esac
        }
        stopFunction() { echo stop >>"$OUT/calls"; }
    "#;
    let dir = world.path("in");
    fs::create_dir(&dir).expect("folder");
    let fifo = dir.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).expect("fifo");
    let _node = node_with(
        &world,
        "n",
        functions,
        &["--allow-dir", dir.to_str().expect("path")],
    );
    let ears = world.ears(&["lab/n/STATUS"]);
    let (code, out) = play(&world, "WAITFOR n ALIVE\n");
    assert_eq!(code, 0, "{out}");
    for at in [i64::MIN.to_string(), i64::MAX.to_string()] {
        world.publish("lab/n/COMMAND", "START at", &[("tael-at", &at)]);
    }
    // Otherwise they would answer the first command of the playbook.
    for status in ["FAILED 65", "STARTED"] {
        ears.wait(status, |m| m.payload == status);
    }
    let text = format!(
        "SEND n SENDFILE {} 127.0.0.1 1\nWAITFOR n FAILED 77\nSEND n START leave\n\
         WAITFOR n FAILED 125\nSEND n BOGUS\nWAITFOR n FAILED 127\nSEND n STOP\nWAITFOR n STOPPED\n",
        fifo.display()
    );
    let (code, out) = play(&world, &text);
    assert_eq!(code, 0, "{out}");
    assert_eq!(world.lines("calls"), ["start at", "stop"]);
    // The node is alive, also if its last status is another one.
    assert_eq!(play(&world, "WAITFOR n ALIVE TIMEOUT 5s\n").0, 0);
}

#[test]
fn what_goes_on_in_the_background_ends_with_stop() {
    let world = World::new();
    let file = world.path("node.toml");
    let text = "[command.START]\nrun = 'echo $BASHPID >>\"$OUT/pids\"; sleep 600; true'\nbackground = true\n";
    fs::write(&file, text).expect("file");
    let mut command = world.tael(["node", "n", "--root", "lab", "--config"]);
    command.arg(&file);
    let _node = world.spawn(command);
    let text = "WAITFOR n ALIVE\nSEND n START\nWAITFOR n STARTED\n";
    assert_eq!(play(&world, text).0, 0);
    wait_until("it runs", || !world.lines("pids").is_empty());
    let group = world.lines("pids")[0].parse().expect("pid");
    assert_eq!(play(&world, "SEND n STOP\nWAITFOR n STOPPED\n").0, 0);
    let group = nix::unistd::Pid::from_raw(group);
    wait_until("all of it has ended", || {
        nix::sys::signal::killpg(group, None).is_err()
    });
}

#[test]
fn the_examples_are_sound() {
    let world = World::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/playbook");
    let file = |name: &str| folder.join(name);
    let (code, out, stderr) = ran(world.tael(["play", "--check"]).arg(file("wifi.play")));
    assert_eq!((code, out.as_str()), (0, ""), "{stderr}");
    for script in ["server.sh", "client.sh", "deploy.sh"] {
        let (code, _, stderr) = ran(Command::new("bash").arg("-n").arg(file(script)));
        assert_eq!(code, 0, "{stderr}");
    }
}

#[test]
fn a_playbook_is_read_whole_before_anything_is_sent() {
    let world = World::new();
    let ears = world.ears(&["lab/n/COMMAND"]);
    let mut command = play_command(&world, "SEND n START\n\nWAIT soon\n");
    refuses(
        &mut command,
        65,
        "line 3, column 6: 'soon' is not a duration",
    );
    // A check connects to no broker.
    let mut command = play_command(&world, "SEND n START\nWAIT 1");
    let (code, out, stderr) = ran(command.args(["--check", "-p", "1"]));
    assert_eq!((code, out.as_str(), stderr.as_str()), (0, "", ""));
    let mut command = play_command(&world, "HELLO\nWAIT 0.01");
    let (code, out, _) = ran(command.args(["--check", "--lenient"]));
    assert_eq!((code, out.as_str()), (0, "line 1: ignored: HELLO\n"));
    refuses(
        &mut world.tael(["play", "/no/such/file"]),
        78,
        "/no/such/file",
    );
    refuses(&mut world.tael(["play", "/dev/zero"]), 65, "more than");
    world.message("lab/n/COMMAND", &[]);
    ears.wait_all("the witness", |all| (!all.is_empty()).then_some(()));
    assert_eq!(ears.all().len(), 1, "nothing was sent");
}

#[test]
fn pipelines_take_part_and_reports_are_written() {
    let world = World::new();
    let client = world.client(
        "align",
        &["-t", "lab/seq/status", "-c", r#"exit "$ATTR_CODE""#],
    );
    let text = "SET CODE 0\nRAISE align CODE=$CODE\nWAITFOR align finished\nRUN exit 0\n";
    let report = world.path("report.json");
    let mut command = play_command(&world, text);
    let (code, out, stderr) = ran(command.arg("--report").arg(&report));
    assert_eq!(code, 0, "{out}{stderr}");
    let report: Value = serde_json::from_slice(&fs::read(report).expect("report")).expect("json");
    assert_eq!(report["held"], true);
    assert_eq!(report["steps"][1]["step"], "WAITFOR align finished");
    let report = world.path("report.xml");
    let mut command = play_command(&world, "RAISE align CODE=5\nWAITFOR align finished\n");
    assert_eq!(ran(command.arg("--report").arg(&report)).0, 5);
    let xml = fs::read_to_string(report).expect("report");
    assert!(xml.contains("failures=\"1\""), "{xml}");
    let (code, _) = play(
        &world,
        "RUN exit 9\nON FAILURE RUN echo x >>\"$OUT/cleaned\"\n",
    );
    assert_eq!((code, world.lines("cleaned").len()), (9, 1));
    let (code, out) = play(&world, "RAISE nobody\n");
    assert_eq!(code, 75, "{out}");
    client.stop();
}

/// Starts a playbook that starts `n` and then waits without end, and returns when it waits.
fn endless(world: &World, more: &[&str]) -> Process {
    let text = "WAITFOR n ALIVE\nSEND n START\nWAITFOR n STARTED\nWAITFOR n STOPPED TIMEOUT 10m\n";
    let mut command = play_command(world, text);
    let out = fs::File::create(world.path("out")).expect("out");
    command.args(more).env("TAEL_LOG", "warn").stdout(out);
    let playing = world.spawn(command);
    wait_until("it waits", || {
        let shown = fs::read_to_string(world.path("out")).unwrap_or_default();
        shown.contains("WAITFOR n STARTED: ")
    });
    playing
}

#[test]
fn whoever_interrupts_a_playbook_stops_what_runs_and_keeps_the_nodes() {
    let world = World::new();
    let node = node(&world, "n");
    let mut playing = endless(&world, &[]);
    playing.signal(Signal::SIGINT);
    assert_eq!(playing.wait(), 130);
    let shown = fs::read_to_string(world.path("out")).expect("out");
    let last = shown.lines().last().expect("result");
    assert_eq!(last, "interrupted at line 4, after 3 of 4 steps; stopped n");
    assert_eq!(world.lines("calls"), ["init", "start <>", "stop"]);
    // The node takes the commands of the next playbook.
    let text =
        "WAITFOR n ALIVE\nSEND n START 2\nWAITFOR n STARTED\nSEND n STOP\nWAITFOR n STOPPED\n";
    let (code, out) = play(&world, text);
    assert_eq!(code, 0, "{out}");
    node.stop();
}

#[test]
fn a_second_interruption_ends_the_nodes_and_so_does_terminate() {
    let world = World::new();
    // The command needs some time to stop.
    let functions = r#"
        startFunction() { echo start >>"$OUT/calls"; }
        stopFunction() { sleep 600; }
    "#;
    let mut first = node_with(&world, "n", functions, &["--grace", "100ms"]);
    let mut playing = endless(&world, &[]);
    playing.signal(Signal::SIGINT);
    wait_until("it stops what runs", || {
        let shown = fs::read_to_string(world.path("out")).unwrap_or_default();
        shown.contains("stopping what runs on n; Ctrl-C again ends these nodes")
    });
    playing.signal(Signal::SIGINT);
    assert_eq!(playing.wait(), 130);
    assert_eq!(first.wait(), 0, "it was told to end");
    let shown = fs::read_to_string(world.path("out")).expect("out");
    let last = "interrupted at line 4, after 3 of 4 steps; ended n";
    assert_eq!(shown.lines().last(), Some(last));
    let mut second = node(&world, "n");
    let mut playing = endless(&world, &["--terminate"]);
    playing.signal(Signal::SIGINT);
    assert_eq!(playing.wait(), 130);
    assert_eq!(second.wait(), 0, "it was told to end");
}

#[test]
fn a_check_lists_all_mistakes_and_parses_functions() {
    let world = World::new();
    let text = "SEND n START AT soon\nSEEK n\nWAIT 1\n  WAIT later\n";
    let mut command = play_command(&world, text);
    let (code, out, stderr) = ran(command.args(["--check", "-p", "1"]));
    assert_eq!((code, out.as_str()), (65, ""));
    let places: Vec<&str> = stderr
        .lines()
        .map(|line| line.split(": ").nth(2).expect("place"))
        .collect();
    let want = ["line 1, column 8", "line 2, column 1", "line 4, column 8"];
    assert_eq!(places, want, "{stderr}");
    let check = |functions: &str| {
        let file = world.path("checked.sh");
        fs::write(&file, functions).expect("functions");
        let mut command = world.tael(["node", "n", "--root", "lab", "--check", "--functions"]);
        ran(command.arg(file))
    };
    assert_eq!(check("startFunction() { touch \"$OUT/ran\"; }\n").0, 0);
    let (code, _, stderr) = check("touch \"$OUT/ran\"\nstartFunction() { if; }\n");
    assert_eq!(code, 78, "{stderr}");
    assert!(
        stderr.contains("checked.sh: line 2: ") && stderr.lines().count() == 1,
        "{stderr}"
    );
    assert!(!world.path("ran").exists(), "nothing is run");
    let file = world.path("node.toml");
    let text = "[command.A]\nrun = 'if'\n[command.B]\nrun = 'true'\n[command.C]\nrun = '\"'\n";
    fs::write(&file, text).expect("file");
    let mut command = world.tael(["node", "n", "--root", "lab", "--check", "--config"]);
    let (code, _, stderr) = ran(command.arg(file));
    assert_eq!(code, 78, "{stderr}");
    let lines: Vec<&str> = stderr.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].contains("command A: ") && lines[1].contains("command C: "),
        "{stderr}"
    );
}

#[test]
fn nodes_begin_at_one_instant() {
    let world = World::new();
    let functions = r#"startFunction() { echo "$EPOCHREALTIME" >>"$OUT/begun"; }"#;
    let names = ["a", "b", "c"];
    let _nodes = names.map(|name| node_with(&world, name, functions, &[]));
    let text = "WAITFOR a,b,c ALIVE\nSEND a,b,c START AT +400ms\nWAITFOR a,b,c STARTED\n";
    let begun = jiff::Timestamp::now().as_millisecond() as f64 / 1000.0;
    let (code, out) = play(&world, text);
    assert_eq!(code, 0, "{out}");
    for time in world.lines("begun") {
        let time: f64 = time.replace(',', ".").parse().expect("time");
        assert!(time >= begun + 0.4, "{time} is not before the instant");
    }
}

/// Returns the command that runs a script of `tests/interop` with the broker of the test.
fn script(world: &World, name: &str) -> Command {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/interop")
        .join(name);
    let mut command = Command::new("bash");
    command.arg(path).arg(world.broker.port().to_string());
    command.args(["lab", "n"]);
    command
}

#[test]
fn nodes_and_controllers_of_shell_scripts_are_understood() {
    let there = |program: &str| Command::new(program).arg("--help").output().is_ok();
    let able = there("mosquitto_pub") && there("mosquitto_sub");
    assert!(
        able || std::env::var_os("CI").is_none(),
        "mosquitto's clients are needed"
    );
    if !able {
        return eprintln!("not run: mosquitto's clients are not installed");
    }
    let world = World::new();
    let mut node = world.spawn(script(&world, "node.sh"));
    let text = "WAITFOR n ALIVE\nSEND n START 5201\nWAITFOR n STARTED\nSEND n STOP\n\
                WAITFOR n STOPPED\nSEND n TERMINATE\nWAITFOR n TERMINATED\n";
    let (code, out) = play(&world, text);
    assert_eq!(code, 0, "{out}");
    assert_eq!(node.wait(), 0);

    let world = World::new();
    let mut node = self::node(&world, "n");
    let (code, out, stderr) = ran(&mut script(&world, "controller.sh"));
    assert_eq!(code, 0, "{out}{stderr}{}", node.log_text());
    assert_eq!(out, "ALIVE\nSTARTED\nSTOPPED\nTERMINATED\n");
    assert_eq!(node.wait(), 0);
}
