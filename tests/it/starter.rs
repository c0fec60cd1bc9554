//! What a client inherits from its starter: descriptors, signals, a password, a folder, limits, and
//! the role of the first process.

use std::fs;
use std::os::unix::fs::chown;
use std::process::Command;

use crate::common::raw::Raw;
use crate::common::{Setup, World, children_of, has_root, ran, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SEQ: &str = "lab/seq/status";
const FINISHED: &[(&str, &str)] = &[("status", "finished")];
const WAITS: &str = r#"echo begun >>"$OUT/runs"; until [ -e "$OUT/go" ]; do sleep 0.02; done"#;

fn send(raw: &mut Raw, n: usize) {
    let payload = format!(r#"{{"status":"finished","n":{n}}}"#);
    raw.publish(SEQ, payload.as_bytes(), &[("tael-id", &format!("E{n}"))]);
}

/// Returns the command of a client that `program` executes.
fn behind(world: &World, program: &str, before: &[&str], arguments: &[&str]) -> Command {
    let inner = world.command("tael-client");
    let mut command = Command::new(program);
    command.args(before).arg(inner.get_program()).env_clear();
    for (name, value) in inner.get_envs() {
        command.env(name, value.expect("value"));
    }
    command
        .args(["--who", "p", "--root", "lab"])
        .args(arguments);
    command
}

#[test]
fn a_lock_of_the_starter_is_free_while_a_run_goes_on() {
    let world = World::new();
    let lock = world.path("lock");
    let script = r#"exec 9>"$OUT/lock"; flock -n 9 || exit 1; exec 7</dev/null; exec "$@""#;
    let arguments = ["-t", SEQ, "-c", WAITS];
    let before = ["-c", script, "sh"];
    let client = world.online("p", behind(&world, "/bin/sh", &before, &arguments));
    let free = || {
        let mut flock = Command::new("flock");
        flock.arg("-n").arg(&lock).arg("true");
        ran(&mut flock).0 == 0
    };
    assert!(!free(), "the client has it");
    world.message(SEQ, FINISHED);
    wait_until("it runs", || world.lines("runs").len() == 1);
    client.stop();
    assert!(free(), "the run has it");
    fs::write(world.path("go"), "").expect("go");
    let next = world.client("p", &arguments);
    world.wait_report("p", "/units/succeeded", 1);
    next.stop();
}

#[test]
fn a_command_of_a_playbook_has_no_lock_of_the_starter() {
    let world = World::new();
    let book = world.path("book");
    fs::write(&book, "RUN test ! -e /proc/self/fd/9\n").expect("book");
    let inner = world.tael(["play", book.to_str().expect("path")]);
    let script = r#"exec 9>"$OUT/lock"; exec "$@""#;
    let mut play = Command::new("/bin/sh");
    play.args(["-c", script, "sh"]).arg(inner.get_program());
    play.args(inner.get_args()).env_clear();
    for (name, value) in inner.get_envs() {
        play.env(name, value.expect("value"));
    }
    let (code, _, stderr) = ran(&mut play);
    assert_eq!(code, 0, "{stderr}");
}

#[test]
fn passwords_are_not_handed_on_to_commands() {
    let world = World::with(Setup {
        password: Some("secret".into()),
        ..Setup::default()
    });
    let command = r#"env >"$OUT/env.part"; mv "$OUT/env.part" "$OUT/env""#;
    let mut client = world.command("tael-client");
    client
        .args(["--who", "p", "--root", "lab", "-t", SEQ, "-c", command])
        .env("TAEL_QUEUE_PASSWORD", "secret of queues");
    let client = world.online("p", client);
    world.message(SEQ, FINISHED);
    wait_until("it has run", || !world.lines("env").is_empty());
    let env = world.lines("env");
    assert!(env.contains(&"TAEL_USERNAME=ann".to_owned()), "{env:?}");
    assert!(!env.iter().any(|line| line.contains("secret")), "{env:?}");
    client.stop();
}

#[test]
fn signals_that_the_starter_has_blocked_or_ignored_work() {
    let world = World::new();
    let command = r#"grep -E 'Sig(Blk|Ign)' /proc/self/status >"$OUT/signals.part"
        mv "$OUT/signals.part" "$OUT/signals""#;
    let before = ["--block-signal", "--ignore-signal=USR1,QUIT,TSTP,ALRM,CHLD"];
    let client = behind(&world, "env", &before, &["-t", SEQ, "-c", command]);
    let client = world.online("p", client);
    world.message(SEQ, FINISHED);
    wait_until("it has run", || !world.lines("signals").is_empty());
    for line in world.lines("signals") {
        let (_, mask) = line.split_once(":\t").expect("mask");
        let mask = u64::from_str_radix(mask, 16).expect("mask");
        // No process can reset two signals that the C library uses itself.
        assert_eq!(mask & !(0b11 << 31), 0, "{line}");
    }
    client.stop();
}

#[test]
fn a_start_folder_that_was_removed_and_made_again_is_found() {
    let world = World::new();
    let folder = world.path("start");
    fs::create_dir(&folder).expect("folder");
    let mut command = world.command("tael-client");
    command.args(["--who", "p", "--root", "lab", "-t", SEQ]);
    // Shells warn about a folder that was removed.
    command.args([
        "-c",
        r#"echo "$ATTR_N" >>here; echo "$ATTR_N" >>"$OUT/runs""#,
    ]);
    command.current_dir(&folder);
    let client = world.online("p", command);
    let mut raw = Raw::connect(world.broker.port());
    let mut run = |n: usize| {
        send(&mut raw, n);
        wait_until("it has run", || world.lines("runs").len() == n + 1);
    };
    run(0);
    assert_eq!(world.lines("start/here"), ["0"]);
    fs::remove_dir_all(&folder).expect("remove");
    run(1);
    assert!(!folder.exists());
    fs::create_dir(&folder).expect("folder");
    run(2);
    run(3);
    assert_eq!(world.lines("start/here"), ["2", "3"]);
    client.stop();
}

#[test]
fn the_first_process_of_a_container_reaps_and_stops() {
    if !has_root("a process id namespace") {
        return;
    }
    const EVENTS: usize = 5;
    let world = World::new();
    // Each leaves a process that loses its parent, and ends after it.
    let command = r#"(setsid sh -c 'sleep 0.1; echo >>"$OUT/orphans"' &)"#;
    let before = ["--pid", "--fork", "--kill-child", "--mount-proc"];
    let client = behind(&world, "unshare", &before, &["-t", SEQ, "-c", command]);
    let mut unshare = world.online("p", client);
    let first = *children_of(unshare.child.id())
        .first()
        .expect("first process");
    let status = fs::read_to_string(format!("/proc/{first}/status")).expect("status");
    let pids = status.lines().find(|line| line.starts_with("NSpid:"));
    assert!(pids.is_some_and(|pids| pids.ends_with("\t1")), "{pids:?}");
    let mut raw = Raw::connect(world.broker.port());
    (0..EVENTS).for_each(|n| send(&mut raw, n));
    wait_until("all orphans end", || world.lines("orphans").len() == EVENTS);
    wait_until("only the client is left", || {
        children_of(first.cast_unsigned()).len() == 1
    });
    kill(Pid::from_raw(first), Signal::SIGTERM).expect("TERM");
    assert_eq!(unshare.wait(), 0, "{}", unshare.log_text());
}

#[test]
fn runners_leave_room_for_their_commands_under_a_limit_of_processes() {
    // Processes of root have no limit, and only root can become another user.
    if !has_root("another user") {
        return;
    }
    const EVENTS: usize = 30;
    let user = 100_000 + std::process::id();
    let world = World::new();
    chown(world.dir.path(), Some(user), Some(user)).expect("chown");
    let id = user.to_string();
    let before = [
        "--reuid",
        &id,
        "--regid",
        &id,
        "--clear-groups",
        "--inh-caps=-all",
    ];
    let arguments = [
        "-t",
        SEQ,
        "--jobs",
        "20",
        "-c",
        r#"echo "$ATTR_N" >>"$OUT/runs""#,
    ];
    let client = world.online("p", behind(&world, "setpriv", &before, &arguments));
    // Its threads and its idle runner count, and four more fit.
    let pid = client.child.id();
    wait_until("a runner is ready", || !children_of(pid).is_empty());
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .expect("tasks")
        .count();
    let limit = (tasks + 1 + 4).to_string();
    let runner = children_of(pid)[0].to_string();
    for pid in [&pid.to_string(), &runner] {
        // That user may lower its own limit.
        let mut prlimit = Command::new("setpriv");
        prlimit.args(["--reuid", &id, "--regid", &id, "--clear-groups", "prlimit"]);
        prlimit.args(["--pid", pid, &format!("--nproc={limit}:")]);
        let (code, _, stderr) = ran(&mut prlimit);
        assert_eq!(code, 0, "{stderr}");
    }
    let mut raw = Raw::connect(world.broker.port());
    (0..EVENTS).for_each(|n| send(&mut raw, n));
    wait_until("all have run", || world.lines("runs").len() == EVENTS);
    world.wait_report("p", "/units/succeeded", EVENTS);
    assert!(client.log_text().contains("runs wait"), "there was room");
    client.stop();
}
