//! Runners in odd cases: killed by their own command, in folders with odd names or folders that
//! vanish, with jobs too long for a pipe, and programs that are missing.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use crate::common::raw::Raw;
use crate::common::{self, PATIENCE, World, children_of, wait_until};
use nix::sys::signal::{Signal, kill};
use serde_json::json;

const SEQ: &str = "lab/seq/status";
const RECORD: &str = r#"echo "$ATTR_N" >>"$OUT/runs""#;

fn send(raw: &mut Raw, n: usize, filler: usize) {
    let filler = "x".repeat(filler);
    let payload = format!(r#"{{"status":"finished","n":{n},"filler":"{filler}"}}"#);
    let id = format!("event-{n}");
    raw.publish(SEQ, payload.as_bytes(), &[("tael-id", &id)]);
}

/// Returns whether a process has `variable` in its environment.
fn alive(variable: &str) -> bool {
    fs::read_dir("/proc").expect("proc").flatten().any(|entry| {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let mut entries = environment.split(|b| *b == 0);
        entries.any(|entry| entry == variable.as_bytes())
    })
}

#[test]
fn a_command_that_kills_its_supervisor_does_not_go_on() {
    const EVENTS: usize = 10;
    let world = World::new();
    let mark = format!("MARK={}", ulid::Ulid::generate());
    let command = format!(
        r#"kill -9 $PPID; until [ -e "$OUT/go" ]; do env {mark} sleep 0.02; done; echo late >>"$OUT/late""#
    );
    let ears = world.ears(&["lab/#"]);
    let client = world.client("p", &["-t", SEQ, "--jobs", "5", "-c", &command]);
    let mut raw = Raw::connect(world.broker.port());
    (0..EVENTS).for_each(|n| send(&mut raw, n, 0));
    ears.wait_all("all are told", |_| {
        (ears.count("p", "failed") == EVENTS).then_some(())
    });
    wait_until("the commands are gone", || !alive(&mark));
    fs::write(world.path("go"), "").expect("go");
    client.stop();
    assert!(world.lines("late").is_empty(), "none went on");
}

#[test]
fn a_command_without_shell_syntax_starts_as_a_shell_would_start_it() {
    let world = World::new();
    let script = |name: &str, text: &str, mode: u32| {
        let path = world.script(name, text);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
        path.to_str().expect("path").to_owned()
    };
    let plain = script("plain", "exit 41\n", 0o700);
    let closed = script("closed", "#!/bin/sh\n", 0o600);
    script("only-here", "#!/bin/sh\nexit 42\n", 0o700);
    let env = world.path("env");
    fs::write(&env, format!("PATH={}\n", world.path("").display())).expect("env");
    let cases = [
        ("no-such-program x", 127),
        ("/no/such/folder/program", 127),
        (&closed, 126),
        (&plain, 41),
        ("only-here", 42),
        ("/usr/bin/env only-here", 42),
        // SIGPIPE ends a shell that writes to a closed pipe: it is not ignored.
        (
            "/bin/bash -c 'exec 1> >(:); wait; while echo; do :; done'",
            128 + 13,
        ),
    ];
    let ears = world.ears(&["lab/infrastructure/#"]);
    for (n, (command, code)) in cases.into_iter().enumerate() {
        let who = format!("p{n}");
        let env = env.to_str().expect("path");
        let client = world.client(&who, &["-t", SEQ, "--env-file", env, "-c", command]);
        world.publish(SEQ, r#"{"status":"finished"}"#, &[]);
        let end = ears.status(&who, "failed");
        assert_eq!(end.payload["return_code"], code, "{command}");
        client.stop();
    }
}

#[test]
fn a_state_folder_of_any_name() {
    let world = World::new();
    let state = world.dir.path().join(OsStr::from_bytes(b"odd\n\xff name"));
    let mut command = world.command("tael-client");
    command.env("STATE_DIRECTORY", &state);
    command.args(["--who", "p", "--root", "lab", "-t", SEQ]);
    command.args(["-c", r#"wc -c >>"$OUT/sizes""#]);
    let client = world.online("p", command);
    let mut raw = Raw::connect(world.broker.port());
    send(&mut raw, 1, 10);
    send(&mut raw, 2, 100_000);
    world.wait_report("p", "/units/succeeded", 2);
    let sizes: Vec<usize> = world
        .lines("sizes")
        .iter()
        .map(|n| n.trim().parse().expect("size"))
        .collect();
    assert!(sizes[0] < 100 && sizes[1] > 100_000, "{sizes:?}");
    let mut list = world.tael(["work", "list", "--json"]);
    list.env("STATE_DIRECTORY", &state);
    assert_eq!(common::ran(&mut list).0, 0);
    client.stop();
    let left = || {
        fs::read_dir(state.join("p/runners"))
            .expect("runners")
            .count()
    };
    wait_until("nothing is left beside the units", || left() == 0);
}

#[test]
fn a_folder_that_is_removed_under_a_run_does_not_run_its_event_again() {
    let world = World::new();
    let command = r#"echo begun >>"$OUT/runs"; exec sleep 600"#;
    let arguments = ["-t", SEQ, "-c", command];
    let ears = world.ears(&["lab/#"]);
    let client = world.client("p", &arguments);
    let mut raw = Raw::connect(world.broker.port());
    // Once while the client runs, and once while it is down.
    for n in 1..=2 {
        send(&mut raw, n, 0);
        ears.wait_all("it runs", |_| {
            (ears.count("p", "started") == n).then_some(())
        });
        let units = world.state().join("p/units");
        let folder = fs::read_dir(&units)
            .expect("units")
            .flatten()
            .map(|entry| entry.path())
            .find(|path| {
                fs::read_to_string(path.join("outcome")).is_ok_and(|t| !t.contains("ended"))
            })
            .expect("folder");
        wait_until("its process is noted", || {
            let record = fs::read_to_string(folder.join("outcome")).unwrap_or_default();
            record.contains("process")
        });
        let record = fs::read_to_string(folder.join("outcome")).expect("record");
        let process = record.lines().find_map(|l| l.strip_prefix("process "));
        let pid: i32 = process
            .and_then(|p| p.split(' ').nth(1))
            .and_then(|p| p.parse().ok())
            .expect("pid");
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
        let runner: i32 = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.split(' ').nth(1))
            .and_then(|p| p.parse().ok())
            .expect("runner");
        fs::remove_dir_all(&folder).expect("remove");
        let kill = |pid: i32| {
            let pid = nix::unistd::Pid::from_raw(pid);
            nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).expect("kill");
        };
        if n == 1 {
            kill(runner);
        } else {
            client.kill();
            kill(runner);
            let next = world.client("p", &arguments);
            ears.wait_all("its end is told", |_| {
                (ears.count("p", "failed") == 2).then_some(())
            });
            wait_until("the command is gone", || {
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                stat.is_empty() || stat.contains(") Z ")
            });
            next.stop();
            break;
        }
        ears.wait_all("its end is told", |_| {
            (ears.count("p", "failed") == n).then_some(())
        });
    }
    assert_eq!(world.lines("runs").len(), 2, "once each");
}

#[test]
fn an_event_is_known_for_as_long_as_the_broker_may_send_it_again() {
    let world = World::new();
    let arguments = [
        "-t",
        SEQ,
        "-c",
        r#"echo "$ATTR_N" >>"$OUT/runs""#,
        "--keep",
        "1ms",
    ];
    world.client("p", &arguments).stop();
    let mut dying = world.command("tael-client");
    dying.args(["--who", "p", "--root", "lab"]).args(arguments);
    dying.env("TAEL_FAILPOINT", "settle.after");
    let mut dying = world.online("p", dying);
    let mut raw = Raw::connect(world.broker.port());
    send(&mut raw, 1, 0);
    assert_eq!(dying.wait(), 128 + 9);
    // It is forgotten because of its age, and its event is sent again.
    let client = world.client("p", &arguments);
    send(&mut raw, 1, 0);
    send(&mut raw, 2, 0);
    wait_until("the second has run", || {
        world.lines("runs").contains(&"2".to_owned())
    });
    client.stop();
    assert_eq!(world.lines("runs"), ["1", "2"]);
}

/// Limits process `pid` to descriptors below this number.
fn limit(pid: &str, descriptors: u32) {
    let mut prlimit = Command::new("prlimit");
    let nofile = format!("--nofile={descriptors}:");
    prlimit.args(["--pid", pid, &nofile]);
    assert_eq!(common::ran(&mut prlimit).0, 0, "prlimit");
}

#[test]
fn units_wait_in_order_while_no_runner_can_be_started() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", RECORD]);
    let pid = client.child.id();
    let limit = |descriptors| limit(&pid.to_string(), descriptors);
    // Its open files stay, and it can open no more.
    limit(3);
    let mut raw = Raw::connect(world.broker.port());
    (0..5).for_each(|n| send(&mut raw, n, 0));
    wait_until("it says so", || {
        client.log_text().contains("cannot start a runner")
    });
    wait_until("all are accepted", || {
        let ledger = rusqlite::Connection::open(world.state().join("p/ledger.db")).expect("ledger");
        let count = ledger.query_row("SELECT count(*) FROM unit", [], |row| row.get(0));
        count == Ok(5)
    });
    assert!(world.lines("runs").is_empty());
    limit(1024);
    wait_until("all have run", || world.lines("runs").len() == 5);
    assert_eq!(world.lines("runs"), ["0", "1", "2", "3", "4"]);
    assert_eq!(
        client.log_text().matches("cannot start a runner").count(),
        1,
        "said once"
    );
    client.stop();
}

#[test]
fn a_starter_that_ignores_its_children_does_not_hide_how_they_end() {
    let world = World::new();
    let mut command = Command::new("env");
    command
        .args(["--ignore-signal=CHLD"])
        .arg(common::binary("tael-client"));
    for (name, value) in world.command("tael-client").get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command.args(["--who", "p", "--root", "lab", "-t", SEQ, "-c", "exit 7"]);
    let client = world.online("p", command);
    let ears = world.ears(&["lab/infrastructure/#"]);
    send(&mut Raw::connect(world.broker.port()), 0, 0);
    assert_eq!(ears.status("p", "failed").payload["return_code"], 7);
    client.stop();
}

#[test]
fn silent_runs_share_a_folder_and_none_has_what_another_writes() {
    let world = World::new();
    // The first one leaves a process, which writes when all others have run.
    let command = r#"case "$ATTR_N" in
        0) (until [ -e "$OUT/go" ]; do sleep 0.02; done; echo late) & ;;
        3) echo three ;;
        esac"#;
    let client = world.client("p", &["-t", SEQ, "-c", command]);
    let mut raw = Raw::connect(world.broker.port());
    (0..10).for_each(|n| send(&mut raw, n, 0));
    world.wait_report("p", "/units/succeeded", 10);
    fs::write(world.path("go"), "").expect("go");
    let (code, list, _) = common::ran(&mut world.tael(["work", "list", "--json"]));
    assert_eq!(code, 0);
    let list: Vec<serde_json::Value> = serde_json::from_str(&list).expect("json");
    let output = |n: usize| {
        let unit = list[n]["unit"].as_str().expect("unit");
        let (code, stdout, stderr) = common::ran(&mut world.tael(["work", "results", unit]));
        assert_eq!((code, stderr.as_str()), (0, ""));
        stdout
    };
    wait_until("the late line is there", || output(0) == "late\n");
    for n in 1..10 {
        assert_eq!(output(n), if n == 3 { "three\n" } else { "" });
    }
    let folders = fs::read_dir(world.state().join("p/units")).expect("units");
    assert!(folders.count() < 10, "some were used again");
    client.stop();
}

