//! Monitoring: checks, silences, the state of the network, metrics, and messages to the service
//! manager.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::raw::publish;
use crate::common::scene::{RUN, Scene};
use crate::common::{World, ran, wait_until};
use serde_json::Value;

const BEACON: &str = "lab/test/beacon/status";
const SEQ: &str = "lab/seq/status";

/// Runs a check, reads its output as a monitoring system does, and returns its exit code, its text,
/// and its performance data.
#[track_caller]
fn checked(command: &mut Command) -> (i32, String, Vec<(String, f64)>) {
    let (code, out, stderr) = ran(command.env("TAEL_LOG", "warn"));
    assert_eq!(stderr, "", "all is said on stdout");
    let line = out.strip_suffix('\n').expect("a line");
    assert!(!line.contains('\n'), "one line: {line}");
    let (text, figures) = line.split_once(" | ").unwrap_or((line, ""));
    let level = ["OK", "WARNING", "CRITICAL", "UNKNOWN"][usize::try_from(code).expect("code")];
    assert!(
        text.split(' ').nth(1) == Some(level),
        "exit code {code} is said: {text}"
    );
    let figures = figures.split_whitespace().map(|figure| {
        // 'label'=value[UOM];[warn];[crit];[min];[max]
        let (label, rest) = figure.split_once('=').expect("label=value");
        let mut fields = rest.split(';');
        let value = fields
            .next()
            .map(|v| v.strip_suffix('s').unwrap_or(v))
            .expect("a number");
        for limit in fields {
            assert!(limit.is_empty() || limit.parse::<f64>().is_ok(), "{figure}");
        }
        (label.to_owned(), value.parse().expect("number"))
    });
    (code, text.to_owned(), figures.collect())
}

fn retained(world: &World, topic: &str, payload: &str) {
    let mut command = world.tael(["message", "-t", topic, "--retain", "--payload", payload]);
    assert_eq!(ran(&mut command).0, 0);
}

fn beat_at(world: &World, ago: i64) {
    let at = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(ago);
    let utc = at.to_zoned(jiff::tz::TimeZone::UTC);
    let payload = format!(
        r#"{{"date":"{}","status":"finished","time":"{}"}}"#,
        utc.strftime("%Y%m%d"),
        utc.strftime("%H%M%S")
    );
    retained(world, "lab/test/beacon/last", &payload);
}

