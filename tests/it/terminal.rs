//! Screens: what our commands show on a terminal.

use std::process::Command;

use crate::common::pty::{Terminal, golden, masked};
use crate::common::raw::{self, Raw};
use crate::common::{World, bare_command, ran, wait_until};
use serde_json::{Value, json};

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[test]
fn the_kit_shows_what_a_terminal_shows() {
    let script = r#"
        [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && stty size
        printf 'plain \033[32mgreen\033[0m \033[1;31mbold red\033[0m\n'
        printf 'never seen\r\033[Kdrawn again\n'
        printf '\346\227\245\346\234\254 wide, e\314\201 combined\n'
        printf '%085d\n' 7
        trap 'echo interrupted; exit 3' INT
        echo ready
        while :; do sleep 0.01; done
    "#;
    let mut terminal = Terminal::start(shell(script), 80);
    terminal.wait_for("ready");
    terminal.press("\u{3}");
    let (code, screen) = terminal.end();
    assert_eq!(code, 3, "{screen}");
    golden("kit", &screen);
    assert_eq!(
        masked("at 10:11:12, 7ms of 1.25s", "99:99:99", "12:34:56"),
        "at 12:34:56, 7ms of 1.25s"
    );
    assert_eq!(masked("7ms of 1.25s", "#s", "9s"), "7ms of 9s");
    assert_eq!(masked("127.0.0.1:1883", ":#", ":1"), "127.0.0.1:1");
}

/// The widths at which the screens are compared, and whether with colours.
const LOOKS: [(u16, bool); 3] = [(80, true), (80, false), (120, true)];

/// Shows `command` on each of these terminals, and compares the screens with `NAME-80` and so on.
#[track_caller]
fn looks(
    name: &str,
    command: impl Fn() -> Command,
    mut shown: impl FnMut(u16, bool, Terminal) -> String,
) {
    for (columns, colour) in LOOKS {
        let mut command = command();
        if !colour {
            command.env("NO_COLOR", "1");
        }
        let screen = shown(columns, colour, Terminal::start(command, columns));
        let plain = if colour { "" } else { "-plain" };
        assert!(
            !screen.contains('↩'),
            "a line wraps at {columns}:\n{screen}"
        );
        assert!(colour || !screen.contains('«'), "colours:\n{screen}");
        golden(&format!("{name}-{columns}{plain}"), &screen);
    }
}

/// Text of a stranger: it would clear the screen, and write from right to left.
const HOSTILE: &str = "\u{1b}[2J\u{1b}[31m\u{202e}evil\r\n";

/// Publishes what the broker retains, without the properties of `tael message`: those name this host.
fn retain(world: &World, topic: &str, payload: &str) {
    let mut raw = Raw::connect(world.broker.port());
    let mut packet = raw::publish(topic.as_bytes(), payload.as_bytes(), Some(1), &[], false);
    packet[0] |= 0x01;
    raw.send(&packet);
    assert_eq!(raw.receive().0, 0x40, "PUBACK");
}

#[test]
fn the_status_of_a_network_fits_the_terminal() {
    let world = World::new();
    let now = jiff::Timestamp::now().as_second();
    let pipeline = |who: &str, presence: Value, last: Option<Value>| {
        let prefix = format!("lab/infrastructure/pipelines/{who}");
        retain(&world, &format!("{prefix}/presence"), &presence.to_string());
        if let Some(last) = last {
            let last = json!({"last": last, "last_success": null}).to_string();
            retain(&world, &format!("{prefix}/last"), &last);
        }
    };
    let presence = |state: &str, host: &str, topics: &[&str]| {
        json!({
            "state": state, "host": host, "version": "0.1.0", "since": 5,
            "trigger_count": topics.len(),
            "triggers": [{"name": "default", "topics": topics}],
        })
    };
    let status = "lab/infrastructure/pipelines/align/status";
    let last = |status: &str, code: i32, ago: i64| {
        // In the middle of a minute or an hour, so that the screen does not depend on the second.
        json!({"status": status, "return_code": code, "announce": code != 0,
               "time_elapsed": (status != "falsestart").then_some("0:03:07.654321"),
               "ts": now - ago})
    };
    pipeline(
        "align",
        presence("online", "node7.lab.example", &["lab/seq/status"]),
        Some(last("finished", 0, 3 * 3600 + 2 * 60 + 30)),
    );
    pipeline(
        "call",
        presence("lost", "node8", &[status]),
        Some(last("failed", 137, 26 * 3600 + 1800)),
    );
    pipeline(
        "日本語のパイプライン",
        presence("offline", HOSTILE, &[HOSTILE, "lab/a/b", "lab/c/d/e/f/g"]),
        Some(last("falsestart", 0, 40 * 86_400 + 1800)),
    );
    let mut paused = presence("online", "node7", &[status]);
    paused["paused"] = true.into();
    pipeline("report", paused, None);
    let command = || world.tael(["status", "--root", "lab"]);
    looks("status", command, |_, _, terminal| {
        let (code, screen) = terminal.end();
        assert_eq!(code, 0, "{screen}");
        screen
    });
}

#[test]
fn watched_messages_fit_the_terminal() {
    let world = World::new();
    retain(&world, "lab/ready", r#"{"status":"ready","user":"ann"}"#);
    let align = [("tael-who", "align"), ("tael-host", "node7")];
    let pipelines = "lab/infrastructure/pipelines";
    let presence = r#"{"state":"online","who":"align","host":"node7","triggers":[{"name":"x"}]}"#;
    let hostile = json!({"status": HOSTILE, "k\u{1b}[1m": HOSTILE, "日本": "語 ".repeat(40)});
    let messages = [
        ("lab/seq/status", r#"{"user":"ann","status":"finished","sample":"S1","ts":7}"#.to_owned(), &[][..]),
        ("align/presence", presence.to_owned(), &[]),
        (
            "align/status",
            r#"{"status":"started","announce":false,"reason":"lab/seq/status finished","SAMPLE":"S1","ts":7}"#.to_owned(),
            &align,
        ),
        (
            "align/status",
            r#"{"status":"failed","return_code":3,"announce":true,"time_elapsed":"0:00:01.234567","SAMPLE":"S1","ts":7}"#.to_owned(),
            &align,
        ),
        ("align/last", r#"{"last":{"status":"failed"}}"#.to_owned(), &align),
        ("lab/a/very/long/topic/of/somebody/else/with/many/levels", hostile.to_string(), &[]),
        ("lab/b", format!("no JSON {HOSTILE}"), &[]),
        ("lab/last", r#"{"status":"finished"}"#.to_owned(), &align),
    ];
    let command = || world.tael(["watch", "--root", "lab", "--qos", "1", "--count", "8"]);
    looks("watch", command, |_, _, terminal| {
        terminal.wait_for("lab/ready");
        for (topic, payload, properties) in &messages {
            let topic = match topic.starts_with("lab/") {
                true => (*topic).to_owned(),
                false => format!("{pipelines}/{topic}"),
            };
            world.publish(&topic, payload, properties);
        }
        let (code, screen) = terminal.end();
        assert_eq!(code, 0, "{screen}");
        masked(&screen, "99:99:99", "12:34:56")
    });
}

#[test]
fn a_played_playbook_fits_the_terminal() {
    let world = World::new();
    let functions = world.path("n.sh");
    let text = "startFunction() { [ \"$1\" = 1 ]; }\nstopFunction() { :; }\n";
    std::fs::write(&functions, text).expect("functions");
    let mut command = world.tael(["node", "n", "--root", "lab", "--functions"]);
    command.arg(&functions);
    let _node = world.spawn(command);
    let long = "日本 ".repeat(30);
    let playbook = format!(
        "WAITFOR n ALIVE\nSEND n START 1 {long}\nWAITFOR n STARTED\nSEND n START 2\n\
         WAITFOR n STARTED\nON FAILURE SEND n STOP\n"
    );
    std::fs::write(world.path("playbook"), playbook).expect("playbook");
    let command = || {
        let mut command = world.tael(["play", "--root", "lab"]);
        command.arg(world.path("playbook"));
        command
    };
    looks("play", command, |_, _, terminal| {
        let (code, screen) = terminal.end();
        assert_eq!(code, 1, "{screen}");
        let screen = masked(&screen, ": #ms", ": 9ms");
        masked(&screen, ": #s", ": 9ms")
    });
}

#[test]
#[cfg_attr(not(feature = "embedded-broker"), ignore = "there is no `tael demo`")]
fn the_demo_fits_the_terminal() {
    let dir = tempfile::tempdir().expect("tempdir");
    let command = || {
        let mut command = bare_command(&dir, "tael");
        command
            .args(["demo"])
            .env("USER", "ann")
            .env("LOGNAME", "ann");
        command
    };
    for (columns, colour) in LOOKS {
        let mut command = command();
        if !colour {
            command.env("NO_COLOR", "1");
        }
        let (code, screen) = Terminal::start(command, columns).end();
        assert_eq!(code, 0, "{screen}");
        assert!(
            !screen.contains('↩'),
            "a line wraps at {columns}:\n{screen}"
        );
        assert_eq!(screen.contains('«'), colour, "{screen}");
        // The name of the host decides on the columns.
        for word in [
            "started",
            "finished",
            "align@",
            "report@",
            "/report/status",
            "SAMPLE=S1",
            "status=finished sample=S1",
        ] {
            assert!(screen.contains(word), "{word} in\n{screen}");
        }
        for noise in ["ts=", "last", "presence", "return_code", "date="] {
            assert!(!screen.contains(noise), "{noise} in\n{screen}");
        }
    }
}

#[test]
fn the_list_of_events_fits_the_terminal() {
    let world = World::new();
    let filters = ["lab/seq/status", "lab/+/+/status", "lab/a/#"];
    let arguments = [&["-t"], &filters[..], &["-c", "true", "--envreq", "SAMPLE"]].concat();
    let client = world.client("align", &arguments);
    let wait = |fate: &str| world.wait_report("align", &format!("/events/{fate}"), 1);
    let first = r#"{"status":"finished","SAMPLE":"S1"}"#;
    world.publish("lab/seq/status", first, &[("tael-id", "one")]);
    world.wait_report("align", "/units/succeeded", 1);
    let started = json!({"status": format!("試料{HOSTILE}")}).to_string();
    world.publish("lab/日本語/\u{202e}evil/status", started, &[]);
    wait("ignored");
    world.publish(
        "lab/a/very/long/topic/of/a/sequencer/status",
        "finished",
        &[],
    );
    wait("refused");
    world.publish("lab/seq/status", first, &[("tael-id", "one")]);
    wait("duplicate");
    let (_, list, _) = ran(&mut world.tael(["work", "list"]));
    let unit = list.lines().nth(1).expect("a run")[20..26].to_owned();
    let command = || world.tael(["events", "--who", "align"]);
    looks("events", command, |_, _, terminal| {
        let (code, screen) = terminal.end();
        assert_eq!(code, 0, "{screen}");
        let screen = masked(&screen, "99:99:99", "12:34:56");
        // It stands wherever a line is broken.
        screen.replace(&unit, "4TQ2XN")
    });
    client.stop();
}

#[test]
fn the_answers_of_a_pipeline_fit_the_terminal() {
    let world = World::new();
    let arguments = ["-t", "lab/seq/status", "-c", "sleep 1000", "--jobs", "2"];
    let client = world.client("align", &arguments);
    world.message("lab/seq/status", &[("status", "started")]);
    world.wait_report("align", "/events/ignored", 1);
    for _ in 0..3 {
        world.message("lab/seq/status", &[("status", "finished")]);
    }
    world.wait_report("align", "/waiting", 1);
    wait_until("two run", || {
        world.report("align")["running"][1].is_string()
    });
    world.wait_report("align", "/outbox", 0);
    let command = || world.tael(["control", "align", "status", "--root", "lab"]);
    let host = nix::unistd::gethostname().expect("name");
    let host = host.into_string().expect("text");
    looks("control-status", command, |_, _, terminal| {
        let (code, screen) = terminal.end();
        assert_eq!(code, 0, "{screen}");
        let screen = screen.replace(&format!("host      {host}"), "host      node7");
        // It may be a minute on a machine under load.
        let uptime = screen.lines().find(|line| line.starts_with("uptime    "));
        let screen = screen.replace(uptime.expect("uptime"), "uptime    5s");
        masked(
            &screen,
            "running   @@@@@@ @@@@@@",
            "running   4TQ2XN 5Z0RW1",
        )
    });
    let cancel = || world.tael(["control", "align", "cancel", "--root", "lab"]);
    let running = world.report("align")["running"].clone();
    let mut command = cancel();
    let end = |id: &str| id[id.len() - 6..].to_owned();
    let first = end(running[0].as_str().expect("id"));
    command.arg(&first);
    let (code, screen) = Terminal::start(command, 80).end();
    assert_eq!(
        (code, screen),
        (0, format!("align: canceling unit {first}\n"))
    );
    // Errors have the same short form.
    let whole = running[0].as_str().expect("id");
    wait_until("it is canceled", || {
        let (_, list, _) = ran(&mut world.tael(["work", "list", "--state", "canceled"]));
        list.contains(whole)
    });
    let command = world.tael(["work", "cancel", whole]);
    let (code, screen) = Terminal::start(command, 80).end();
    let error = format!("tael: cancel unit {first}: it has ended: canceled\n");
    assert_eq!((code, screen), (65, error));
    client.kill();
}

#[test]
fn the_ends_of_runs_fit_the_terminal() {
    let world = World::new();
    let run = "sleep 0.01; exit $ATTR_N";
    let client = world.client("align", &["-t", "lab/seq/status", "-c", run]);
    let mut done = 0;
    let command = || world.tael(["events", "--follow", "-n", "0"]);
    looks("events-follow", command, |_, _, mut terminal| {
        wait_until("it follows", || {
            done += 1;
            world.message("lab/seq/status", &[("status", "started")]);
            world.wait_report("align", "/events/ignored", done);
            terminal.text().contains("ignored")
        });
        for (n, end) in [("0", "succeeded after"), ("3", "exited with")] {
            world.message("lab/seq/status", &[("status", "finished"), ("n", n)]);
            terminal.wait_for(end);
        }
        terminal.press("\u{3}");
        let (code, screen) = terminal.end();
        assert_eq!(code, 0, "{screen}");
        // It may have taken several messages until it followed.
        let (heading, rest) = screen.split_once('\n').expect("lines");
        let runs = rest
            .split_inclusive('\n')
            .skip_while(|line| !line.contains("accepted"));
        let screen = format!("{heading}\n{}", runs.collect::<String>());
        let screen = masked(&screen, "99:99:99", "12:34:56");
        let screen = masked(&screen, "unit @@@@@@", "unit 4TQ2XN");
        let screen = masked(&screen, "after #ms", "after 9ms");
        masked(&screen, "after #s", "after 9ms")
    });
    client.stop();
}

#[test]
fn text_of_others_does_not_control_the_terminal() {
    let world = World::new();
    let client = world.client(
        "df",
        &[
            "-t",
            "lab/ask",
            "--when",
            "",
            "--reply",
            "-c",
            r"printf 'gone\033[2J\rnew\na\tb\n'",
        ],
    );
    let ask = || world.tael(["message", "-t", "lab/ask", "--reply", "x=1"]);
    assert_eq!(ran(&mut ask()).1, "gone\u{1b}[2J\rnew\na\tb\n");
    let (code, screen) = Terminal::start(ask(), 80).end();
    assert_eq!(code, 0, "{screen}");
    assert!(screen.contains(r"gone\u{1b}[2J\rnew"), "{screen}");
    client.stop();
    let value = "one\u{1b}[2J\ntwo";
    let fact = json!({"node": "n", "kind": "state", "ts": 1, "facts": {"a": value}});
    let topic = "lab/infrastructure/nodes/n/state";
    retain(&world, topic, &fact.to_string());
    let view = |form: &str| {
        let sql = r#"SELECT value AS "v" FROM fact"#;
        world.tael(["facts", "view", "--root", "lab", sql, form])
    };
    for (form, piped) in [
        ("--raw", "one\u{1b}[2J\ntwo\n"),
        ("--csv", "v\n\"one\u{1b}[2J\ntwo\"\n"),
        ("--json", "[{\"v\":\"one\\u001b[2J\\ntwo\"}]\n"),
    ] {
        assert_eq!(ran(&mut view(form)).1, piped, "{form}");
        let (code, screen) = Terminal::start(view(form), 80).end();
        assert_eq!(code, 0, "{screen}");
        let shown = match form {
            "--json" => r"one\u001b[2J\ntwo",
            _ => r"one\u{1b}[2J\ntwo",
        };
        assert!(screen.contains(shown), "{form}: {screen}");
    }
}

#[test]
fn what_may_wait_for_long_says_so_without_a_terminal() {
    let world = World::new();
    for words in [&["watch"][..], &["pair", "x", "--root", "lab"]] {
        let mut command = world.tael(words);
        // Nothing listens there.
        command.env("TAEL_PORT", "1").env("TAEL_LOG", "error");
        let process = world.spawn(command);
        wait_until("the line", || {
            process
                .log_text()
                .contains("waiting for broker 127.0.0.1:1: ")
        });
        process.kill();
    }
}