#[test]
fn units_wait_in_order_while_a_runner_cannot_start_processes() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", RECORD]);
    let runners = children_of(client.child.id());
    let runner = runners.first().expect("runner").to_string();
    wait_until("it is ready", || {
        let ahead = world
            .state()
            .join("p/runners")
            .join(&runner)
            .join("outcome");
        ahead.exists()
    });
    let limit = |descriptors| limit(&runner, descriptors);
    limit(3);
    let mut raw = Raw::connect(world.broker.port());
    (0..5).for_each(|n| send(&mut raw, n, 0));
    wait_until("it says so", || {
        client.log_text().contains("cannot start a process")
    });
    assert!(world.lines("runs").is_empty());
    limit(1024);
    wait_until("all have run", || world.lines("runs").len() == 5);
    assert_eq!(world.lines("runs"), ["0", "1", "2", "3", "4"]);
    client.stop();
}

#[test]
fn a_command_that_removes_its_own_folder_does_not_run_twice() {
    let world = World::new();
    let command = r#"echo begun >>"$OUT/runs"
        rm -rf "$STATE_DIRECTORY/p/units/$TAEL_UNIT"
        until [ -e "$OUT/go" ]; do sleep 0.02; done"#;
    let arguments = ["-t", SEQ, "-c", command];
    let mut dying = world.command("tael-client");
    dying.args(["--who", "p", "--root", "lab"]).args(arguments);
    dying.env("TAEL_FAILPOINT", "started.before");
    let mut dying = world.online("p", dying);
    let ears = world.ears(&["lab/#"]);
    send(&mut Raw::connect(world.broker.port()), 0, 0);
    assert_eq!(dying.wait(), 128 + 9);
    let gone = || {
        let units = fs::read_dir(world.state().join("p/units")).expect("units");
        units.count() == 0
    };
    wait_until("the folder is gone", gone);
    let client = world.client("p", &arguments);
    let end = ears.status("p", "failed");
    assert_eq!(end.payload["reason"], "interrupted");
    fs::write(world.path("go"), "").expect("go");
    client.stop();
    assert_eq!(world.lines("runs").len(), 1);
}