#[test]
fn a_beacon_is_judged_by_its_last_beat() {
    let world = World::new();
    let check = |more: &[&str]| {
        let mut command = world.tael(["check", "-t", BEACON]);
        command.args(more);
        checked(&mut command)
    };
    let (code, text, _) = check(&[]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("nothing is retained"), "{text}");
    let mut beacon = world.command("tael-beacon");
    assert_eq!(ran(beacon.args(["--once", "--root", "lab"])).0, 0);
    let (code, text, figures) = check(&[]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(figures[0].0, "age");
    assert!(figures[0].1 < 60.0, "{figures:?}");
    for (ago, want) in [(400, 1), (700, 2), (0, 0)] {
        beat_at(&world, ago);
        let (code, text, figures) = check(&["--warning", "6m", "--critical", "11m"]);
        assert_eq!(code, want, "{ago} s: {text}");
        assert!(figures[0].1 >= ago as f64, "{figures:?}");
    }
    beat_at(&world, -3600);
    let (code, text, figures) = check(&[]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("its clock differs from ours by "), "{text}");
    assert!(
        figures
            .iter()
            .any(|(label, value)| label == "skew" && *value < -3000.0)
    );
    retained(
        &world,
        "lab/test/beacon/last",
        r#"{"status":"finished","date":"x"}"#,
    );
}

#[test]
fn a_check_that_cannot_be_made_is_unknown() {
    let world = World::new();
    for arguments in [
        &["check", "--nonsense"][..],
        &["check", "-t", "a/#"],
        &["check", "--warning", "11m", "--critical", "6m"],
        &["check", "-p", "1", "--timeout", "100ms"],
        &["check", "--who", "a/b"],
    ] {
        let (code, text, _) = checked(&mut world.tael(arguments));
        assert_eq!(code, 3, "{arguments:?}: {text}");
    }
}

#[test]
fn other_peoples_beacons_are_waited_for() {
    let world = World::new();
    let mut command = world.tael(["check", "-t", "other/beat", "--wait", "--critical", "20s"]);
    command.args(["--warning", "20s"]);
    command.stdout(fs::File::create(world.path("out")).expect("out"));
    let mut waiting = command.spawn().expect("check");
    let ended = || {
        world.publish("other/beat", "ON", &[]);
        waiting.try_wait().expect("wait")
    };
    let mut ended = ended;
    let mut status = None;
    wait_until("it has heard", || {
        status = ended();
        status.is_some()
    });
    assert_eq!(status.and_then(|s| s.code()), Some(0));
    let said = fs::read_to_string(world.path("out")).expect("out");
    assert_eq!(said, "BEACON OK - other/beat beats\n");
    let arguments = [
        "check",
        "-t",
        "no/beat",
        "--wait",
        "--warning",
        "100ms",
        "--critical",
        "200ms",
    ];
    let (code, text, _) = checked(&mut world.tael(arguments));
    assert_eq!(code, 2, "{text}");
}

#[test]
fn a_pipeline_is_judged_by_presence_and_last_end() {
    let world = World::new();
    let check = || checked(&mut world.tael(["check", "--who", "p", "--root", "lab"]));
    let (code, text, _) = check();
    assert_eq!(code, 2, "{text}");
    let arguments = ["-t", SEQ, "-c", r#"exit "$ATTR_N""#];
    let client = world.client("p", &arguments);
    let until = |want: i32, word: &str| {
        let mut last = String::new();
        wait_until(word, || {
            let (code, text, _) = check();
            last = text;
            code == want && last.contains(word)
        });
    };
    until(0, "no run has ended yet");
    let send = |n: &str| world.publish(SEQ, format!(r#"{{"status":"finished","n":{n}}}"#), &[]);
    send("0");
    until(0, "last run finished");
    send("3");
    until(1, "last run failed with 3, ");
    client.stop();
    until(1, "p is offline");
    let client = world.client("p", &arguments);
    until(1, "p is online");
    client.kill();
    until(2, "p is lost");
}

#[test]
fn a_check_may_demand_a_success_and_a_short_queue() {
    let world = World::new();
    let check = |more: &[&str]| {
        let mut command = world.tael(["check", "--who", "p", "--root", "lab"]);
        checked(command.args(more))
    };
    let arguments = ["-t", SEQ, "--jobs", "1", "-c", r#"exit "$ATTR_N""#];
    let client = world.client("p", &arguments);
    let (code, text, _) = check(&["--success-within", "1d"]);
    assert_eq!(code, 1, "{text}");
    let until = |more: &[&str], want: i32, word: &str| {
        let mut last = String::new();
        wait_until(word, || {
            let (code, text, _) = check(more);
            last = text;
            code == want && last.contains(word)
        });
    };
    let send = |n: &str| world.publish(SEQ, format!(r#"{{"status":"finished","n":{n}}}"#), &[]);
    send("3");
    until(&[], 1, "last run failed with 3, ");
    let critical = ["--failed", "critical"];
    until(&critical, 2, "last run failed with 3, ");
    until(&["--success-within", "1d"], 2, "no run has succeeded");
    send("0");
    until(&["--success-within", "1d"], 0, "last run finished");
    send("4");
    until(&["--success-within", "1d"], 1, "last run failed with 4, ");
    // The ledger keeps it through a restart.
    client.stop();
    let client = world.client("p", &arguments);
    let (code, text, figures) = check(&["--success-within", "1d"]);
    assert_eq!(code, 1, "{text}");
    assert!(
        figures.iter().any(|(label, _)| label == "success_age"),
        "{figures:?}"
    );
    let (code, text, figures) = check(&["--max-waiting", "0"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.ends_with(", 0 runs wait"), "{text}");
    assert_eq!(figures.last(), Some(&("waiting".to_owned(), 0.0)));
    assert_eq!(world.control(&["p", "pause"]).0, 0);
    send("0");
    send("0");
    world.wait_report("p", "/waiting", 2);
    let (_, text, _) = check(&["--max-waiting", "2"]);
    assert!(text.contains(", 2 runs wait"), "{text}");
    let (code, text, _) = check(&["--max-waiting", "1", "--failed", "critical"]);
    assert_eq!(code, 2, "{text}");
    client.stop();
    // A stopped client gets no request.
    let (code, text, _) = check(&["--max-waiting", "1"]);
    assert!(code == 1 && !text.contains("wait"), "{text}");
    for arguments in [
        &["check", "--success-within", "1d"][..],
        &["check", "--max-waiting", "1"],
        &["check", "--who", "p", "--failed", "ok"],
    ] {
        let (code, text, _) = checked(&mut world.tael(arguments));
        assert_eq!(code, 3, "{arguments:?}: {text}");
    }
}

#[test]
fn a_pipeline_that_is_gone_is_forgotten() {
    let world = World::new();
    let status = |more: &[&str]| {
        let mut command = world.tael(["status", "--root", "lab"]);
        ran(command.args(more).env("TAEL_LOG", "warn"))
    };
    let names = || -> Vec<String> {
        let list: Value = serde_json::from_str(&status(&["--json"]).1).expect("json");
        let list = list.as_array().expect("array").iter();
        list.map(|seen| seen["who"].as_str().expect("who").to_owned())
            .collect()
    };
    let forget = |more: &[&str]| {
        let mut command = world.tael(["forget", "--root", "lab"]);
        ran(command.args(more).env("TAEL_LOG", "warn"))
    };
    let now = jiff::Timestamp::now().as_second();
    let stopped = |who: &str, ago: i64| {
        let topic = format!("lab/infrastructure/pipelines/{who}/presence");
        let until = now - ago;
        let presence = format!(r#"{{"state":"offline","host":"h","until":{until}}}"#);
        retained(&world, &topic, &presence);
    };
    let client = world.client("here", &["-t", SEQ, "-c", "true"]);
    world.message(SEQ, &[("status", "finished")]);
    stopped("old", 86_400 * 31);
    stopped("new", 86_400 * 29);
    let lost = r#"{"state":"lost","host":"h"}"#;
    retained(&world, "lab/infrastructure/pipelines/gone/presence", lost);
    let last = "lab/infrastructure/pipelines/gone/last";
    retained(&world, last, r#"{"last":{"status":"finished","ts":1}}"#);
    assert_eq!(names(), ["gone", "here", "new", "old"]);
    // A client that is online keeps all its messages.
    let (code, out, stderr) = forget(&["old", "here"]);
    assert_eq!((code, out.as_str()), (65, ""), "{stderr}");
    assert!(stderr.contains("it is online on "), "{stderr}");
    assert_eq!(names().len(), 4);
    let (code, _, stderr) = forget(&["nobody"]);
    assert!(
        code == 65 && stderr.contains("is --root right?"),
        "{stderr}"
    );
    let (code, out, stderr) = status(&["--prune", "30d"]);
    assert_eq!((code, out.as_str()), (0, "forgot old, offline on h\n"));
    assert!(stderr.contains("gone (lost)"), "{stderr}");
    assert_eq!(names(), ["gone", "here", "new"]);
    assert_eq!(status(&["--prune"]).0, 64, "it asks for the span");
    let (code, out, stderr) = forget(&["gone", "new"]);
    let want = "forgot gone, lost on h\nforgot new, offline on h\n";
    assert_eq!((code, out.as_str(), stderr.as_str()), (0, want, ""));
    assert_eq!(names(), ["here"]);
    // The retained last end is cleared as well.
    let ears = world.ears(&["lab/infrastructure/pipelines/+/last"]);
    ears.wait("the last end of the other", |m| m.topic.contains("/here/"));
    assert!(!ears.any(|m| m.topic == last));
    assert_eq!(forget(&["here", "--force"]).0, 0);
    assert!(names().is_empty());
    client.stop();
    assert_eq!(names(), ["here"], "its goodbye is retained");
}

#[test]
fn the_network_is_shown_with_who_starts_whom() {
    let world = World::new();
    let align = world.client("align", &["-t", SEQ, "-c", "true"]);
    let status = "lab/infrastructure/pipelines/align/status";
    let call = world.client("call", &["-t", status, "-c", "exit 3"]);
    world.message(SEQ, &[("status", "finished")]);
    let list = || -> Vec<Value> {
        let (code, out, stderr) = ran(&mut world.tael(["status", "--root", "lab", "--json"]));
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str(&out).expect("json")
    };
    wait_until("both ends are retained", || {
        let list = list();
        list.len() == 2
            && list[0]["last"]["status"] == "finished"
            && list[1]["last"]["return_code"] == 3
    });
    let graph = |form: &str| ran(&mut world.tael(["status", "--root", "lab", "--graph", form])).1;
    assert!(
        graph("mermaid").contains("p0 --> p1"),
        "{}",
        graph("mermaid")
    );
    assert!(graph("dot").contains("p0 -> p1;"));
    let drawing = graph("svg");
    assert!(
        drawing.contains(r#"data-from="align" data-to="call""#),
        "{drawing}"
    );
    call.kill();
    wait_until("one is lost", || list()[1]["state"] == "lost");
    // Retained messages of other programs are ignored.
    let other = |who: &str, text: &str| {
        let topic = format!("other/infrastructure/pipelines/{who}/last");
        retained(&world, &topic, text);
    };
    other(
        "a",
        r#"{"last":{"status":"finished","ts":-9223372036854775808}}"#,
    );
    other("b", r#"{"last":{"status":7,"return_code":"x","ts":1e300}}"#);
    let (code, _, stderr) = ran(world
        .tael(["status", "--root", "other"])
        .env("TAEL_LOG", "warn"));
    assert_eq!((code, stderr.as_str()), (0, ""));
    for who in ["a", "b"] {
        let mut check = world.tael(["check", "--root", "other", "--who", who]);
        assert_eq!(checked(&mut check).0, 3, "nobody knows whether it is there");
    }
    let (code, table, _) = ran(&mut world.tael(["status", "--root", "lab"]));
    assert_eq!(code, 0);
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 3, "{table}");
    assert!(rows[0].starts_with("PIPELINE"), "{table}");
    assert!(
        rows[1].starts_with("align") && rows[1].contains("online"),
        "{table}"
    );
    assert!(
        rows[2].contains("lost") && rows[2].contains("failed (3)"),
        "{table}"
    );
    // The will, which says that it is lost, does not name its topics.
    assert!(graph("mermaid").contains("p1[\"call<br>lost\"]"));
    let (code, empty, hint) = ran(&mut world.tael(["status", "--root", "nobody"]));
    assert_eq!((code, empty.as_str()), (0, ""));
    assert!(
        hint.contains("below nobody: ") && hint.contains("; pipelines are below lab: --root lab"),
        "{hint}"
    );
    align.stop();
}

#[test]
fn a_silence_runs_its_command_once_over_restarts_and_again_after_it_was_broken() {
    let world = World::new();
    let command = r#"echo "$TAEL_REASON" >>"$OUT/runs"; cat >>"$OUT/payloads""#;
    let arguments = [
        "-t", "lab/beat", "--absent", "300ms", "--when", "", "-c", command,
    ];
    let client = world.client("p", &arguments);
    wait_until("the silence is noticed", || {
        world.lines("payloads").len() == 1
    });
    assert_eq!(world.lines("runs"), ["lab/beat silent for 300ms"]);
    let payload: Value = serde_json::from_str(&world.lines("payloads")[0]).expect("json");
    assert_eq!(payload["status"], "silent");
    client.stop();
    // One silence runs once, also after a restart and a kill.
    world.client("p", &arguments).kill();
    let other = [
        "-t",
        "lab/other",
        "--when",
        "",
        "-c",
        r#"echo other >>"$OUT/other""#,
    ];
    let witness = world.client("witness", &other);
    let client = world.client("p", &arguments);
    // Without a condition, a message that is not JSON ends a silence too.
    world.publish("lab/beat", "ON", &[]);
    wait_until("the next silence is noticed", || {
        world.lines("runs").len() == 2
    });
    witness.stop();
    client.stop();
    // A trigger of the same name on another topic has a silence of its own.
    let moved = [
        "-t",
        "lab/moved",
        "--absent",
        "300ms",
        "--when",
        "",
        "-c",
        command,
    ];
    let client = world.client("p", &moved);
    wait_until("the other silence is noticed", || {
        world.lines("runs").len() == 3
    });
    client.stop();
    let files = world.state().join("p/units");
    assert_eq!(fs::read_dir(files).expect("units").count(), 3, "a run each");
}

/// A message that waits for room has come all the same.
#[test]
fn messages_that_wait_for_room_break_a_silence() {
    let scene = Scene::new();
    let mut client = scene.command(&["-t", "lab/beat", "--absent", "1s", "--when", "", "-c", RUN]);
    // Each message is held.
    let client = scene.spawn(client.env("TAEL_TEST_MAX_WAITING", "0"));
    let mut raw = scene.online();
    let begin = Instant::now();
    for n in 1.. {
        if begin.elapsed() > Duration::from_secs(3) {
            break;
        }
        raw.send(&publish(b"lab/beat", b"on", Some(n), &[], false));
        thread::sleep(Duration::from_millis(50));
    }
    assert!(scene.runs().is_empty(), "{}", client.log_text());
    // It is noticed when nothing comes any more.
    wait_until("the silence is noticed", || !scene.runs().is_empty());
}

#[test]
fn figures_are_written_for_a_collector() {
    let world = World::new();
    let file = world.path("tael.prom");
    let path = file.to_str().expect("path").to_owned();
    let arguments = ["-t", SEQ, "-c", r#"exit "$ATTR_N""#, "--metrics", &path];
    let client = world.client("p", &arguments);
    for payload in [
        r#"{"status":"finished","n":0}"#,
        r#"{"status":"finished","n":2}"#,
        "no json",
    ] {
        world.publish(SEQ, payload, &[]);
    }
    world.wait_report("p", "/units/failed", 1);
    wait_until("the figures are there", || {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let has = |line: &str| text.lines().any(|l| l == line);
        has(r#"tael_units_total{who="p",end="succeeded"} 1"#)
            && has(r#"tael_units_total{who="p",end="failed"} 1"#)
            && has(r#"tael_events_total{who="p",result="refused"} 1"#)
            && has(r#"tael_connected{who="p"} 1"#)
    });
    client.stop();
    let text = fs::read_to_string(&file).expect("figures");
    assert!(text.contains(r#"tael_connected{who="p"} 0"#), "{text}");
    let figure = |text: &str, name: &str| -> Option<f64> {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit_once(' '))
            .map(|(_, number)| number.parse().expect("number"))
    };
    let success = "tael_last_success_timestamp_seconds{who=\"p\",trigger=\"default\"}";
    let end = "tael_last_end_timestamp_seconds{who=\"p\",trigger=\"default\"}";
    let count = "tael_run_seconds_count{who=\"p\",trigger=\"default\"}";
    let ends = (figure(&text, success), figure(&text, end));
    assert!(ends.0.is_some() && ends.1.is_some(), "{text}");
    assert_eq!(figure(&text, count), Some(2.0));
    // The next client knows when the last runs ended, and its counters begin at 0.
    fs::remove_file(&file).expect("remove");
    let client = world.client("p", &arguments);
    wait_until("the next client writes", || file.exists());
    let text = fs::read_to_string(&file).expect("figures");
    assert_eq!((figure(&text, success), figure(&text, end)), ends);
    assert_eq!(figure(&text, count), Some(0.0));
    let alive = figure(&text, "tael_alive_timestamp_seconds{who=\"p\"}");
    let age = jiff::Timestamp::now().as_second() as f64 - alive.expect("alive");
    assert!((0.0..60.0).contains(&age), "{age}");
    client.stop();
}

/// The socket of a service manager.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn new(world: &World) -> Self {
        let socket = UnixDatagram::bind(world.path("notify")).expect("socket");
        let look = Some(Duration::from_millis(50));
        socket.set_read_timeout(look).expect("timeout");
        Self {
            socket,
            heard: Vec::new(),
        }
    }

    #[track_caller]
    fn wait(&mut self, what: &str) {
        wait_until(what, || {
            let mut buffer = [0; 4096];
            if let Ok(n) = self.socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                self.heard.push(text);
            }
            self.heard.iter().any(|text| text.contains(what))
        });
        self.heard.clear();
    }
}

#[test]
fn the_service_manager_is_told_and_a_reload_changes_triggers_in_one_session() {
    let world = World::new();
    let mut manager = Manager::new(&world);
    let file = world.path("p.toml");
    let write = |topic: &str| {
        let text = format!(
            "[client]\nwho = 'p'\n[[trigger]]\ntopic = '{topic}'\n\
             command = 'echo \"$ATTR_N:$NOTIFY_SOCKET\" >>\"$OUT/runs\"'\n"
        );
        fs::write(&file, text).expect("file");
    };
    write("lab/one");
    let mut command = world.command("tael-client");
    command.args(["--root", "lab", "--config"]).arg(&file);
    command.env("NOTIFY_SOCKET", world.path("notify"));
    command.env("WATCHDOG_USEC", "200000");
    let client = world.spawn(command);
    manager.wait("READY=1");
    manager.wait("STATUS=connected to ");
    manager.wait("WATCHDOG=1");
    let hup = || {
        let pid = nix::unistd::Pid::from_raw(client.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::SIGHUP).expect("kill");
    };
    let send = |topic: &str, n: u32| {
        world.publish(topic, format!(r#"{{"status":"finished","n":{n}}}"#), &[]);
    };
    send("lab/one", 1);
    wait_until("it runs", || world.lines("runs") == ["1:"]);
    write("lab/two");
    hup();
    manager.wait("RELOADING=1\nMONOTONIC_USEC=");
    manager.wait("READY=1");
    send("lab/one", 2);
    send("lab/two", 3);
    wait_until("the new topic runs", || world.lines("runs") == ["1:", "3:"]);
    fs::write(&file, "[client]\nwho = 7 8\n").expect("file");
    hup();
    manager.wait("READY=1");
    send("lab/two", 4);
    wait_until("a wrong file changes nothing", || {
        world.lines("runs") == ["1:", "3:", "4:"]
    });
    let log = client.log_text();
    assert!(log.contains("going on as before"), "{log}");
    assert_eq!(log.matches("connected to").count(), 1, "{log}");
    client.stop();
    manager.wait("STOPPING=1");
}

#[test]
fn each_daemon_is_ready_and_gives_signs_of_life() {
    for arguments in [
        &["beacon", "--root", "lab"][..],
        &["gateway", "--root", "lab", "--listen", "127.0.0.1:0"],
        &["facts", "publish", "--root", "lab", "--node", "seq1"],
    ] {
        let world = World::new();
        let mut manager = Manager::new(&world);
        let mut command = world.tael(arguments);
        command
            .env("NOTIFY_SOCKET", world.path("notify"))
            .env("WATCHDOG_USEC", "200000");
        let daemon = world.spawn(command);
        manager.wait("READY=1");
        manager.wait("WATCHDOG=1");
        manager.wait("WATCHDOG=1");
        daemon.stop();
    }
}

#[test]
fn a_network_task_that_stands_still_gives_no_sign_of_life() {
    let world = World::new();
    let mut manager = Manager::new(&world);
    let stall = world.path("stall");
    let mut command = world.command("tael-client");
    command.args([
        "--who", "p", "--root", "lab", "-t", SEQ, "-c", "true", "-k", "5s",
    ]);
    command.env("NOTIFY_SOCKET", world.path("notify"));
    command.env("WATCHDOG_USEC", "200000");
    command.env("TAEL_TEST_STALL", &stall);
    let client = world.spawn(command);
    manager.wait("READY=1");
    fs::write(&stall, "").expect("stall");
    wait_until("the client says so", || {
        client
            .log_text()
            .contains("the network task makes no progress")
    });
    fs::remove_file(&stall).expect("go on");
    manager.heard.clear();
    manager.wait("WATCHDOG=1");
    client.stop();
}

#[test]
fn commands_have_the_folder_and_the_variables_that_were_asked_for() {
    let world = World::new();
    let folder = world.path("work here");
    fs::create_dir(&folder).expect("folder");
    let env = world.path("env");
    fs::write(&env, "# conda\nexport A='x y'\nATTR_N=overridden\n").expect("env");
    let (cwd, env) = (folder.to_str().expect("path"), env.to_str().expect("path"));
    let command = r#"echo "$PWD|$A|$ATTR_N" >>"$OUT/runs""#;
    let arguments = ["-t", SEQ, "--cwd", cwd, "--env-file", env, "-c", command];
    let client = world.client("p", &arguments);
    let ears = world.ears(&["lab/infrastructure/#"]);
    let send = || world.publish(SEQ, r#"{"status":"finished","n":1}"#, &[]);
    send();
    wait_until("it runs", || world.lines("runs").len() == 1);
    assert_eq!(world.lines("runs")[0], format!("{cwd}|x y|1"));
    // The file is read at each run, and its mistakes are reported then.
    fs::write(env, "nonsense\n").expect("env");
    send();
    ears.status("p", "falsestart");
    fs::write(env, "").expect("env");
    fs::remove_dir(&folder).expect("remove");
    send();
    ears.wait_all("the second", |_| {
        (ears.count("p", "falsestart") == 2).then_some(())
    });
    let (_, list, _) = ran(&mut world.tael(["work", "list", "--json"]));
    assert!(list.contains("line 1: it is not NAME=VALUE"), "{list}");
    assert!(list.contains("cannot work in"), "{list}");
    let units: Vec<Value> = serde_json::from_str(&list).expect("json");
    let unit = units[1]["unit"].as_str().expect("unit");
    let (code, out, stderr) = ran(&mut world.tael(["work", "results", unit]));
    assert_eq!((code, out.as_str()), (125, ""));
    assert!(stderr.contains("line 1: it is not NAME=VALUE"), "{stderr}");
    client.stop();
}

#[test]
fn manual_pages_and_completions_name_every_option() {
    let world = World::new();
    let dir = world.path("man");
    fs::create_dir(&dir).expect("folder");
    assert_eq!(ran(world.tael(["man"]).arg(&dir)).0, 0);
    let (_, help, _) = ran(&mut world.tael(["--help"]));
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert!(commands.contains(&"client") && commands.contains(&"check"));
    let completions = |shell: &str, command: &str| {
        let (code, text, stderr) = ran(&mut world.tael(["completions", shell, command]));
        assert_eq!(code, 0, "{stderr}");
        text
    };
    let shells = ["bash", "zsh", "fish"].map(|shell| completions(shell, "tael"));
    for command in commands {
        let page = fs::read_to_string(dir.join(format!("tael-{command}.1"))).expect(command);
        let page = page.replace("\\-", "-");
        let (_, help, _) = ran(&mut world.tael([command, "--help"]));
        let options = help
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
            .filter(|word| word.len() > 2 && word.starts_with("--"));
        for option in options {
            assert!(page.contains(option), "{option} in the page of {command}");
            for text in &shells {
                assert!(text.contains(&option[2..]), "{option} of {command}");
            }
        }
    }
    for command in ["tael-client", "tael-message", "tael-beacon"] {
        assert!(completions("bash", command).contains("--keepalive"));
    }
}
