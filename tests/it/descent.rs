//! A run is its command with all descendants, and ends as a whole.

use std::fs;
use std::path::Path;

use crate::common::{Ears, World, children_of, ran, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const SEQ: &str = "lab/seq/status";
const FINISHED: &[(&str, &str)] = &[("status", "finished")];

/// Ways for a process to leave the group of its command.
pub const WAYS_OUT: [&str; 6] = [
    "timeout 1h $LIVE & wait",
    "setsid -w $LIVE",
    // Its parent ends at once.
    "(setsid $LIVE &); sleep 600",
    "set -m; $LIVE & wait",
    "set -m; (timeout 1h setsid -w $LIVE &) & sleep 600",
    // Nothing shows to which run it belongs.
    "env -i PATH=\"$PATH\" setsid -w $LIVE",
];

/// Returns the processes that have `variable` in their environment and have not ended.
pub fn alive(variable: &str) -> Vec<i32> {
    let has = |path: &Path| {
        let environment = fs::read(path.join("environ")).unwrap_or_default();
        let mut entries = environment.split(|b| *b == 0);
        // The shells of these tests start such processes while they wait.
        let brief = fs::read(path.join("comm")).is_ok_and(|name| name == b"sleep\n");
        !brief && entries.any(|entry| entry == variable.as_bytes())
    };
    let entries = fs::read_dir("/proc").expect("proc").flatten();
    let pids = entries.filter(|entry| has(&entry.path()));
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.collect()
}

/// Returns a mark, and a command that carries it until it is killed. A `deaf` one ignores TERM.
pub fn live(deaf: bool) -> (String, String) {
    let mark = format!("MARK={}", ulid::Ulid::generate());
    let trap = if deaf { "trap '' TERM; " } else { "" };
    let live = format!("env {mark} bash -c \"{trap}while :; do sleep 0.05; done\"");
    (mark, live)
}

/// Returns the unit that runs.
fn unit(world: &World) -> String {
    let (code, out, stderr) = ran(&mut world.tael(["work", "list", "--json"]));
    assert_eq!(code, 0, "{stderr}");
    let units: Value = serde_json::from_str(&out).expect("json");
    let mut units = units.as_array().expect("units").iter();
    let running = units.find(|unit| unit["state"] == "running");
    running.expect("running")["unit"]
        .as_str()
        .expect("id")
        .to_owned()
}

#[track_caller]
fn cancel(world: &World) {
    let (code, _, stderr) = ran(&mut world.tael(["work", "cancel", &unit(world)]));
    assert_eq!(code, 0, "{stderr}");
}

fn started(world: &World, ears: &Ears, mark: &str) {
    world.message(SEQ, FINISHED);
    ears.status("p", "started");
    wait_until("it lives", || !alive(mark).is_empty());
}

#[test]
fn a_retry_does_not_run_beside_what_a_timeout_has_ended() {
    let world = World::new();
    // The name is unique.
    let command = r#"
        mkdir "$OUT/here" || { echo beside >>"$OUT/beside"; exit 1; }
        echo run >>"$OUT/runs"
        setsid -w bash -c 'trap "rmdir $OUT/here; exit" TERM; while :; do sleep 0.02; done'"#;
    let options = [
        "--timeout",
        "500ms",
        "--retries",
        "2",
        "--retry-delay",
        "0s",
    ];
    let ears = world.ears(&["lab/#"]);
    let client = world.client("p", &[&["-t", SEQ, "-c", command], &options[..]].concat());
    world.message(SEQ, FINISHED);
    ears.wait_all("all attempts end", |_| {
        (ears.count("p", "failed") == 3).then_some(())
    });
    assert_eq!(world.lines("runs").len(), 3);
    assert!(world.lines("beside").is_empty());
    client.stop();
}

#[test]
fn what_outlives_a_command_that_ends_by_itself_is_no_part_of_the_next_run() {
    let world = World::new();
    let (mark, live) = live(false);
    // The first one leaves a process, and the second one is canceled.
    let command = format!(
        r#"if mkdir "$OUT/first"; then {live} & exit 0; fi; setsid -w env SECOND=1 sleep 600"#
    );
    let ears = world.ears(&["lab/#"]);
    let client = world.client("p", &["-t", SEQ, "-c", &command]);
    world.message(SEQ, FINISHED);
    ears.status("p", "finished");
    wait_until("it lives", || !alive(&mark).is_empty());
    let left = alive(&mark);
    world.message(SEQ, FINISHED);
    wait_until("the second one runs", || ears.count("p", "started") == 2);
    cancel(&world);
    ears.status("p", "failed");
    assert!(
        left.iter().all(|pid| alive(&mark).contains(pid)),
        "it was killed"
    );
    for pid in left {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    client.stop();
}

#[test]
fn a_run_that_has_lost_its_supervisor_ends_whole() {
    for client_dies in [false, true] {
        let world = World::new();
        let (mark, live) = live(true);
        let command = format!("setsid -w {live}");
        let arguments = ["-t", SEQ, "-c", &command];
        let ears = world.ears(&["lab/#"]);
        let client = world.client("p", &arguments);
        started(&world, &ears, &mark);
        let runners = children_of(client.child.id());
        let mut clients = vec![client];
        if client_dies {
            clients.remove(0).kill();
        }
        for runner in runners {
            // An idle runner has left with its client.
            let _ = kill(Pid::from_raw(runner), Signal::SIGKILL);
        }
        if client_dies {
            clients.push(world.client("p", &arguments));
        }
        ears.status("p", "failed");
        assert!(alive(&mark).is_empty());
        clients.remove(0).stop();
    }
}

#[test]
fn a_process_that_may_not_be_killed_is_named() {
    // Root without CAP_KILL may not signal processes of another user.
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: nothing to be seen here");
        return;
    }
    let world = World::new();
    let (mark, live) = live(false);
    let command = format!("setpriv --reuid 65534 --clear-groups {live} & wait");
    let mut setpriv = std::process::Command::new("setpriv");
    setpriv.args(["--bounding-set", "-kill", "--inh-caps", "-kill"]);
    let inner = world.command("tael-client");
    setpriv.arg(inner.get_program()).env_clear();
    for (name, value) in inner.get_envs() {
        setpriv.env(name, value.expect("value"));
    }
    setpriv.args(["--who", "p", "--root", "lab", "-t", SEQ, "-c", &command]);
    setpriv.args(["--grace", "100ms", "--retries", "1", "--timeout", "1h"]);
    let ears = world.ears(&["lab/#"]);
    let client = world.online("p", setpriv);
    started(&world, &ears, &mark);
    let unit = unit(&world);
    let left = alive(&mark);
    let (code, _, stderr) = ran(&mut world.tael(["work", "cancel", &unit]));
    assert_eq!((code, stderr.lines().count()), (77, 1), "{stderr}");
    assert!(stderr.contains("could not be ended"), "{stderr}");
    ears.status("p", "failed");
    let named = |text: &str| {
        left.iter()
            .any(|pid| text.contains(&format!("process {pid} (")))
    };
    assert!(named(&stderr) && named(&client.log_text()), "{stderr}");
    wait_until("it is booked", || {
        let (_, out, _) = ran(&mut world.tael(["work", "status", &unit, "--json"]));
        let report: Value = serde_json::from_str(&out).expect("json");
        report["state"] == "canceled" && named(report["note"].as_str().unwrap_or_default())
    });
    for pid in left {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    client.stop();
}