#[test]
fn a_unit_that_waits_for_a_runner_can_be_canceled() {
    let world = World::new();
    let client = world.client("p", &["-t", SEQ, "-c", RECORD]);
    let pid = client.child.id();
    let limit = |descriptors| limit(&pid.to_string(), descriptors);
    limit(3);
    let mut raw = Raw::connect(world.broker.port());
    send(&mut raw, 0, 0);
    wait_until("it says so", || {
        client.log_text().contains("runs wait until that passes")
    });
    let (_, list, _) = common::ran(&mut world.tael(["work", "list", "--json"]));
    let list: serde_json::Value = serde_json::from_str(&list).expect("json");
    let unit = list[0]["unit"].as_str().expect("unit");
    let (code, _, stderr) = common::ran(&mut world.tael(["work", "cancel", unit]));
    assert_eq!(code, 0, "{stderr}");
    limit(1024);
    send(&mut raw, 1, 0);
    wait_until("the next has run", || !world.lines("runs").is_empty());
    assert_eq!(world.lines("runs"), ["1"]);
    client.stop();
}

#[test]
fn what_comes_while_a_client_stops_with_its_units_is_not_used_up() {
    const ROUNDS: usize = 10;
    const EVENTS: usize = 5;
    let world = World::new();
    let arguments = ["-t", SEQ, "-c", "true", "--jobs", "4", "--stop-units"];
    let mut raw = Raw::connect(world.broker.port());
    for round in 0..ROUNDS {
        let client = world.client("p", &arguments);
        (0..EVENTS).for_each(|n| send(&mut raw, round * EVENTS + n, 0));
        client.stop();
    }
    let client = world.client("p", &arguments);
    let units = || -> Vec<serde_json::Value> {
        let (_, list, _) = common::ran(&mut world.tael(["work", "list", "--json"]));
        serde_json::from_str(&list).expect("json")
    };
    wait_until("all have ended", || {
        let ended = |unit: &serde_json::Value| {
            !["pending", "running"].contains(&unit["state"].as_str().unwrap_or("?"))
        };
        let units = units();
        units.len() == ROUNDS * EVENTS && units.iter().all(ended)
    });
    for unit in units() {
        assert!(!unit["return_code"].is_null(), "it never began: {unit}");
    }
    client.stop();
}

/// The permit comes while the process that waits for it dies. What a process has read must not die
/// with it: the runner would wait for ever.
#[test]
fn a_permit_that_a_dying_process_has_read_is_not_lost() {
    const TIMES: usize = 100;
    let pipeline = tempfile::tempdir().expect("folder");
    let folders = ["units", "runners"].map(|name| pipeline.path().join(name));
    for folder in &folders {
        fs::create_dir(folder).expect("folder");
    }
    let mut runner = Command::new(common::binary("tael-client"))
        .arg("--tael-runner")
        .arg(&folders[1])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("runner");
    let mut requests = runner.stdin.take().expect("stdin");
    let replies = BufReader::new(runner.stdout.take().expect("stdout"));
    let (tell, said) = mpsc::channel();
    thread::spawn(move || {
        for line in replies.lines().map_while(Result::ok) {
            let _ = tell.send(line);
        }
    });
    let hear = || said.recv_timeout(PATIENCE).expect("a line of the runner");
    let permit = |requests: &mut ChildStdin| requests.write_all(b"!").expect("permit");
    let ready = |requests: &mut ChildStdin, n: usize| {
        let job = json!({"unit": format!("u{n}"), "stdin": 0, "argv": ["true"], "shell_argv": ["true"],
            "cwd": null, "variables": [], "timeout": null, "grace": 0, "max_output": 0});
        writeln!(requests, "{job}").expect("job");
        let mut waiting = None;
        wait_until("a process waits", || {
            waiting = children_of(runner.id()).first().copied();
            waiting.is_some()
        });
        nix::unistd::Pid::from_raw(waiting.expect("process"))
    };
    for n in 0..TIMES {
        let waiting = ready(&mut requests, n);
        let dies_first = n % 2 == 0;
        if dies_first {
            kill(waiting, Signal::SIGKILL).expect("kill");
            permit(&mut requests);
        } else {
            permit(&mut requests);
            // It may have become the command, and ended.
            let _ = kill(waiting, Signal::SIGKILL);
        }
        let mut line = hear();
        if dies_first || line.starts_with("refused") {
            assert!(line.starts_with("refused start a process"), "{line}");
            assert_eq!(hear(), "idle");
            ready(&mut requests, n);
            permit(&mut requests);
            line = hear();
        }
        assert!(line.starts_with("started "), "{line}");
        assert!(hear().starts_with("ended "));
        assert_eq!(hear(), "idle");
    }
    drop(requests);
    assert!(runner.wait().expect("end").success());
}
